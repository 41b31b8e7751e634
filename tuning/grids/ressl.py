"""ReSSL (Zheng et al., the journal version, arXiv 2203.08717).

Tables 1 to 6 (section 4): linear evaluation, ResNet-18, 200 epochs. Tables 4 to 6 take "the best temperature setting
from Table 1", which the recipes have: .04 on CIFAR-10, else .03. So does Table 3, by its figures.

Tables 7 to 11, 13 and 14 (section 5): ImageNet, 200 epochs; the profiles `smoke` and `small` take CIFAR-10 in its
place, and its linear evaluation. What others report, also of methods that are here, is printed alone: the paper ran
ReSSL, and of BYOL and SwAV the published checkpoints (Table 11). "ReSSL (Ours)" of Tables 9 to 11 does not say by how
many crops: here five, its best without stronger augmentation, as Table 14 names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from methods.metrics.linear import RESSL, RESSL_IMAGENET
from methods.metrics.logistic import REGULARIZATIONS
from methods.views import ressl_local
from pipelines.evaluate import Options
from pipelines.recipe import Recipe, find_recipe
from pipelines.shots import LowShot, SemiSupervised, Transfer
from tuning.grid import Axes, Cell, Grid, Measure, Profile, table

PAPER = "ReSSL (arXiv 2203.08717)"

DATASETS = ("cifar10", "cifar100", "stl10", "tinyimagenet")
TEMPERATURES: Axes = {
    "dataset": DATASETS,
    "tau_s": (0.1, 0.2),
    "tau_t": (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.10),
}


def grid(number: int, title: str, derive: Callable[..., Recipe], axes: Axes, *rows: str) -> Grid:
    return Grid(
        name=f"ressl_table{number}",
        paper=PAPER,
        table=f"Table {number}",
        title=title,
        setting="ResNet-18, 200 epochs",
        axes=axes,
        bases={"smoke": "ressl_{dataset}", "small": "ressl_{dataset}", "paper": "ressl_{dataset}"},
        derive=derive,
        figures=table(axes, *rows),
        linear=RESSL,
    )


def temperatures(base: Recipe, dataset: str, tau_s: float, tau_t: float) -> Recipe:
    return base.with_(method={"student_temperature": tau_s, "teacher_temperature": tau_t})


def without_predictor(base: Recipe, dataset: str, tau_s: float, tau_t: float) -> Recipe:
    """The paper shuffles batch norm between GPUs; on one that is simulated, here in 8 parts as in SCE's code."""
    return temperatures(base, dataset, tau_s, tau_t).with_(method={"predictor": False}, batch_norm="split:8")


def warm_up(base: Recipe, dataset: str, info_nce: str) -> Recipe:
    """Its length is not specified by the paper: the learning rate's 10 epochs, or all of a shorter run."""
    return base.with_(method={"info_nce_epochs": min(10, base.epochs) if info_nce == "with" else 0})


def teacher_view(base: Recipe, target: str, dataset: str) -> Recipe:
    """Probabilities where an operation is on: not specified by the paper; the student's, and .5 for the flip."""
    on = {"crop": 1.0, "flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 0.5}
    parts = target.split("+")
    return base.with_(views={"target": {name: rate if name in parts else 0.0 for name, rate in on.items()}})


def contrastive_or_weak(base: Recipe, dataset: str, target: str) -> Recipe:
    parts = {"contrastive": "crop+flip+jitter+grayscale+blur", "weak": "crop+flip"}
    return teacher_view(base, parts[target], dataset)


def queue(base: Recipe, K: float, dataset: str) -> Recipe:
    return base.with_(method={"queue": int(K)})


table1 = grid(
    1,
    "temperatures of student and teacher, with predictor",
    temperatures,
    TEMPERATURES,
    "89.72 90.16 90.62 90.76 90.46 90.21 89.95 89.67 89.61 89.25",
    "90.18 90.42 90.42 89.91 89.97 90.00 89.84 89.19 88.88 88.63",
    "63.63 64.61 65.03 64.60 64.26 63.19 62.54 60.56 60.17 58.18",
    "63.12 63.09 62.08 61.93 61.20 60.48 59.25 58.52 58.11 56.36",
    "87.82 88.54 88.89 88.41 87.60 87.24 86.87 84.04 83.67 83.59",
    "87.66 87.28 86.51 86.19 85.75 85.75 85.58 85.61 85.37 84.52",
    "45.66 45.62 46.64 46.06 45.36 41.22 37.02 36.03 32.54 32.28",
    "45.64 45.74 43.72 42.62 42.02 40.72 38.24 34.74 34.12 30.10",
)

table2 = grid(
    2,
    "temperatures of student and teacher, without predictor; .08 and more at tau_s .1 collapses",
    without_predictor,
    TEMPERATURES,
    "89.35 89.74 90.09 90.04 90.20 90.18 88.67 10.00 10.00 10.10",
    "89.52 89.67 89.24 89.50 89.22 89.40 89.50 89.58 89.43 89.43",
    "62.34 62.79 62.71 63.79 63.46 63.20 61.31 1.00 1.00 1.00",
    "60.37 60.05 60.24 60.09 59.09 59.12 59.76 59.97 59.69 59.08",
    "86.65 86.96 87.16 87.32 88.25 87.83 87.08 10.00 10.00 10.00",
    "85.17 86.12 85.01 85.67 85.21 85.51 85.28 85.93 85.56 85.58",
    "45.20 45.40 46.30 46.60 45.08 45.24 44.18 0.50 0.50 0.50",
    "43.28 42.98 43.58 42.12 42.70 42.76 42.60 41.46 41.08 40.70",
)

WARM_UP: Axes = {"dataset": DATASETS, "info_nce": ("without", "with")}
table3 = grid(
    3,
    "InfoNCE warm-up",
    warm_up,
    WARM_UP,
    "90.76 89.98",
    "65.03 65.33",
    "88.89 90.00",
    "46.64 48.22",
)

TEACHER: Axes = {
    "target": (
        "none",
        "crop",
        "flip",
        "jitter",
        "grayscale",
        "blur",
        "crop+flip",
        "crop+jitter",
        "crop+grayscale",
        "crop+blur",
        "crop+flip+jitter",
        "crop+flip+grayscale",
        "crop+flip+blur",
        "crop+flip+jitter+grayscale+blur",
    ),
    "dataset": DATASETS,
}
table4 = grid(
    4,
    "augmentation of the teacher's view, by parts",
    teacher_view,
    TEACHER,
    "79.33 52.77 86.01 36.76",
    "90.62 64.98 88.62 46.38",
    "80.38 51.60 86.24 38.20",
    "78.47 51.73 85.92 36.64",
    "78.44 49.76 87.12 36.32",
    "78.54 50.65 85.34 36.20",
    "90.76 65.03 88.89 46.64",
    "89.80 62.87 87.45 43.98",
    "89.56 62.61 88.65 42.52",
    "89.18 62.75 87.34 46.18",
    "90.15 63.55 87.21 44.00",
    "89.63 62.95 88.47 41.88",
    "89.43 62.37 87.22 45.30",
    "86.88 58.60 85.05 38.66",
)

WEAK: Axes = {"dataset": DATASETS, "target": ("contrastive", "weak")}
table5 = grid(
    5,
    "contrastive or weak augmentation of the teacher's view",
    contrastive_or_weak,
    WEAK,
    "86.88 90.76",
    "58.60 65.03",
    "85.05 88.89",
    "38.66 46.64",
)

QUEUE: Axes = {"K": (256.0, 512.0, 1024.0, 4096.0, 8192.0, 16384.0, 32768.0), "dataset": DATASETS}
table6 = grid(
    6,
    "queue size",
    queue,
    QUEUE,
    "89.52 62.21 85.05 42.80",
    "90.38 63.06 85.76 43.40",
    "90.37 64.32 87.10 44.72",
    "90.76 65.03 87.90 45.47",
    "90.73 65.65 87.71 46.34",
    "90.82 65.62 88.89 46.64",
    "90.27 65.37 88.60 45.95",
)


# ----------------------------------------------------------------------------------------- section 5


def bases(paper: str) -> Mapping[Profile, str]:
    return {"smoke": "ressl_cifar10", "small": "ressl_cifar10", "paper": paper}


CIFAR: Mapping[Profile, Mapping[str, Any]] = {
    "smoke": {"linear": replace(RESSL, augment="none", batch_size=64)},
    "small": {"linear": replace(RESSL, augment="none")},
}
TRANSFER: Mapping[Profile, Mapping[str, Any]] = {
    "smoke": {"transfer": Transfer(regularizations=(1.0, 1e-2, 1e-4), max_iterations=50)},
    "small": {"transfer": Transfer(regularizations=REGULARIZATIONS)},
}
FEW = SemiSupervised()
SEMI: Mapping[Profile, Mapping[str, Any]] = {
    "smoke": {"semi_supervised": replace(FEW, one=replace(FEW.one, epochs=2), ten=replace(FEW.ten, epochs=2))}
}
PERCENTS = {f"{percent}%": Measure("semi_supervised", f"top1_{percent}") for percent in (1, 10)}
LABELS = {
    f"{percent}%-{top}": Measure("semi_supervised", f"{top}_{percent}")
    for percent in (1, 10)
    for top in ("top1", "top5")
}
SHOTS: Mapping[Profile, Mapping[str, Any]] = {"smoke": {"low_shot": LowShot(draws=1)}}


def as_it_is(base: Recipe, **values: Any) -> Recipe:
    """One pretraining, which the table evaluates."""
    return base


def crops(base: Recipe, number: str) -> Recipe:
    """Of the student: the base's, with another of full size, or with the four smaller ones of multi-crop."""
    online = base.views["online"]
    if number == "2-crops":
        return base.with_(views={"second": replace(online, name="second")})
    if number == "multi":
        local = ressl_local(online.size).values()
        return base.with_(
            views={it.name: replace(online, name=it.name, size=it.size, crop_scale=it.crop_scale) for it in local}
        )
    return base


def conference(base: Recipe) -> Recipe:
    """Without predictor and InfoNCE; on ImageNet the conference version's own setting. On CIFAR-10 as in Table 2."""
    if base == find_recipe("ressl_imagenet"):
        return find_recipe("ressl_imagenet_conference")
    return base.with_(method={"predictor": False, "info_nce_epochs": 0}, batch_norm="split:8")


def versions(base: Recipe, method: str) -> Recipe:
    name = method.removeprefix("ressl-")
    base = conference(base) if name.startswith("conference") else base
    return crops(base, name.removeprefix("conference-"))


def stronger(base: Recipe, method: str) -> Recipe:
    """CLSA's augmentation of the student's five crops: its five operations, behind what the recipe has. The paper has
    "the same augmentation setting"; CLSA also has each crop without them, and its own areas."""
    base = crops(base, "multi")
    students = [name for name in base.views if name != "target"]
    return base.with_(views={name: {"operations": 5} for name in students}) if method == "ressl-strong" else base


def lightweight(base: Recipe, backbone: str, method: str) -> Recipe:
    """As ResNet-50's recipes: the paper names no other setting ("the experimental setting in [30], [32]")."""
    return crops(base, method.removeprefix("ressl-")).with_(backbone=backbone)


def few_labels(base: Recipe, backbone: str, method: str, percent: str) -> Recipe:
    return lightweight(base, backbone, method)


def to_dataset(options: Options, profile: Profile, method: str, dataset: str) -> Options:
    """From the images that the sweep's --labelled and --labelled-test name."""
    data = options.data
    return replace(options, transfer=replace(options.transfer, train=data.train, test=data.test or ""))


VERSIONS: Axes = {
    "method": (
        "supervised",
        "npid",
        "localagg",
        "moco-v2",
        "mochi",
        "cpc-v2",
        "pcl-v2",
        "adco",
        "infomin",
        "isd",
        "ressl-conference-1-crop",
        "ressl-1-crop",
        "clsa-single",
        "simclr",
        "simsiam",
        "moco-v2-symmetric",
        "wcl",
        "nnclr",
        "byol",
        "barlow-twins",
        "moco-v3",
        "swav",
        "w-mse-4",
        "ressl-conference-2-crops",
        "ressl-2-crops",
    )
}


def trained(cell: Cell) -> bool:
    """ReSSL's, and the backbone that it begins with; means over columns are printed alone."""
    return any(str(value).startswith("ressl") or value == "random" for value in cell) and "mean" not in cell


def section5(
    number: int,
    title: str,
    derive: Callable[..., Recipe],
    axes: Axes,
    figures: Mapping[Cell, float | None],
    base: str = "ressl_imagenet_multicrop",
    **fields: Any,
) -> Grid:
    return Grid(
        name=f"ressl_table{number}",
        paper=PAPER,
        table=f"Table {number}",
        title=title,
        axes=axes,
        bases=bases(base),
        derive=derive,
        figures={cell: figure for cell, figure in figures.items() if trained(cell)},
        printed={cell: figure for cell, figure in figures.items() if not trained(cell) and figure is not None},
        linear=RESSL_IMAGENET,
        **{"setting": "ImageNet, ResNet-50, 200 epochs", "evaluation": CIFAR, **fields},
    )


table7 = section5(
    7,
    "ReSSL beside others, and its conference version (others: 200 epochs, but supervised 120, BYOL, Barlow Twins and "
    "MoCo v3 300, SwAV and W-MSE 400)",
    versions,
    VERSIONS,
    table(
        VERSIONS,
        "76.5 58.5 58.8 67.5 68.0 63.8 67.6 68.6 70.1 69.8 69.9 72.0 "
        "69.4 66.8 70.0 69.9 70.3 70.7 72.5 71.4 72.8 70.1 72.6 71.4 73.2",
    ),
    base="ressl_imagenet",
    smoke=(("ressl-conference-1-crop",), ("ressl-1-crop",), ("ressl-2-crops",)),
)

CROPS: Axes = {
    "method": (
        "swav-200",
        "swav-800",
        "adco-200",
        "adco-800",
        "wcl-200",
        "wcl-800",
        "fcn-1000",
        "truncated-triplet-200",
        "dino-800",
        "nnclr-1000",
        "unigrad-800",
        "ressl-multi",
        "clsa-multi-200",
        "clsa-multi-800",
        "ressl-strong",
    )
}
table8 = section5(
    8,
    "five crops, and CLSA's stronger augmentation of them (others: by epochs)",
    stronger,
    CROPS,
    table(CROPS, "72.7 75.3 73.2 75.7 73.3 74.7 74.4 74.1 75.3 75.6 75.5 76.0 73.3 76.2 76.3"),
    base="ressl_imagenet",
    smoke=(("ressl-multi",), ("ressl-strong",)),
)

MANY_SHOT: Axes = {
    "method": ("supervised", "simclr", "byol", "nnclr", "ressl"),
    "dataset": ("cifar10", "cifar100", "food101", "cars", "dtd", "pets", "flowers", "aircraft", "caltech101", "mean"),
}
table9 = section5(
    9,
    "transfer to the datasets that --labelled and --labelled-test name; without them, to that of the pretraining",
    as_it_is,
    MANY_SHOT,
    table(
        MANY_SHOT,
        "93.6 78.3 72.3 66.7 74.9 91.5 94.7 61.0 94.5 80.8",
        "90.5 74.4 72.8 49.3 75.7 84.6 92.6 50.3 89.3 75.5",
        "91.3 78.4 75.3 67.8 75.5 90.4 96.1 60.6 94.2 81.1",
        "93.7 79.0 76.7 67.1 75.5 91.8 95.1 64.1 91.3 81.6",
        "93.8 78.5 77.2 68.3 76.6 90.7 94.8 65.1 94.5 82.2",
    ),
    smoke=(("ressl", "cifar10"), ("ressl", "cifar100")),
    reads="dataset",
    measures={dataset: Measure("transfer", "top1") for dataset in MANY_SHOT["dataset"]},
    evaluation=TRANSFER,
    transferred=to_dataset,
    labelled=("labelled", "labelled_test"),
    collapses=False,
)
"""Its caption is lost in our copy; the text calls it Table 9. `{dataset}` in the options' paths stands for the axis.
ReSSL names no metric: top-1 here."""

SEMI_SUPERVISED: Axes = {
    "method": (
        "s4l",
        "uda",
        "fixmatch",
        "npid",
        "pcl",
        "pirl",
        "swav",
        "simclr",
        "byol",
        "barlow-twins",
        "nnclr",
        "ressl",
    ),
    "figure": tuple(LABELS),
}
table10 = section5(
    10,
    "1% and 10% of the labels; the paper takes SimCLR's lists, here as many of each class are drawn",
    as_it_is,
    SEMI_SUPERVISED,
    table(
        SEMI_SUPERVISED,
        "- 53.4 - 83.8",
        "- 68.8 - 88.5",
        "- - 71.5 89.1",
        "- 39.2 - 77.4",
        "- 75.6 - 86.2",
        "30.7 60.4 57.2 83.8",
        "53.9 78.5 70.2 89.9",
        "48.3 75.5 65.6 87.8",
        "53.2 78.4 68.8 89.0",
        "55.0 79.2 69.7 89.3",
        "56.4 80.7 69.8 89.3",
        "57.8 81.6 71.2 90.2",
    ),
    smoke=(("ressl", "1%-top1"), ("ressl", "10%-top1")),
    reads="figure",
    measures=LABELS,
    evaluation=SEMI,
    collapses=False,
)

LOW_SHOT: Axes = {
    "method": ("random", "supervised", "moco-v2", "pcl-v2", "swav", "byol", "ressl"),
    "k": ("4", "8", "16", "32", "64", "full"),
}
table11 = section5(
    11,
    "a linear SVM on k images of each class of Pascal VOC 2007, which --labelled and --labelled-test name: mAP",
    as_it_is,
    LOW_SHOT,
    table(
        LOW_SHOT,
        "10.1 10.4 10.8 11.3 11.9 12.4",
        "73.8 79.5 82.3 84.0 85.1 87.3",
        "64.9 72.5 76.1 79.2 81.5 84.6",
        "66.2 74.5 78.3 80.7 82.7 85.4",
        "64.0 73.0 78.7 82.3 84.9 88.1",
        "64.8 73.4 78.3 81.7 83.9 87.0",
        "66.8 75.3 80.5 83.8 86.0 88.6",
    ),
    smoke=(("random", "4"), ("ressl", "4"), ("ressl", "full")),
    metric=("low_shot", "map_{k}"),
    reads="k",
    untrained={"random": "ressl"},
    evaluation=SHOTS,
    labelled=("labelled", "labelled_test"),
    collapses=False,
)

BACKBONES = ("resnet18", "resnet34", "efficientnet_b0", "efficientnet_b1", "mobilenet_v3_large")
STUDENTS = ("ressl-1-crop", "ressl-2-crops", "ressl-multi")
DISTILLED: Mapping[str, Mapping[str, float]] = {
    "resnet18": {
        "simclr": 53.4,
        "moco-v2": 56.1,
        "swav": 64.9,
        "byol": 61.9,
        "seed-resnet50": 57.9,
        "disco-resnet50": 60.6,
        "bingo-resnet50": 61.4,
        "compress-resnet50": 62.6,
        "oss-resnet50": 64.1,
        "simdis-off-resnet50": 65.2,
    },
    "resnet34": {
        "moco-v2": 57.4,
        "seed-resnet50": 58.5,
        "seed-resnet152": 62.7,
        "disco-resnet50": 62.5,
        "disco-resnet152": 68.1,
        "bingo-resnet50": 63.5,
        "bingo-resnet152": 69.1,
    },
    "efficientnet_b0": {
        "moco-v2": 46.8,
        "seed-resnet50": 61.3,
        "seed-resnet152": 65.3,
        "disco-resnet50": 66.5,
        "disco-resnet152": 67.8,
        "oss-resnet50": 64.1,
    },
    "efficientnet_b1": {
        "moco-v2": 48.4,
        "seed-resnet50": 61.4,
        "seed-resnet152": 67.3,
        "disco-resnet50": 66.6,
        "disco-resnet152": 73.1,
    },
    "mobilenet_v3_large": {
        "moco-v2": 36.2,
        "seed-resnet50": 55.2,
        "seed-resnet152": 61.4,
        "disco-resnet50": 64.4,
        "disco-resnet152": 63.7,
    },
}
"""Table 13 beside ReSSL; of those that are distilled, by their teacher. SimCLR to BYOL of ResNet-18: 800 epochs."""
FEW_DISTILLED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "resnet18": {
        "simclr": (28.8, 54.2),
        "moco-v2": (25.2, 54.1),
        "byol": (25.6, 52.3),
        "swav": (39.7, 60.4),
        "compress-resnet50": (41.2, 47.6),
        "seed-resnet50": (39.1, 50.2),
        "disco-resnet50": (39.2, 50.1),
        "bingo-resnet50": (42.8, 57.5),
    },
    "efficientnet_b0": {
        "seed-resnet50": (37.7, 53.3),
        "seed-resnet152": (41.8, 56.7),
        "disco-resnet50": (42.1, 56.6),
        "disco-resnet152": (52.0, 63.1),
    },
    "mobilenet_v3_large": {
        "seed-resnet50": (36.0, 51.7),
        "seed-resnet152": (40.0, 52.8),
        "disco-resnet50": (38.8, 51.3),
        "disco-resnet152": (42.9, 54.4),
    },
}
"""Table 14 beside ReSSL, with 1% and 10% of the labels."""
METHODS = tuple(dict.fromkeys(name for row in DISTILLED.values() for name in row))
LIGHT: Axes = {"backbone": BACKBONES, "method": STUDENTS}
table13 = section5(
    13,
    "light backbones, beside distillation from larger ones",
    lightweight,
    {"backbone": BACKBONES, "method": (*METHODS, *STUDENTS)},
    {
        **table(
            LIGHT,
            "62.4 63.8 66.5",
            "66.3 68.4 71.0",
            "69.7 70.9 72.2",
            "71.1 73.1 -",
            "64.7 66.6 68.2",
        ),
        **{(backbone, name): figure for backbone, row in DISTILLED.items() for name, figure in row.items()},
    },
    base="ressl_imagenet",
    setting="ImageNet, 200 epochs",
    smoke=tuple(("mobilenet_v3_large", name) for name in STUDENTS),
)
"""EfficientNet-B1 with multi-crop has a figure in the paper, whose digits are lost here."""

FEW_LIGHT: Axes = {"backbone": BACKBONES, "method": ("ressl-multi",), "percent": tuple(PERCENTS)}
table14 = section5(
    14,
    "light backbones with 1% and 10% of the labels, drawn, beside distillation from larger ones",
    few_labels,
    {**FEW_LIGHT, "method": (*METHODS, "ressl-multi")},
    {
        **table(FEW_LIGHT, "45.6 62.3", "55.4 67.8", "55.6 68.2", "59.5 70.9", "50.9 62.8"),
        **{
            (backbone, name, percent): figure
            for backbone, row in FEW_DISTILLED.items()
            for name, figures in row.items()
            for percent, figure in zip(PERCENTS, figures, strict=True)
        },
    },
    base="ressl_imagenet",
    setting="ImageNet, 200 epochs",
    smoke=tuple(("mobilenet_v3_large", "ressl-multi", percent) for percent in PERCENTS),
    reads="percent",
    measures=PERCENTS,
    evaluation=SEMI,
)

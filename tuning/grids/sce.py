"""SCE (Denize et al., WACV 2023, arXiv 2111.14585), sections 4.1 and 4.2: linear evaluation; section 4.4: transfer.

Tables 1, 3, 4 and 6 are ImageNet-100 with ResNet-50, 200 epochs; the profiles `smoke` and `small` take CIFAR-10 in its
place, whose recipe has the same tau_m .05. Tables 9 and 10 are of the one run with multi-crop on ImageNet, likewise.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from methods import moco, ressl, views
from methods.metrics.linear import Linear
from methods.metrics.logistic import REGULARIZATIONS, Metric
from pipelines.evaluate import Options
from pipelines.recipe import Recipe
from pipelines.shots import LowShot, Transfer
from tuning.grid import Axes, Cell, Grid, Measure, Profile, table


def grid(
    number: int,
    title: str,
    derive: Callable[..., Recipe],
    axes: Axes,
    figures: Mapping[Cell, float | None],
    smoke: tuple[Cell, ...] = (),
) -> Grid:
    return Grid(
        name=f"sce_table{number}",
        paper="SCE (arXiv 2111.14585)",
        table=f"Table {number}",
        title=title,
        setting="ImageNet-100, ResNet-50, 200 epochs",
        axes=axes,
        bases={"smoke": "sce_cifar10", "small": "sce_cifar10", "paper": "sce_imagenet100"},
        derive=derive,
        figures=figures,
        smoke=smoke,
        linear=Linear(),
    )


def coefficient(base: Recipe, lam: float) -> Recipe:
    return base.with_(method={"coefficient": lam})


def three_terms(base: Recipe, lam: float, mu: float, eta: float, tau_m: float) -> Recipe:
    weights = {"coefficient": lam, "relation_weight": mu, "ceil_weight": eta}
    return base.with_(method={**weights, "target_temperature": tau_m})


def augmentation(base: Recipe, online: str, teacher: str, symmetric: str) -> Recipe:
    drawn = {"online": online, "target": teacher}
    of = {view: getattr(views, kind)(view, base.views[view].size) for view, kind in drawn.items()}
    return base.with_(views=of, method={"symmetric": symmetric == "yes"})


def temperatures(base: Recipe, tau: float, tau_m: float) -> Recipe:
    return base.with_(method={"temperature": tau, "target_temperature": tau_m})


def baselines(base: Recipe, method: str, dataset: str) -> Recipe:
    """The other methods with SCE's architecture and training (section 4.2).

    MoCo v2: tau .2, both views strong; on ImageNet the projector of ImageNet-100. ReSSL: "the best temperatures
    reported", which are its tables' without predictor; on ImageNet and ImageNet-100 .04, its conference version's.
    Deviation: our ReSSL's projector on ImageNet has two layers, SCE's there has three.
    """
    config = base.method
    momentum = {"momentum": config.momentum, "momentum_end": config.momentum_end}
    if method == "moco":
        wide = dataset == "imagenet"
        baseline = moco.Config(
            temperature=0.2,
            queue=config.queue,
            hidden=4096 if wide else config.hidden,
            head_norm=config.projector_norm and not wide,
            dim=config.dim,
            **momentum,
        )
        return base.with_(method=baseline, views={"target": views.strong("target", base.views["target"].size)})
    if method == "ressl":
        relational = ressl.Config(
            teacher_temperature={"cifar10": 0.05, "stl10": 0.05}.get(dataset, 0.04),
            queue=config.queue,
            hidden=config.hidden,
            dim=config.dim,
            head_norm=config.projector_norm,
            predictor=False,
            **momentum,
        )
        return base.with_(method=relational)
    return base.with_(method={"target_temperature": 0.07}) if dataset == "imagenet100" else base  # best of Table 6


LAMBDA: Axes = {"lam": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
table1 = grid(
    1,
    "lambda, weight of the contrastive part",
    coefficient,
    LAMBDA,
    table(LAMBDA, "81.53 81.77 82.54 82.81 82.91 82.94 82.17 81.58 81.75 81.79 81.11"),
)

TERMS = {  # lambda, mu, eta -> at tau_m .05 and .07
    (1.0, 0.0, 0.0): (81.11, 81.11),
    (0.5, 0.5, 0.0): (82.80, 82.49),
    (0.5, 0.5, 0.5): (82.94, 83.37),
    (0.0, 1.0, 0.0): (80.79, 78.35),
    (0.0, 1.0, 1.0): (81.53, 79.64),
}
table3 = grid(
    3,
    "coefficients of the three terms of Eq. 9, at two target temperatures",
    three_terms,
    {"lam": (1.0, 0.5, 0.0), "mu": (0.0, 0.5, 1.0), "eta": (0.0, 0.5, 1.0), "tau_m": (0.05, 0.07)},
    {(*terms, tau_m): row[i] for terms, row in TERMS.items() for i, tau_m in enumerate((0.05, 0.07))},
    smoke=((0.5, 0.5, 0.0, 0.05), (0.5, 0.5, 0.5, 0.05), (0.5, 0.5, 0.5, 0.07)),
)

table4 = grid(
    4,
    "augmentation of both views, and the symmetric loss",
    augmentation,
    {
        "online": ("strong", "strong_gamma", "weak", "strong_alpha"),
        "teacher": ("weak", "strong", "strong_beta"),
        "symmetric": ("no", "yes"),
    },
    {
        ("strong", "weak", "no"): 82.94,
        ("strong_gamma", "weak", "no"): 83.00,
        ("weak", "strong", "no"): 73.43,
        ("strong", "strong", "no"): 80.54,
        ("strong_alpha", "strong_beta", "no"): 80.74,
        ("strong", "weak", "yes"): 83.66,
        ("strong", "strong", "yes"): 83.00,
        ("strong_alpha", "strong_beta", "yes"): 84.17,
    },
)

METHODS: Axes = {
    "method": ("moco", "ressl", "sce"),
    "dataset": ("imagenet", "imagenet100", "cifar10", "cifar100", "stl10", "tinyimagenet"),
}
table5 = Grid(
    name="sce_table5",
    paper="SCE (arXiv 2111.14585)",
    table="Table 5",
    title="SCE beside its baselines, as SCE's authors ran them",
    setting="ResNet-50 on ImageNet and ImageNet-100, else ResNet-18; 200 epochs",
    axes=METHODS,
    bases={"smoke": "sce_{dataset}", "small": "sce_{dataset}", "paper": "sce_{dataset}"},
    derive=baselines,
    figures=table(
        METHODS,
        "68.8 80.46 87.56 61.00 86.53 45.93",
        "70.2 81.58 90.20 64.01 89.05 49.47",
        "70.5 83.37 90.34 65.45 89.94 51.90",
    ),
    smoke=(("moco", "cifar10"), ("ressl", "cifar10"), ("sce", "cifar10")),
    linear=Linear(),
    cited={
        ("moco", "imagenet"): 67.5,
        ("ressl", "imagenet"): 69.9,
        ("ressl", "cifar10"): 90.20,
        ("ressl", "cifar100"): 63.79,
        ("ressl", "stl10"): 88.25,
        ("ressl", "tinyimagenet"): 46.60,
    },
)

TEMPERATURES: Axes = {"tau": (0.1, 0.2), "tau_m": (0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.10)}
table6 = grid(
    6,
    "temperatures of both distributions",
    temperatures,
    TEMPERATURES,
    table(
        TEMPERATURES,
        "82.33 82.52 82.94 82.54 83.37 82.71 82.53 82.07",
        "81.28 81.15 81.19 81.19 81.13 80.91 81.18 81.20",
    ),
)

# ---------------------------------------------------------------------------------------- section 4.4


def as_it_is(base: Recipe, **values: Any) -> Recipe:
    """One pretraining, which the table evaluates."""
    return base


def to_dataset(options: Options, profile: Profile, method: str, dataset: str) -> Options:
    """From the images that the sweep's --labelled and --labelled-test name."""
    data = options.data
    metric: Metric = "mean_per_class" if DATASETS[dataset] == "mean_per_class" else "top1"
    return replace(options, transfer=replace(options.transfer, train=data.train, test=data.test or "", metric=metric))


def evaluated(number: int, title: str, axes: Axes, figures: Mapping[Cell, float | None], **fields: Any) -> Grid:
    """`sce` is trained, but for the mean over the columns; others are the paper's alone, ReSSL too: its authors'."""

    def trained(cell: Cell) -> bool:
        return cell[0] == "sce" and "mean" not in cell

    return Grid(
        name=f"sce_table{number}",
        paper="SCE (arXiv 2111.14585)",
        table=f"Table {number}",
        title=title,
        setting="ImageNet, ResNet-50, multi-crop, 200 epochs",
        axes=axes,
        bases={"smoke": "sce_cifar10", "small": "sce_cifar10", "paper": "sce_imagenet_multicrop"},
        derive=as_it_is,
        figures={cell: figure for cell, figure in figures.items() if trained(cell)},
        printed={cell: figure for cell, figure in figures.items() if not trained(cell)},
        labelled=("labelled", "labelled_test"),
        collapses=False,
        **fields,
    )


DATASETS: Mapping[str, str] = {
    "food101": "top1",
    "cifar10": "top1",
    "cifar100": "top1",
    "sun397": "top1",
    "cars": "top1",
    "aircraft": "mean_per_class",
    "voc2007": "map",
    "dtd": "top1",
    "pets": "mean_per_class",
    "caltech101": "mean_per_class",
    "flowers": "mean_per_class",
    "mean": "mean",
}
"""The columns of Table 9, and what they show: top-1, its mean over the classes, or the 11-point mAP (section 4.4)."""
MANY_SHOT: Axes = {"method": ("simclr", "byol", "nnclr", "sce", "supervised"), "dataset": tuple(DATASETS)}
table9 = evaluated(
    9,
    "transfer to the datasets that --labelled and --labelled-test name; without them, to that of the pretraining",
    MANY_SHOT,
    table(
        MANY_SHOT,
        "72.8 90.5 74.4 60.6 49.3 49.8 81.4 75.7 84.6 89.3 92.6 74.6",
        "75.3 91.3 78.4 62.2 67.8 60.6 82.5 75.5 90.4 94.2 96.1 79.5",
        "76.7 93.7 79.0 62.5 67.1 64.1 83.0 75.5 91.8 91.3 95.1 80",
        "77.7 94.8 80.4 65.3 65.7 59.6 84.0 77.1 90.9 92.7 96.1 80.4",
        "72.3 93.6 78.3 61.9 66.7 61.0 82.8 74.9 91.5 94.5 94.7 79.3",
    ),
    smoke=(("sce", "cifar10"), ("sce", "cifar100")),
    reads="dataset",
    measures={dataset: Measure("transfer", figure) for dataset, figure in DATASETS.items()},
    evaluation={
        "smoke": {"transfer": Transfer(regularizations=(1.0, 1e-2, 1e-4), max_iterations=50)},
        "small": {"transfer": Transfer(regularizations=REGULARIZATIONS)},
    },
    transferred=to_dataset,
)
"""`{dataset}` in the options' paths stands for the axis."""

SHOTS = (16, 32, 64)
LOW_SHOT: Axes = {
    "method": ("moco-v2", "pcl-v2", "ressl", "swav", "wcl", "sce"),
    "K": (*map(str, SHOTS), "full"),
}
table10 = evaluated(
    10,
    "a linear SVM on K images of each class of Pascal VOC 2007, which --labelled and --labelled-test name: mAP",
    LOW_SHOT,
    table(
        LOW_SHOT,
        "76.14 79.16 81.52 84.60",
        "78.34 80.72 82.67 85.43",
        "79.17 81.96 83.81 86.31",
        "78.38 81.86 84.40 87.47",
        "80.24 82.97 85.01 87.75",
        "79.47 83.05 85.47 88.24",
    ),
    smoke=(("sce", "16"), ("sce", "full")),
    metric=("low_shot", "map_{K}"),
    reads="K",
    evaluation={
        "smoke": {"low_shot": LowShot(shots=SHOTS, draws=1)},
        "small": {"low_shot": LowShot(shots=SHOTS)},
        "paper": {"low_shot": LowShot(shots=SHOTS)},
    },
)

"""Chapters 5 and 6 of S. Jenni's thesis on self-supervised learning: temporal transformations of videos, and
synchronized and flipped views of several cameras.

Tables 5.1 and 5.2 have figures of two data sets, UCF101 and HMDB51, and Table 6.2 of two sets of labels: a grid for
each, whose sweep trains its own runs. In the thesis figures of actions are means over the sets' three splits (section
5.3), here they are of the splits that are given. A path with {dataset} stands for each pretraining set of Table 5.2.

    python -m tuning sweep thesis_table5_1_hmdb51 --profile paper --data.train 'ucf101/train-*.parquet' \\
        --labelled 'hmdb51/train-*.parquet' --labelled-test 'hmdb51/test-*.parquet'

Rows of others' methods, and those that start from ImageNet's weights, are shown as the thesis prints them. The profiles
`smoke` and `small` are made for `python -m pipelines data motions` and `poses`; `small` takes any labelled clips, and
any takes with joints. Their sizes, epochs and rates are ours.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from methods import supervised
from methods.clips import ClipView
from pipelines.evaluate import Clips, Options
from pipelines.posing import Posing
from pipelines.recipe import Recipe
from pipelines.transfer import ADAMW, VIDEO_FINETUNE, VIDEO_FROZEN, Timing
from tuning.grid import Axes, Cell, Grid, Label, Measure, Profile, table

PAPER = "thesis of S. Jenni"
Fields = Mapping[str, Any]
OTHER_SET = ("labelled", "labelled_test")

# ----------------------------------------------------------------------------------------- chapter 5

VIDEO_SCALES: Mapping[Profile, Fields] = {
    "smoke": {"epochs": 1, "batch_size": 8, "data": {"limit": 32}},
    "small": {"epochs": 20, "data": {"limit": 600}},
    "paper": {},
}
CLIPS = {"smoke": Clips(count=2), "small": Clips(count=5), "paper": Clips(count=32)}
"""For actions. The text: "all center-cropped sub-sequences"; the code: up to 32 of them, as here."""
FEW_STEPS = replace(ADAMW, lr=1e-3, weight_decay=1e-4 / 1e-3, final_lr=1e-6)


def actions(base: Recipe) -> Recipe:
    """Row "Action Labels UCF101": C3D with a linear classifier, all of it learning from the labels. Of this training
    the text says nothing: it has the other rows' optimizer, epochs and crops; clips are of speed 2, as in transfer, and
    a batch has four of them where the others' have the four variants of one."""
    view = next(iter(base.views.values()))
    return replace(
        base,
        method=supervised.Config(freeze_backbone=False),
        views={"image": ClipView("image", size=view.size, frames=view.frames, speed=2)},
        batch_size=4 * base.batch_size,
    )


def transformed(base: Recipe, transformations: str, speed_loss: str) -> Recipe:
    """Batches have 7 videos in every row: the text's 28 examples where all four kinds take part."""
    if transformations == "action-labels":
        return actions(base)
    kinds = tuple(transformations.split("+"))
    return base.with_(method={"transformations": kinds, "speed_loss": speed_loss == "yes"})


ABLATION_5_1: Mapping[Cell, tuple[float, float]] = {
    ("action-labels", "none"): (60.7, 28.8),
    ("speed", "yes"): (49.3, 32.5),
    ("speed+random", "no"): (44.5, 31.7),
    ("speed+periodic", "no"): (40.6, 29.5),
    ("speed+warp", "no"): (43.5, 32.6),
    ("speed+random", "yes"): (55.1, 33.2),
    ("speed+periodic", "yes"): (56.5, 36.1),
    ("speed+warp", "yes"): (55.8, 36.9),
    ("speed+random+periodic", "no"): (47.4, 30.1),
    ("speed+random+warp", "no"): (54.8, 36.6),
    ("speed+periodic+warp", "no"): (50.6, 36.4),
    ("speed+random+periodic", "yes"): (60.0, 37.1),
    ("speed+random+warp", "yes"): (60.4, 39.2),
    ("speed+periodic+warp", "yes"): (59.5, 39.0),
    ("speed+random+periodic+warp", "no"): (54.2, 34.9),
    ("speed+random+periodic+warp", "yes"): (60.6, 38.0),
}
"""UCF101 with frozen convolutions, HMDB51 fine-tuned."""
frozen = Grid(
    name="thesis_table5_1",
    paper=PAPER,
    table="Table 5.1, UCF101",
    title="which temporal transformations are told apart, with and without the speed loss; convolutions frozen",
    setting="UCF101, C3D, 50 epochs, convolutions frozen",
    axes={
        "transformations": tuple(dict.fromkeys(str(kinds) for kinds, _ in ABLATION_5_1)),
        "speed_loss": ("none", "no", "yes"),
    },
    bases={"smoke": "temporal_motions", "small": "temporal_small", "paper": "temporal_ucf101"},
    derive=transformed,
    figures={cell: ucf101 for cell, (ucf101, _) in ABLATION_5_1.items()},
    smoke=(("action-labels", "none"), ("speed+random+periodic+warp", "yes")),
    metric=("layerwise", "pool5"),
    collapses=False,
    evaluation={
        "smoke": {
            "layerwise": replace(VIDEO_FROZEN, head=(64, 64), epochs=1, optimizer=FEW_STEPS),
            "clips": CLIPS["smoke"],
            "test_limit": 32,
        },
        "small": {
            "layerwise": replace(VIDEO_FROZEN, head=(256, 256), epochs=20, optimizer=FEW_STEPS),
            "clips": CLIPS["small"],
        },
        "paper": {"layerwise": VIDEO_FROZEN, "clips": CLIPS["paper"]},
    },
    profiles={**VIDEO_SCALES, "paper": {"epochs": 50}},
)
FINETUNED: Mapping[Profile, Fields] = {
    "smoke": {
        "finetune": replace(VIDEO_FINETUNE, epochs=1, optimizer=FEW_STEPS),
        "clips": CLIPS["smoke"],
        "test_limit": 32,
    },
    "small": {"finetune": replace(VIDEO_FINETUNE, epochs=20, optimizer=FEW_STEPS), "clips": CLIPS["small"]},
    "paper": {"finetune": VIDEO_FINETUNE, "clips": CLIPS["paper"]},
}
finetuned = replace(
    frozen,
    name="thesis_table5_1_hmdb51",
    table="Table 5.1, HMDB51",
    title="which temporal transformations are told apart, with and without the speed loss; HMDB51 fine-tuned",
    setting="UCF101, then HMDB51, C3D, 50 epochs of each",
    figures={cell: hmdb51 for cell, (_, hmdb51) in ABLATION_5_1.items()},
    metric=("finetune", "top1"),
    labelled=OTHER_SET,
    evaluation={**FINETUNED, "paper": {**FINETUNED["paper"], "finetune": replace(VIDEO_FINETUNE, epochs=50)}},
)

PRIOR_5_2: Mapping[Cell, tuple[float, float | None]] = {
    ("shuffle-and-learn", "alexnet", "ucf101"): (50.2, 18.1),
    ("o3n", "alexnet", "ucf101"): (60.3, 32.5),
    ("aot", "vgg16", "ucf101"): (78.1, None),
    ("opn", "vgg-m-2048", "ucf101"): (59.8, 23.8),
    ("dpc", "resnet3d34", "kinetics"): (75.7, 35.7),
    ("speednet", "s3d-g", "kinetics"): (81.1, 48.8),
    ("avts-rgb+audio", "mc3", "kinetics"): (85.8, 56.9),
    ("shuffle-and-learn", "c3d", "ucf101"): (55.8, 25.4),
    ("rotnet3d", "c3d", "ucf101"): (60.6, 27.3),
    ("clip-order", "c3d", "ucf101"): (65.6, 28.4),
    ("spatio-temp", "c3d", "ucf101"): (58.8, 32.6),
    ("spatio-temp", "c3d", "kinetics"): (61.2, 33.4),
    ("st-puzzle3d", "c3d", "kinetics"): (60.6, 28.3),
    ("st-puzzle3d", "resnet3d18", "kinetics"): (65.8, 33.7),
    ("rotnet3d", "resnet3d18", "kinetics"): (66.0, 37.1),
    ("dpc", "resnet3d18", "kinetics"): (68.2, 34.5),
    ("clip-order", "r2plus1d18", "ucf101"): (72.4, 30.9),
    ("prp", "r2plus1d18", "ucf101"): (72.1, 35.0),
}
"""`shuffle-and-learn` and `rotnet3d` on C3D are the thesis' reimplementations."""
OURS_5_2: Mapping[Cell, tuple[float, float]] = {
    ("ours", "c3d", "ucf101"): (68.3, 38.4),
    ("ours", "c3d", "kinetics"): (69.9, 39.6),
    ("ours", "resnet3d18", "ucf101"): (77.3, 47.5),
    ("ours", "resnet3d18", "kinetics"): (79.3, 49.8),
    ("ours", "r2plus1d18", "ucf101"): (81.6, 46.4),
}


def networked(base: Recipe, method: str, network: str, dataset: str) -> Recipe:
    """C3D has 100 epochs on UCF101, the others 200; all have 15 on Kinetics. All see C3D's crops, as in the text."""
    if network == "c3d":
        return base  # c3d:small in the smaller profiles
    return base.with_(backbone=network, epochs=base.epochs * (2 if dataset == "ucf101" else 1))


def finetuned_twice_as_long(options: Options, profile: Profile, method: str, network: str, dataset: str) -> Options:
    """75 epochs of fine-tuning with C3D, 150 with the others."""
    if network == "c3d":
        return options
    return replace(options, finetune=replace(options.finetune, epochs=2 * options.finetune.epochs))


def values_of(*tables: Mapping[Cell, Any], names: tuple[str, ...]) -> Axes:
    """Axes by what the tables' cells have, in their order."""
    cells = [cell for cells in tables for cell in cells]
    return {name: tuple(dict.fromkeys(cell[i] for cell in cells)) for i, name in enumerate(names)}


NETWORKS_SCALES: Mapping[Profile, Fields] = {
    **VIDEO_SCALES,
    "small": {"backbone": "c3d:small", "epochs": 10, "data": {"limit": 300}},
}
networks = Grid(
    name="thesis_table5_2",
    paper=PAPER,
    table="Table 5.2, UCF101",
    title="networks and pretraining sets, beside prior work; UCF101 fine-tuned",
    setting="then UCF101, fine-tuned",
    axes=values_of(OURS_5_2, PRIOR_5_2, names=("method", "network", "dataset")),
    bases={"smoke": "temporal_motions", "small": "temporal_motions", "paper": "temporal_{dataset}"},
    derive=networked,
    figures={cell: ucf101 for cell, (ucf101, _) in OURS_5_2.items()},
    printed={cell: ucf101 for cell, (ucf101, _) in PRIOR_5_2.items()},
    smoke=(("ours", "c3d", "ucf101"), ("ours", "resnet3d18", "ucf101")),
    metric=("finetune", "top1"),
    collapses=False,
    labelled=OTHER_SET,
    evaluation=FINETUNED,
    transferred=finetuned_twice_as_long,
    profiles=NETWORKS_SCALES,
)
networks_hmdb51 = replace(
    networks,
    name="thesis_table5_2_hmdb51",
    table="Table 5.2, HMDB51",
    title="networks and pretraining sets, beside prior work; HMDB51 fine-tuned",
    setting="then HMDB51, fine-tuned",
    figures={cell: hmdb51 for cell, (_, hmdb51) in OURS_5_2.items()},
    printed={cell: hmdb51 for cell, (_, hmdb51) in PRIOR_5_2.items()},
)

TIMING: Mapping[Label, Measure] = {
    "sync-accuracy": Measure("synchronization", "accuracy"),
    "sync-mae": Measure("synchronization", "mae", unit="frames", less=True),
    "before-after": Measure("before_after", "accuracy"),
}
OURS_5_3: Axes = {"method": ("action-labels", "ours"), "measure": tuple(TIMING)}
PRIOR_5_3: Axes = {"method": ("rotnet3d", "shuffle-and-learn"), "measure": tuple(TIMING)}


def timed(base: Recipe, method: str, measure: str) -> Recipe:
    return actions(base) if method == "action-labels" else base


timing = Grid(
    name="thesis_table5_3",
    paper=PAPER,
    table="Table 5.3",
    title="time-related tasks on features of conv5, beside supervised pretraining and prior work",
    setting="UCF101, C3D",
    axes={**OURS_5_3, "method": (*OURS_5_3["method"], *PRIOR_5_3["method"])},
    bases={"smoke": "temporal_motions", "small": "temporal_small", "paper": "temporal_ucf101"},
    derive=timed,
    figures=table(OURS_5_3, "36.7 1.85 66.6", "42.4 1.61 76.9"),
    printed=table(PRIOR_5_3, "28.0 2.84 57.8", "39.0 1.89 69.8"),
    smoke=tuple(("ours", measure) for measure in TIMING),
    metric=("synchronization", "accuracy"),
    measures=TIMING,
    reads="measure",
    collapses=False,
    evaluation={
        "smoke": {
            "timing": Timing(head=(64, 64), norm_momentum=0.1, optimizer=FEW_STEPS, epochs=1),
            "test_limit": 32,
        },
        "small": {"timing": Timing(head=(256, 256), norm_momentum=0.1, optimizer=FEW_STEPS, epochs=20)},
    },
    profiles=VIDEO_SCALES,
)
"""The text names neither the pretraining's set and epochs nor the classifiers': Table 5.2's of C3D."""

RETRIEVED: Mapping[Label, Measure] = {f"top{k}": Measure("retrieval", f"top{k}") for k in (1, 5, 10, 20, 50)}
TOPS = tuple(RETRIEVED)
PRIOR_5_4: Mapping[Cell, str] = {
    ("jigsaw", "alexnet"): "19.7 28.5 33.5 40.0 49.4",
    ("opn", "alexnet"): "19.9 28.7 34.0 40.6 51.6",
    ("buechler", "alexnet"): "25.7 36.2 42.2 49.2 59.5",
    ("clip-order", "r3d"): "14.1 30.3 40.0 51.1 66.5",
    ("speednet", "s3d-g"): "13.0 28.1 37.5 49.5 65.0",
    ("prp", "r3d"): "22.8 38.5 46.7 55.2 69.1",
}


def retrieved(base: Recipe, method: str, network: str, measure: str) -> Recipe:
    return base.with_(backbone=network)


retrieval = Grid(
    name="thesis_table5_4",
    paper=PAPER,
    table="Table 5.4",
    title="videos among whose k nearest neighbours one has the same action, beside prior work",
    setting="Kinetics, then UCF101, 3D-ResNet-18, 15 epochs",
    axes={
        **values_of({("ours", "resnet3d18"): ""}, PRIOR_5_4, names=("method", "network")),
        "measure": TOPS,
    },
    bases={"smoke": "temporal_motions", "small": "temporal_motions", "paper": "temporal_kinetics"},
    derive=retrieved,
    figures=table({"method": ("ours",), "network": ("resnet3d18",), "measure": TOPS}, "26.1 48.5 59.1 69.6 82.8"),
    printed={
        (*row, top): float(figure)
        for row, figures in PRIOR_5_4.items()
        for top, figure in zip(TOPS, figures.split(), strict=True)
    },
    smoke=(("ours", "resnet3d18", "top1"), ("ours", "resnet3d18", "top5")),
    metric=("retrieval", "{measure}"),
    measures=RETRIEVED,
    reads="measure",
    collapses=False,
    labelled=OTHER_SET,
    evaluation={
        "smoke": {"clips": CLIPS["smoke"], "test_limit": 32},
        "small": {"clips": CLIPS["small"]},
    },
    profiles={**NETWORKS_SCALES, "smoke": {"epochs": 1, "batch_size": 8, "data": {"limit": 64}}},
)

# ----------------------------------------------------------------------------------------- chapter 6

POSES: Mapping[Label, Measure] = {
    name: Measure("pose", name, unit="millimetres", less=True) for name in ("mpjpe", "nmpjpe", "pmpjpe")
}
MEASURES = tuple(POSES)
SINGLE_VIEW: Fields = {"cameras": "one", "shift": 0.1, "scale": (0.75, 1.25), "rotation": 45.0}
"""(l): "random cropping, scaling, and rotations", whose ranges are not printed: ours, in sides of the subject's box and
in degrees. Both images of a pair have the same camera, and each its own crop."""
ABLATION_6_1: Mapping[str, Fields] = {
    "c-ssl-with-background": {"views": {"background": "keep"}},
    "d-ssl-without-background": {},
    "e-only-flip": {"method": {"synchronization": False}},
    "f-only-sync": {"method": {"flipping": False}},
    "h-fusion-concat": {"method": {"fusion": "concat"}},
    "i-fusion-add": {"method": {"fusion": "add"}},
    "j-fusion-diff": {"method": {"fusion": "diff"}},
    "l-single-view": {"views": SINGLE_VIEW},
}
"""What is trained. (d) is printed again as (g), (k) and (m); (a) and (b) are the random initializations of (c), (d)."""
LABELS_OF_SMALL = 200
"""Moments with joints, evenly spaced, that stand for subject S1 in the profile `small`."""


def synchronized(base: Recipe, ablation: str, measure: str) -> Recipe:
    it = ABLATION_6_1[ablation]
    return base.with_(method=it.get("method", {}), views={name: it.get("views", {}) for name in base.views})


def baseline(base: Recipe, method: str, measure: str) -> Recipe:
    return base


def with_few_labels(options: Options, profile: Profile, **values: Label) -> Options:
    """The background is what it was in pretraining. It is named, so that random initialization is evaluated with and
    without it."""
    background: Any = "keep" if values.get("ablation") == "c-ssl-with-background" else "remove"
    limit = options.data.limit
    if profile == "small":
        limit = min(limit or LABELS_OF_SMALL, LABELS_OF_SMALL)
    return replace(
        options, posing=replace(options.posing, background=background), data=replace(options.data, limit=limit)
    )


def with_all_labels(options: Options, profile: Profile, **values: Label) -> Options:
    return replace(options, posing=replace(options.posing, background="remove"))


ROWS_6_1: Axes = {
    "ablation": (
        *("a-random-with-background", "b-random-without-background", "c-ssl-with-background"),
        *("d-ssl-without-background", "e-only-flip", "f-only-sync", "g-sync-and-flip"),
        *("h-fusion-concat", "i-fusion-add", "j-fusion-diff", "k-fusion-mult", "l-single-view", "m-multi-view"),
    ),
    "measure": MEASURES,
}
QUICK = replace(Posing().optimizer, lr=1e-3, final_lr=1e-6)
POSED: Mapping[Profile, Fields] = {
    "smoke": {"posing": Posing(every=32, pictures=2, epochs=1, optimizer=QUICK), "test_limit": 128},
    "small": {"posing": Posing(every=4, epochs=40, batch_size=32, optimizer=QUICK)},
    "paper": {"posing": Posing(every=64, epochs=69)},
}
"""`paper`: 200,000 iterations of 16 are 69 epochs of 46,500 moments, about what is left of subject S1's 62,000; of all
subjects' 290,000 they are 11."""
views = Grid(
    name="thesis_table6_1",
    paper=PAPER,
    table="Table 6.1",
    title="synchronized and flipped views: background, signals, fusion, cameras; labels of one subject",
    setting="Human3.6M, ResNet-18, labels of S1",
    axes=ROWS_6_1,
    bases={"smoke": "multiview_poses", "small": "multiview_poses", "paper": "multiview_h36m"},
    derive=synchronized,
    figures=table(
        ROWS_6_1,
        "167.8 147.1 124.5",
        "165.5 145.4 114.5",
        "138.4 128.1 100.8",
        "104.9 91.7 78.4",
        "129.9 117.6 101.1",
        "113.7 102.4 80.3",
        "104.9 91.7 78.4",
        "180.0 162.5 130.5",
        "169.4 158.4 122.8",
        "108.2 93.9 80.4",
        "104.9 91.7 78.4",
        "158.3 142.0 106.9",
        "104.9 91.7 78.4",
    ),
    smoke=(
        ("b-random-without-background", "mpjpe"),
        ("d-ssl-without-background", "mpjpe"),
        ("l-single-view", "mpjpe"),
    ),
    metric=("pose", "{measure}"),
    measures=POSES,
    reads="measure",
    repeats=dict.fromkeys(("g-sync-and-flip", "k-fusion-mult", "m-multi-view"), "d-ssl-without-background"),
    untrained={
        "a-random-with-background": "c-ssl-with-background",
        "b-random-without-background": "d-ssl-without-background",
    },
    collapses=False,
    labelled=("labelled",),
    evaluation=POSED,
    transferred=with_few_labels,
    profiles={
        "smoke": {"epochs": 1, "batch_size": 16, "data": {"limit": 64}},
        "small": {},
        "paper": {},
    },
)

METHODS_6_2 = (
    *("chen-202", "kocabas-200", "rhodin-201-with-2d", "rhodin-201", "rhodin-207-unet", "rhodin-207", "mitra-208"),
    *("ours-resnet50", "ours-resnet50-with-background"),
)
"""With the thesis' numbers of references; the row in italics, `with-2d`, has poses in 2D besides."""
PRIOR_6_2: Axes = {"method": METHODS_6_2, "measure": MEASURES}
OURS_6_2: Axes = {"method": ("ours",), "measure": MEASURES}
all_labels = replace(
    views,
    name="thesis_table6_2",
    table="Table 6.2, All",
    title="beside prior work, labels of all training subjects (ResNet-50 is from ImageNet's weights)",
    setting="Human3.6M, ResNet-18, labels of all subjects",
    axes={**OURS_6_2, "method": ("ours", *METHODS_6_2)},
    derive=baseline,
    figures=table(OURS_6_2, "79.5 73.4 59.7"),
    printed=table(
        PRIOR_6_2,
        "80.2 - 58.2",
        "51.8 51.6 45.0",
        "66.8 63.3 51.6",
        "- 95.4 -",
        "- 127.0 -",
        "- 115.0 -",
        "94.3 92.6 72.5",
        "72.6 68.5 54.5",
        "64.9 62.3 53.5",
    ),
    smoke=tuple(("ours", measure) for measure in MEASURES),
    repeats={},
    untrained={},
    labelled=(),
    evaluation={**POSED, "paper": {"posing": Posing(every=64, epochs=11)}},
    transferred=with_all_labels,
)
one_subject = replace(
    all_labels,
    name="thesis_table6_2_s1",
    table="Table 6.2, S1",
    title="beside prior work, labels of one subject (ResNet-50 is from ImageNet's weights)",
    setting="Human3.6M, ResNet-18, labels of S1",
    figures=table(OURS_6_2, "104.9 91.7 78.4"),
    printed=table(
        PRIOR_6_2,
        "91.9 - 68.0",
        "- 67.0 60.2",
        "- 78.2 -",
        "- 153.3 128.6",
        "149.5 135.9 106.4",
        "131.7 122.6 98.2",
        "121.0 111.9 90.8",
        "101.2 89.6 76.9",
        "101.4 93.7 82.4",
    ),
    labelled=("labelled",),
    evaluation=POSED,
    transferred=with_few_labels,
)
"""The run of Table 6.1 (d)."""

"""Chapter 8 of S. Jenni's thesis on self-supervised learning: bilevel learning, labels that are noisy.

Figures 8.2 to 8.4 print no numbers: their grids have what varies alone, and levels between those that the text names
are ours. Left out: Figure 8.5, classes of PASCAL VOC of which an image has several, since labels here are one an image;
the results on Clothing1M. Table 8.4 is a recipe
(`bilevel_imagenet_alexnet`), as the labels of its noise are in no dataset.

`SGD` is a row of each: plain shuffling and the gradient of the whole batch, all else as the others. The profile `smoke`
compares 4 mini-batches of 8 images in place of 8 of 16.
"""

from collections.abc import Mapping
from typing import Any

from pipelines.recipe import Recipe
from tuning.grid import PROFILES, Axes, Grid, Label, Measure, Profile, table

PAPER = "thesis of S. Jenni"
Fields = Mapping[str, Any]
SGD: Fields = {"method": {"reweight": False}, "data": {"order": "shuffle"}}
METHODS: Mapping[str, Fields] = {"sgd": SGD, "bilevel": {}}
NETWORKS = ("cifarnet", "inception")
MEASURES: Mapping[Label, Measure] = {
    "train": Measure("generalization", "train_accuracy"),
    "test": Measure("generalization", "test_accuracy"),
    "gap": Measure("generalization", "gap", less=True),
}
"""In percent. `train` is of the labels that are learned, clean or noisy, as in the paper."""
SIDES = ("train", "test")
TEST = ("generalization", "test_accuracy")
SCALES: Mapping[Profile, Fields] = {
    "smoke": {"epochs": 2, "batch_size": 32, "data": {"limit": 512}, "method": {"parts": 4}},
    "small": {"epochs": 20, "data": {"limit": 5_000}},
    "paper": {},
}
"""The networks are small: they stay. `small` sees as many images as other grids' does, half of them twice as often, as
what is noisy is learned by heart late."""
OFTEN: Mapping[Profile, Fields] = {
    **SCALES,
    "small": {**SCALES["small"], "batch_size": 64},
    "paper": {"epochs": 100, "batch_size": 64},
}
"""Section 8.4.3."""


# ------------------------------------------------------------------------------------------- ablations

EXPERIMENTS: Mapping[str, Fields] = {
    "sgd": SGD,
    "baseline": {},
    "a-no-l1": {"method": {"normalize": False}},
    "b-per-layer": {"method": {"per_layer": True}},
    "c-sampling": {"data": {"order": "shuffle"}},
    "d-dropout": {"method": {"same_dropout": False}},
}
"""The rows of Table 8.1."""


def ablated(base: Recipe, experiment: str, network: str, pi: float, measure: str) -> Recipe:
    return base.with_(data={"noise": pi}).with_(**EXPERIMENTS[experiment])


ABLATION_8_1: Axes = {
    "experiment": tuple(EXPERIMENTS),
    "network": NETWORKS,
    "pi": (0.0, 0.5),
    "measure": tuple(MEASURES),
}
table8_1 = Grid(
    name="thesis_table8_1",
    paper=PAPER,
    table="Table 8.1",
    title="bilevel learning: what it is made of, on clean labels and on 50% random ones (row b of Inception at 50% is "
    "CifarNet's in print, probably a slip)",
    setting="CIFAR-10, 200 epochs",
    axes=ABLATION_8_1,
    bases=dict.fromkeys(PROFILES, "bilevel_cifar10_{network}"),
    derive=ablated,
    figures=table(
        ABLATION_8_1,
        "99.99 75.68 24.31",
        "96.75 45.15 -",
        "99.91 88.13 11.78",
        "65.06 47.64 -",
        "97.60 75.52 22.08",
        "89.28 47.62 -",
        "96.13 87.78 8.35",
        "45.43 73.08 -",
        "96.44 74.32 22.12",
        "95.50 45.79 -",
        "79.46 77.07 2.39",
        "33.86 62.16 -",
        "97.43 74.36 23.07",
        "81.60 49.62 -",
        "90.38 85.25 5.13",
        "81.60 49.62 -",
        "72.69 68.19 4.50",
        "16.13 23.93 -",
        "79.78 78.25 1.53",
        "17.71 27.20 -",
        "95.92 74.76 21.16",
        "82.22 49.23 -",
        "95.58 87.86 7.72",
        "44.61 75.71 -",
    ),
    smoke=tuple((row, "cifarnet", pi, "test") for row in ("sgd", "baseline") for pi in (0.0, 0.5)),
    metric=TEST,
    measures=MEASURES,
    reads="measure",
    collapses=False,
    profiles=SCALES,
)
"""The gap is printed for clean labels alone. Of row b the figures of Inception on noisy labels, 81.60 and 49.62, are
those of CifarNet once more, probably a slip: copied, and not to be compared with (the text says that Inception "clearly
degrades" there)."""


def permuted(base: Recipe, model: str, measure: str) -> Recipe:
    return base.with_(data={"permuted": True}).with_(**METHODS[model])


PERMUTED_8_2: Axes = {"model": tuple(METHODS), "measure": tuple(MEASURES)}
table8_2 = Grid(
    name="thesis_table8_2",
    paper=PAPER,
    table="Table 8.2",
    title="pixels in a random order, fixed for each image",
    setting="CIFAR-10, Inception, 200 epochs",
    axes=PERMUTED_8_2,
    bases=dict.fromkeys(PROFILES, "bilevel_cifar10_inception"),
    derive=permuted,
    figures=table(PERMUTED_8_2, "50.0 33.2 16.8", "34.8 33.6 1.2"),
    smoke=(("sgd", "test"), ("bilevel", "test")),
    metric=TEST,
    measures=MEASURES,
    reads="measure",
    collapses=False,
    profiles=SCALES,
)
"""Crops, brightness and contrast as without permutations, which the text leaves open."""

SETTINGS: Mapping[str, Fields] = {
    "baseline": {},
    **{f"validation={ratio:g}": {"data": {"validation_ratio": ratio}} for ratio in (0.1, 0.25, 0.5, 0.75)},
    **{f"k={k}": {"method": {"parts": k}} for k in (2, 4, 16, 32)},
    **{f"images={n}": {"images": n} for n in (1, 2, 4, 8, 32)},
    **{f"mu={mu:g}": {"method": {"mu": mu}} for mu in (1e-4, 1e-3, 0.1, 1.0)},
}
"""The figure's rows: the share of samples that validate alone; k mini-batches at one batch size, so that mini-batches
shrink; images of a mini-batch at one k; mu-hat. The baseline has all samples in both roles, k = 8, 16 images and mu
.01. k are those of section 8.3; of images 1 is named; the other values are ours."""


def swept(base: Recipe, setting: str, network: str, pi: float, measure: str) -> Recipe:
    """The rate falls by epochs, and so with the images that were seen, however many steps that makes; where the paper
    adjusts "the learning rate schedule accordingly" this is our reading."""
    fields = dict(SETTINGS[setting])
    images = fields.pop("images", None)
    changed = base.with_(data={"noise": pi}).with_(**fields)
    return changed.with_(batch_size=images * base.method.parts) if images else changed


SWEPT_8_2: Axes = {"setting": tuple(SETTINGS), "network": NETWORKS, "pi": (0.0, 0.5), "measure": SIDES}
figure8_2 = Grid(
    name="thesis_figure8_2",
    paper=PAPER,
    table="Figure 8.2",
    title="samples that only validate, how many mini-batches are compared, their size, and mu, on clean labels and on "
    "50% random ones",
    setting="CIFAR-10, 200 epochs; no numbers are printed",
    axes=SWEPT_8_2,
    bases=dict.fromkeys(PROFILES, "bilevel_cifar10_{network}"),
    derive=swept,
    figures=table(SWEPT_8_2, *["- -"] * len(SETTINGS) * 4),
    smoke=tuple((setting, "cifarnet", 0.5, "test") for setting in ("baseline", "k=2", "images=4", "mu=0.1")),
    metric=TEST,
    measures={side: MEASURES[side] for side in SIDES},
    reads="measure",
    collapses=False,
    profiles=SCALES,
)
"""`train` is of all training images, those that validate alone included, where the text leaves it open."""

# --------------------------------------------------------------------------------------- noisy labels

COMPARED: Mapping[str, Fields] = {
    "mixup": {**SGD, "method": {"reweight": False, "mixup": 1.0}},
    "sgd": SGD,
    "dropout": {**SGD, "method": {"reweight": False, "dropout": 0.7}},
    "label-smoothing": {**SGD, "method": {"reweight": False, "label_smoothing": 0.1}},
    "bilevel": {},
    "bilevel+mixup": {"method": {"mixup": 1.0}},
}
"""The rows of Table 8.3 with PreAct ResNet-18. Dropout's p = .3 is "a low keep-probability", so .7 is dropped; mixup
("Zhang et al. [229]") has alpha 1, which is ours."""
PRIOR_8_3: Mapping[str, str] = {
    "reed": "62.3 46.5",
    "goldberger": "69.9 45.8",
    "azadi": "75.0 -",
    "jiang": "76.6 56.9",
}
"""Others' rows, of ResNets, of Azadi et al. AlexNet. The table spells two of them Golderberger and Jilang."""


def compared(base: Recipe, method: str, dataset: str) -> Recipe:
    return base.with_(data={"noise": 0.4}).with_(**COMPARED[method])


DATASETS = ("cifar10", "cifar100")
table8_3 = Grid(
    name="thesis_table8_3",
    paper=PAPER,
    table="Table 8.3",
    title="regularization and methods for noisy labels, on 40% noise",
    setting="PreAct ResNet-18, 100 epochs",
    axes={"method": (*PRIOR_8_3, *COMPARED), "dataset": DATASETS},
    bases=dict.fromkeys(PROFILES, "bilevel_{dataset}_preact"),
    derive=compared,
    figures=table(
        {"method": tuple(COMPARED), "dataset": DATASETS},
        "88.3 56.4",
        "69.6 44.9",
        "84.5 50.1",
        "69.3 46.1",
        "87.0 59.8",
        "89.0 61.6",
    ),
    printed=table({"method": tuple(PRIOR_8_3), "dataset": DATASETS}, *PRIOR_8_3.values()),
    smoke=(("sgd", "cifar10"), ("bilevel", "cifar10"), ("bilevel+mixup", "cifar10")),
    metric=TEST,
    collapses=False,
    profiles={
        "smoke": {**SCALES["smoke"], "backbone": "resnet20"},
        "small": {**SCALES["small"], "backbone": "resnet20"},
        "paper": {},
    },
)
"""Below the profile `paper` ResNet-20 stands for PreAct ResNet-18."""


def noisy(base: Recipe, method: str, dataset: str, pi: float, measure: str) -> Recipe:
    return base.with_(data={"noise": pi}).with_(**METHODS[method])


LEVELS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""pi. The text names .5, .7 and .9; the others are ours."""
NOISY: Axes = {"method": tuple(METHODS), "dataset": DATASETS, "pi": LEVELS, "measure": SIDES}


def by_noise(number: int, network: str, title: str) -> Grid:
    return Grid(
        name=f"thesis_figure8_{number}",
        paper=PAPER,
        table=f"Figure 8.{number}",
        title=f"levels of label noise: {title}",
        setting=f"{title}, 100 epochs; no numbers are printed",
        axes=NOISY,
        bases=dict.fromkeys(PROFILES, f"bilevel_{{dataset}}_{network}"),
        derive=noisy,
        figures=table(NOISY, *["- -"] * len(METHODS) * len(DATASETS) * len(LEVELS)),
        smoke=tuple((method, "cifar10", pi, "test") for method in METHODS for pi in (0.0, 0.5)),
        metric=TEST,
        measures={side: MEASURES[side] for side in SIDES},
        reads="measure",
        collapses=False,
        profiles=OFTEN,
    )


figure8_3 = by_noise(3, "cifarnet", "CifarNet")
figure8_4 = by_noise(4, "inception", "Inception")

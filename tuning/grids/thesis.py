"""Chapters 3, 4 and 7 of S. Jenni's thesis on self-supervised learning: ablations of spotting artifacts, of recognizing
image transformations, and of GANs with distribution filtering.

The profiles `smoke` and `small` take CIFAR-10 in place of STL-10 and CelebA, and small networks. Tables 3.2 to 3.5 and
4.4 to 4.7 set the chapters' methods beside others': they are recipes (`artifacts_imagenet`, `transformations_imagenet`,
`transformations_stl10_resnet34`), not grids.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.generate import Generative
from pipelines.recipe import Recipe, find_recipe
from pipelines.transfer import STL10, STL10_CONV5, STL10_FINETUNE, Layerwise, steps_of_chapter_4
from tuning.grid import PROFILES, Axes, Grid, Profile, table

PAPER = "thesis of S. Jenni"
Fields = Mapping[str, Any]

# ----------------------------------------------------------------------------------------- chapter 3

ARTIFACTS: Mapping[str, Fields] = {
    "input-as-real": {"real": "input"},
    "without-mask": {"mask_weight": 0.0},
    "local-repair": {"repair": "local"},
    "3x3-encoder": {"autoencoder": {"kernel": 3}},
    "no-gating": {"gating": False},
    "no-history": {"history": 0},
    "drop-rate-0.1": {"drop_rate": 0.1},
    "drop-rate-0.3": {"drop_rate": 0.3},
    "drop-rate-0.7": {"drop_rate": 0.7},
    "drop-rate-0.9": {"drop_rate": 0.9},
    "baseline": {},
}
"""The rows of Table 3.1. Its baseline drops half of the code."""
ARTIFACTS_SCALES: Mapping[Profile, Fields] = {
    "smoke": {"backbone": "resnet20", "epochs": 1, "batch_size": 32, "data": {"limit": 256}},
    "small": {"backbone": "resnet20", "epochs": 10, "data": {"limit": 10_000}},
    "paper": {},
}


def damaged(base: Recipe, ablation: str) -> Recipe:
    return base.with_(method={"drop_rate": 0.5, **ARTIFACTS[ablation]})


def autoencoder(profile: Profile, ablation: str) -> Recipe:
    """The cell's autoencoder: of one kind for all but the 3x3 encoder's."""
    name = "autoencoder_stl10" if profile == "paper" else "autoencoder_cifar10"
    scale = {k: v for k, v in ARTIFACTS_SCALES[profile].items() if k != "backbone"}
    return find_recipe(name).with_(**scale).with_(method=ARTIFACTS[ablation].get("autoencoder", {}))


FROZEN_CONV5 = replace(
    STL10_CONV5,
    norm=False,
    optimizer=STL10_FINETUNE.optimizer,
    batch_size=STL10_FINETUNE.batch_size,
    epochs=STL10_FINETUNE.epochs,
)
"""The chapter trains fully connected layers on frozen convolutions; this is the released code's one linear layer, which
has no batch norm before it (those of the smaller profiles have)."""
ABLATION_3_1: Axes = {"ablation": tuple(ARTIFACTS)}
table3_1 = Grid(
    name="thesis_table3_1",
    paper=PAPER,
    table="Table 3.1",
    title="spotting artifacts: what it is made of, and the rate of dropping",
    setting="STL-10, AlexNet, 400 epochs",
    axes=ABLATION_3_1,
    bases={"smoke": "artifacts_cifar10", "small": "artifacts_cifar10", "paper": "artifacts_stl10"},
    derive=damaged,
    figures=table(ABLATION_3_1, "74.99 78.44 77.51 79.84 79.66 79.76 70.92 76.26 81.06 79.60 79.94"),
    smoke=(("drop-rate-0.1",), ("drop-rate-0.7",)),
    metric=("layerwise", "last"),
    collapses=False,
    first=autoencoder,
    evaluation={
        "smoke": {"layerwise": Layerwise(layers=("stage3",), epochs=2)},
        "small": {"layerwise": Layerwise(layers=("stage3",), epochs=20, batch_size=128)},
        "paper": {"layerwise": FROZEN_CONV5},
    },
    profiles=ARTIFACTS_SCALES,
)

# ----------------------------------------------------------------------------------------- chapter 4

TINY: Fields = {"inpainter_width": 8, "critic_width": 8, "head": ()}
TRANSFORMATIONS_SCALES: Mapping[Profile, Fields] = {
    "smoke": {"epochs": 1, "batch_size": 32, "data": {"limit": 256}, "method": TINY},
    "small": {"epochs": 10, "data": {"limit": 10_000}, "method": TINY},
    "paper": {},
}
"""The chapter's own view, crop and patch, of CIFAR-10's images scaled up; a small inpainter, critic and head."""
STL10_BASES: Mapping[Profile, str] = dict.fromkeys(PROFILES, "transformations_stl10")
INPAINTING: Mapping[str, Fields] = {
    "32x32-patches": {"patch": 32},
    "40x40-patches": {"patch": 40},
    "56x56-patches": {"patch": 56},
    "frozen-inpainter": {},
    "without-classifier": {"adversarial": False},
    "without-autoencoding": {"autoencoded_patches": False},
    "baseline": {},
}
"""The rows of Table 4.1. For how long its frozen inpainter was trained is not printed: for half of the epochs here,
before those of the classifier, which has as many as in the other rows."""
SETS: Mapping[str, tuple[str, ...]] = {
    "warp": ("warp",),
    "lci": ("inpainting",),
    "rot": ("rotation",),
    "warp+lci": ("warp", "inpainting"),
    "rot+warp": ("rotation", "warp"),
    "rot+lci": ("rotation", "inpainting"),
    "rot+warp+lci": ("rotation", "warp", "inpainting"),
}
PROBES: Mapping[Profile, Fields] = {
    "smoke": {"layerwise": Layerwise(epochs=2)},
    "small": {"layerwise": Layerwise(epochs=20, batch_size=128)},
}
LAYERS = tuple(f"conv{n}" for n in range(1, 6))


def inpainted(base: Recipe, ablation: str) -> Recipe:
    before = max(base.epochs // 2, 1) if ablation == "frozen-inpainter" else 0
    method = {"transformations": ("inpainting",), "inpainter_epochs": before, **INPAINTING[ablation]}
    return base.with_(method=method, epochs=before + base.epochs)


def transformed(base: Recipe, transformations: str, layer: str) -> Recipe:
    return base.with_(method={"transformations": SETS[transformations]})


ABLATION_4_1: Axes = {"ablation": tuple(INPAINTING)}
table4_1 = Grid(
    name="thesis_table4_1",
    paper=PAPER,
    table="Table 4.1",
    title="limited-context inpainting: the patch's size, and shortcuts left open",
    setting="STL-10, AlexNet, 200 epochs",
    axes=ABLATION_4_1,
    bases=STL10_BASES,
    derive=inpainted,
    figures=table(ABLATION_4_1, "61.2 70.6 75.1 63.7 68.0 69.5 76.2"),
    smoke=(("frozen-inpainter",), ("baseline",)),
    metric=("layerwise", "conv5"),
    collapses=False,
    evaluation={**PROBES, "paper": {"layerwise": STL10_CONV5}},
    profiles=TRANSFORMATIONS_SCALES,
)

COMBINATIONS: Axes = {"transformations": tuple(SETS), "layer": LAYERS}
table4_2 = Grid(
    name="thesis_table4_2",
    paper=PAPER,
    table="Table 4.2",
    title="combinations of image transformations, by layer",
    setting="STL-10, AlexNet, 200 epochs",
    axes=COMBINATIONS,
    bases=STL10_BASES,
    derive=transformed,
    figures=table(
        COMBINATIONS,
        "57.2 64.2 62.8 58.8 55.3",
        "58.8 67.2 67.4 68.1 68.0",
        "58.2 67.3 69.3 69.9 70.1",
        "59.3 68.1 69.5 68.5 67.2",
        "57.4 69.2 70.7 70.5 70.6",
        "58.5 69.2 71.3 72.8 72.3",
        "59.2 69.7 71.9 73.1 73.7",
    ),
    smoke=(("rot", "conv5"), ("rot+warp+lci", "conv5")),
    metric=("layerwise", "{layer}"),
    reads="layer",
    collapses=False,
    evaluation={**PROBES, "paper": {"layerwise": STL10}},
    random_init=dict(zip(LAYERS, (48.4, 53.3, 51.1, 48.7, 47.9), strict=True)),
    profiles=TRANSFORMATIONS_SCALES,
)

table4_3 = Grid(
    name="thesis_table4_3",
    paper=PAPER,
    table="Table 4.3",
    title="combinations of image transformations, by layer; printed are average precisions over 40 attributes, ours is "
    "the top-1 of the one that --data.label names",
    setting="CelebA, AlexNet, 100 epochs, average precision",
    axes=COMBINATIONS,
    bases={**STL10_BASES, "paper": "transformations_celeba"},
    derive=transformed,
    figures=table(
        COMBINATIONS,
        "71.7 73.4 71.2 68.8 64.3",
        "71.3 73.0 72.0 71.1 68.0",
        "70.3 70.9 67.8 65.6 62.1",
        "72.0 73.9 73.3 72.1 69.0",
        "71.6 73.6 72.0 70.1 66.4",
        "71.3 72.7 71.9 70.8 66.7",
        "71.8 74.0 73.5 72.5 69.2",
    ),
    smoke=(("rot", "conv5"), ("rot+warp+lci", "conv5")),
    metric=("layerwise", "{layer}"),
    reads="layer",
    collapses=False,
    evaluation={
        **PROBES,
        "paper": {"layerwise": replace(STL10, size=96, epochs=100, optimizer=steps_of_chapter_4(100))},
    },
    random_init=dict(zip(LAYERS, (68.9, 70.1, 66.7, 65.3, 63.2), strict=True)),
    profiles=TRANSFORMATIONS_SCALES,
)

# ----------------------------------------------------------------------------------------- chapter 7

GAN_SCALES: Mapping[Profile, Fields] = {
    "smoke": {"epochs": 1, "batch_size": 32, "data": {"limit": 256}, "method": {"width": 0.125}},
    "small": {"method": {"width": 0.25}, "epochs": 13, "data": {"limit": 10_000}},
    "paper": {},
}
"""`small`: a quarter of the channels, 2,028 steps."""
GAN_FIGURES: Mapping[Profile, Fields] = {
    "smoke": {"generative": Generative(samples=500, checkpoints=1)},
    "small": {"generative": Generative(checkpoints=5)},
    "paper": {"generative": Generative()},
}
MEASURES = ("fid", "inception_score")
NOISE: Mapping[str, Fields] = {
    "standard": {"noise": "none"},
    "noise-only-gaussian": {"noise": "gaussian", "mix": "noisy_only"},
    "noise-only-learned": {"noise": "generator", "noise_penalty": 1.0, "mix": "noisy_only"},
    "noise-only-annealed": {"noise": "gaussian", "mix": "noisy_only", "sigma_schedule": "annealed"},
    "gaussian": {"noise": "gaussian"},
    "gaussian-learned": {"noise": "gaussian", "noise_penalty": 1.0, "sigma_schedule": "learned"},
    "df-0.1": {"noise": "generator", "noise_penalty": 0.1},
    "df-1": {"noise": "generator", "noise_penalty": 1.0},
    "df-10": {"noise": "generator", "noise_penalty": 10.0},
    "df-1-halves": {"noise": "generator", "noise_penalty": 1.0, "mix": "halves"},
}
"""The rows of Table 7.1. lambda of learned noise is printed for DFGAN alone: 1 in (b) and (e) is our choice."""
MODELS: Mapping[str, Fields] = {
    "mmgan": {"objective": "minimax"},
    "dcgan": {"objective": "non_saturating"},
    "wgan-gp": {"objective": "wgan_gp", "discriminator_steps": 5},
    "lsgan": {"objective": "least_squares"},
    "svm-gan": {"objective": "hinge"},
    "sngan": {"objective": "non_saturating", "spectral_norm": True},
}
FILTERED = {"mmgan": 0.1, "dcgan": 10.0, "lsgan": 10.0, "svm-gan": 1.0, "sngan": 1.0}
"""lambda of the rows `+DF` of Table 7.3."""
ROBUSTNESS: Mapping[str, Fields] = {
    "a": {"lr": 2e-4, "method": {"generator_norm": False}},
    "b": {"lr": 2e-4, "method": {"activation": "tanh"}},
    "c": {"lr": 1e-3},
    "d": {"lr": 1e-2, "name": "sgd"},
    "e": {"lr": 2e-4, "method": {"discriminator_steps": 5}},
    "f": {"lr": 2e-4, "limit": 5000},
}
"""Table 7.4. SGD's momentum is not printed: none here."""
STABILIZED: Mapping[str, Fields] = {
    "standard": {"noise": "none"},
    "gan+gp": {"noise": "none", "regularizer": "roth"},
    "sngan": {"noise": "none", "spectral_norm": True},
    "dfgan": {"noise": "generator", "noise_penalty": 0.1},
}
"""The models of Figure 7.6."""


def judge(profile: Profile) -> Recipe | None:
    """Below the profile `paper` a small classifier of ours, as Inception's weights may not be at hand."""
    if profile == "paper":
        return None
    scale = {"epochs": 1, "batch_size": 32} if profile == "smoke" else {"epochs": 5}
    return find_recipe("supervised_cifar10").with_(backbone="resnet20", data=GAN_SCALES[profile]["data"], **scale)


def filtered(base: Recipe, noise: str, dataset: str, measure: str) -> Recipe:
    return base.with_(method=NOISE[noise])


def modelled(base: Recipe, model: str, dataset: str, measure: str) -> Recipe:
    """The original works' architectures are not here: Table 7.2's serves all. Nor are their "default values for each
    model" (7.3.2): each runs with DFGAN's rate of 1e-4 and batches of 64; WGAN-GP alone keeps its own, five steps of
    the discriminator and its betas."""
    name = model.removesuffix("+df")
    noise = {"noise": "generator", "noise_penalty": FILTERED[name]} if model.endswith("+df") else {"noise": "none"}
    betas = {"betas": (0.0, 0.9)} if name == "wgan-gp" else {}
    steps = MODELS[name].get("discriminator_steps", 1)
    changed = base.with_(method={**MODELS[name], **noise}, epochs=base.epochs * steps)
    return changed.with_(optimizers={turn: betas for turn in base.optimizers}) if betas else changed


def robust(base: Recipe, setting: str, model: str, measure: str) -> Recipe:
    it = ROBUSTNESS[setting]
    sgd = {"name": "sgd", "momentum": 0.0} if it.get("name") == "sgd" else {}
    method = {**STABILIZED[model], **it.get("method", {})}
    images = base.data.limit or 50_000
    limit = min(it.get("limit", images), images)
    return base.with_(
        method=method,
        optimizers={turn: {"lr": it["lr"], **sgd} for turn in base.optimizers},
        data={"limit": limit} if limit < images else {},
        epochs=base.epochs * method.get("discriminator_steps", 1) * images // limit,  # of the generator as many steps
    )


NOISES: Axes = {"noise": tuple(NOISE), "dataset": ("cifar10", "stl10"), "measure": MEASURES}
GAN_BASES: Mapping[Profile, str] = {**dict.fromkeys(PROFILES, "dfgan_cifar10"), "paper": "dfgan_{dataset}"}
"""Below `paper` one network, of 32 pixels: a path without {dataset} stands for all, one with it brings the images of
each, made as small."""
table7_1 = Grid(
    name="thesis_table7_1",
    paper=PAPER,
    table="Table 7.1",
    title="GANs on images with noise: only, clean and noisy, Gaussian or learned",
    setting="Table 7.2's networks, 100,000 iterations, Inception",
    axes=NOISES,
    bases=GAN_BASES,
    derive=filtered,
    figures=table(
        NOISES,
        "46.1 6.12",
        "78.4 8.22",
        "94.9 4.68",
        "107.9 6.48",
        "69.0 5.05",
        "107.2 6.39",
        "44.5 6.85",
        "75.9 8.49",
        "29.7 7.16",
        "66.5 8.64",
        "28.8 7.23",
        "71.3 8.30",
        "27.7 7.31",
        "63.9 8.81",
        "26.5 7.49",
        "64.0 8.52",
        "29.8 6.55",
        "66.9 8.38",
        "28.7 7.3",
        "67.8 8.30",
    ),
    smoke=(("standard", "cifar10", "fid"), ("df-1", "cifar10", "fid")),
    metric=("{measure}", "{measure}"),
    reads="measure",
    percent=False,
    collapses=False,
    evaluation=GAN_FIGURES,
    extractor=judge,
    profiles=GAN_SCALES,
)

MODELLED: Axes = {
    "model": (*MODELS, *(f"{name}+df" for name in FILTERED)),
    "dataset": ("cifar10", "celeba"),
    "measure": MEASURES,
}
table7_3 = replace(
    table7_1,
    name="thesis_table7_3",
    table="Table 7.3",
    title="other GANs with and without distribution filtering (MMGAN: only bounds are printed, FID above 450 and 350)",
    setting="each model's own networks, 100,000 iterations, Inception",
    axes=MODELLED,
    bases=GAN_BASES,
    derive=modelled,
    figures=table(
        MODELLED,
        "- -",
        "- -",
        "33.4 6.73",
        "25.4 -",
        "37.7 6.55",
        "15.5 -",
        "38.7 6.73",
        "21.4 -",
        "43.9 6.25",
        "26.5 -",
        "29.1 7.26",
        "13.2 -",
        "33.1 6.91",
        "16.6 -",
        "31.2 6.95",
        "14.7 -",
        "36.7 6.63",
        "19.9 -",
        "28.7 7.31",
        "12.7 -",
        "25.9 7.47",
        "10.5 -",
    ),
    smoke=(("dcgan", "cifar10", "fid"), ("dcgan+df", "cifar10", "fid")),
)

SETTINGS: Axes = {"setting": tuple(ROBUSTNESS), "model": tuple(STABILIZED), "measure": MEASURES}
table7_4 = replace(
    table7_1,
    name="thesis_table7_4",
    table="Table 7.4",
    title="robustness to hyper-parameters (the results are bars of Figure 7.6, of which no number is printed)",
    setting="CIFAR-10",
    axes=SETTINGS,
    bases=dict.fromkeys(PROFILES, "dfgan_cifar10"),
    derive=robust,
    figures=table(SETTINGS, *["- -"] * len(ROBUSTNESS) * len(STABILIZED)),
    smoke=(("a", "standard", "fid"), ("a", "dfgan", "fid")),
)

"""Prelax (Wang et al., NeurIPS 2021), section 5: linear evaluation, ResNet-18.

Rows are options of methods/prelax.py, on the recipe's base: SimSiam, or BYOL on ImageNette. What is printed of "SimSiam
[5]" and "BYOL [11]" are the figures of their authors; here they are the base alone in the same setting, Eq. 13.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from methods.metrics.linear import Linear
from methods.optim import Optimizer
from methods.prelax import ALL, ROT, STD, TABLE_3A, TABLE_3B
from pipelines.evaluate import Options
from pipelines.recipe import Recipe
from tuning.grid import PROFILES, Axes, Grid, Profile, table

PAPER = "Prelax (NeurIPS 2021)"
Rows = Mapping[str, Mapping[str, Any]]
BENCHMARKS: Rows = {
    "rotation": TABLE_3A["Rotation"],
    "simsiam": TABLE_3B["Sim"],
    "simsiam+prelax": ALL,
    "byol": TABLE_3B["Sim"],
    "byol+prelax": ALL,
}
"""The rows of Table 1 that are trained. Its Prelax is Prelax-all: of CIFAR-10 by Table 2a, of ImageNette ours."""
VARIANTS: Rows = {"simsiam": TABLE_3B["Sim"], "std": STD, "rot": ROT, "all": ALL}
"""The rows of Tables 2a and 2b."""
ALTERNATIVES: Rows = {
    "simsiam": TABLE_3A["SimSiam"],
    "simsiam+margin-loss": TABLE_3A["SimSiam + margin loss"],
    "rotation": TABLE_3A["Rotation"],
    "simsiam+rotation-aug": TABLE_3A["SimSiam + rotation aug."],
    "simsiam+rotation-loss": TABLE_3A["SimSiam + Rotation loss"],
    "simsiam+prelax": TABLE_3A["SimSiam + Prelax"],
}
"""The rows of Table 3a. Rotation too is trained in SimSiam's setting: the paper names no other."""
ABLATION: Rows = {
    "sim": TABLE_3B["Sim"],
    "sim+pl": TABLE_3B["Sim + PL"],
    "sim+r2s": TABLE_3B["Sim + R2S"],
    "r2s+pl": TABLE_3B["R2S + PL"],
    "sim+pl+r2s": TABLE_3B["Sim + PL + R2S"],
    "sim+rotpl": TABLE_3B["Sim + RotPL"],
    "sim+r3s": TABLE_3B["Sim + R3S"],
    "r3s+rotpl": TABLE_3B["R3S + RotPL"],
    "sim+rotpl+r3s": TABLE_3B["Sim + RotPL + R3S"],
}
"""The rows of Table 3b."""
IMAGENETTE = Linear(
    Optimizer(lr=0.5, scaling="none", weight_decay=0.0, nesterov=True, schedule="cosine"), batch_size=25, epochs=80
)
"""Section 5, of BYOL and its variants: Nesterov, rate .5, batch 25, 80 epochs. The cosine is of BYOL's code."""


def options_of(rows: Rows) -> Callable[..., Recipe]:
    """A cell's recipe: the base with the options of the row that the axis `method` names."""
    return lambda base, method, **others: base.with_(method=dict(rows[method]))


def protocol(options: Options, profile: Profile, method: str, dataset: str) -> Options:
    """On ImageNette that of BYOL's variants; smaller profiles have SimSiam's for all."""
    return replace(options, linear=IMAGENETTE) if profile == "paper" and dataset == "imagenette" else options


BASES: Mapping[Profile, str] = dict.fromkeys(PROFILES, "prelax_{dataset}")
CIFAR10: Mapping[Profile, str] = dict.fromkeys(PROFILES, "prelax_cifar10")

table1 = Grid(
    name="prelax_table1",
    paper=PAPER,
    table="Table 1",
    title="Prelax beside others (of BYOL on CIFAR-10 the paper has no setting)",
    setting="CIFAR-10, SimSiam, 800 epochs; ImageNette, BYOL, 1000 epochs; ResNet-18",
    axes={
        "method": ("supervised", "supervised+tta", "simclr", *BENCHMARKS, "byol-resnet50"),
        "dataset": ("cifar10", "imagenette"),
    },
    bases=BASES,
    derive=options_of(BENCHMARKS),
    figures={
        ("rotation", "cifar10"): 88.3,
        ("simsiam", "cifar10"): 91.8,
        ("simsiam+prelax", "cifar10"): 93.4,
        ("byol", "imagenette"): 91.9,
        ("byol+prelax", "imagenette"): 92.6,
    },
    smoke=(("simsiam", "cifar10"), ("simsiam+prelax", "cifar10")),
    printed={
        ("supervised", "cifar10"): 95.0,
        ("byol", "cifar10"): 91.1,
        ("simclr", "cifar10"): 91.1,
        ("supervised", "imagenette"): 91.0,
        ("supervised+tta", "imagenette"): 92.2,
        ("byol-resnet50", "imagenette"): 92.3,
    },
    transferred=protocol,
)

IN_DOMAIN: Axes = {"method": tuple(VARIANTS), "dataset": ("cifar10", "cifar100", "tinyimagenet")}
table2a = Grid(
    name="prelax_table2a",
    paper=PAPER,
    table="Table 2a",
    title="the variants of Prelax on the dataset of their pretraining",
    setting="SimSiam, ResNet-18, 32 pixels, 800 epochs",
    axes=IN_DOMAIN,
    bases=BASES,
    derive=options_of(VARIANTS),
    figures=table(IN_DOMAIN, "91.8 66.9 47.7", "92.5 67.5 47.9", "92.4 67.3 47.1", "93.4 70.0 49.2"),
    smoke=tuple((method, "cifar10") for method in ("simsiam", "std", "rot", "all")),
)


def transfer(target: str, name: str, axes: Axes, *rows: str) -> Grid:
    """Columns of Table 2b that end in `target`, whose images and labels are `--labelled` and `--labelled-test`."""
    return Grid(
        name=name,
        paper=PAPER,
        table=f"Table 2b, to {target}",
        title=f"the variants of Prelax on another dataset, {target}; without --labelled, on that of their pretraining",
        setting="SimSiam, ResNet-18, 32 pixels, 800 epochs",
        axes=axes,
        bases={**BASES, "smoke": "prelax_cifar10"},
        derive=options_of(VARIANTS),
        figures=table(axes, *rows),
        smoke=tuple((method, axes["dataset"][0]) for method in ("simsiam", "all")),
        labelled=("labelled", "labelled_test"),
    )


TO_CIFAR10: Axes = {"method": tuple(VARIANTS), "dataset": ("cifar100", "tinyimagenet")}
TO_CIFAR100: Axes = {"method": tuple(VARIANTS), "dataset": ("tinyimagenet",)}
table2b = transfer("CIFAR-10", "prelax_table2b", TO_CIFAR10, "44.1 43.9", "45.0 45.1", "45.0 45.1", "44.9 44.6")
table2b_cifar100 = transfer("CIFAR-100", "prelax_table2b_cifar100", TO_CIFAR100, "21.8", "21.8", "22.0", "22.1")

OPTIONS: Axes = {"method": tuple(ALTERNATIVES)}
table3a = Grid(
    name="prelax_table3a",
    paper=PAPER,
    table="Table 3a",
    title="other ways to relax the alignment, or to use rotation",
    setting="CIFAR-10, SimSiam, ResNet-18, 800 epochs",
    axes=OPTIONS,
    bases=CIFAR10,
    derive=options_of(ALTERNATIVES),
    figures=table(OPTIONS, "91.8 91.9 88.3 87.9 91.7 93.4"),
    smoke=(("simsiam",), ("rotation",), ("simsiam+prelax",)),
)

TERMS: Axes = {"method": tuple(ABLATION)}
table3b = Grid(
    name="prelax_table3b",
    paper=PAPER,
    table="Table 3b",
    title="terms of Prelax-std and Prelax-rot left out",
    setting="CIFAR-10, SimSiam, ResNet-18, 800 epochs",
    axes=TERMS,
    bases=CIFAR10,
    derive=options_of(ABLATION),
    figures=table(TERMS, "91.8 92.2 91.5 91.7 92.5 91.1 91.9 79.8 92.4"),
    smoke=(("sim",), ("sim+pl+r2s",), ("sim+rotpl+r3s",)),
)

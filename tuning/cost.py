"""What a grid costs: images to train on, over images/s that were measured, and what each trial takes besides."""

from collections.abc import Mapping

from pipelines.recipe import Recipe
from tuning.grid import Grid, Profile

MACHINE = "2 CPU cores"
IMAGES: Mapping[str, int] = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "stl10": 100_000,
    "tinyimagenet": 100_000,
    "imagenet100": 127_000,
    "imagenet": 1_281_167,
    "imagenette": 9_469,
    "celeba": 162_770,
    "ucf101": 9_537,
    "kinetics": 390_000,
    "motions": 600,
    "small": 600,
    "h36m": 290_000,
    "poses": 2_560,
}
"""Training images by dataset: of STL-10 the unlabelled ones, of ImageNet-100 about. Videos of UCF101's train split 1
and, about, of Kinetics-600; moments of Human3.6M as in `multiview_h36m`, about. `motions`, `poses`: as `python -m
pipelines data` makes them; `small`, clips of one's own, as many as `motions`."""
RATES: Mapping[tuple[str, int], float] = {
    ("resnet20", 32): 263.2,
    ("resnet20", 64): 90.9,
    ("resnet20", 224): 7.9,
    ("resnet18", 32): 39.7,
    ("resnet18", 64): 8.6,
    ("resnet50", 224): 4.3,
    ("resnet18", 224): 6.9,
    ("resnet34", 32): 13.5,
    ("resnet34", 224): 4.4,
    ("efficientnet_b0", 32): 79.9,
    ("efficientnet_b0", 224): 7.7,
    ("efficientnet_b1", 32): 55.7,
    ("efficientnet_b1", 224): 5.9,
    ("mobilenet_v3_large", 32): 111.4,
    ("mobilenet_v3_large", 224): 15.0,
    ("cifarnet", 32): 310.0,
    ("inception", 28): 78.0,
    ("preact_resnet18", 28): 32.0,
    ("resnet20", 28): 280.0,
    ("resnet20", 128): 6.7,
    ("resnet18", 128): 7.4,
}
"""Images/s by backbone and pixels of the online view, of SCE's step with two views on `MACHINE`, views excluded:
measured by `python -m pipelines bench step --backbone NAME --size PIXELS --batch-size 64` (of resnet18 at 64 pixels 32,
at 224 pixels 8). From resnet18 at 224 pixels on it is twice what a second of one core's CPU time brought; of cifarnet
and those at 28 pixels in bilevel's step with its recipes' one view, of those at 128 in that of Prelax on BYOL."""
OTHERS: Mapping[tuple[str, Profile], float] = {
    ("transformations_stl10", "small"): 22.4,
    ("transformations_stl10", "paper"): 6.9,
    ("transformations_celeba", "paper"): 3.4,
    ("artifacts_cifar10", "small"): 41.3,
    ("artifacts_stl10", "paper"): 4.1,
    ("dfgan_cifar10", "small"): 146.4,
    ("dfgan_cifar10", "paper"): 22.0,
    ("dfgan_stl10", "paper"): 3.9,
    ("dfgan_celeba", "paper"): 3.9,
    **{(f"prelax_{name}", "small"): 89.0 for name in ("cifar10", "cifar100", "tinyimagenet")},
    **{(f"prelax_{name}", "paper"): 12.8 for name in ("cifar10", "cifar100", "tinyimagenet")},
}
"""Images/s of other methods' steps, by recipe and profile, on `MACHINE`: measured by `python -m pipelines bench recipe
NAME` with the profile's fields (of the largest set of tasks, of the default noise), `smoke` as `small`. `dfgan_celeba`
has the networks of `dfgan_stl10`. Prelax is Prelax-all on SimSiam, which has three views: by CPU time, as above."""
CLIPS: Mapping[tuple[str, int], float] = {
    ("c3d:small", 32): 132.0,
    ("c3d:small", 48): 61.0,
    ("resnet3d18", 32): 13.6,
    ("r2plus1d18", 32): 4.4,
    ("c3d", 112): 1.4,
    ("resnet3d18", 112): 2.3,
    ("r2plus1d18", 112): 0.28,
}
"""Clips/s by backbone and pixels, of 16 frames, of the step of `temporal` with all four kinds on `MACHINE`, reading
excluded: twice what a second of one core's CPU time brought."""
MOMENTS: Mapping[tuple[str, int], float] = {("resnet18:large", 48): 29.0, ("resnet18", 224): 3.4}
"""Moments/s of the step of `multiview`, likewise."""
STARTS = 40.0
"""Seconds a trial for the start of its processes and its evaluation, on `MACHINE`: `smoke` sweeps of ReSSL's Table 1
and SCE's Table 6, which hardly train, took 35 and 51."""


def images(recipe: Recipe, dataset: str) -> int:
    """That a recipe trains on, over all epochs."""
    return recipe.epochs * min(recipe.data.limit or IMAGES[dataset], IMAGES[dataset])


def hours(grid: Grid, profile: Profile) -> float | None:
    """Of all trials of a profile, one seed, on `MACHINE`; None where a network was not measured.

    A symmetric loss counts twice: each view passes both networks; a video counts as often as it gives clips. What
    trials start from is not counted, and of the evaluation only what `STARTS` covers.
    """
    total = 0.0
    for cell in {grid.trial(cell): cell for cell in grid.cells(profile)}.values():
        values = dict(zip(grid.axes, cell, strict=True))
        recipe = grid.recipe(cell, profile)
        base = grid.bases[profile].format(**values)
        dataset = next((word for word in base.split("_") if word in IMAGES), "")
        pixels = next(iter(recipe.views.values())).size
        passes = 2 if getattr(recipe.method, "symmetric", False) else 1
        if recipe.data.media == "video":
            passes = len(recipe.views_used)
        rates = {"image": RATES, "video": CLIPS, "take": MOMENTS}[recipe.data.media].get((recipe.backbone, pixels))
        rate = OTHERS.get((base, "small" if profile == "smoke" else profile), rates)
        if rate is None or dataset not in IMAGES:
            return None
        total += (passes * images(recipe, dataset) / rate + STARTS) / 3600
    return total


def shown(hours: float | None) -> str:
    """`3 min`, `2.5 h`, `12 d`, or `-`."""
    if hours is None:
        return "-"
    if hours < 1:
        return f"{max(60 * hours, 1):.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.0f} d"

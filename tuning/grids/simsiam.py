"""SimSiam (Chen and He, CVPR 2021, arXiv 2011.10566), section 4.1: linear evaluation on ImageNet; the profiles `smoke`
and `small` take CIFAR-10 in its place.
"""

from methods.metrics.linear import SIMSIAM_IMAGENET
from pipelines.recipe import Recipe
from tuning.grid import Axes, Grid, table


def stop_gradient(base: Recipe, stop_gradient: str) -> Recipe:
    """The predictor's rate decays, as in the paper's baseline (Table 1)."""
    return base.with_(method={"stop_gradient": stop_gradient == "with", "fix_predictor_lr": False})


STOP_GRADIENT: Axes = {"stop_gradient": ("with", "without")}
figure2 = Grid(
    name="simsiam_figure2",
    paper="SimSiam (arXiv 2011.10566)",
    table="Figure 2",
    title="with and without stop-gradient; without it collapses",
    setting="ImageNet, ResNet-50, 100 epochs",
    axes=STOP_GRADIENT,
    bases={"smoke": "simsiam_cifar10", "small": "simsiam_cifar10", "paper": "simsiam_imagenet"},
    derive=stop_gradient,
    figures=table(STOP_GRADIENT, "67.7 0.1"),
    linear=SIMSIAM_IMAGENET,
)

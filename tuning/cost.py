"""What a grid costs: images to train on, over images/s that were measured."""

from collections.abc import Mapping

from pipelines.recipe import Recipe

MACHINE = "2 CPU cores"
IMAGES: Mapping[str, int] = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "stl10": 100_000,
    "tinyimagenet": 100_000,
    "imagenet100": 126_689,
    "imagenet": 1_281_167,
}
"""Training images by dataset: of STL-10 the unlabelled ones; of ImageNet-100 as SCE counts them."""
RATES: Mapping[tuple[str, int], float] = {
    ("resnet20", 32): 0.0,
}
"""Images/s by backbone and pixels of a view, of SCE's step with two views on `MACHINE`, batch 64: as
`python -m pipelines bench step --batch-size 64 --backbone NAME --size PIXELS` gave them."""


def images(recipe: Recipe, dataset: str) -> int:
    """That a recipe trains on, over all epochs."""
    return recipe.epochs * min(recipe.data.limit or IMAGES[dataset], IMAGES[dataset])

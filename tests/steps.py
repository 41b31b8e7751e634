"""A step of a recipe, on images made here."""

import torch

from methods.method import Clock
from methods.parts import set_batch_norm
from pipelines.recipe import Recipe


def take_a_step(recipe: Recipe, pixels: int = 40) -> None:
    """16 images in the recipe's own views: the loss is finite, and every parameter that learns has a gradient."""
    index = torch.arange(16)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, pixels, pixels), dtype=torch.uint8, generator=random)
    batch = {name: view.apply(images, view.draw(0, 0, index)) for name, view in recipe.views.items()}
    torch.manual_seed(0)
    method = set_batch_norm(recipe.build(recipe.facts(16, 10)), recipe.batch_norm)
    loss = method({**batch, "index": index}, Clock(0, 10, 1, 0, 0), "model").loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)

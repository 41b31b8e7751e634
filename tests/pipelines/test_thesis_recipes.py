"""Recipes of chapters 3 to 7 of S. Jenni's thesis: its numbers, typed again; a step of each turn."""

import re
from typing import Any

import pytest
import torch

from methods import optim
from methods.method import Clock
from pipelines.loop import Training
from pipelines.recipe import find_recipe, from_json, recipes

FIGURES = {
    "transformations_stl10": ["73.7", "76.2"],
    "transformations_stl10_resnet34": ["91.8"],
    "transformations_celeba": ["69.2"],
    "transformations_imagenet": ["43.1", "39.5", "74.5"],
    "artifacts_stl10": ["76.9", "81.06"],
    "artifacts_imagenet": ["38.9", "37.3", "69.8"],
    "dfgan_cifar10": ["26.5"],
    "dfgan_stl10": ["63.9"],
    "dfgan_celeba": ["12.7"],
}
ADAM = {"name": "adam", "scaling": "none", "betas": (0.5, 0.999), "weight_decay": 0.0}
FIXED = {**ADAM, "lr": 2e-4, "schedule": "constant"}
CLASSIFIER = {"name": "adamw", "betas": (0.5, 0.99), "weight_decay": 1e-4 / 3e-4, "lr": 3e-4, "final_lr": 3e-7}
FALLING = {**ADAM, "weight_decay": 5e-5, "lr": 3e-4, "final_lr": 3e-6, "schedule": "linear"}
GAN = {**ADAM, "lr": 1e-4, "schedule": "constant"}
CHAPTERS: dict[str, tuple[str, int, int, dict[str, Any], dict[str, dict[str, Any]]]] = {
    # backbone, epochs, batch, method, optimizers: section 4.4, 3.3.4 and 3.4.2, 7.3.1
    "transformations_stl10": (
        "alexnet",
        200,
        64,
        {"crop": 64, "patch": 48, "border": 2, "warp_range": 0.1, "border_weight": 50.0, "autoencoding_weight": 50.0},
        {"critic": FIXED, "inpainter": FIXED, "model": {**CLASSIFIER, "schedule": "cosine"}},
    ),
    "transformations_imagenet": ("alexnet", 200, 96, {"crop": 128, "border": 4}, {"critic": FIXED}),
    "transformations_celeba": ("alexnet", 100, 64, {"crop": 96, "border": 2}, {}),
    "artifacts_stl10": ("alexnet:lrn", 400, 256, {"drop_rate": 0.7}, {"model": FALLING, "repairer": FALLING}),
    "artifacts_imagenet": ("alexnet:lrn", 150, 256, {"drop_rate": 0.7}, {"model": FALLING}),
    "autoencoder_imagenet": (
        "own",
        80,
        256,
        {"widths": (32, 64, 128, 256, 512), "kernel": 2},
        {"model": {**FALLING, "weight_decay": 5e-5 / 30}},
    ),
    "dfgan_cifar10": ("own", 128, 64, {"noise": "generator", "noise_penalty": 1.0}, {"generator": GAN}),
    "dfgan_stl10": ("own", 64, 64, {"noise_penalty": 0.1}, {"generator": GAN, "discriminator": GAN}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_docstrings_have_the_tables_figures(name: str) -> None:
    text = recipes()[name].__doc__ or ""
    assert all(re.search(rf": {re.escape(figure)}[;.]", text) for figure in FIGURES[name])


@pytest.mark.parametrize("name", CHAPTERS)
def test_hyper_parameters_are_the_chapters(name: str) -> None:
    backbone, epochs, batch, method, optimizers = CHAPTERS[name]
    recipe = find_recipe(name)
    assert (recipe.backbone, recipe.epochs, recipe.batch_size) == (backbone, epochs, batch)
    assert {field: getattr(recipe.method, field) for field in method} == method
    for turn, fields in optimizers.items():
        assert {field: getattr(recipe.optimizers[turn], field) for field in fields} == fields


def test_decay_takes_a_ten_thousandth_of_a_weight_a_step() -> None:
    """AdamW's as in its paper, where the rate is no part of it: w (1 - 1e-4) without a gradient."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = optim.build(find_recipe("transformations_stl10").optimizers["model"], [weight], 64)
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 1 - 1e-4), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["dfgan_cifar10", "dfgan_stl10"])
def test_a_gan_has_100_000_iterations(name: str) -> None:
    """As near as whole epochs come: of CIFAR-10's 50,000 images, of STL-10's 100,000 unlabelled ones."""
    recipe = find_recipe(name)
    steps = recipe.epochs * ({"dfgan_cifar10": 50_000, "dfgan_stl10": 100_000}[name] // recipe.batch_size)
    assert steps == pytest.approx(100_000, rel=0.01)


SMALL = ["transformations_cifar10", "rotation_cifar10", "autoencoder_cifar10", "artifacts_cifar10"]


@pytest.mark.parametrize("name", [*SMALL, "dfgan_cifar10_small", "supervised_cifar10"])
def test_a_step_on_its_own_views(name: str) -> None:
    """Each turn moves its parameters, with what the recipe's own view makes of images."""
    recipe = find_recipe(name).with_(batch_size=8)
    recipe = recipe if recipe.backbone == "own" else recipe.with_(backbone="resnet20")
    index = torch.arange(8)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = recipe.views["image"]
    batch = {"image": view.apply(images, view.draw(0, 0, index)), "index": index, "label": index % 4}
    torch.manual_seed(0)
    method = recipe.build(recipe.facts(16, 10))
    training = Training(method, method, recipe.optimizers, 8, recipe.epochs, 2, seed=0)
    before = {p: p.detach().clone() for p in method.parameters()}
    log = training.one_step(batch)
    assert all(value.isfinite() for value in log.values())
    for turn in method.turns_at(Clock(0, 2, 2, 0, 0)):
        moving = optim.build(recipe.optimizers[turn], method.parameters_of(turn), 8).param_groups
        weights = [p for group in moving for p in group["params"] if p.ndim > 1]
        assert any(not torch.equal(p, before[p]) for p in weights), turn


def test_gans_see_images_as_they_are() -> None:
    """Section 7.3 names no augmentation."""
    view = find_recipe("dfgan_cifar10").views["image"]
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(view.apply(images, view.draw(0, 0, torch.arange(8))), images)


# ------------------------------------------------------------------------------------------ chapters 5 and 6


VIDEO = {"name": "adamw", "lr": 3e-4, "scaling": "none", "betas": (0.9, 0.99), "schedule": "cosine", "final_lr": 3e-7}
TAKES = {"name": "adamw", "lr": 1e-4, "scaling": "none", "betas": (0.9, 0.999), "weight_decay": 1e-4, "final_lr": 1e-7}
FILMED: dict[str, tuple[str, int, int, tuple[int, int | None], int, dict[str, Any]]] = {
    # backbone, epochs, batch, decoded frames, pixels of a view
    "temporal_ucf101": ("c3d", 100, 7, (128, 171), 112, VIDEO),
    "temporal_kinetics": ("c3d", 15, 7, (128, 171), 112, VIDEO),
    "temporal_small": ("c3d:small", 60, 8, (56, 72), 48, VIDEO),
    "temporal_motions": ("c3d:small", 20, 16, (32, None), 32, VIDEO),
    "multiview_h36m": ("resnet18", 11, 16, (512, None), 224, TAKES),
    "multiview_poses": ("resnet18:large", 12, 32, (128, None), 48, {**TAKES, "lr": 2e-4, "final_lr": 2e-7}),
}


@pytest.mark.parametrize("name", FILMED)
def test_hyper_parameters_of_videos_and_takes_are_the_chapters(name: str) -> None:
    """Sections 5.2.3 and 6.3.1. Batches: 28 clips are 7 videos; 16 moments."""
    backbone, epochs, batch, frames, size, optimizer = FILMED[name]
    recipe = find_recipe(name)
    assert (recipe.backbone, recipe.epochs, recipe.batch_size) == (backbone, epochs, batch)
    assert (recipe.data.size, recipe.data.width) == frames
    assert {field: getattr(recipe.optimizers["model"], field) for field in optimizer} == optimizer
    assert {view.size for view in recipe.views.values()} == {size}
    if recipe.data.media == "video":
        assert tuple(recipe.views) == recipe.method.transformations == ("speed", "random", "periodic", "warp")
        assert {(view.frames, view.speeds, view.flip, view.kind) for view in recipe.views.values()} == {
            (16, 4, 0.5, kind) for kind in recipe.views
        }
    else:
        gaps = {(view.least_gap, view.greatest_gap, view.flip, view.background) for view in recipe.views.values()}
        assert gaps == {(4, 128, 0.5, "remove")} and [view.role for view in recipe.views.values()] == [*recipe.views]
        assert (recipe.method.fusion, recipe.method.synchronization, recipe.method.flipping) == ("multiply", True, True)


def test_every_recipe_has_its_numbers_in_a_test() -> None:
    others = {name for name in recipes() if find_recipe(name).data.media != "image"}
    assert others == FILMED.keys()


@pytest.mark.parametrize("name", FILMED)
def test_a_recipe_of_videos_or_takes_comes_back_from_json(name: str) -> None:
    recipe = find_recipe(name)
    assert from_json(recipe.to_json()) == recipe

"""Recipes of chapter 8 of S. Jenni's thesis: its numbers, typed again; the commands; a step of each network."""

import re
import shlex
from typing import Any

import pytest
import torch

from methods import optim
from methods.method import Clock
from pipelines.__main__ import Pretrain
from pipelines.command_line import parsed
from pipelines.loop import Training
from pipelines.recipe import Recipe, find_recipe, recipes

ABLATIONS = {"epochs": 200, "batch_size": 128}  # section 8.4.1
NOISY = {"epochs": 100, "batch_size": 64}  # section 8.4.3
RECIPES: dict[str, tuple[str, float, dict[str, int]]] = {  # network, initial rate, length
    "bilevel_cifar10_cifarnet": ("cifarnet", 0.01, ABLATIONS),
    "bilevel_cifar10_inception": ("inception", 0.1, ABLATIONS),
    "bilevel_cifar100_cifarnet": ("cifarnet", 0.01, NOISY),
    "bilevel_cifar100_inception": ("inception", 0.1, NOISY),
    "bilevel_cifar10_preact": ("preact_resnet18", 0.1, NOISY),
    "bilevel_cifar100_preact": ("preact_resnet18", 0.1, NOISY),
    "bilevel_imagenet_alexnet": ("alexnet:lrn", 0.01, {"epochs": 90, "batch_size": 128}),
}
FIGURES = {  # tests: the paper's own row, clean or noisy
    "bilevel_cifar10_cifarnet": ["75.52", "47.62"],
    "bilevel_cifar10_inception": ["87.78", "73.08", "33.6"],
    "bilevel_cifar100_cifarnet": [],
    "bilevel_cifar100_inception": [],
    "bilevel_cifar10_preact": ["87.0", "89.0"],
    "bilevel_cifar100_preact": ["59.8", "61.6"],
    "bilevel_imagenet_alexnet": ["58.2", "52.69"],
}
VARIANTS: dict[str, tuple[str, dict[str, float]]] = {  # what stands beside the options in a docstring
    "sgd": (
        "--method.no-reweight --data.order shuffle",
        {
            "bilevel_cifar10_cifarnet": 75.68,
            "bilevel_cifar10_inception": 88.13,
            "bilevel_cifar10_preact": 69.6,
            "bilevel_cifar100_preact": 44.9,
            "bilevel_imagenet_alexnet": 57.4,
        },
    ),
    "a": ("--method.no-normalize", {"bilevel_cifar10_cifarnet": 74.32, "bilevel_cifar10_inception": 77.07}),
    "b": ("--method.per-layer", {"bilevel_cifar10_cifarnet": 74.36, "bilevel_cifar10_inception": 85.25}),
    "c": ("--data.order shuffle", {"bilevel_cifar10_cifarnet": 68.19, "bilevel_cifar10_inception": 78.25}),
    "d": ("--method.no-same-dropout", {"bilevel_cifar10_cifarnet": 74.76, "bilevel_cifar10_inception": 87.86}),
    "dropout": (
        "--method.no-reweight --data.order shuffle --method.dropout 0.7",
        {"bilevel_cifar10_preact": 84.5, "bilevel_cifar100_preact": 50.1},
    ),
    "smoothing": (
        "--method.no-reweight --data.order shuffle --method.label-smoothing 0.1",
        {"bilevel_cifar10_preact": 69.3, "bilevel_cifar100_preact": 46.1},
    ),
}


def given(name: str, options: str) -> Recipe:
    return parsed(Pretrain, Pretrain(find_recipe(name)), shlex.split(options), "test").recipe


def step(recipe: Recipe) -> tuple[dict[str, Any], bool]:
    """Of images in 4 classes on the recipe's own view -> its log, and whether all weights of the network moved."""
    index = torch.arange(recipe.batch_size)
    pixels = recipe.data.size
    images = torch.randint(0, 256, (len(index), 3, pixels, pixels), dtype=torch.uint8, generator=seeded())
    view = recipe.views["image"]
    batch = {"image": view.apply(images, view.draw(0, 0, index)), "index": index, "label": index % 4}
    torch.manual_seed(0)
    method = recipe.build(recipe.facts(100, 10))
    before = {p: p.detach().clone() for p in method.parameters() if p.ndim > 1}
    log = Training(method, method, recipe.optimizers, recipe.batch_size, recipe.epochs, 2, seed=0).one_step(batch)
    return log, all(not torch.equal(p, was) for p, was in before.items())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_all_recipes_of_the_chapter_are_here() -> None:
    assert {name for name in recipes() if find_recipe(name).method_name == "bilevel"} == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_hyper_parameters_are_the_chapters(name: str) -> None:
    """k = 8, mu .01, lambda 1, L1 norm, one weight a part, equal dropping; momentum .9."""
    network, rate, length = RECIPES[name]
    recipe = find_recipe(name)
    assert (recipe.backbone, {"epochs": recipe.epochs, "batch_size": recipe.batch_size}) == (network, length)
    it = recipe.method
    assert (it.parts, it.mu, it.lam, it.normalize, it.per_layer, it.same_dropout) == (8, 0.01, 1.0, True, False, True)
    assert (it.reweight, it.mixup, it.label_smoothing) == (True, 0.0, 0.0)
    assert it.dropout == (0.0 if network == "preact_resnet18" else 0.5)
    assert (recipe.data.order, recipe.data.noise, recipe.data.noise_file) == ("balanced", 0.0, "")
    spec = recipe.optimizers["model"]
    assert (spec.name, spec.momentum, spec.nesterov, spec.weight_decay, spec.exclude) == ("sgd", 0.9, False, 5e-4, True)
    clocks = [Clock(n, 1000, 5, n // 5, 0) for n in (0, 4, 5, 9, 50)]
    rates = [optim.learning_rate(spec, recipe.batch_size, clock) for clock in clocks]
    assert rates == pytest.approx([rate, rate, rate * 0.95, rate * 0.95, rate * 0.5987369])  # .95^10


@pytest.mark.parametrize("name", RECIPES)
def test_docstrings_have_the_tables_figures_and_their_commands(name: str) -> None:
    text = " ".join((recipes()[name].__doc__ or "").split())
    assert all(re.search(rf"the paper: {re.escape(figure)}[;.]", text) for figure in FIGURES[name])
    for options, figures in VARIANTS.values():
        if name in figures:
            assert re.search(rf"`{re.escape(options)}`,? {figures[name]}\b", text), options


@pytest.mark.parametrize("name", RECIPES)
def test_sgd_is_the_whole_batchs_gradient_on_shuffled_data(name: str) -> None:
    recipe = given(name, VARIANTS["sgd"][0])
    assert f"`{VARIANTS['sgd'][0]}`" in " ".join((recipes()[name].__doc__ or "").split())
    assert (recipe.method.reweight, recipe.data.order, recipe.balance) == (False, "shuffle", None)
    assert recipe == find_recipe(name).with_(method={"reweight": False}, data={"order": "shuffle"})


def test_options_of_the_tables_rows() -> None:
    cifarnet, preact = "bilevel_cifar10_cifarnet", "bilevel_cifar10_preact"
    assert given(cifarnet, VARIANTS["a"][0]).method.normalize is False
    assert given(cifarnet, VARIANTS["b"][0]).method.per_layer is True
    assert given(cifarnet, VARIANTS["c"][0]).data.order == "shuffle"
    assert given(cifarnet, VARIANTS["d"][0]).method.same_dropout is False
    assert given(preact, VARIANTS["dropout"][0]).method.dropout == 0.7
    assert given(preact, VARIANTS["smoothing"][0]).method.label_smoothing == 0.1
    assert given("bilevel_imagenet_alexnet", "--data.noise-file labels.npy").data.noise_file == "labels.npy"


def test_the_augmentations_are_the_ablations() -> None:
    """CifarNet: none. Inception and the PreAct ResNet: squares of 28 pixels, not resized, brightness and contrast."""
    index = torch.arange(64)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    plain = find_recipe("bilevel_cifar10_cifarnet").views["image"]
    assert torch.equal(plain.apply(images, plain.draw(0, 0, index)), images)
    view = find_recipe("bilevel_cifar10_inception").views["image"]
    assert view == find_recipe("bilevel_cifar100_preact").views["image"]
    drawn = view.draw(0, 0, torch.arange(2000))
    column = dict(zip(("x", "y", "scale", "ratio", "flip", "jitter", "brightness", "contrast"), drawn.T, strict=False))
    assert column["scale"].unique().tolist() == [pytest.approx(28**2 / 32**2)] and not column["flip"].any()
    assert 0.2 <= column["contrast"].min() < 0.22 and 1.78 < column["contrast"].max() <= 1.8
    assert 0.5 <= column["brightness"].min() < 0.51 and 1.49 < column["brightness"].max() <= 1.5
    assert view.saturation == view.hue == view.grayscale == view.blur == 0.0
    still = drawn[:64].clone()
    still[:, 6:8] = 1.0  # no change of brightness and contrast: what is left are whole pixels of the image
    views = view.apply(images, still)
    for image, crop in zip(images, views, strict=True):
        windows = image.unfold(1, 28, 1).unfold(2, 28, 1)  # (3, 5, 5, 28, 28)
        assert (windows == crop[:, None, None]).all(dim=(0, 3, 4)).sum() == 1


def test_decay_is_of_weights_alone() -> None:
    recipe = find_recipe("bilevel_cifar10_inception")
    method = recipe.build(recipe.facts(100, 10))
    groups = optim.build(recipe.optimizers["model"], method.parameters_of("model"), 128).param_groups
    assert {(p.ndim > 1, group["weight_decay"]) for group in groups for p in group["params"]} == {
        (True, 5e-4),
        (False, 0.0),
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bilevel_cifar10_cifarnet", "--method.parts 4"),
        ("bilevel_cifar10_cifarnet", VARIANTS["sgd"][0]),
        ("bilevel_cifar10_inception", "--method.parts 2"),
        ("bilevel_cifar10_preact", VARIANTS["sgd"][0]),
        ("bilevel_imagenet_alexnet", "--method.parts 2 --data.size 128 --views.image.size 112"),
    ],
)
def test_a_step_on_its_own_view(name: str, options: str) -> None:
    log, moved = step(given(name, options).with_(batch_size=8))
    assert all(value.isfinite() for value in log.values()) and "accuracy" in log
    assert moved
    assert log["loss"].item() == pytest.approx(2.3, abs=0.5)  # ln 10, of a classifier that starts near 0
    assert ("negative_weights" in log) == ("no-reweight" not in options)

"""Recipes of RCL: the paper's numbers, typed again from it; what was chosen for small images."""

import re
import shlex
from typing import Any

import pytest

from methods import optim
from methods.metrics.linear import Linear
from methods.optim import Optimizer
from pipelines.__main__ import Pretrain
from pipelines.command_line import parsed
from pipelines.evaluate import Options
from pipelines.recipe import find_recipe, recipes
from pipelines.sources import Data

SMALL = ("rcl_cifar10", "rcl_cifar100", "rcl_tinyimagenet")
NAMES = (*SMALL, "rcl_imagenet")
BYOL = {"crop_scale": (0.08, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2}
BYOL |= {"hue": 0.1, "grayscale": 0.2}
IMAGENET = Linear(
    Optimizer("lars", lr=1.0, scaling="none", weight_decay=0.0, nesterov=True), batch_size=4096, epochs=90
)


def fields_of(thing: Any, names: Any) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in names}


def test_the_recipes_are_there() -> None:
    assert {name for name in recipes() if find_recipe(name).method_name == "rcl"} == set(NAMES)


def test_imagenet_is_the_papers() -> None:
    """Sections 5.1 and 5.3; 98304 is 1.5 * 2^16."""
    recipe = find_recipe("rcl_imagenet")
    method = {
        "levels": 3,
        "shared_predictor": False,
        "clustering": "online",
        "symmetric": True,
        "temperature": 0.1,
        "queue": 98304,
        "hidden": 2048,
        "dim": 256,
        "predictor_hidden": 4096,
        "momentum": 0.99,
        "momentum_end": 1.0,
        "warmup_epochs": 10,
        "radius_is": "distance",
        "min_samples": 4,
    }
    assert fields_of(recipe.method, method) == method
    assert (recipe.backbone, recipe.epochs, recipe.batch_size) == ("resnet50", 200, 4096)
    rate = {"name": "lars", "lr": 0.3, "weight_decay": 1e-6, "warmup_epochs": 10, "schedule": "cosine", "final_lr": 0.0}
    rate |= {"momentum": 0.9, "exclude": True, "scaling": "linear"}
    assert fields_of(recipe.optimizers["model"], rate) == rate
    assert optim.peak_rate(recipe.optimizers["model"], recipe.batch_size) == pytest.approx(4.8)  # .3 * 4096 / 256
    for name, own in (("online", {"blur": 1.0, "solarize": 0.0}), ("target", {"blur": 0.1, "solarize": 0.2})):
        expected = {**BYOL, **own, "size": 224}
        assert fields_of(recipe.views[name], expected) == expected
    assert recipe.views.keys() == {"online", "target"}, "no multi-crop"


@pytest.mark.parametrize("name", SMALL)
def test_small_images_have_ressls_setting(name: str) -> None:
    """As `ressl_cifar10`, with both views the student's; clusters by shares of the samples."""
    recipe, ressl = find_recipe(name), find_recipe(name.replace("rcl", "ressl"))
    assert (recipe.backbone, recipe.epochs, recipe.batch_size) == ("resnet18", 200, 256)
    assert recipe.data == ressl.data
    for field in ("queue", "hidden", "dim", "momentum", "momentum_end"):
        assert getattr(recipe.method, field) == getattr(ressl.method, field)
    assert recipe.method.queue == {"rcl_tinyimagenet": 16384}.get(name, 4096)
    clusters = {"radius_is": "quantile", "radius": 0.3, "radius_step": 0.2, "min_samples": 4, "warmup_epochs": 5}
    assert fields_of(recipe.method, clusters) == clusters and recipe.method.levels == 3
    spec, theirs = recipe.optimizers["model"], ressl.optimizers["model"]
    assert (
        (spec.name, spec.lr, spec.weight_decay) == (theirs.name, theirs.lr, theirs.weight_decay) == ("sgd", 0.06, 5e-4)
    )
    student = ressl.views["online"]
    for view in recipe.views.values():
        assert fields_of(view, student.__dataclass_fields__.keys() - {"name"}) == fields_of(
            student, student.__dataclass_fields__.keys() - {"name"}
        )


def test_docstrings_have_the_papers_figures() -> None:
    text = recipes()["rcl_imagenet"].__doc__ or ""
    assert all(re.search(rf": {figure}[;.]", text) for figure in (72.6, 90.8, 75.8, 92.6, 57.2, 70.3))
    for name in SMALL:
        assert "the paper has no figure; ours: not measured" in (recipes()[name].__doc__ or "")


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_have_commands_and_the_papers_protocol(name: str) -> None:
    text = recipes()[name].__doc__ or ""
    lines = text.replace("\\\n", " ").splitlines()
    words = {line.split()[3]: shlex.split(line)[3:] for line in lines if line.strip().startswith("python -m pipelines")}
    assert words["pretrain"][1] == name
    given = parsed(Pretrain, Pretrain(find_recipe(name)), words["pretrain"][2:], "test")
    assert given.recipe.data.train and given.recipe.data.test
    assert words["evaluate"][1:3] == ["RUN", "linear"]
    options = parsed(Options, Options(data=Data()), words["evaluate"][3:], "test")
    assert options.linear == (IMAGENET if name == "rcl_imagenet" else Linear())
    for variant in re.findall(r"`(--[^`]+)`", text):
        varied = parsed(Pretrain, Pretrain(find_recipe(name)), shlex.split(variant), "test").recipe
        assert varied != find_recipe(name) and varied.method_name == "rcl"


def test_a_local_crop_is_refused() -> None:
    recipe = find_recipe("rcl_imagenet").with_(backbone="resnet20")
    with pytest.raises(ValueError, match="rcl takes the views online and target, got online, target, local_1"):
        local = find_recipe("ressl_imagenet_multicrop").views["local_1"]
        extra = recipe.with_(views={"local_1": local})
        extra.build(extra.facts(16, 10))

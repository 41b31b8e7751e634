"""Recipes of Prelax: section 5's numbers, typed again; the variants that docstrings name; a step on their own views."""

import dataclasses
import re
import shlex
from typing import Any

import pytest
import torch

from methods import optim
from methods.method import Clock
from methods.metrics.linear import Linear
from methods.optim import Optimizer
from methods.prelax import Prelax
from methods.simsiam import SimSiam
from pipelines.__main__ import Pretrain
from pipelines.command_line import parsed
from pipelines.evaluate import Options
from pipelines.recipe import Recipe, find_recipe, recipes
from pipelines.recipes import prelax
from pipelines.sources import Data

WEIGHTS = {  # Eq. 20, 16, 19 and 13 with gamma .1, beta 1; the others are 0
    "all": {"r2s": 0.5, "r3s": 0.5, "pl": 0.05, "rotation_pl": 0.05, "similarity": 1.0},
    "std": {"r2s": 1.0, "pl": 0.1, "similarity": 1.0},
    "rot": {"r3s": 1.0, "rotation_pl": 0.1, "similarity": 1.0},
    "base": {"similarity": 1.0, "forward_similarity": 1.0},
}
SIMSIAM = {"layers": 3, "hidden": 2048, "dim": 2048, "predictor_hidden": 512}
SGD = {"name": "sgd", "lr": 0.03, "scaling": "linear", "momentum": 0.9, "weight_decay": 5e-4, "warmup_epochs": 0.0}
LARS = {"name": "lars", "lr": 2.0, "momentum": 0.9, "weight_decay": 1e-6, "exclude": True}
CIFAR: dict[str, Any] = {"backbone": "resnet18", "epochs": 800, "batch_size": 512, "pixels": (32, 32)}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], float]] = {
    # the recipe; heads; optimizer; the rate at its peak: .03 * 512 / 256
    "prelax_cifar10": (CIFAR, SIMSIAM, SGD, 0.06),
    "prelax_cifar100": (CIFAR, SIMSIAM, SGD, 0.06),
    "prelax_tinyimagenet": (CIFAR, SIMSIAM, SGD, 0.06),
    "prelax_imagenette": (
        {"backbone": "resnet18", "epochs": 1000, "batch_size": 256, "pixels": (160, 128)},
        {"hidden": 4096, "dim": 256, "predictor_hidden": 4096, "momentum": 0.996, "momentum_end": 1.0},
        LARS,
        2.0,
    ),
    "prelax_imagenet": (  # SimSiam's own
        {"backbone": "resnet50", "epochs": 100, "batch_size": 512, "pixels": (256, 224)},
        SIMSIAM,
        {**SGD, "lr": 0.05, "weight_decay": 1e-4},
        0.1,
    ),
}
FIGURES = {
    "prelax_cifar10": "93.4 92.5 92.4 91.8",
    "prelax_cifar100": "70.0 67.5 67.3 66.9 44.9 45.0 44.1",
    "prelax_tinyimagenet": "49.2 47.9 47.1 47.7 44.6 45.1 43.9 22.1 21.8 22.0",
    "prelax_imagenette": "92.6 91.9",
    "prelax_imagenet": "",
}


def command(name: str, word: str) -> list[str]:
    """What follows RUN, or the recipe's name, in the first `python -m pipelines WORD` of a recipe's docstring."""
    text = (recipes()[name].__doc__ or "").replace("\\\n", " ")
    return next(shlex.split(line)[5:] for line in text.splitlines() if f"python -m pipelines {word} " in line)


def given(recipe: Recipe, words: str) -> Recipe:
    return parsed(Pretrain, Pretrain(recipe), shlex.split(words), "test").recipe


def variants(text: str) -> list[str]:
    return re.findall(r"`(--[^`]+)`", text)


def weights(recipe: Recipe) -> dict[str, float]:
    return {term: weight for term, weight in recipe.method.weights.items() if weight}


def test_each_dataset_of_the_paper_has_a_recipe() -> None:
    assert {name for name in recipes() if name.startswith("prelax")} == SETTINGS.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_hyper_parameters_are_the_papers(name: str) -> None:
    expected, heads, optimizer, peak = SETTINGS[name]
    recipe = find_recipe(name)
    config, spec = recipe.method, recipe.optimizers["model"]
    pixels = {(recipe.data.size, view.size) for view in recipe.views.values()}
    assert pixels == {expected["pixels"]}
    assert (recipe.backbone, recipe.epochs, recipe.batch_size) == tuple(expected.values())[:3]
    assert config.base == ("byol" if name == "prelax_imagenette" else "simsiam")
    base = getattr(config, config.base)
    assert {field: getattr(base, field) for field in heads} == heads
    assert {field: getattr(spec, field) for field in optimizer} == optimizer
    assert spec.schedule == "cosine" and spec.final_lr == 0
    assert optim.peak_rate(spec, recipe.batch_size) == pytest.approx(peak)
    assert weights(recipe) == WEIGHTS["all"]
    assert (config.r2s_alpha, config.r3s_alpha, config.margin) == (1.0, 1.0, 0.0)
    assert config.scale == (0.25 if config.base == "simsiam" else 1.0)


def test_views_are_those_of_the_base() -> None:
    for name in ("prelax_cifar10", "prelax_cifar100", "prelax_tinyimagenet"):
        for view in find_recipe(name).views.values():
            assert (view.crop_scale, view.flip, view.jitter, view.grayscale) == ((0.2, 1.0), 0.5, 0.8, 0.2)
            assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.4, 0.1)
            assert (view.blur, view.solarize) == (0.0, 0.0)
    online, target = (find_recipe("prelax_imagenette").views[name] for name in ("online", "target"))
    assert (online.blur, online.solarize, target.blur, target.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert online.crop_scale == target.crop_scale == (0.08, 1.0) and online.saturation == 0.2
    assert [find_recipe(f"prelax_{name}").data.mean[0] for name in ("cifar10", "cifar100", "tinyimagenet")] == [
        0.4914,
        0.5071,
        0.4802,
    ]


def test_the_optimizer_is_simsiams_or_byols_own() -> None:
    """But for what section 5 changes: the projector's layers."""
    for dataset in ("cifar10", "imagenet"):
        own, ours = find_recipe(f"simsiam_{dataset}"), find_recipe(f"prelax_{dataset}")
        assert ours.method.simsiam == dataclasses.replace(own.method, layers=3)
        for field in dataclasses.fields(Recipe):
            assert field.name == "method" or getattr(ours, field.name) == getattr(own, field.name), field.name


# ------------------------------------------------------------------------------------------ docstrings


@pytest.mark.parametrize("name", SETTINGS)
def test_docstrings_have_the_command_and_the_tables_figures(name: str) -> None:
    text = recipes()[name].__doc__ or ""
    words = command(name, "pretrain")
    assert f"pipelines pretrain {name} " in text
    assert given(find_recipe(name), shlex.join(words)).data.train
    assert "ours: not measured" in text
    for figure in FIGURES[name].split():
        assert re.search(rf"(\n|[: ]){re.escape(figure)}[;.,]", text), figure


@pytest.mark.parametrize("name", SETTINGS)
def test_docstrings_evaluate_by_the_papers_protocol(name: str) -> None:
    """Rate 30, batch 256, 100 epochs, x.1 at 60 and 80; BYOL: Nesterov, rate .5, batch 25, 80 epochs."""
    protocol, *words = command(name, "evaluate")
    assert protocol == "linear"
    found = parsed(Options, Options(data=Data()), words, "test").linear
    if name == "prelax_imagenette":
        sgd = Optimizer(lr=0.5, scaling="none", momentum=0.9, nesterov=True, weight_decay=0.0, schedule="cosine")
        assert found == Linear(sgd, batch_size=25, epochs=80)
    else:
        assert found == Linear()
        assert (found.optimizer.lr, found.optimizer.milestones) == (30.0, (60.0, 80.0))
        assert (found.batch_size, found.epochs) == (256, 100)


def test_the_variants_that_docstrings_name_are_the_equations() -> None:
    base = find_recipe("prelax_cifar10")
    std, rot, simsiam, *_ = variants(recipes()["prelax_cifar10"].__doc__ or "")
    assert variants(prelax.__doc__ or "")[:2] == [std, rot]
    for words, name in ((std, "std"), (rot, "rot"), (simsiam, "base")):
        assert weights(given(base, words)) == WEIGHTS[name]
        assert given(base, words).with_(method=base.method) == base
    byol, printed = variants(recipes()["prelax_imagenette"].__doc__ or "")
    assert weights(given(find_recipe("prelax_imagenette"), byol)) == WEIGHTS["base"]
    heads = given(find_recipe("prelax_imagenette"), printed).method.byol
    assert (heads.hidden, heads.dim, heads.predictor_hidden) == (256, 4096, 256)
    for words in variants(prelax.__doc__ or ""):
        assert given(base, words) != base, words


# ------------------------------------------------------------------------------------------- steps


def stand_in(recipe: Recipe) -> Recipe:
    """The same recipe with ResNet-20, small heads and views of 8 pixels."""
    small = {"hidden": 16, "dim": 8, "predictor_hidden": 12}
    views = {name: {"size": 8} for name in recipe.views}
    return recipe.with_(backbone="resnet20", method={"simsiam": small, "byol": small}, views=views)


def batch_for(recipe: Recipe, samples: int = 12) -> dict[str, torch.Tensor]:
    index = torch.arange(samples)
    images = torch.randint(0, 256, (samples, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = {name: view.draw(0, 0, index) for name, view in recipe.views.items()}
    made = {name: view.apply(images, drawn[name]) for name, view in recipe.views.items()}
    return {"index": index, **made, **{f"{name}.parameters": parameters for name, parameters in drawn.items()}}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_on_its_own_views(name: str) -> None:
    recipe = stand_in(find_recipe(name))
    torch.manual_seed(0)
    method = recipe.build(recipe.facts(12, 10))
    optimizer = optim.build(recipe.optimizers["model"], method.parameters_of("model"), 12)
    before = {p: p.detach().clone() for p in method.parameters() if p.requires_grad and p.ndim > 1}
    loss, log = method(batch_for(recipe), Clock(0, 10, 1, 0, 0), "model")
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert log.keys() - {"teacher_momentum"} == {"r2s", "r3s", "pl", "rotation_pl", "similarity"}
    assert all(not torch.equal(p, old) for p, old in before.items())


def test_the_base_alone_is_simsiam() -> None:
    """A quarter of Eq. 13 has the gradient of SimSiam's own loss, so that the row "Sim (i.e., SimSiam)" is it."""
    words = variants(recipes()["prelax_cifar10"].__doc__ or "")[2]
    recipe = stand_in(given(find_recipe("prelax_cifar10"), words))
    torch.manual_seed(0)
    ours = recipe.build(recipe.facts(12, 10))
    torch.manual_seed(0)
    own = recipe.with_(method=recipe.method.simsiam).build(recipe.facts(12, 10))
    assert isinstance(ours, Prelax) and isinstance(own, SimSiam)
    for method in (ours, own):
        method(batch_for(recipe), Clock(0, 10, 1, 0, 0), "model").loss.backward()
    mine = dict(ours.named_parameters())
    for name, p in own.named_parameters():
        torch.testing.assert_close(mine[name].grad, p.grad, atol=1e-5, rtol=1e-3)

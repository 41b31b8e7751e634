"""Recipes: the papers' numbers, typed again from the papers; derivation; the commands in their docstrings."""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from steps import take_a_step

from methods import optim
from methods.metrics.linear import IMAGENET, RESSL, RESSL_IMAGENET, SIMSIAM_IMAGENET, Linear
from methods.parts import set_batch_norm
from pipelines import generate
from pipelines.__main__ import Pretrain, main
from pipelines.command_line import parsed
from pipelines.errors import UserError
from pipelines.evaluate import KNN, PROTOCOLS, Options
from pipelines.recipe import Recipe, find_recipe, from_json, load_method, method_modules, recipes
from pipelines.sources import Data

ALL = recipes()
OTHERS = [
    name
    for name in ALL
    if find_recipe(name).views.keys() == {"image"}
    or find_recipe(name).data.media != "image"
    or find_recipe(name).method_name in ("prelax", "rcl")
]
"""Their numbers are in the other files of this folder."""
RECIPES = [name for name in ALL if name not in OTHERS]
SMALL = [name for name in RECIPES if "imagenet" not in name or name.endswith("tinyimagenet")]
LARGE = [name for name in RECIPES if name not in SMALL]
JITTER = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "hue": 0.1, "grayscale": 0.2}
STRONG = {**JITTER, "saturation": 0.4, "blur": 0.5, "solarize": 0.0, "crop_scale": (0.2, 1.0), "flip": 0.5}
WEAK = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0, "crop_scale": (0.2, 1.0), "flip": 0.5}
ALPHA = {**STRONG, "saturation": 0.2, "blur": 1.0}
SGD = {"optimizers.model.name": "sgd", "optimizers.model.momentum": 0.9, "optimizers.model.nesterov": False}
LARS = {"optimizers.model.name": "lars", "optimizers.model.momentum": 0.9, "optimizers.model.exclude": True}
COSINE = {"optimizers.model.schedule": "cosine", "optimizers.model.final_lr": 0.0}


def rate(lr: float, decay: float, warmup: float) -> dict[str, Any]:
    """`lr` is what the paper multiplies with batch / 256."""
    names = {"lr": lr, "weight_decay": decay, "warmup_epochs": warmup, "scaling": "linear"}
    return {f"optimizers.model.{name}": value for name, value in names.items()}


def view(name: str, size: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"views.{name}.{field}": value for field, value in {**fields, "size": size}.items()}


def heads(**fields: Any) -> dict[str, Any]:
    return {f"method.{name}": value for name, value in fields.items()}


SCE_CIFAR = {
    **SGD,
    **COSINE,
    **rate(0.06, 5e-4, 5),
    **heads(hidden=512, layers=2, dim=128, projector_norm=True, projector_last_norm=False, predictor=False),
    **heads(coefficient=0.5, temperature=0.1, target_temperature=0.05, queue=4096, positive_slot="masked"),
    **heads(momentum=0.99, momentum_end=0.99, symmetric=False, relation_weight=None, ceil_weight=None),
    **view("online", 32, STRONG),
    **view("target", 32, WEAK),
    "backbone": "resnet18",
    "batch_size": 256,
    "epochs": 200,
    "batch_norm": "split:8",
    "data.size": 32,
}
SCE_IMAGENET100 = {
    **SGD,
    **COSINE,
    **rate(0.3, 1e-4, 5),
    **heads(hidden=4096, layers=2, dim=256, predictor=False, symmetric=False, queue=65536),
    **heads(coefficient=0.5, temperature=0.1, target_temperature=0.05, momentum=0.996, momentum_end=1.0),
    **view("online", 224, STRONG),
    **view("target", 224, WEAK),
    "backbone": "resnet50",
    "batch_size": 512,
    "epochs": 200,
}
SCE_IMAGENET = {
    **SCE_IMAGENET100,
    **rate(0.5, 1e-4, 5),
    **heads(hidden=2048, layers=3, projector_norm=True, projector_last_norm=True, target_temperature=0.07),
}
SCE_SYMMETRIC = {
    **{name: value for name, value in SCE_IMAGENET.items() if not name.startswith("optimizers")},
    **LARS,
    **COSINE,
    **rate(0.3, 1e-6, 10),
    **heads(symmetric=True, predictor=True, predictor_hidden=4096, momentum=0.99, momentum_end=1.0),
    **view("online", 224, ALPHA),
    **view("target", 224, {**ALPHA, "blur": 0.1, "solarize": 0.2}),
    "batch_size": 4096,
    "batch_norm": "global",
}
RESSL_CIFAR = {
    **SGD,
    **COSINE,
    **rate(0.06, 5e-4, 10),
    **heads(student_temperature=0.1, teacher_temperature=0.04, queue=4096, predictor=True, info_nce_epochs=0),
    **heads(momentum=0.99, momentum_end=0.99, head_norm=True),
    **view("online", 32, STRONG),
    **view("target", 32, WEAK),
    "backbone": "resnet18",
    "epochs": 200,
    "batch_norm": "global",
}
RESSL_STRONG = {**ALPHA, "blur": 0.5, "solarize": 0.1, "crop_scale": (0.14, 1.0)}
RESSL_LARGE = {
    **LARS,
    **COSINE,
    **rate(0.6, 1e-6, 10),
    **heads(student_temperature=0.1, teacher_temperature=0.03, queue=65536, predictor=True, head_norm=True),
    **heads(hidden=4096, dim=256, momentum=0.996, momentum_end=1.0),
    **view("online", 224, RESSL_STRONG),
    **view("target", 224, WEAK),
    "backbone": "resnet50",
    "batch_size": 1024,
    "epochs": 200,
    "batch_norm": "global",
}
AT_64 = {"views.online.size": 64, "views.target.size": 64, "data.size": 64, "method.queue": 16384}
SCE_CROPS = {192: (0.172, 0.86), 160: (0.143, 0.715), 128: (0.114, 0.571), 96: (0.086, 0.429)}
RESSL_CROPS = {192: (0.117, 0.86), 160: (0.095, 0.715), 128: (0.073, 0.571), 96: (0.05, 0.429)}


def crops(scales: Mapping[int, tuple[float, float]], fields: Mapping[str, Any]) -> dict[str, Any]:
    local: dict[str, Any] = {}
    for k, (size, scale) in enumerate(scales.items(), start=1):
        local |= view(f"local_{k}", size, {**fields, "crop_scale": scale})
    return local


EXPECTED: dict[str, dict[str, Any]] = {
    # SCE: CIFAR of the released resnet18_cifar10.yaml; sections 4.1 to 4.3, Table 2
    "sce_cifar10": {**SCE_CIFAR, "data.mean": (0.4914, 0.4822, 0.4465), "data.std": (0.2023, 0.1994, 0.2010)},
    "sce_cifar100": {**SCE_CIFAR, "data.mean": (0.5071, 0.4865, 0.4409), "data.std": (0.2009, 0.1984, 0.2023)},
    "sce_stl10": {**SCE_CIFAR, **AT_64, "data.mean": (0.4408, 0.4279, 0.3867)},
    "sce_tinyimagenet": {**SCE_CIFAR, **AT_64, "data.mean": (0.4802, 0.4481, 0.3975)},
    "sce_imagenet100": SCE_IMAGENET100,
    "sce_imagenet": SCE_IMAGENET,
    "sce_imagenet_symmetric": SCE_SYMMETRIC,
    "sce_imagenet_multicrop": {
        **SCE_SYMMETRIC,
        **crops(SCE_CROPS, {**ALPHA, "blur": 0.5, "solarize": 0.2}),
        "method.hidden": 4096,
    },
    # ReSSL, journal: section 4 and Tables 1 and 6; section 5.1
    "ressl_cifar10": RESSL_CIFAR,
    "ressl_cifar100": {**RESSL_CIFAR, "method.teacher_temperature": 0.03},
    "ressl_stl10": {**RESSL_CIFAR, **AT_64, "method.teacher_temperature": 0.03},
    "ressl_tinyimagenet": {**RESSL_CIFAR, **AT_64, "method.teacher_temperature": 0.03},
    "ressl_imagenet": RESSL_LARGE,
    "ressl_imagenet_two_crops": {**RESSL_LARGE, **view("second", 224, RESSL_STRONG)},
    "ressl_imagenet_multicrop": {**RESSL_LARGE, **crops(RESSL_CROPS, RESSL_STRONG)},
    # ReSSL, conference: the released code; batch and epochs also in the journal's Table 7
    "ressl_imagenet_conference": {
        **SGD,
        **COSINE,
        **rate(0.05, 1e-4, 5),
        **heads(student_temperature=0.1, teacher_temperature=0.04, queue=131072, predictor=False, head_norm=False),
        **heads(hidden=4096, dim=512, momentum=0.999, momentum_end=0.999, info_nce_epochs=0),
        **view("online", 224, STRONG),
        **view("target", 224, WEAK),
        "optimizers.model.exclude": True,
        "backbone": "resnet50",
        "batch_size": 256,
        "epochs": 200,
        "batch_norm": "shuffle",
    },
    # SCE, section 4.2: MoCo v2 with temperature .2 in SCE's setting
    "moco_cifar10": {
        **{name: value for name, value in SCE_CIFAR.items() if not name.startswith("method")},
        **view("target", 32, STRONG),
        **heads(temperature=0.2, queue=4096, hidden=512, dim=128, head_norm=True, symmetric=False),
        **heads(momentum=0.99, momentum_end=None),
    },
    # SimSiam, appendix D
    "simsiam_cifar10": {
        **SGD,
        **COSINE,
        **rate(0.03, 5e-4, 0),
        **heads(layers=2, hidden=2048, dim=2048, predictor_hidden=512),
        **view("online", 32, {**STRONG, "blur": 0.0}),
        **view("target", 32, {**STRONG, "blur": 0.0}),
        "backbone": "resnet18",
        "batch_size": 512,
        "epochs": 800,
    },
    # SimSiam, section 3
    "simsiam_imagenet": {
        **SGD,
        **COSINE,
        **rate(0.05, 1e-4, 0),
        **heads(layers=3, hidden=2048, dim=2048, predictor_hidden=512),
        **view("online", 224, STRONG),
        **view("target", 224, STRONG),
        "backbone": "resnet50",
        "batch_size": 512,
        "epochs": 100,
    },
    # lightly's benchmark: .06 and 5e-4 for a loss that is a quarter of the paper's
    "byol_cifar10": {
        **SGD,
        **COSINE,
        **rate(0.03, 2e-3, 0),
        **heads(hidden=1024, dim=256, predictor_hidden=1024, momentum=0.99, momentum_end=0.99),
        **view("online", 32, {**STRONG, "blur": 0.0, "crop_scale": (0.08, 1.0)}),
        **view("target", 32, {**STRONG, "blur": 0.0, "crop_scale": (0.08, 1.0)}),
        "backbone": "resnet18",
        "batch_size": 128,
        "epochs": 200,
    },
    "demo": {"backbone": "resnet20", "data.size": 32},
}
FIGURES = {
    "sce_cifar10": ["90.34"],
    "sce_cifar100": ["65.45"],
    "sce_stl10": ["89.94"],
    "sce_tinyimagenet": ["51.90"],
    "sce_imagenet100": ["82.94", "83.37"],
    "sce_imagenet": ["70.5"],
    "sce_imagenet_symmetric": ["72.7"],
    "sce_imagenet_multicrop": ["75.4"],
    "ressl_cifar10": ["90.76", "89.98", "90.04"],
    "ressl_cifar100": ["65.03", "65.33"],
    "ressl_stl10": ["88.89", "90.00"],
    "ressl_tinyimagenet": ["46.64", "48.22"],
    "ressl_imagenet": ["72.0"],
    "ressl_imagenet_two_crops": ["73.2"],
    "ressl_imagenet_multicrop": ["76.0", "76.3"],
    "ressl_imagenet_conference": ["69.9"],
    "moco_cifar10": ["87.56"],
    "simsiam_cifar10": ["91.8"],
    "simsiam_imagenet": ["67.7", "68.1"],
    "byol_cifar10": ["87.2"],
    "demo": [],
}
PEAK = {  # the rate that the optimizer reaches, worked out by hand
    "sce_cifar10": 0.06,
    "sce_imagenet100": 0.6,  # .3 * 512 / 256
    "sce_imagenet": 1.0,
    "sce_imagenet_symmetric": 4.8,  # .3 * 4096 / 256
    "ressl_imagenet": 2.4,  # .6 * 1024 / 256
    "simsiam_cifar10": 0.06,  # .03 * 512 / 256
    "simsiam_imagenet": 0.1,  # .05 * 512 / 256
    "byol_cifar10": 0.015,  # lightly's .06 at batch 128, of a loss four times as large
}


def value(recipe: Recipe, name: str) -> Any:
    found: Any = recipe
    for part in name.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


def docstring(name: str) -> str:
    return ALL[name].__doc__ or ""


def commands(name: str) -> list[list[str]]:
    """The words after `python -m pipelines` of each command in a recipe's docstring."""
    lines = docstring(name).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[3:] for line in lines if line.strip().startswith("python -m pipelines")]


def test_the_recipes_are_those_the_tables_here_name() -> None:
    assert set(RECIPES) == EXPECTED.keys() == FIGURES.keys()
    for method in ("sce", "ressl", "moco", "simsiam", "byol"):
        assert find_recipe(f"{method}_cifar10").method_name == method
    for method in ("sce", "ressl"):
        for dataset in ("cifar100", "stl10", "tinyimagenet", "imagenet"):
            assert find_recipe(f"{method}_{dataset}").method_name == method


@pytest.mark.parametrize("name", RECIPES)
def test_hyper_parameters_are_the_papers(name: str) -> None:
    recipe = find_recipe(name)
    expected = EXPECTED[name]
    assert {field: value(recipe, field) for field in expected} == expected
    assert recipe.views.keys() == {f.split(".")[1] for f in expected if f.startswith("views")} or name == "demo"


@pytest.mark.parametrize("name", PEAK)
def test_peak_rates(name: str) -> None:
    recipe = find_recipe(name)
    assert optim.peak_rate(recipe.optimizers["model"], recipe.batch_size) == pytest.approx(PEAK[name])


@pytest.mark.parametrize("name", ALL)
def test_json_round_trip(name: str) -> None:
    recipe = find_recipe(name)
    assert from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("name", ALL)
def test_builds_its_method_with_batch_norm_and_optimizers(name: str) -> None:
    """ResNet-50 without memory: the same constructors, on torch's meta device."""
    recipe = find_recipe(name)
    with torch.device("meta" if name in LARGE else "cpu"):
        method = set_batch_norm(recipe.build(recipe.facts(1000, 10)), recipe.batch_norm)
    assert set(method.turns) == recipe.optimizers.keys()
    moved = 0
    for turn, spec in recipe.optimizers.items():
        moved += sum(len(group["params"]) for group in optim.build(spec, method.parameters_of(turn), 256).param_groups)
    assert moved == sum(p.requires_grad for p in method.parameters())


def stand_in(recipe: Recipe) -> Recipe:
    """The same recipe with a small network, small heads and small views."""
    small = {"hidden": 16, "dim": 8, "predictor_hidden": 16, "queue": 48}
    known = {field.name for field in dataclasses.fields(recipe.method)}
    shrink = 7 if max(view.size for view in recipe.views.values()) == 224 else 2
    return recipe.with_(
        backbone="resnet20",
        method={field: width for field, width in small.items() if field in known},
        views={name: {"size": view.size // shrink} for name, view in recipe.views.items()},
    )


@pytest.mark.parametrize("name", [*RECIPES, *(name for name in ALL if find_recipe(name).method_name == "rcl")])
def test_a_step_on_its_own_views(name: str) -> None:
    take_a_step(stand_in(find_recipe(name)))


# ------------------------------------------------------------------------------------------ docstrings


@pytest.mark.parametrize("name", ALL)
def test_docstring_has_the_command_and_the_figures(name: str) -> None:
    text = docstring(name)
    first, second = text.splitlines()[:2]
    assert first.endswith(".") and not second
    assert re.search(r"\bours: (not measured|\d)", text)
    assert all(re.search(rf": {re.escape(figure)}[;.]", text) for figure in FIGURES.get(name, []))
    pretraining = [words for words in commands(name) if words[0] == "pretrain"]
    assert len(pretraining) == 1 and pretraining[0][1] == name
    options = parsed(Pretrain, Pretrain(find_recipe(name)), pretraining[0][2:], "test")
    assert options.recipe.data.train and options.recipe.data.test
    for words in re.findall(r"`(--[^`]+)`", text):  # its variants: the options it names can be given
        given = parsed(Pretrain, Pretrain(find_recipe(name)), shlex.split(words), "test")
        assert given.recipe != find_recipe(name)


@pytest.mark.parametrize("name", ALL)
def test_docstring_evaluates_by_the_papers_protocol(name: str) -> None:
    words = next(words for words in commands(name) if words[0] == "evaluate")
    assert words[1] == "RUN" and words[2] in {**PROTOCOLS, **generate.PROTOCOLS}
    options = parsed(Options, Options(data=Data()), words[3:], "test")
    if words[2] == "linear" and name in RECIPES:
        large = dict.fromkeys(("sce_imagenet_symmetric", "sce_imagenet_multicrop"), IMAGENET)
        large |= {"simsiam_imagenet": SIMSIAM_IMAGENET}
        others = RESSL_IMAGENET if name.startswith("ressl_imagenet") else RESSL if "ressl" in name else Linear()
        assert options.linear == large.get(name, others)
    elif words[2] == "knn":
        assert options.knn == (KNN(k=200, temperature=0.1) if name == "byol_cifar10" else KNN())


# ------------------------------------------------------------------------------------------ derivation


def test_with_replaces_fields_of_sections_by_dicts_and_sections_by_objects() -> None:
    base = find_recipe("sce_cifar10")
    derived = base.with_(epochs=10, method={"queue": 8}, views={"online": {"blur": 0.0}}, data={"size": 28})
    assert (derived.epochs, derived.method.queue, derived.data.size) == (10, 8, 28)
    assert derived.method == dataclasses.replace(base.method, queue=8)
    assert derived.views["online"] == dataclasses.replace(base.views["online"], blur=0.0)
    assert derived.views["target"] == base.views["target"]
    assert derived.data.mean == base.data.mean
    assert base == find_recipe("sce_cifar10")
    assert base.with_(data=Data(size=28)).data == Data(size=28)
    rate = optim.Optimizer("adam", lr=1e-3)
    assert base.with_(optimizers={"model": rate}).optimizers == {"model": rate}
    extra = dataclasses.replace(base.views["online"], name="extra")
    assert list(base.with_(views={"extra": extra}).views) == ["online", "target", "extra"]


def test_with_names_the_nearest_field() -> None:
    base = find_recipe("sce_cifar10")
    with pytest.raises(UserError, match=r"no field epoch in Recipe; did you mean epochs"):
        base.with_(epoch=3)
    with pytest.raises(UserError, match=r"no field quue in Config; did you mean queue"):
        base.with_(method={"quue": 3})
    with pytest.raises(UserError, match=r"no field jiter in View; did you mean jitter"):
        base.with_(views={"online": {"jiter": 0.1}})


def test_with_checks_what_it_makes() -> None:
    base = find_recipe("sce_cifar10")
    with pytest.raises(ValueError, match="epochs is at least 1"):
        base.with_(epochs=0)
    with pytest.raises(ValueError, match="batch_size is at least 2"):
        base.with_(batch_size=1)
    with pytest.raises(ValueError, match=r"views\.target\.name must be target"):
        base.with_(views={"target": base.views["online"]})
    with pytest.raises(ValueError, match=r"method\.coefficient"):
        base.with_(method={"coefficient": 2.0})


@pytest.mark.parametrize("name", ["moco_cifar10", "simsiam_cifar10", "byol_cifar10"])
def test_views_that_a_method_does_not_take_are_refused(name: str) -> None:
    recipe = find_recipe(name).with_(backbone="resnet20")
    extra = dataclasses.replace(recipe.views["online"], name="extra")
    recipe = recipe.with_(views={"extra": extra})
    with pytest.raises(ValueError, match="takes the views online and target"):
        recipe.build(recipe.facts(10, None))


# ------------------------------------------------------------------------------------------- look-ups


def test_unknown_names_are_answered_by_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no recipe sce_cifar; did you mean .*sce_cifar10"):
        find_recipe("sce_cifar")
    with pytest.raises(UserError, match=r"no method simsam; did you mean simsiam"):
        load_method("simsam")
    assert {"sce", "ressl", "moco", "simsiam", "byol"} <= method_modules().keys()


def test_the_command_line_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "sce_cifar"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no recipe sce_cifar; did you mean") and "sce_cifar10" in error
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "sce_cifar10", "--method.queu", "3"])
    assert stopped.value.code == 2
    assert "--method.queue" in capsys.readouterr().err


def test_a_recipe_of_another_version_is_refused() -> None:
    text = find_recipe("sce_cifar10").to_json()
    with pytest.raises(UserError, match=r"recipe\.json does not fit"):
        from_json(text.replace('"epochs"', '"rounds"'))
    with pytest.raises(UserError, match=r"recipe\.json does not fit"):
        from_json(text.replace('"queue": 4096', '"queue": "many"'))

"""Spaces to search: functions from a recipe to what varies, fields by their dotted name to domains of Ray Tune.

A user's own is such a function in a file or a module: `--space my_spaces.py:wide`, `--space package.module:wide`.
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from pipelines.errors import UserError
from pipelines.recipe import Recipe, nearest

Space = Mapping[str, Any]


def temperatures(recipe: Recipe) -> Space:
    """Every temperature of the loss: .02 to .2 of the sharper target, .05 to .5 of the others, log-uniform.

    ReSSL's of the InfoNCE warm-up only where there is one.
    """
    names = [field.name for field in dataclasses.fields(recipe.method) if field.name.endswith("temperature")]
    if not getattr(recipe.method, "info_nce_epochs", 1):
        names.remove("info_nce_temperature")
    space = {}
    for name in names:
        target = name.startswith(("target", "teacher"))
        space[f"method.{name}"] = tune.loguniform(0.02, 0.2) if target else tune.loguniform(0.05, 0.5)
    if not space:
        raise UserError(f"{recipe.method_name} has no temperature to search: give another --space or recipe")
    return space


def lambda_(recipe: Recipe) -> Space:
    """lambda, the weight of the contrastive part: 0 to 1, uniform."""
    if not hasattr(recipe.method, "coefficient"):
        raise UserError(f"{recipe.method_name} has no lambda to search: give another --space, or a recipe of sce")
    return {"method.coefficient": tune.uniform(0.0, 1.0)}


def drop_rate(recipe: Recipe) -> Space:
    """theta, the share of the code that is dropped: .1 to .9, uniform."""
    if not hasattr(recipe.method, "drop_rate"):
        raise UserError(f"{recipe.method_name} drops nothing: give another --space, or a recipe of artifacts")
    return {"method.drop_rate": tune.uniform(0.1, 0.9)}


def noise_penalty(recipe: Recipe) -> Space:
    """lambda of learned noise: .01 to 100, log-uniform."""
    if getattr(recipe.method, "noise", None) != "generator":
        raise UserError(
            f"{recipe.method_name} has no learned noise here: give another --space, or a recipe of dfgan with "
            "--method.noise generator"
        )
    return {"method.noise_penalty": tune.loguniform(0.01, 100.0)}


SPACES: Mapping[str, Callable[[Recipe], Space]] = {
    "temperatures": temperatures,
    "lambda": lambda_,
    "drop_rate": drop_rate,
    "noise_penalty": noise_penalty,
}


def find_space(name: str) -> Callable[[Recipe], Space]:
    """One of `SPACES`, or FILE.py:NAME, or MODULE:NAME.

    Raises:
        UserError: no such space, file, module or function in it.
    """
    where, colon, function = name.rpartition(":")
    if not colon:
        if name not in SPACES:
            raise UserError(
                f"no space {name}{nearest(name, SPACES)} (there are {', '.join(SPACES)}; your own: FILE.py:NAME)"
            )
        return SPACES[name]
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except (ImportError, OSError) as error:
        raise UserError(f"--space {name}: {where} can't be read ({error})") from error
    if not callable(getattr(module, function, None)):
        raise UserError(f"--space {name}: {where} has no function {function}{nearest(function, vars(module))}")
    return getattr(module, function)


def derived(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with fields replaced by their dotted names.

    Raises:
        UserError: no such field; names the nearest.
    """
    for name, value in values.items():
        *sections, field = name.split(".")
        fields: Any = {field: value}
        for section in reversed(sections):
            fields = {section: fields}
        recipe = recipe.with_(**fields)
    return recipe

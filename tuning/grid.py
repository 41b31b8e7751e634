"""Grids: a table of a paper as data, and the recipes that its cells are.

A file of `tuning/grids/` holds a paper's `Grid`s as module variables; `grids()` finds them, so that a new one needs no
registration.
"""

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import tuning.grids
from methods.metrics.linear import Linear
from pipelines.errors import UserError
from pipelines.recipe import Recipe, find_recipe, nearest

Label = str | float
Cell = tuple[Label, ...]
"""A value of each axis, in the axes' order."""
Axes = Mapping[str, tuple[Label, ...]]
"""What varies, by the paper's symbol, and its values."""
Profile = Literal["smoke", "small", "paper"]
PROFILES: tuple[Profile, ...] = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Measure:
    """A figure of `evaluation.json`, as a table prints it."""

    protocol: str
    figure: str
    unit: str = "percent"
    """Of the table. Of percents `evaluation.json` has fractions, of others the figure itself."""
    less: bool = False
    """Whether less is better."""
    of: Literal["run", "random_init"] = "run"
    """Whether it is the run's, or that of its backbone at random initialization."""

    def printed(self, value: float) -> float:
        """A value of `evaluation.json` in the table's unit."""
        return 100 * value if self.unit == "percent" else value


@dataclass(frozen=True)
class Grid:
    """A table of a paper.

    Raises:
        ValueError: a figure for a cell that the axes do not have, or axes without values.
    """

    name: str
    """`<paper>_table<n>`: what the command line calls it."""
    paper: str
    table: str
    title: str
    """What varies, in a few words."""
    setting: str
    """The paper's data and backbone: the heading of its column."""
    axes: Axes
    bases: Mapping[Profile, str]
    """The recipe that cells are derived from, by profile; `{axis}` stands for the cell's value."""
    derive: Callable[..., Recipe]
    """(base, value of each axis) -> the cell's recipe. It sets the fields that vary and no other."""
    figures: Mapping[Cell, float | None]
    """As the paper prints them, in the table's order. Its keys are the table's cells; None: the paper prints none."""
    linear: Linear = field(default_factory=Linear)
    """The protocol of the paper's figures, where they are of a linear classifier."""
    cited: Mapping[Cell, float] = field(default_factory=dict)
    """Figures that the table prints beside its own: what others report of the same cell."""
    smoke: tuple[Cell, ...] = ()
    """Cells of the profile `smoke`. None: the table's corner."""
    metric: tuple[str, str] = ("linear", "top1")
    """Protocol and figure of `evaluation.json` that stand beside the paper's; `{axis}` stands for the cell's value."""
    reads: str = ""
    """The axis, if any, that names figures of one trial, and not trials: a layer, a measure."""
    percent: bool = True
    """Whether the figures are percents, where `evaluation.json` has fractions."""
    measures: Mapping[Label, Measure] = field(default_factory=dict)
    """By the value of the axis `reads`, in place of `metric` and `percent`: of several protocols or units, or where
    less is better. Rank correlations are then of each alone."""
    printed: Mapping[Cell, float | None] = field(default_factory=dict)
    """What reports show as the paper's alone: others' methods, and what can't be trained here. No profile trains it."""
    repeats: Mapping[Label, Label] = field(default_factory=dict)
    """Rows, values of the first axis, that are no trials of their own -> the row whose run is printed once more."""
    untrained: Mapping[Label, Label] = field(default_factory=dict)
    """Rows, likewise, that are at random initialization -> the row beside whose run that is evaluated."""
    labelled: tuple[str, ...] = ()
    """Options of a sweep, of `labelled` and `labelled_test`, that the profile `paper` needs, as the table's figures are
    of other data than the pretraining's."""
    transferred: Callable[..., Any] | None = None
    """(`pipelines.evaluate.Options` of the profile, profile, value of each axis) -> those of the cell."""
    collapses: bool = True
    """Whether a trial of low feature_std has collapsed, and counts as chance level."""
    first: Callable[..., Recipe] | None = None
    """(profile, value of each axis) -> the recipe whose run the cell's starts from; equal ones are trained once."""
    extractor: Callable[[Profile], Recipe | None] = lambda profile: None
    """The classifier of FID and inception score, trained once; None: Inception, unless one is given."""
    random_init: Mapping[str, float] = field(default_factory=dict)
    """What the table prints for random initialization: the axis `reads` (or "") -> the paper's figure."""
    evaluation: Mapping[Profile, Mapping[str, Any]] = field(default_factory=dict)
    """Fields of `pipelines.evaluate.Options` by profile."""
    profiles: Mapping[Profile, Mapping[str, Any]] = field(default_factory=dict)
    """Fields, as of `Recipe.with_`, in place of the profile's usual ones (`SCALES`)."""

    def __post_init__(self) -> None:
        if not self.axes or not all(self.axes.values()):
            raise ValueError(f"{self.name}: every axis needs values")
        if self.reads and self.reads not in self.axes:
            raise ValueError(f"{self.name}: it reads {self.reads}, the axes are {', '.join(self.axes)}")
        for cell in (*self.figures, *self.cited, *self.smoke, *self.printed):
            self.check(cell)
        if self.measures and set(self.measures) != set(self.axes.get(self.reads, ())):
            raise ValueError(f"{self.name}: measures are of each value of the axis that it reads")
        if both := self.figures.keys() & self.printed.keys():
            raise ValueError(f"{self.name}: {named(min(both, key=str))} is a cell, and not the paper's alone")
        rows = set(next(iter(self.axes.values())))
        if unknown := {*self.repeats, *self.repeats.values(), *self.untrained, *self.untrained.values()} - rows:
            raise ValueError(f"{self.name} has no row {min(map(str, unknown))}")

    def check(self, cell: Cell) -> None:
        """Raises ValueError where an axis has not that value."""
        if len(cell) != len(self.axes):
            raise ValueError(f"{self.name}: {named(cell)} has {len(cell)} values, the axes are {', '.join(self.axes)}")
        for value, (axis, values) in zip(cell, self.axes.items(), strict=True):
            if value not in values:
                raise ValueError(f"{self.name}: {axis} has no {named((value,))}, but {', '.join(map(str, values))}")

    def cells(self, profile: Profile) -> list[Cell]:
        """The table's cells; for `smoke` a corner: two values of each of the last two axes, unless `smoke` names it."""
        if profile != "smoke":
            return list(self.figures)
        if self.smoke:
            return list(self.smoke)
        axes = list(self.axes.values())
        corner = set(itertools.product(*(values[:1] for values in axes[:-2]), *(values[:2] for values in axes[-2:])))
        return [cell for cell in self.figures if cell in corner]

    def trial(self, cell: Cell) -> Cell:
        """What is trained for a cell: the same for all figures that are read of one trial."""
        return tuple(value for axis, value in self.trained(cell).items() if axis != self.reads)

    def trained(self, cell: Cell) -> dict[str, Label]:
        """The value of each axis; where a row has no trial of its own, those of the row whose run it stands for."""
        row = self.repeats.get(cell[0], self.untrained.get(cell[0], cell[0]))
        return dict(zip(self.axes, (row, *cell[1:]), strict=True))

    def measure(self, cell: Cell) -> Measure:
        """What this cell shows."""
        values = dict(zip(self.axes, cell, strict=True))
        if self.measures:
            found = self.measures[values[self.reads]]
        else:
            protocol, figure = (part.format(**values) for part in self.metric)
            found = Measure(protocol, figure, unit="percent" if self.percent else "")
        return replace(found, of="random_init") if cell[0] in self.untrained else found

    def measured(self, cell: Cell) -> tuple[str, str]:
        """Protocol and figure of `evaluation.json` that this cell shows."""
        found = self.measure(cell)
        return found.protocol, found.figure

    def picked(self, text: str) -> list[Cell]:
        """Cells by name, each once: their values with a slash between, cells with a comma.

        Raises:
            UserError: no such cell; names the nearest.
        """
        known = {key(cell): cell for cell in self.figures}
        names = {named(cell): cell for cell in self.figures}
        cells = []
        for name in text.split(","):
            values = tuple(_key(value) for value in name.strip().split("/"))
            cell = known.get(values)
            if cell is None and values in map(key, self.printed):
                raise UserError(f"{self.name}: {name.strip()} is the paper's alone, and can't be trained here")
            if cell is None:
                raise UserError(
                    f"{self.name} has no cell {name.strip()}{nearest(name.strip(), names)} "
                    f"(a cell is {'/'.join(self.axes)}, such as {next(iter(names))})"
                )
            cells.append(cell)
        return list(dict.fromkeys(cells))

    def protocol(self, profile: Profile) -> Linear:
        """Linear evaluation of a profile: the table's; in the smaller ones on features that are extracted once."""
        if profile == "paper":
            return self.linear
        batch_size = 64 if profile == "smoke" else self.linear.batch_size
        return replace(self.linear, augment="none", batch_size=batch_size)

    def recipe(self, cell: Cell, profile: Profile) -> Recipe:
        """What a cell trains: the base of the profile, scaled, then with what varies."""
        values = self.trained(cell)
        return self.derive(self.scaled(self.bases[profile].format(**values), profile), **values)

    def scaled(self, recipe: str, profile: Profile) -> Recipe:
        """A recipe by name, scaled to the profile."""
        scale = self.profiles.get(profile, SCALES[profile])
        return find_recipe(recipe).with_(**scale)


SCALES: Mapping[Profile, Mapping[str, Any]] = {
    "smoke": {"backbone": "resnet20", "epochs": 2, "batch_size": 32, "data": {"limit": 256}},
    "small": {"backbone": "resnet20", "epochs": 10, "data": {"limit": 10_000}},
    "paper": {},
}
"""How a profile scales recipes: for tests; for an evening on a workstation; not at all."""


def named(cell: Cell) -> str:
    """`0.1/0.05`: a cell on the command line and in tables."""
    return "/".join(f"{value:g}" if isinstance(value, float) else value for value in cell)


def _key(value: Label) -> Label:
    """Numbers by value, so that 0., 0.0 and 0 are one."""
    try:
        return float(value)
    except ValueError:
        return value


def key(cell: Cell) -> Cell:
    return tuple(_key(value) for value in cell)


def table(axes: Axes, *rows: str) -> dict[Cell, float | None]:
    """Figures as the paper prints them: a row of the table for each value (or values) of all axes but the last.

    Args:
        axes: of the grid; the last runs along the rows.
        rows: figures separated by blanks, `-` where the paper prints none; the first axis changes slowest.

    Raises:
        ValueError: another number of rows or of figures than the axes have.
    """
    *down, across = axes.values()
    heads = list(itertools.product(*down))
    if len(rows) != len(heads):
        raise ValueError(f"{len(rows)} rows of figures for {len(heads)} of the axes")
    figures: dict[Cell, float | None] = {}
    for head, row in zip(heads, rows, strict=True):
        for value, figure in zip(across, row.split(), strict=True):
            figures[(*head, value)] = None if figure == "-" else float(figure)
    return figures


def grids() -> dict[str, Grid]:
    """Every Grid of tuning/grids/, by name."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(tuning.grids.__path__, f"{tuning.grids.__name__}.")
    ]
    return {grid.name: grid for module in modules for grid in vars(module).values() if isinstance(grid, Grid)}


def find_grid(name: str) -> Grid:
    known = grids()
    if name not in known:
        raise UserError(f"no grid {name}{nearest(name, known)} (there are {', '.join(known)})")
    return known[name]

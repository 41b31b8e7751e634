"""Reports of a sweep: our figures beside the paper's, rebuilt from the trials' folders at any time.

A sweep's folder: `sweep.json` (what was asked for), `trials/<cell>-seed<n>/` (each the folder of a run, with
`outcome.json` when it has ended), and what is made here: `results.csv`, `results.md`, `results.png`, `tensorboard/`.
Figures are percents, but for FID, inception score and what a grid's measures say.
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
import pydantic
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pipelines.errors import UserError
from pipelines.extractors import INCEPTION
from pipelines.generate import PROTOCOLS as GENERATIVE
from pipelines.storage import Folder
from tuning.grid import Cell, Grid, Label, Profile, find_grid, key, named

Status = Literal["finished", "collapsed", "failed"]


@dataclass(frozen=True)
class Sweep:
    """`sweep.json`."""

    grid: str
    profile: Profile
    cells: tuple[Cell, ...]
    seeds: int = 1
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipes' `data` that were given in place of their own."""
    labelled: str = ""
    """Training data of the evaluation, where it is another."""
    labelled_test: str = ""
    """Test data of the evaluation, likewise."""
    extractor: str = ""
    """Of FID and inception score, where one was given."""

    def write(self, folder: Folder) -> None:
        folder.write("sweep.json", json.dumps(asdict(self), indent=2).encode())


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, for one cell. `outcome.json` holds a list of them: of all cells that the trial fills."""

    cell: Cell
    seed: int
    status: Status
    figure: float | None = None
    """As the table has it; chance level where the trial has collapsed, none where it failed."""
    step: int | None = None
    """The last one."""
    error: str = ""
    random_init: float | None = None
    """By the same protocol: the backbone before training."""
    raw_pixels: float | None = None
    by: str = ""
    """Of FID and inception score: the extractor, with its weights' hash."""


def write_outcomes(trial: Folder, ended: list[Outcome]) -> None:
    trial.write("outcome.json", json.dumps([asdict(outcome) for outcome in ended], indent=2).encode())


def read_sweep(folder: Folder) -> Sweep:
    """Raises UserError where no sweep lies there."""
    if not folder.exists("sweep.json"):
        raise UserError(f"no sweep lies at {folder.path} (it has no sweep.json)")
    try:
        sweep = pydantic.TypeAdapter(Sweep).validate_json(folder.read("sweep.json"))
    except pydantic.ValidationError as error:
        raise UserError(f"{folder.path}/sweep.json does not fit this version of the project: {error}") from error
    grid = find_grid(sweep.grid)
    known = {key(cell): cell for cell in grid.figures}
    try:
        cells = tuple(dict.fromkeys(known[key(cell)] for cell in sweep.cells))
        data = {name: tuple(value) if isinstance(value, list) else value for name, value in sweep.data.items()}
        return replace(sweep, cells=cells, data=data)
    except KeyError as error:
        raise UserError(f"{folder.path}/sweep.json has a cell that {sweep.grid} has not: {error}") from error


def trial_name(grid: Grid, cell: Cell, seed: int) -> str:
    return f"{named(grid.trial(cell)).replace('/', '_')}-seed{seed}"


def outcomes(folder: Folder, sweep: Sweep) -> list[Outcome]:
    """Of the trials that have ended, cell by cell."""
    grid = find_grid(sweep.grid)
    found: dict[tuple[Cell, int], Outcome] = {}
    for name in dict.fromkeys(trial_name(grid, cell, seed) for cell in sweep.cells for seed in range(sweep.seeds)):
        trial = folder / "trials" / name
        if trial.exists("outcome.json"):
            try:
                ended = pydantic.TypeAdapter(list[Outcome]).validate_json(trial.read("outcome.json"))
            except pydantic.ValidationError as error:
                raise UserError(
                    f"{trial.path}/outcome.json does not fit this version of the project: {error}"
                ) from error
            found |= {(key(outcome.cell), outcome.seed): outcome for outcome in ended}
    return [
        replace(found[key(cell), seed], cell=cell)
        for cell in sweep.cells
        for seed in range(sweep.seeds)
        if (key(cell), seed) in found
    ]


def trials_frame(grid: Grid, ended: list[Outcome]) -> pd.DataFrame:
    """A row a trial: the axes, `seed`, `status`, `ours`, `paper`, the two baselines, `by`, `step`, `error`."""
    rows = [
        {
            **dict(zip(grid.axes, outcome.cell, strict=True)),
            "seed": outcome.seed,
            "status": outcome.status,
            "ours": outcome.figure,
            "paper": grid.figures[outcome.cell],
            "random_init": outcome.random_init,
            "raw_pixels": outcome.raw_pixels,
            "by": outcome.by,
            "step": outcome.step,
            "error": outcome.error,
        }
        for outcome in ended
    ]
    what = ("seed", "status", "ours", "paper", "random_init", "raw_pixels", "by", "step", "error")
    return pd.DataFrame(rows, columns=[*grid.axes, *what])


def cells_frame(grid: Grid, sweep: Sweep, ended: list[Outcome]) -> pd.DataFrame:
    """A row a cell: the axes, `protocol`, `ranked`, `ours` (mean over seeds), `deviation`, `trials`, `mark`, `status`,
    `by`, `paper`, `cited`.

    Figures of one `ranked` are ranked together: of a protocol, or of one of the grid's measures; those of a run
    that is printed once more have none. `deviation` is the sample standard deviation, of two trials at least; `mark` a
    star where a trial has collapsed; `status` counts what did not finish; `by` is the extractor.
    """
    rows = []
    for cell in sweep.cells:
        mine = [outcome for outcome in ended if outcome.cell == cell]
        figures = [outcome.figure for outcome in mine if outcome.figure is not None]
        counts = {s: sum(outcome.status == s for outcome in mine) for s in ("collapsed", "failed")}
        waiting = sweep.seeds - len(mine)
        marks = [f"{n} {s}" for s, n in (*counts.items(), ("to be run", waiting)) if n]
        rows.append(
            {
                **dict(zip(grid.axes, cell, strict=True)),
                "protocol": grid.measured(cell)[0],
                "ranked": "" if cell[0] in grid.repeats else ranked(grid, cell),
                "ours": np.mean(figures) if figures else np.nan,
                "deviation": np.std(figures, ddof=1) if len(figures) > 1 else np.nan,
                "trials": len(figures),
                "mark": "*" if counts["collapsed"] else "",
                "status": ", ".join(marks),
                "by": "; ".join(dict.fromkeys(outcome.by for outcome in mine if outcome.by)),
                "paper": grid.figures[cell],
                "cited": grid.cited.get(cell, np.nan),
            }
        )
    return pd.DataFrame(rows).astype({"ours": float, "paper": float, "cited": float})


def read_of(grid: Grid, cell: Cell) -> Label:
    """The cell's value of the axis `reads`, if there is one."""
    return dict(zip(grid.axes, cell, strict=True)).get(grid.reads, "")


def ranked(grid: Grid, cell: Cell) -> str:
    return named((read_of(grid, cell),)) if grid.measures else grid.measured(cell)[0]


def rank_correlation(cells: pd.DataFrame) -> float | None:
    """Spearman's rho of our column and the paper's, over cells with both; None of fewer than three, or of constants."""
    both = cells.dropna(subset=["ours", "paper"])
    if len(both) < 3 or both["ours"].nunique() < 2 or both["paper"].nunique() < 2:
        return None
    return float(spearmanr(both["ours"], both["paper"]).statistic)


def shown(value: Any, decimals: int = 2) -> str:
    """A figure, `-` where there is none."""
    return "-" if value is None or pd.isna(value) else f"{value:.{decimals}f}"


def measures(grid: Grid, cells: Iterable[Cell]) -> str:
    """`fid, inception_score`, or `conv1, conv2 by layerwise`."""
    found: dict[str, list[str]] = {}
    for protocol, figure in dict.fromkeys(map(grid.measured, cells)):
        found.setdefault(protocol, []).append(figure)
    return ", ".join(p if figures == [p] else f"{', '.join(figures)} by {p}" for p, figures in found.items())


def units(grid: Grid) -> str:
    """`, in percent`, or `; accuracy in percent, error in frames (less is better)`."""
    if not grid.measures:
        return ", in percent" if grid.percent else ""
    found: dict[str, list[str]] = {}
    for name, it in grid.measures.items():
        found.setdefault(f"{it.unit}{' (less is better)' if it.less else ''}", []).append(named((name,)))
    if len(found) == 1:
        return f", in {next(iter(found))}"
    return "; " + ", ".join(f"{', '.join(names)} in {unit}" for unit, names in found.items())


def extractors(cells: pd.DataFrame) -> list[str]:
    """Each once; where there are several, the table tells them by number."""
    return [by for by in dict.fromkeys(cells["by"]) if by]


def told_extractors(cells: pd.DataFrame) -> list[str]:
    """The line on what FID and inception score stand on, if they are among the figures."""
    by = extractors(cells)
    if not by:
        return []
    near = "near the paper's, which are of another Inception and resizing, and not equal to them"
    alone = "to be compared with others of the same extractor, and with nothing in print"
    inception = all(name.startswith(INCEPTION) for name in by)
    names = by if len(by) == 1 else [f"({n}) {name}" for n, name in enumerate(by, start=1)]
    return [f"FID and inception score are by {'; '.join(names)}: {near if inception else alone}."]


def columns(grid: Grid, sweep: Sweep, cells: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text: for the terminal and for `results.md`.

    A difference is printed only where the profile is the paper's own setting, and no data but the paths was given; of
    FID and inception score only by Inception. What is the paper's alone follows the sweep's cells.
    """
    judged = cells[cells["protocol"].isin(list(GENERATIVE)) & cells["ours"].notna()]
    own = sweep.profile == "paper" and sweep.data.keys() <= {"train", "test"}
    own = own and all(by.startswith(INCEPTION) for by in judged["by"])
    head = [*grid.axes, "ours", "deviation", "paper" if own else f"paper ({grid.setting})"]
    head += ["difference"] if own else []
    head += ["cited by it"] if cells["cited"].notna().any() else []
    head += ["status"] if cells["status"].any() or grid.printed else []
    by = extractors(cells)
    head += ["extractor"] if len(by) > 1 else []
    rows = []
    for _, row in cells.iterrows():
        line = [named((row[axis],)) for axis in grid.axes]
        line += [shown(row["ours"]), shown(row["deviation"]), shown(row["paper"])]
        line += [shown(row["ours"] - row["paper"])] if own else []
        line += [shown(row["cited"])] if "cited by it" in head else []
        line += [row["status"]] if "status" in head else []
        line += [f"({by.index(row['by']) + 1})" if row["by"] else "-"] if "extractor" in head else []
        rows.append(line)
    for cell, figure in grid.printed.items():
        told = {"paper": shown(figure), "status": "the paper's alone"}
        names = [named((value,)) for value in cell]
        rows.append(names + [told.get(name.partition(" (")[0], "-") for name in head[len(names) :]])
    return head, rows


def markdown(grid: Grid, sweep: Sweep, ended: list[Outcome]) -> str:
    cells = cells_frame(grid, sweep, ended)
    head, rows = columns(grid, sweep, cells)
    groups = [name for name in cells["ranked"].unique() if name]
    of_each = {name: shown(rank_correlation(cells[cells["ranked"] == name])) for name in groups}
    rho = ", ".join(f"{name} {value}" if len(of_each) > 1 else value for name, value in of_each.items())
    once = (cells["protocol"] == "linear").any() and grid.protocol(sweep.profile).augment == "none"
    fixed = " on features extracted once" if once else ""
    what = f"{measures(grid, sweep.cells)}{fixed}{units(grid)}"
    given = "".join(f", data.{name} {value}" for name, value in sweep.data.items())
    given += f", evaluated with {sweep.labelled}" if sweep.labelled else ""
    given += f" and {sweep.labelled_test}" if sweep.labelled_test else ""
    lines = [
        f"# {grid.paper}, {grid.table}: {grid.title}",
        "",
        f"`{grid.name}`, profile `{sweep.profile}`, {sweep.seeds} seed(s){given}; {what}.",
        "",
        *("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)),
        "",
        f"Rank correlation (Spearman) of our column and the paper's: {rho or '-'}.",
    ]
    for line in told_extractors(cells):
        lines += ["", line]
    for name, title in (("random_init", "random initialization has"), ("raw_pixels", "raw pixels have")):
        if found := baseline(grid, ended, name):
            lines += ["", f"By the same protocol {title} {found}."]
    if grid.random_init:
        printed = ", ".join(f"{name} {value:g}".strip() for name, value in grid.random_init.items())
        lines += ["", f"For random initialization the paper prints {printed}."]
    failed = [outcome for outcome in ended if outcome.status == "failed"]
    lines += ["", "Failed:", ""] if failed else []
    lines += [f"- {named(outcome.cell)}, seed {outcome.seed}: {' '.join(outcome.error.split())}" for outcome in failed]
    return "\n".join(lines) + "\n"


def baseline(grid: Grid, ended: list[Outcome], name: str) -> str:
    """A field of the outcomes, least to most, by the axis `reads`, if any: `conv1 48.40, conv2 53.30 to 53.50`."""
    found: dict[str, list[float]] = {}
    for outcome in ended:
        if (value := getattr(outcome, name)) is not None:
            found.setdefault(named((read_of(grid, outcome.cell),)), []).append(value)
    spans = {read: dict.fromkeys((shown(min(values)), shown(max(values)))) for read, values in found.items()}
    return ", ".join(f"{read} {' to '.join(span)}".strip() for read, span in spans.items())


# --------------------------------------------------------------------------------------------- picture


def picture(grid: Grid, sweep: Sweep, cells: pd.DataFrame) -> Figure:
    """Ours above the paper's: a line over one axis, a heat map over the last two for each value of those before.

    Each panel has its own scale: what is compared is the shape. So an axis that names the protocol, FID or inception
    score, or measures of several units, has a panel for each. Of a grid's measures bright is good. A star marks cells
    of which a trial has collapsed.
    """
    apart = [axis for axis in grid.axes if f"{{{axis}}}" in grid.metric[0] and not grid.measures]
    apart += [grid.reads] if len({it.unit for it in grid.measures.values()}) > 1 else []
    rest = [axis for axis in grid.axes if axis not in apart]
    split, names = apart + rest[:-2], rest[-2:]
    first = list(dict.fromkeys(tuple(row) for row in cells[split].itertuples(index=False)))
    figure = Figure(figsize=(max(4.0 * len(first), 5.0), 6.4), dpi=120, layout="constrained")
    panels = figure.subplots(2, len(first), squeeze=False)
    sources = {"ours": f"ours, {sweep.profile}", "paper": grid.setting}
    for line, (column, title) in zip(panels, sources.items(), strict=True):
        for axis, values in zip(line, first, strict=True):
            mine = cells if column == "ours" else cells.assign(mark="")
            for name, value in zip(split, values, strict=True):
                mine = mine[mine[name] == value]
            less = bool(grid.measures) and all(
                it.less for name, it in grid.measures.items() if (mine[grid.reads] == name).any()
            )
            if len(names) == 1:
                _line(axis, mine, names[0], column)
            else:
                _heat(axis, mine, names[0], names[1], column, grid.axes, less)
            star = ", * collapsed" if mine["mark"].any() else ""
            lines = [title, *([named(values)] if values else []), *(["less is better"] if less else [])]
            axis.set_title("\n".join(lines) + star, fontsize=9)
    return figure


def _line(axis: Axes, cells: pd.DataFrame, name: str, column: str) -> None:
    x = cells[name] if all(isinstance(value, float) for value in cells[name]) else cells[name].astype(str)
    deviation = cells["deviation"].fillna(0) if column == "ours" else None
    axis.errorbar(
        x, cells[column], yerr=deviation, marker="o", capsize=3, color="tab:blue" if column == "ours" else "gray"
    )
    for place, value, mark in zip(x, cells[column], cells["mark"], strict=True):
        if mark:
            axis.annotate(mark, (place, value), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=12)
    axis.set(xlabel=name)
    axis.grid(alpha=0.3)


def _heat(
    axis: Axes,
    cells: pd.DataFrame,
    down: str,
    across: str,
    column: str,
    axes: Mapping[str, tuple[Label, ...]],
    less: bool,
) -> None:
    rows = [value for value in axes[down] if (cells[down] == value).any()]
    columns = [value for value in axes[across] if (cells[across] == value).any()]
    figures, marks = (
        cells.pivot(index=down, columns=across, values=what).reindex(index=rows, columns=columns)
        for what in (column, "mark")
    )
    values = figures.to_numpy(float)
    axis.imshow(
        np.ma.masked_invalid(values), cmap=matplotlib.colormaps["viridis_r" if less else "viridis"], aspect="auto"
    )
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)]) if np.isfinite(values).any() else 0.0
    for (row, place), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{value:.1f}{marks.iat[row, place]!s}"
            axis.text(place, row, text, ha="center", va="center", fontsize=7, color="wk"[int((value > middle) != less)])
    for ticks, labels in ((axis.set_xticks, columns), (axis.set_yticks, rows)):
        ticks(range(len(labels)), [named((label,)) for label in labels], fontsize=7)
    axis.tick_params(axis="x", rotation=45 if max(len(named((label,))) for label in columns) > 5 else 0)
    axis.set(xlabel=across, ylabel=down)


# ---------------------------------------------------------------------------------------------- report


def report(folder: Folder) -> str:
    """Makes all outputs anew from what lies in the folder. Returns `results.md`.

    Raises:
        UserError: no sweep lies there.
    """
    sweep = read_sweep(folder)
    grid = find_grid(sweep.grid)
    ended = outcomes(folder, sweep)
    text = markdown(grid, sweep, ended)
    folder.write("results.csv", trials_frame(grid, ended).to_csv(index=False).encode())
    folder.write("results.md", text.encode())
    buffer = io.BytesIO()
    picture(grid, sweep, cells_frame(grid, sweep, ended)).savefig(buffer, format="png")
    folder.write("results.png", buffer.getvalue())
    trials: dict[str, tuple[dict[str, Any], dict[str, float]]] = {}
    for outcome in ended:
        it = grid.measure(outcome.cell)
        if outcome.figure is not None and it.of == "run":
            varied = {k: v for k, v in grid.trained(outcome.cell).items() if k != grid.reads}
            told = {**varied, "seed": outcome.seed, "status": outcome.status}
            name = trial_name(grid, outcome.cell, outcome.seed)
            figure = named((read_of(grid, outcome.cell),)) if grid.measures else it.figure
            trials.setdefault(name, (told, {}))[1][figure] = outcome.figure
    hyperparameters(folder, trials)
    return text


def hyperparameters(folder: Folder, trials: Mapping[str, tuple[Mapping[str, Any], Mapping[str, float]]]) -> None:
    """For TensorBoard's HPARAMS tab: a table and parallel coordinates. Only where the folder is on a local disk.

    Args:
        trials: by name what varied, and the figures.
    """
    if folder.local is None:
        return
    for name, (values, figures) in trials.items():
        place = folder.local / "tensorboard" / name
        for old in place.glob("events.*"):
            old.unlink()
        with SummaryWriter(str(place)) as board:  # its add_hparams would write a second file
            for summary in hparams(dict(values), dict(figures)):
                board.file_writer.add_summary(summary)
            for metric, figure in figures.items():
                board.add_scalar(metric, figure)

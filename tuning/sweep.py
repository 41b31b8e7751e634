"""Sweeps: every cell of a grid pretrained and evaluated, trials side by side; what has ended is never run twice.

A trial is a run in the sweep's folder (`trials/<cell>-seed<n>`), with `outcome.json` when it has ended. That file and
the run's own checkpoints are all that `--run.resume` goes by.
"""

import hashlib
import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.table import Table

import pipelines.evaluate as evaluation
from pipelines.board import console
from pipelines.errors import UserError
from pipelines.evaluate import Options as Evaluation
from pipelines.generate import PROTOCOLS as GENERATIVE
from pipelines.generate import extractor_of
from pipelines.group import has_collapsed
from pipelines.place import cluster
from pipelines.pretrain import pretrain
from pipelines.recipe import Recipe, Run
from pipelines.shots import several_labels
from pipelines.sources import Data, check_classes, open_source
from pipelines.storage import Folder, open_folder
from tuning.grid import Cell, Grid, Label, Measure, Profile, find_grid
from tuning.report import (
    Outcome,
    Status,
    Sweep,
    cells_frame,
    columns,
    outcomes,
    read_sweep,
    report,
    told_extractors,
    trial_name,
    write_outcomes,
)
from tuning.trials import COLLAPSE_STD, Watch, absolute, one_of, reported, run_trials, side_by_side

UNLABELLED = {*GENERATIVE, "pose", "synchronization", "before_after"}
"""Protocols that need no labels."""
SEVERAL = {"low_shot", "transfer"}
"""Those that also take images with several labels."""


@dataclass(frozen=True)
class Options:
    profile: Profile = "small"
    """smoke: a corner of the table, a few hundred images, to see it work; small: the whole table on ResNet-20, a
    subset and few epochs; paper: the paper's own setting."""
    cells: str = ""
    """Cells by name, as 0.1/0.05,0.2/0.05: the table's axes in their order. Empty: all of the profile."""
    seeds: int = 1
    """Trials of each cell, with the seeds 0, 1, ..."""
    concurrent: int = 0
    """Trials at once, at most. 0: as many as the cluster allows."""
    labelled: str = ""
    """Training data for the evaluation, where that of the pretraining has no labels (STL-10), or the table's figures
    are of another set. A path may hold {dataset}."""
    labelled_test: str = ""
    """Test data that goes with it. Empty: data.test."""
    extractor: str = ""
    """Of FID and inception score: inception, a file of its weights, or a run of supervised. Empty: inception in the
    profile paper, else a small classifier that is trained first."""
    data: Data = field(default_factory=Data)
    """What is given stands in for every cell's own. In a path {dataset} stands for the cell's value of that axis."""
    run: Run = field(default_factory=lambda: Run(cpus=0.45, collapse_std=COLLAPSE_STD))
    """Storage, name and resume are the sweep's; the rest is each trial's."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.concurrent < 0:
            raise ValueError("seeds is at least 1, concurrent 0 or more")
        if self.labelled_test and not self.labelled:
            raise ValueError("labelled_test goes with labelled: give both")
        if self.run.stop_epoch:
            raise ValueError("a sweep evaluates trials at their end: leave out run.stop_epoch")


@dataclass(frozen=True)
class Trial:
    """What a trial's driver needs."""

    cell: Cell
    seed: int
    recipe: Recipe
    run: Run
    figures: tuple[tuple[Cell, Measure], ...]
    """Of each cell of the table that it fills, what it shows."""
    evaluation: evaluation.Options
    elsewhere: Mapping[Cell, Evaluation] = field(default_factory=dict)
    """Of cells that are evaluated in another way than the first: on other data."""
    first: Mapping[str, Recipe] = field(default_factory=dict)
    """What is trained before, by the run's folder: what it starts from, and what judges it."""

    @property
    def protocols(self) -> list[str]:
        return list(dict.fromkeys(measure.protocol for _, measure in self.figures))

    @property
    def extractor(self) -> str:
        """Of FID and inception score; empty where neither is measured."""
        return self.evaluation.generative.extractor if GENERATIVE.keys() & self.protocols else ""


def sweep(name: str, options: Options, given: Mapping[str, Any]) -> Folder:
    """Runs what is not yet run of a grid, then writes the reports. Returns the sweep's folder.

    Args:
        name: of the grid.
        given: the fields of `options.data` that stand in for the recipes' own.

    Raises:
        UserError: whatever the user can mend, before anything starts where that is possible; trials that failed.
    """
    grid = find_grid(name)
    folder = open_folder(options.run.storage) / (options.run.name or f"{grid.name}-{options.profile}")
    plan = planned(folder, asked(grid, options, given), options)
    check_labelled(grid, plan)
    trials = {
        trial_name(grid, cell, seed): trial_of(grid, plan, cell, seed, options.run, folder)
        for cell in plan.cells
        for seed in range(plan.seeds)
    }
    before = done_before(trials, plan, outcomes(folder, plan))
    left = {name: trial for name, trial in trials.items() if name not in before}
    check_data(left)
    check_extractors(left)
    if left:
        with cluster(options.run.address) as resources:
            recipes = list({trial.recipe.to_json(): trial.recipe for trial in trials.values()}.values())
            most = min(options.concurrent or len(trials), len(trials))  # of all: a resumed sweep has the same threads
            slots = side_by_side(recipes, options.run, resources, most)
            plan.write(folder)
            prepare(left, options.run)
            console.print(
                f"[bold]{folder.path}[/]: {grid.paper}, {grid.table}, {len(left)} trials to run "
                f"({len(before)} done before), {slots} at a time"
            )
            carry_out(
                left,
                grid,
                folder,
                Watch(
                    {name: "done before" if name in before else "waiting" for name in trials},
                    metric=grid.measured(list(grid.figures)[-1])[1],
                ),
                slots,
                resources,
            )
    report(folder)
    ended = outcomes(folder, plan)
    print_table(grid, plan, ended)
    console.print(f"{folder.path}/results.md, .csv, .png; curves: tensorboard --logdir {folder.path}")
    failed = [outcome for outcome in ended if outcome.status == "failed"]
    if failed:
        raise UserError(
            f"{len({trial_name(grid, it.cell, it.seed) for it in failed})} of {len(trials)} trials failed, the first "
            f"({trial_name(grid, failed[0].cell, failed[0].seed)}): {failed[0].error}; --run.resume tries them again"
        )
    over = {trial_name(grid, it.cell, it.seed) for it in ended}
    if len(over) < len(trials):
        raise UserError(f"{len(trials) - len(over)} of {len(trials)} trials have not ended: --run.resume goes on")
    return folder


def done_before(trials: Mapping[str, Trial], plan: Sweep, ended: list[Outcome]) -> set[str]:
    """Names of the trials of which every cell that is asked for has an outcome that is no failure. One to which a cell
    was added since, on other data, is evaluated again; its training has ended."""
    over = {(it.cell, it.seed) for it in ended if it.status != "failed"}
    return {
        name
        for name, trial in trials.items()
        if all((cell, trial.seed) in over for cell, _ in trial.figures if cell in plan.cells)
    }


# ------------------------------------------------------------------------------------------------ plan


def asked(grid: Grid, options: Options, given: Mapping[str, Any]) -> Sweep:
    """What the command line asks for.

    Raises:
        UserError: no such cell; one path for cells of several datasets.
    """
    paths = {k: absolute(v) if k in ("train", "test") and v else v for k, v in given.items()}
    cells = grid.picked(options.cells) if options.cells else grid.cells(options.profile)
    datasets = {dict(zip(grid.axes, cell, strict=True)).get("dataset") for cell in cells}
    several = len(datasets) > 1 and "{dataset}" in grid.bases[options.profile]  # else one stands in for all
    for name, path in paths.items():
        if name in ("train", "test") and path and several and "{dataset}" not in path:
            raise UserError(
                f"these cells span {', '.join(sorted(map(str, datasets)))}: write {{dataset}} in --data.{name}, "
                "or pick the cells of one with --cells"
            )
    extractor = options.extractor if options.extractor == "inception" else absolute(options.extractor)
    labelled, test = absolute(options.labelled), absolute(options.labelled_test)
    return Sweep(grid.name, options.profile, tuple(cells), options.seeds, paths, labelled, test, extractor)


def check_labelled(grid: Grid, plan: Sweep) -> None:
    """Raises UserError where the table's figures are of other data than the pretraining's, and it is not given."""
    missing = [name for name in grid.labelled if not getattr(plan, name)]
    if plan.profile == "paper" and missing:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise UserError(f"{grid.name}: its figures are of other data than the pretraining's: give {options}")


def planned(folder: Folder, plan: Sweep, options: Options) -> Sweep:
    """`plan`, or the sweep of this folder gone on with, which may add cells and seeds and change nothing else.

    Raises:
        UserError: the name is taken, or the sweep there is of another grid, profile or data.
    """
    if folder.exists("sweep.json"):
        if not options.run.resume:
            raise UserError(f"a sweep lies at {folder.path}: give --run.resume to go on with it, or another --run.name")
        before = read_sweep(folder)
        for what in ("grid", "profile"):
            if getattr(before, what) != getattr(plan, what):
                raise UserError(
                    f"the sweep at {folder.path} has the {what} {getattr(before, what)}, not {getattr(plan, what)}: "
                    "give another --run.name"
                )
        for what in ("data", "labelled", "labelled_test", "extractor"):
            if getattr(plan, what) and getattr(plan, what) != getattr(before, what):
                option = what.replace("_", "-")
                raise UserError(
                    f"the sweep at {folder.path} has other --{option}: leave it out to go on, or give another "
                    "--run.name"
                )
        cells = (*before.cells, *(plan.cells if options.cells else ()))
        return replace(before, cells=tuple(dict.fromkeys(cells)), seeds=max(before.seeds, plan.seeds))
    if folder.names():
        raise UserError(f"{folder.path} holds something else than a sweep: give another --run.name")
    return plan


def trial_of(grid: Grid, plan: Sweep, cell: Cell, seed: int, run: Run, folder: Folder) -> Trial:
    values = grid.trained(cell)

    def filled(pattern: str, values: Mapping[str, Label]) -> str:
        return pattern.replace("{dataset}", str(values.get("dataset", "{dataset}")))

    data = {k: filled(v, values) if isinstance(v, str) else v for k, v in plan.data.items()}
    recipe = grid.recipe(cell, plan.profile).with_(seed=seed, data=data)
    first = {}

    def before(needed: Recipe) -> str:
        needed = needed.with_(data=data)
        digest = hashlib.sha256(needed.to_json().encode()).hexdigest()[:8]
        run = (folder / "first" / f"{needed.method_name}-{digest}").uri
        first[run] = needed
        return run

    if grid.first:
        recipe = recipe.with_(start_from=before(grid.first(plan.profile, **values).with_(seed=seed)))
    figures = tuple((other, grid.measure(other)) for other in grid.figures if grid.trial(other) == grid.trial(cell))
    protocols = {measure.protocol for _, measure in figures}
    judge = grid.extractor(plan.profile)  # one for all seeds
    extractor = plan.extractor or (before(judge) if judge else "")

    def options(values: Mapping[str, Label]) -> evaluation.Options:
        evaluated = recipe.data  # also where it has no labels: FID is the distance from these images
        if plan.labelled and protocols - GENERATIVE.keys():
            other = bool(grid.labelled or plan.labelled_test)
            if other or open_source(evaluated.train, evaluated).classes is None:
                test = filled(plan.labelled_test, values) or evaluated.test
                evaluated = replace(evaluated, train=filled(plan.labelled, values), test=test, limit=None)
        if "pose" in protocols:
            evaluated = replace(evaluated, pose=evaluated.pose or "pose")
        usual = evaluation.Options(
            data=evaluated,
            linear=grid.protocol(plan.profile),
            test_limit=1000 if plan.profile == "smoke" else None,
            workers=run.most,
            device=run.device,
            cpus=run.cpus,
            gpus=run.gpus,
        )
        chosen = replace(usual, **grid.evaluation.get(plan.profile, {}))
        if grid.transferred:
            chosen = grid.transferred(chosen, plan.profile, **values)
        return replace(chosen, generative=replace(chosen.generative, extractor=extractor)) if extractor else chosen

    chosen = options(values)
    of_cell = {other: options(grid.trained(other)) for other, _ in figures} if grid.transferred else {}
    elsewhere = {other: it for other, it in of_cell.items() if it != chosen and other in plan.cells}
    if any(it != chosen for it in of_cell.values()):  # what nobody asked for is not evaluated on others' data
        figures = tuple((other, it) for other, it in figures if other in plan.cells)
    if protocols & GENERATIVE.keys():
        run = replace(run, keep=max(run.keep, chosen.generative.checkpoints))
    bound = run.collapse_std if grid.collapses else 0.0
    name = trial_name(grid, cell, seed)
    return Trial(
        cell=cell,
        seed=seed,
        recipe=recipe,
        run=replace(run, storage=(folder / "trials").uri, name=name, resume=True, collapse_std=bound),
        figures=figures,
        evaluation=chosen,
        elsewhere=elsewhere,
        first=first,
    )


def check_data(trials: Mapping[str, Trial]) -> None:
    """Raises UserError where a trial's data is not there, or lacks the labels that its figures need."""
    checked = []
    evaluated = ((trial, it.data) for trial in trials.values() for it in (trial.evaluation, *trial.elsewhere.values()))
    for trial, data in evaluated:
        own = trial.recipe.data
        learns = trial.recipe.method_name == "supervised"
        what = (own, data, trial.extractor, trial.protocols, learns)
        if what in checked:
            continue
        if set(trial.protocols) - GENERATIVE.keys():
            if not data.train or not data.test:
                raise UserError("a sweep pretrains and evaluates: give --data.train and --data.test")
            train = open_source(data.train, data)
            check_classes(train, open_source(data.test, data))
            if train.classes is None and set(trial.protocols) <= SEVERAL:
                several_labels(train)
            elif train.classes is None and set(trial.protocols) - UNLABELLED:
                raise UserError(f"{data.train} has no labels to evaluate with: give --labelled")
        if learns and open_source(own.train, own).classes is None:
            raise UserError(f"{own.train} has no labels, from which {trial.run.name} learns: leave it out with --cells")
        if open_source(own.train, own).classes is None and trial.extractor in trial.first:
            raise UserError(
                f"{own.train} has no labels for the classifier on which FID and inception score are to stand: give "
                "--extractor inception, a file of its weights, or a run of supervised"
            )
        checked.append(what)


def check_extractors(trials: Mapping[str, Trial]) -> None:
    """Raises UserError where one that is not trained in this sweep is not there, or is none."""
    for name in {trial.extractor for trial in trials.values() if trial.extractor not in trial.first} - {""}:
        try:
            extractor_of(name)
        except UserError as error:
            raise UserError(str(error).replace("--generative.extractor", "--extractor")) from error


# ---------------------------------------------------------------------------------------------- trials


def prepare(trials: Mapping[str, Trial], run: Run) -> None:
    """Trains what trials need before, each distinct recipe once, one after the other; goes on with what is there."""
    needed = {folder: recipe for trial in trials.values() for folder, recipe in trial.first.items()}
    for folder, recipe in needed.items():
        it = open_folder(folder)
        name = it.path.rpartition("/")[2]
        pretrain(recipe, replace(run, storage=it.parent.uri, name=name, resume=True, collapse_std=0.0), name)


def carry_out(
    trials: Mapping[str, Trial], grid: Grid, folder: Folder, watch: Watch, slots: int, resources: Mapping[str, float]
) -> None:
    """Runs the trials on Tune; writes the outcome of one whose driver died for good."""
    from ray import tune

    share = next(iter(trials.values())).run.share / slots
    shared = {
        name: replace(
            it,
            run=one_of(it.run, slots, resources),
            evaluation=replace(it.evaluation, share=share),
            elsewhere={cell: replace(options, share=share) for cell, options in it.elsewhere.items()},
        )
        for name, it in trials.items()
    }
    told = []
    for name, it in shared.items():
        varied = {axis: v for axis, v in grid.trained(it.cell).items() if axis != grid.reads}
        told.append({"name": name, **varied, "seed": it.seed})
    results = run_trials(
        tune.with_parameters(drive, trials=shared),
        {"trial": tune.grid_search(told)},
        storage=folder,
        watch=watch,
        slots=slots,
        name_of=lambda trial: trial.config["trial"]["name"],
    )
    for result in results:
        if result.error is not None:
            trial = shared[result.config["trial"]["name"]]
            lost = f"its driver died: {str(result.error).strip().splitlines()[-1]}"
            write_outcomes(folder / "trials" / trial.run.name, filled(trial, "failed", error=lost))


def drive(config: dict[str, Any], trials: Mapping[str, Trial]) -> None:
    """A trial, in an actor of its own. Whatever happens to it, it says so, and the others go on."""
    from ray import tune

    trial = trials[config["trial"]["name"]]
    folder = open_folder(trial.run.storage) / trial.run.name
    trace = ""
    try:
        ended = outcomes_of(trial)
    except UserError as error:
        ended = filled(trial, "failed", error=str(error))
    except Exception as error:
        told = f"{type(error).__name__}: {error}; the whole trace is in {folder.path}/error.txt"
        ended = filled(trial, "failed", error=told)
        trace = "".join(traceback.format_exception(error))
    try:
        if trace:
            folder.write("error.txt", trace.encode())
        write_outcomes(folder, ended)
    except UserError as error:
        ended = filled(trial, "failed", error=str(error))
    last = ended[-1]  # of several figures the last: the deepest layer
    tune.report(
        {"status": last.status, trial.figures[-1][1].figure: last.figure, "step": last.step, "error": last.error}
    )


def filled(trial: Trial, status: Status, **fields: Any) -> list[Outcome]:
    """An outcome for each cell of the table that the trial fills."""
    return [Outcome(cell, trial.seed, status, **fields) for cell, _ in trial.figures]


def outcomes_of(trial: Trial) -> list[Outcome]:
    """Pretrains and evaluates. A run that has collapsed counts as chance level, as the papers print it."""
    folder = pretrain(trial.recipe, trial.run, trial.run.name, follow=reported)
    data = trial.evaluation.data
    if has_collapsed(folder, trial.run):
        step = json.loads(folder.read("collapsed.json"))["step"]
        chance = 100 / (open_source(data.train, data).classes or 1)
        return filled(trial, "collapsed", figure=chance, step=step)
    ended, left = [], list(trial.figures)
    while left:
        options = trial.elsewhere.get(left[0][0], trial.evaluation)
        alike = [(cell, it) for cell, it in left if trial.elsewhere.get(cell, trial.evaluation) == options]
        left = [one for one in left if one not in alike]
        protocols = list(dict.fromkeys(it.protocol for _, it in alike))
        ended += read_figures(trial, alike, evaluation.evaluate(folder.uri, protocols, options))
    return ended


def read_figures(trial: Trial, cells: list[tuple[Cell, Measure]], figures: Mapping[str, Any]) -> list[Outcome]:
    """Of cells that are evaluated alike."""

    def read(of: str, it: Measure) -> float | None:
        part = figures if of == "run" else figures.get(of, {})
        value = part.get(it.protocol, {}).get(it.figure)
        return None if value is None else it.printed(value)

    return [
        Outcome(
            cell,
            trial.seed,
            "finished",
            read(it.of, it),
            step_of(figures, it.protocol),
            random_init=read("random_init", it) if it.of == "run" else None,
            raw_pixels=read("raw_pixels", it) if it.of == "run" else None,
            by=figures[it.protocol].get("extractor", ""),
        )
        for cell, it in cells
    ]


def step_of(figures: Mapping[str, Any], protocol: str) -> int:
    """Of the last checkpoint that the figure is of."""
    found = figures[protocol].get("steps") or [figures["protocol"][protocol]["step"]]
    return found[-1]


def print_table(grid: Grid, plan: Sweep, ended: list[Outcome]) -> None:
    cells = cells_frame(grid, plan, ended)
    head, rows = columns(grid, plan, cells)
    table = Table(*head, title=f"{grid.paper}, {grid.table}: {grid.title}", title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console().print(table, *told_extractors(cells), sep="\n")

"""Search beyond the tables: trials drawn from a space, the weak ones stopped early by ASHA on their online kNN.

A search's folder: `trials/<n>` (runs), `search.json`, and at the end `results.csv`, `results.md`, `results.png` and
`tensorboard/`, by kNN top-1, best first.
"""

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import pandas as pd
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pipelines.board import console
from pipelines.errors import UserError
from pipelines.group import has_collapsed
from pipelines.place import cluster
from pipelines.pretrain import pretrain
from pipelines.recipe import Recipe, Run
from pipelines.sources import open_source
from pipelines.storage import Folder, open_folder
from tuning.report import hyperparameters, shown
from tuning.spaces import derived, find_space
from tuning.trials import COLLAPSE_STD, Watch, absolute, check_dashboard, one_of, reported, run_trials, side_by_side


@dataclass(frozen=True)
class Options:
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    space: str = "temperatures"
    """What varies: temperatures, lambda, or your own function of the recipe: FILE.py:NAME, MODULE:NAME."""
    algorithm: Literal["random", "optuna"] = "random"
    """optuna: tree-structured Parzen estimators (the extra `optuna`)."""
    trials: int = 8
    grace_epochs: int = 1
    """Epochs before a trial may be stopped."""
    reduction: float = 3.0
    """Of the trials that come to a rung, one in so many goes on; rungs are at grace_epochs times its powers."""
    search_seed: int = 0
    """Of what is drawn; the trials all have the recipe's own."""
    concurrent: int = 0
    """Trials at once, at most. 0: as many as the cluster allows."""
    run: Run = field(default_factory=lambda: Run(cpus=0.45, knn_epochs=1, collapse_std=COLLAPSE_STD))
    """Of each trial; storage and name are the search's."""

    def __post_init__(self) -> None:
        if self.trials < 1 or self.grace_epochs < 1 or self.concurrent < 0:
            raise ValueError("trials and grace_epochs are at least 1, concurrent 0 or more")
        if self.reduction <= 1:
            raise ValueError(f"reduction is above 1, got {self.reduction}")
        if not 1 <= self.run.knn_epochs <= self.grace_epochs <= self.recipe.epochs:
            raise ValueError(
                "a search goes by the online kNN: run.knn_epochs is at least 1, grace_epochs at least that and at most "
                f"the recipe's {self.recipe.epochs} epochs"
            )
        if self.run.resume or self.run.stop_epoch:
            raise ValueError("a search can't be gone on with: leave out run.resume and run.stop_epoch")


def search(name: str, options: Options) -> Folder:
    """Runs a search and writes its results. Returns its folder.

    Args:
        name: of the recipe.

    Raises:
        UserError: whatever the user can mend; that no trial got as far as a figure.
    """
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import BasicVariantGenerator

    space = find_space(options.space)(options.recipe)
    drawn = {field: domain.sample() if hasattr(domain, "sample") else domain for field, domain in space.items()}
    try:
        derived(options.recipe, drawn)
    except ValueError as error:
        raise UserError(f"--space {options.space} draws what {name} refuses: {error}") from error
    data = options.recipe.data
    if not data.train or not data.test:
        raise UserError("a search pretrains, and goes by the kNN on test images: give --data.train and --data.test")
    recipe = options.recipe.with_(data={"train": absolute(data.train), "test": absolute(data.test)})
    folder = open_folder(options.run.storage) / (options.run.name or f"{name}-{options.space.rpartition(':')[2]}")
    if folder.names():
        raise UserError(f"{folder.path} holds something already: give another --run.name")
    suggested = optuna(options.search_seed) if options.algorithm == "optuna" else None
    classes = open_source(recipe.data.train, recipe.data).classes
    if classes is None:
        raise UserError(f"a search goes by the kNN, {recipe.data.train} has no labels")
    with cluster(options.run.address) as resources:
        check_dashboard()
        most = min(options.concurrent or options.trials, options.trials)
        slots = side_by_side([recipe], options.run, resources, most)
        described = {**dataclasses.asdict(options), "recipe": json.loads(recipe.to_json()), "name": name}
        folder.write("search.json", json.dumps(described, indent=2).encode())
        console.print(
            f"[bold]{folder.path}[/]: {options.trials} trials of {name} over {', '.join(space)}, {slots} at a time"
        )
        run = replace(one_of(options.run, slots, resources), storage=(folder / "trials").uri)
        results = run_trials(
            tune.with_parameters(drive, recipe=recipe, run=run, classes=classes),
            space,
            storage=folder,
            watch=Watch({}, metric="knn"),
            slots=slots,
            samples=options.trials,
            # a generator that is handed in takes no heed of Tune's own limit
            search=suggested or BasicVariantGenerator(max_concurrent=slots, random_state=options.search_seed),
            scheduler=ASHAScheduler(
                time_attr="epoch",
                metric="knn",
                mode="max",
                max_t=recipe.epochs + 1,  # a trial that comes to its end ends itself
                grace_period=options.grace_epochs,
                reduction_factor=options.reduction,
            ),
            name_of=lambda trial: trial.trial_id.rpartition("_")[2],
        )
    frame = frame_of(results, list(space), recipe.epochs)
    write_results(folder, name, frame, list(space), recipe.epochs)
    if frame["knn"].isna().all():
        errors = [error for error in frame["error"] if error]
        raise UserError(f"no trial got as far as a figure: {errors[0] if errors else 'stopped'}")
    return folder


def optuna(seed: int) -> Any:
    try:
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric="knn", mode="max", seed=seed)
    except (ImportError, AssertionError) as error:
        raise UserError("--algorithm optuna needs the extra: pip install 'rayssl[optuna]'") from error


def drive(config: dict[str, Any], recipe: Recipe, run: Run, classes: int) -> None:
    """A trial, in an actor of its own. One that has collapsed counts as chance level."""
    from ray import tune

    name = tune.get_context().get_trial_name()
    folder = open_folder(run.storage) / name
    try:
        run = replace(run, name=name, resume=True)
        pretrain(derived(recipe, config), run, name, reported)
        if has_collapsed(folder, run):
            tune.report({**last(folder), "knn": 100 / classes, "status": "collapsed"})
        else:
            tune.report({**last(folder), "status": "finished"})
    except Exception as error:
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        tune.report({**last(folder), "status": "failed", "error": told})


def last(folder: Folder) -> dict[str, Any]:
    """What `metrics.jsonl` last says of the online kNN, as a report to Tune."""
    lines = folder.read("metrics.jsonl").decode().splitlines() if folder.exists("metrics.jsonl") else []
    found = [json.loads(line) for line in lines if '"knn/top1"' in line]
    told = {"epoch": found[-1]["epoch"] + 1, "knn": 100 * found[-1]["knn/top1"]} if found else {"epoch": 0, "knn": 0.0}
    return {"name": folder.path.rpartition("/")[2], **told}


# --------------------------------------------------------------------------------------------- results


def frame_of(results: Any, fields: list[str], epochs: int) -> pd.DataFrame:
    """A row a trial, best first: `trial` (its folder), fields, `knn` in percent, `epochs`, `status`, `error`.

    Args:
        epochs: of a whole trial: one that ASHA stopped there has finished.
    """
    rows = []
    for result in results:
        told: Mapping[str, Any] = result.metrics or {}
        ended = "finished" if told.get("epoch") == epochs else "stopped"
        error = told.get("error", "") or (str(result.error).strip().splitlines()[-1] if result.error else "")
        rows.append(
            {
                "trial": told.get("name", ""),
                **{name: (result.config or {}).get(name) for name in fields},
                "knn": told["knn"] if told.get("epoch") else None,
                "epochs": told.get("epoch", 0),
                "status": "failed" if result.error else told.get("status", ended),
                "error": error,
            }
        )
    columns = ["trial", *fields, "knn", "epochs", "status", "error"]
    frame = pd.DataFrame(rows, columns=columns).astype({"knn": float})
    return frame.sort_values("knn", ascending=False, kind="stable", ignore_index=True)


def write_results(folder: Folder, name: str, frame: pd.DataFrame, fields: list[str], epochs: int) -> None:
    folder.write("results.csv", frame.to_csv(index=False).encode())
    head = ["trial", *fields, "knn", "epochs", "status"]
    rows = [
        [row["trial"], *(_value(row[field]) for field in fields), shown(row["knn"]), str(row["epochs"]), row["status"]]
        for _, row in frame.iterrows()
    ]
    lines = [
        f"# Search of {name} over {', '.join(fields)}",
        "",
        f"Online kNN top-1 in percent after the last epoch that a trial came to, of {epochs}; a trial that was stopped "
        "early is not to be compared with one that went on. The choice was made on the test images: for a figure to "
        "report, pretrain anew and evaluate on others.",
        "",
        *("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)),
    ]
    folder.write("results.md", ("\n".join(lines) + "\n").encode())
    buffer = io.BytesIO()
    picture(frame, fields, epochs).savefig(buffer, format="png")
    folder.write("results.png", buffer.getvalue())
    hyperparameters(
        folder,
        {
            row["trial"]: ({f: row[f] for f in fields}, {"knn": row["knn"]})
            for _, row in frame.iterrows()
            if row["knn"] > 0
        },
    )
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    console.print(f"{folder.path}/results.md, .csv, .png; curves: tensorboard --logdir {folder.path}")


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def picture(frame: pd.DataFrame, fields: list[str], epochs: int) -> Figure:
    """kNN over each field; the colour is how many epochs a trial was given."""
    figure = Figure(figsize=(4.0 * len(fields), 3.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(fields), squeeze=False, sharey=True)[0]
    for axis, name in zip(panels, fields, strict=True):
        points = axis.scatter(frame[name], frame["knn"], c=frame["epochs"], cmap="viridis", vmin=0, vmax=epochs)
        axis.set(xlabel=name)
        axis.grid(alpha=0.3)
    panels[0].set(ylabel="online kNN top-1, %")
    figure.colorbar(points, ax=panels[-1], label="epochs")
    return figure

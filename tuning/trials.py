"""Trials side by side on Ray Tune: what sweeps and searches share.

A trial is a driver, an actor of Tune's with a sliver of a CPU, that calls `pretrain` and `evaluate` as a user would;
the training's workers are reserved beside it. Tune does not know of them: how many trials may run at once is decided
here, so that one CPU is always left for the data tasks without which no trial goes on.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ray.tune import Callback
from ray.util.state.exception import RayStateApiException
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.board import console
from pipelines.errors import UserError
from pipelines.group import AFTER_A_LOSS
from pipelines.place import placed
from pipelines.recipe import Recipe, Run
from pipelines.sources import open_source, selected

UNANSWERED = (RayStateApiException, ConnectionError, ValueError)
"""What asking Ray's dashboard raises where it is slow or gone."""
DRIVER_CPUS = 0.05
LOST_DRIVERS = 10
"""How often in its life a trial whose driver was lost, with its node for instance, is started again (ours: spot nodes
come and go; Tune does not ask whether the trial got further)."""
DATA_CPUS = 1.0
"""Left free of drivers and workers: the largest data task."""
COLLAPSE_STD = 0.2
"""Our choice, as the papers print collapse without saying how it is told. ResNet-20 on CIFAR-10: healthy runs have
.33 to .5 from the first epoch on; SimSiam without stop-gradient falls from .43 to .18 in 76 steps and stays below .2,
its linear figure at chance."""


def side_by_side(recipes: Sequence[Recipe], run: Run, resources: Mapping[str, float], most: int = 0) -> int:
    """How many trials may run at once: so many that each has what `pretrain` needs, and none waits for ever.

    Args:
        recipes: of all trials.
        run: the place of each; its share is that of all together.
        most: if above 0, at most so many.

    Raises:
        UserError: not even one can run; says what is needed.
    """
    if run.least < run.most:
        raise UserError(
            f"trials share the cluster evenly, each with a fixed number of --run.workers, not {run.workers}"
        )
    cpus, gpus = run.share * resources.get("CPU", 0.0), run.share * resources.get("GPU", 0.0)
    each = DRIVER_CPUS + run.most * run.cpus
    on_gpus = device_of(run, resources) == "cuda"
    slots = math.floor((cpus - DATA_CPUS) / each + 1e-6)
    if on_gpus:  # a fraction is of one GPU: of two, .4 fits four times and not five
        workers = math.floor(gpus * (math.floor(1 / run.gpus) if run.gpus < 1 else 1 / run.gpus) + 1e-6)
    else:
        workers = math.floor(cpus)
    slots = min(slots, workers // run.most, most or slots)
    if slots < 1:
        raise UserError(
            f"a trial needs {each + DATA_CPUS:g} CPUs ({run.most} workers of {run.cpus:g}, {DRIVER_CPUS:g} for its "
            f"driver, {DATA_CPUS:g} for data tasks){f' and {run.most * run.gpus:g} GPUs' if on_gpus else ''}, "
            f"the cluster has {cpus:g}{f' and {gpus:g}' if on_gpus else ''}: lower --run.workers or --run.cpus"
        )
    rows = {data: len(selected(open_source(data.train, data), data.limit)) for data in {r.data for r in recipes}}
    while True:
        try:
            for recipe in recipes:
                placed(recipe, replace(run, share=run.share / slots), rows[recipe.data], dict(resources))
            return slots
        except UserError:
            if slots == 1:
                raise
            slots -= 1


def device_of(run: Run, resources: Mapping[str, float]) -> Literal["auto", "cpu", "cuda"]:
    """Where all trials train."""
    enough = run.share * resources.get("GPU", 0.0) >= run.most * run.gpus
    return ("cuda" if enough else "cpu") if run.device == "auto" else run.device


def one_of(run: Run, slots: int, resources: Mapping[str, float]) -> Run:
    """`run` as that of one of so many trials at once. There was room when they began: where nodes are lost, a trial
    that is started again waits for others, and goes to no other kind of device."""
    wait = AFTER_A_LOSS if run.wait is None else run.wait
    return replace(run, share=run.share / slots, device=device_of(run, resources), wait=wait)


def check_dashboard(patience: float = 30.0) -> None:
    """Raises UserError where Ray's dashboard does not answer within `patience` seconds.

    What is left of a trial that is stopped early is found and freed by way of it; without it the next one waits for
    ever.
    """
    from ray.util.state import list_nodes

    limit = time.monotonic() + patience
    while True:
        try:
            list_nodes(limit=1, timeout=10)
            return
        except UNANSWERED as error:
            if time.monotonic() > limit:
                raise UserError(
                    f"stopping trials early needs Ray's dashboard, which does not answer ({error}): "
                    "start the cluster with it (ray start --head --include-dashboard true)"
                ) from None
            time.sleep(1.0)


class Reservations(Callback):
    """Removes the placement groups that nobody uses any more: Tune calls it between trials' reports, and at the end.

    A trial that is stopped early loses its driver and workers first; its controller may then reserve room for other
    workers and be ended before these start. Ray's own cleaner is told of a reservation when the workers run, so that
    this one would stay for ever (Ray 2.60), and hold its CPUs and GPUs back from the trials to come. A dashboard that
    does not answer costs no trial: nothing is removed then.
    """

    EVERY = 15.0
    """Seconds between two looks; a reservation without an actor at two of them is one that nobody uses."""
    PATIENCE = 60.0
    """Seconds that the end waits, at most, for the trials' controllers to end: one that lives may reserve anew."""

    def __init__(self) -> None:
        self.others: set[str] | None = None
        self.unused: set[str] = set()
        self.looked = 0.0

    def setup(self, *args: Any, **info: Any) -> None:
        with suppress(*UNANSWERED):
            self.others = self.reserved()  # what was there before is not ours to judge

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.others is not None and time.monotonic() - self.looked > self.EVERY:
            self.looked = time.monotonic()
            with suppress(*UNANSWERED):
                unused = self.reserved() - self.others - self.used()
                self.remove(unused & self.unused)
                self.unused = unused

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if self.others is not None:
            limit = time.monotonic() + self.PATIENCE
            with suppress(*UNANSWERED):
                while self.reserved() - self.others and self.controllers() and time.monotonic() < limit:
                    time.sleep(0.5)  # Ray tells nobody that an actor has ended: it must be asked again
                self.remove(self.reserved() - self.others)

    def reserved(self) -> set[str]:
        """This job's placement groups that hold resources, by their ids in hex."""
        import ray
        from ray.util.state import list_placement_groups

        job = ray.get_runtime_context().get_job_id()
        found = list_placement_groups(filters=[("state", "=", "CREATED")], limit=10_000)
        return {group.placement_group_id for group in found if group.creator_job_id == job}

    def used(self) -> set[str]:
        """Those with an actor that lives, or is about to."""
        from ray.util.state import list_actors

        actors = list_actors(filters=[("state", "!=", "DEAD")], limit=10_000, detail=True)
        return {actor.placement_group_id for actor in actors if actor.placement_group_id}

    def controllers(self) -> bool:
        """Whether one of this job's trials still has Ray Train's controller."""
        import ray
        from ray.util.state import list_actors

        job = ray.get_runtime_context().get_job_id()
        alive: list[Any] = [("class_name", "=", "TrainController"), ("job_id", "=", job), ("state", "!=", "DEAD")]
        return bool(list_actors(filters=alive))

    def remove(self, groups: set[str]) -> None:
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        for group in groups:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def absolute(pattern: str) -> str:
    """A pattern that means the same in every process."""
    return pattern if not pattern or "://" in pattern else str(Path(pattern).expanduser().absolute())


@contextmanager
def reported(board: Any, epochs: int, steps: int) -> Iterator[None]:
    """Around a trial's training (`pretrain`'s follow): hands Tune what rank 0 says, at most once a second.

    `knn`, in percent, is 0 at epoch 0, before there is one: searchers want it in every report.
    """
    import ray
    from ray import tune

    done = threading.Event()
    name = tune.get_context().get_trial_name()

    def follow() -> None:
        told: dict[str, Any] = {}
        asked = None
        while not done.wait(1.0):
            try:
                asked = asked or board.read.remote()  # once: what it says is not said again
                now, lines = ray.get(asked, timeout=5)
                asked = None
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError:
                return
            for line in lines:
                console.print(line)
            if now and now != told:
                told = now
                knn = 100 * now.get("knn/top1", 0.0)
                tune.report({"name": name, "epoch": 0, "epochs": epochs, **now, "knn": knn})

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)


@dataclass
class Shown:
    """A trial's line in the live table."""

    state: str = "waiting"
    now: Mapping[str, Any] = field(default_factory=dict)


class Watch(Callback):
    """The live table: Tune calls it as trials start, report and end. Off a terminal: a line for each that has ended."""

    def __init__(self, known: Mapping[str, str], metric: str) -> None:
        self.trials = {name: Shown(state) for name, state in known.items()}
        self.metric = metric
        self.start = time.monotonic()
        self.live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "live": None}  # Tune pickles its callbacks

    def table(self) -> Group:
        shown = Table("trial", "state", "epoch", "loss", "feature std", self.metric)
        order = {"running": 0, "waiting": 2}
        for name, trial in sorted(self.trials.items(), key=lambda item: order.get(item[1].state, 1)):
            now = trial.now
            epoch = f"{now['epoch']}/{now['epochs']}" if "epochs" in now else ""
            values = (
                _cell(now, "loss", "{:.3f}"),
                _cell(now, "features/feature_std", "{:.3f}"),
                _cell(now, self.metric, "{:.2f}"),
            )
            shown.add_row(name, trial.state, epoch, *values)
        done = sum(trial.state not in ("running", "waiting") for trial in self.trials.values())
        minutes = (time.monotonic() - self.start) / 60
        return Group(Text(f"{done} of {len(self.trials)} trials have ended, {minutes:.0f} min"), shown)

    def setup(self, *args: Any, **info: Any) -> None:
        self.live = Live(get_renderable=self.table, console=console, refresh_per_second=1, transient=True)
        self.live.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.line(trial).state = "running"

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.line(trial).now = result

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended(trial, (trial.last_result or {}).get("status", "stopped"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended(trial, "failed")

    def line(self, trial: Any) -> Shown:
        return self.trials.setdefault(str(trial), Shown())

    def ended(self, trial: Any, state: str) -> None:
        line = self.line(trial)
        line.state, line.now = state, trial.last_result or {}
        words = (f"{trial}:", state, _cell(line.now, self.metric, "{:.2f}"), line.now.get("error", ""))
        console.print(" ".join(word for word in words if word), highlight=False, markup=False)

    def stop(self) -> None:
        if self.live:
            self.live.stop()


def _cell(now: Mapping[str, Any], name: str, form: str) -> str:
    value = now.get(name)
    return "" if value is None else form.format(value)


def run_trials(
    drive: Callable[[dict[str, Any]], None],
    space: Mapping[str, Any],
    *,
    storage: Any,
    watch: Watch,
    slots: int,
    samples: int = 1,
    search: Any = None,
    scheduler: Any = None,
    name_of: Callable[[Any], str],
) -> Any:
    """Tune's part. Returns its ResultGrid, whose `get_dataframe()` is a pandas frame of these trials.

    Args:
        drive: a trial: gets what the space drew.
        storage: Folder under which Tune keeps its own records.
        name_of: a trial's name, from Tune's own object; `tune.get_context().get_trial_name()` within it.
    """
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths of the user's own code mean what they say
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # else Tune prints boxes, whatever its verbosity
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # runs and reports have their own curves and tables
    tuner = tune.Tuner(
        tune.with_resources(drive, {"cpu": DRIVER_CPUS}),
        param_space=dict(space),
        tune_config=tune.TuneConfig(
            max_concurrent_trials=slots,
            num_samples=samples,
            search_alg=search,
            scheduler=scheduler,
            trial_name_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            failure_config=tune.FailureConfig(max_failures=LOST_DRIVERS),  # what fails is a result
            callbacks=[watch, Reservations(), JsonLoggerCallback()],  # from its files a ResultGrid makes its frame
            verbose=0,
        ),
    )
    try:
        return tuner.fit()
    finally:
        watch.stop()

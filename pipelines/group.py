"""The workers of a run: started on what the cluster has room for, started again after a loss, and, of an elastic run,
in another number where the cluster has changed.

Ray Train starts one group of a fixed number of workers at a time, and what happens between groups is here. Its own
elasticity takes any number of workers, also one that does not divide the batch; and a group that waits for a node that
is gone says nothing. A group begins from the newest good checkpoint (`pipelines.worker`).
"""

import dataclasses
import json
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.markup import escape

from pipelines.board import Board
from pipelines.errors import UserError
from pipelines.place import Place, fitting, holding, needs, room, selector
from pipelines.recipe import Run
from pipelines.storage import Folder
from pipelines.worker import Task, work

Follow = Callable[[Any, int, int], AbstractContextManager[None]]
"""(board, epochs, steps of an epoch) -> what is around the training and shows what the board says."""

AFTER_A_LOSS = 10.0
"""Minutes to wait for nodes to come back, where `Run.wait` says nothing."""
SETTLING = 10.0
"""Seconds in which resources of workers that have ended, and nodes that have, become known."""
LOOKING = 5.0
"""Seconds between two looks at the nodes of a run, and at whether it may grow."""


def available(run: Run, device: str, held: int = 0) -> int:
    """Of how many workers resources are free, each whole on one node, with those of the `held` that are held for this
    run."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return held + holding(run, device, [{**node, "Resources": free.get(node["NodeID"], {})} for node in staying()])


def draining() -> set[str]:
    """IDs of nodes that are about to go: preempted, or no longer needed by whoever drains them. As Ray Train asks."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def staying() -> list[dict[str, Any]]:
    """The cluster's other nodes, as `ray.nodes()` has them."""
    import ray

    going = draining()
    return [node for node in ray.nodes() if node["NodeID"] not in going]


def awaited(run: Run, device: str, spare: float, minutes: float, say: Callable[[str], None]) -> int:
    """The number of workers to start. Waits while others hold what the cluster has; and where it has too little, with a
    demand that an autoscaler sees. What is given to the demand is what was waited for.

    Args:
        spare: CPUs that are left to the data stages.
        minutes: to wait for nodes.
        say: gets a line where it waits.

    Raises:
        UserError: too few nodes for so long.
    """
    import ray
    from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

    demand, wanting, held = None, needs(run, device), 0
    begun = enough = time.monotonic()
    try:
        while True:
            there = room(run, device, staying(), spare)
            if demand is not None:
                held = run.least if placement_group_table(demand)["state"] == "CREATED" else 0
            wanted, free = fitting(run, there), fitting(run, min(there, available(run, device, held)))
            now = time.monotonic()
            if wanted is not None:
                enough = now
            if free is not None and (free == wanted or now - begun > SETTLING):
                return free
            if now - begun > SETTLING and demand is None:
                each = " and ".join(f"{amount:g} {name}" for name, amount in wanting.items())
                has = ray.available_resources()
                left = ", ".join(f"{has.get(name, 0.0):g} {name}" for name in wanting)
                data = f" and, for data stages, {spare:g} CPU{run.data_on and ' on ' + run.data_on}" if spare else ""
                say(f"[yellow]waiting for room for {run.least} workers of {each}{data} (free: {left})[/]")
                on = [selector(run.train_on)] * run.least if run.train_on else None
                demand = placement_group([wanting] * run.least, bundle_label_selector=on)
            if now - enough > max(60 * minutes, SETTLING):
                raise UserError(
                    f"the cluster has had too few nodes for {run.least} workers for {minutes:g} minutes: add some, "
                    "lower --run.workers, or wait longer with --run.wait; --run.resume goes on from the last checkpoint"
                )
            time.sleep(0.5)
    finally:
        if demand is not None:
            remove_placement_group(demand)


@contextmanager
def watched(run: Run, device: str, spare: float, workers: int, board: Any) -> Iterator[None]:
    """While the body runs, asks workers to leave where a node of theirs is about to go, or there is room for more; says
    so where nodes for the data stages are lost, for which Ray Data waits in silence."""
    import ray

    done = threading.Event()

    def look() -> None:
        told = False
        while not done.wait(LOOKING):
            try:
                why, there = "", room(run, device, staying(), spare)
                if draining() & ray.get(board.nodes.remote(), timeout=5):
                    why = "a node is about to go"
                elif spare and there < workers and not told:
                    board.note.remote("[yellow]nodes were lost: training may wait for others to make its data[/]")
                    told = True
                elif workers < run.most:
                    more = fitting(run, min(there, available(run, device, workers)))
                    why = f"room for {more} workers" if more is not None and more > workers else ""
                if why:
                    ray.get(board.ask.remote(why), timeout=5)
                    return
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError:  # the cluster is going away: the main thread says why
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)


def has_collapsed(folder: Folder, run: Run) -> bool:
    """Whether it was stopped at a feature_std that is below this `run`'s bound too."""
    return folder.exists("collapsed.json") and (
        json.loads(folder.read("collapsed.json"))["feature_std"] < run.collapse_std
    )


def reason(error: Exception) -> str:
    """In a line: of the workers that failed the first one's."""
    rank, first = next(iter(getattr(error, "worker_failures", {}).items()), (None, error))
    line = (str(first).strip().splitlines() or [""])[0]
    return f"{'' if rank is None else f'rank {rank}: '}{type(first).__name__}: {line}"


@contextmanager
def own_interrupt() -> Iterator[None]:
    """Ray Train leaves its answer to Ctrl-C behind, which is of workers that are gone: puts back what there was."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def fit(task: Task, place_of: Callable[[int], Place], steps: int, follow: Follow) -> Place:
    """Trains to the end with one group of workers after the other; turns what fails into a clear error.

    Args:
        task: of the workers.
        place_of: its place with so many of them.
        steps: of an epoch.

    Returns:
        The place of the last group.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    run, folder, place = task.run, task.folder, task.place
    beside_the_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=beside_the_driver).remote()
    minutes = run.wait or 0.0
    spare = 1.0 if place.feed == "stream" else 0.0

    def group(workers: int, scratch: str) -> Any:
        return TorchTrainer(
            work,
            # a reference: the controller need not import all of this
            train_loop_config={"task": ray.put(dataclasses.replace(task, place=place, board=board))},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=place.device == "cuda",
                resources_per_worker=needs(run, place.device),
                label_selector=selector(run.train_on) or None,  # type: ignore[call-arg]
            ),
            run_config=RunConfig(
                name=f"{Path(folder.path).name}-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,  # checkpoints are ours: Ray writes nothing there but its own notes
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),  # type: ignore[call-arg]
            ),
        )

    def say(line: str) -> None:
        board.note.remote(line)

    losses, furthest = 0, 0
    with follow(board, task.recipe.epochs, steps):
        while True:
            if has_collapsed(folder, run):  # a group was to stop, and was lost before all had
                return place
            try:
                workers = awaited(run, place.device, spare, minutes, say)
                place = place_of(workers)
                with (
                    own_interrupt(),
                    TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
                    watched(run, place.device, spare, workers, board),
                ):
                    group(workers, scratch).fit()
            except (KeyboardInterrupt, SystemExit):  # Ray Train answers Ctrl-C by leaving the process
                raise UserError(
                    f"stopped; --run.resume goes on from the last checkpoint in {folder.path}/checkpoints"
                ) from None
            except UserError:
                raise
            except Exception as error:
                if (failure := ray.get(board.failure.remote())) is not None:
                    raise UserError(failure) from None
                ray.get(board.left.remote())
                reached = ray.get(board.furthest.remote())
                losses, furthest = (losses + 1 if reached <= furthest else 1), max(reached, furthest)
                why = reason(error)
                if losses > run.retries:
                    folder.write("error.txt", "".join(traceback.format_exception(error)).encode())
                    raise UserError(
                        f"training failed {losses} times: {why}; the whole trace is in {folder.path}/error.txt; "
                        "--run.resume goes on from the last checkpoint"
                    ) from error
                minutes = AFTER_A_LOSS if run.wait is None else run.wait
                say(f"[yellow]workers were lost at step {reached}, and are started again[/] ({escape(why)})")
                continue
            if (failure := ray.get(board.failure.remote())) is not None:
                raise UserError(failure)
            if (why := ray.get(board.left.remote())) is None:
                return place
            minutes = AFTER_A_LOSS if run.wait is None else run.wait
            say(f"{why}: workers leave, others go on")

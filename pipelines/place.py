"""The place of a run: the Ray cluster, and what is decided of it before anything starts."""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil

from pipelines.errors import UserError
from pipelines.recipe import Recipe, Run
from pipelines.sources import NOUNS


def quiet() -> None:
    """Ray's settings, before it is imported: prompt polling, processes kept, no telemetry, no word of what is well."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")  # V2 reads a small dataset in one task
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    # else processes that idle for a second are ended, and an epoch's first data tasks wait for new ones: seconds
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    os.environ.setdefault("RAY_num_workers_soft_limit", "16")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")


@contextmanager
def cluster(address: str | None) -> Iterator[dict[str, float]]:
    """A connection to the Ray cluster; one that is started here ends here. Yields its resources."""
    quiet()
    import ray

    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError as error:
            raise UserError(f"no Ray cluster at {address} ({error}): start one, or drop --run.address") from None
    for noisy in ("ray.data", "ray.train"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        yield ray.cluster_resources()
    finally:
        if mine:
            ray.shutdown()


@dataclass(frozen=True)
class Place:
    """Where things run, with every `auto` decided."""

    device: str
    precision: str
    feed: str
    views_on: str
    data_cpus: float
    """For all workers' data stages."""


def selector(text: str) -> dict[str, str]:
    """LABEL=VALUE, of `Run.train_on` or `data_on`, as Ray's selectors have it."""
    name, _, value = text.partition("=")
    return {name: value} if text else {}


def needs(run: Run, device: str) -> dict[str, float]:
    """What a worker takes."""
    return {"CPU": run.cpus} | ({"GPU": run.gpus} if device == "cuda" else {})


def labelled(nodes: Sequence[Mapping[str, Any]], label: str) -> list[Mapping[str, Any]]:
    """Those that are alive and have the label, `Run.train_on` or `data_on`."""
    chosen = selector(label).items()
    return [node for node in nodes if node["Alive"] and chosen <= node.get("Labels", {}).items()]


def check_labels(run: Run, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Refuses labels that no node has: Ray waits in silence for one."""
    for option, label, cpus in (("--run.train-on", run.train_on, run.cpus), ("--run.data-on", run.data_on, 1.0)):
        if label and not any(node["Resources"].get("CPU", 0.0) >= cpus for node in labelled(nodes, label)):
            raise UserError(
                f"no node of {cpus:g} CPUs or more has the label {label} of {option}: start one with `ray start "
                f"--labels {label}`, give another label, or the minutes until one is there, --run.wait"
            )


def holding(run: Run, device: str, nodes: Sequence[Mapping[str, Any]]) -> int:
    """How many workers these nodes' resources are enough for, each whole on one node."""
    wanted = needs(run, device).items()
    able = labelled(nodes, run.train_on)
    return sum(int(min(node["Resources"].get(name, 0.0) / n for name, n in wanted) + 1e-6) for node in able)


def room(run: Run, device: str, nodes: Sequence[Mapping[str, Any]], spare: float) -> int:
    """How many workers the nodes have room for, whoever else is there; on the CPU as many as cores at most (`placed`).

    Args:
        nodes: as `ray.nodes()` has them.
        spare: CPUs that are left to the data stages: of all nodes, and one of them on a node for data. 0: none are.
    """
    wanted, alive = needs(run, device), labelled(nodes, "")
    if spare and not any(node["Resources"].get("CPU", 0.0) >= 1 for node in labelled(nodes, run.data_on)):
        return 0
    total = {name: run.share * sum(node["Resources"].get(name, 0.0) for node in alive) for name in wanted}
    cores = total["CPU"] if device == "cpu" else math.inf
    total["CPU"] -= spare
    share = min(cores, *(total[name] / amount for name, amount in wanted.items()))
    return int(min(holding(run, device, nodes), share + 1e-6))


def fitting(run: Run, there: int) -> int | None:
    """The largest number of workers that `run` allows and `there` is room for; None: there are too few."""
    return next((number for number in run.numbers if number <= there), None)


def placed(recipe: Recipe, run: Run, samples: int, resources: Mapping[str, float]) -> Place:
    """Decides what is `auto`, and refuses what would hang: Ray waits in silence for what a cluster does not have.

    Of an elastic run: what the least workers need, and memory for the most.
    """
    cpus, gpus, store = (
        round(run.share * resources.get(name, 0.0), 6) for name in ("CPU", "GPU", "object_store_memory")
    )
    device = ("cuda" if gpus >= run.least * run.gpus else "cpu") if run.device == "auto" else run.device
    if device == "cuda" and gpus < run.least * run.gpus:
        raise UserError(
            f"{run.least} workers of {run.gpus:g} GPUs are more than the cluster's {gpus:g}: lower --run.workers, or "
            "give the minutes until it has them, --run.wait"
        )
    if device == "cpu" and run.least > cpus:
        raise UserError(
            f"{run.least} workers need as many CPUs, the cluster has {cpus:g}: lower --run.workers, or give the "
            "minutes until it has them, --run.wait"
        )
    noun, streamed = NOUNS[recipe.data.media], recipe.data.media != "image"  # others are never held whole
    if streamed and (run.feed == "resident" or run.views_on == "device"):
        raise UserError(f"views of {noun} are made while they are read: leave out --run.feed and --run.views-on")
    image = len(recipe.data.mean) * recipe.data.size**2
    machine = psutil.virtual_memory()
    memory = min(run.share * machine.total, machine.available)  # not a share of what others of the sweep have left
    fits = samples * image * (run.most + 1) < 0.4 * memory and samples * image < 0.8 * store
    if run.feed == "resident" and not fits:
        raise UserError(
            f"{samples:,} images of {recipe.data.size} px for {run.most} workers do not fit in memory "
            f"({memory / 2**30:.1f} GiB free): give --run.feed stream, or --data.limit"
        )
    feed = ("resident" if fits and not streamed else "stream") if run.feed == "auto" else run.feed
    if feed == "stream" and recipe.data.order == "balanced":
        raise UserError(
            f"--data.order balanced needs the resident feed, {samples:,} images held in memory: leave out --run.feed, "
            "lower --data.limit, or give --data.order shuffle"
        )
    spare = cpus - run.least * run.cpus
    if spare < 0:
        raise UserError(
            f"{run.least} workers of {run.cpus:g} CPUs are more than the cluster's {cpus:g}: "
            f"give --run.cpus {cpus / run.least:.2g}, or fewer --run.workers"
        )
    if feed == "stream" and spare < 1:
        raise UserError(
            f"{run.least} workers of {run.cpus:g} CPUs leave {spare:g} of {cpus:g} CPUs to the data stages, which "
            f"need 1 at least: give --run.cpus {max((cpus - 1) / run.least, 0.1):.2g} or fewer --run.workers"
        )
    if run.views_on == "auto":
        views_on = "data" if streamed or (feed == "stream" and device == "cpu") else "device"
    elif run.views_on == "data" and feed == "resident":
        raise UserError("the resident feed makes views on the device: give --run.feed stream, or --run.views-on device")
    else:
        views_on = run.views_on
    return Place(
        device=device,
        precision=("bf16" if device == "cuda" else "float32") if run.precision == "auto" else run.precision,
        feed=feed,
        views_on=views_on,
        data_cpus=spare,
    )


def for_workers(place: Place, run: Run, workers: int, resources: Mapping[str, float]) -> Place:
    """The same place with so many workers: what they leave is the data stages'."""
    return replace(place, data_cpus=max(run.share * resources.get("CPU", 0.0) - workers * run.cpus, 0.0))


def threads(run: Run, workers: int) -> int:
    """Of a worker on the CPU, one of so many on this node."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    cpus = next(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == here)
    return run.threads or max(1, int(run.share * cpus) // workers)

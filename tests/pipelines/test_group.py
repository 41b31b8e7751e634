"""Groups of workers: how many, what is waited for, what follows a loss or room for more. On a made-up cluster."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train.torch
from ray.train import WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import pipelines.group as group
from pipelines.board import Board
from pipelines.errors import UserError
from pipelines.group import available, awaited, fit, watched
from pipelines.place import Place
from pipelines.recipe import Elastic, Run, find_recipe
from pipelines.storage import open_folder

PLACE = Place("cpu", "float32", "resident", "device", 0.0)


@dataclass
class Cluster:
    """Nodes of so many CPUs from a second on, and what others hold of them until a second."""

    nodes: list[tuple[float, float]]
    held: list[tuple[float, float]] = field(default_factory=list)
    now: float = 0.0
    demands: list[list[dict[str, float]]] = field(default_factory=list)
    removed: int = 0
    going: set[str] = field(default_factory=set)
    """Numbers of nodes that are about to go."""
    given: bool = False
    """Whether there was room for the demand: it holds it from then on."""
    looks: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """One for each time that these are looked for."""

    def cpus(self) -> list[float]:
        return [cpus for since, cpus in self.nodes if since <= self.now]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Cluster":
        def nodes() -> list[dict[str, Any]]:
            return [
                {"NodeID": str(i), "Alive": True, "Resources": {"CPU": cpus}, "Labels": {}}
                for i, cpus in enumerate(self.cpus())
            ]

        def free() -> dict[str, dict[str, float]]:
            """By node; others' share is of the first ones, the demand's of the last ones."""
            others = sum(cpus for until, cpus in self.held if self.now < until)
            left = filled(self.cpus(), others)
            wanted = sum(bundle["CPU"] for bundle in self.demands[-1]) if self.demands else 0.0
            self.given = self.given or 0 < wanted <= sum(left)
            if self.given and not self.removed:
                left = filled(left[::-1], wanted)[::-1]
            return {str(i): {"CPU": cpus} for i, cpus in enumerate(left)}

        def state(_: str) -> dict[str, str]:
            free()
            return {"state": "CREATED" if self.given else "PENDING"}

        def demand(bundles: list[dict[str, float]], **_: Any) -> str:
            self.demands.append(bundles)
            return "demand"

        def remove(_: str) -> None:
            self.removed += 1

        def sleep(seconds: float) -> None:
            self.now += seconds

        monkeypatch.setattr(ray, "nodes", nodes)

        def draining() -> set[str]:
            self.looks.release()
            return self.going

        monkeypatch.setattr(group, "draining", draining)
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": sum(node["CPU"] for node in free().values())})
        monkeypatch.setattr(import_module("ray._private.state"), "available_resources_per_node", free)
        placement = import_module("ray.util.placement_group")
        monkeypatch.setattr(placement, "placement_group_table", state)
        monkeypatch.setattr(placement, "placement_group", demand)
        monkeypatch.setattr(placement, "remove_placement_group", remove)
        monkeypatch.setattr(group, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: self.now))
        return self


def filled(nodes: list[float], amount: float) -> list[float]:
    """What is left of them where so much is taken, one after the other."""
    left = []
    for cpus in nodes:
        taken = min(cpus, amount)
        left.append(cpus - taken)
        amount -= taken
    return left


def run(workers: int | Elastic, **fields: Any) -> Run:
    return Run(**{"workers": workers, "cpus": 1.0, **fields})


@pytest.mark.parametrize(
    ("cluster", "workers", "number", "seconds"),
    [
        (Cluster([(0, 4)]), 4, 4, 0),
        (Cluster([(0, 4)]), Elastic(1, 16), 4, 0),
        (Cluster([(0, 4)], [(7, 3)]), 4, 4, 7),  # what others hold is waited for
        (Cluster([(0, 4)], [(900, 3)]), 4, 4, 900),  # as long as it takes
        (Cluster([(0, 4)], [(7, 3)]), Elastic(1, 4), 4, 7),  # what is about to be free too
        (Cluster([(0, 4)], [(900, 3)]), Elastic(1, 4), 1, 10.5),  # but no longer
        (Cluster([(0, 1), (90, 2)]), 3, 3, 90),  # nodes that come
        (Cluster([(0, 2), (90, 2)]), Elastic(2, 4), 2, 0),  # what there is, is enough
        (Cluster([(0, 1), (90, 2)]), Elastic(2, 4), 2, 90),
        (Cluster([(0, 1), (90, 1)]), 2, 2, 90),  # exactly what was demanded, and is held by the demand
        (Cluster([(0, 2)], [(60, 2)]), 2, 2, 60),
    ],
)
def test_how_many_start_and_when(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, workers: int | Elastic, number: int, seconds: float
) -> None:
    cluster = replace(cluster, demands=[], now=0.0, removed=0, given=False).install(monkeypatch)
    lines: list[str] = []
    assert awaited(run(workers), "cpu", 0.0, 2.0, lines.append) == number
    assert cluster.now == seconds
    long = seconds > 10.5
    least = workers.least if isinstance(workers, Elastic) else workers
    assert cluster.demands == [[{"CPU": 1.0}] * least] * long and cluster.removed == long  # what an autoscaler sees
    assert len(lines) == long and all(f"waiting for room for {least} workers of 1 CPU (free: " in x for x in lines)


def test_too_few_nodes_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([(0, 1)]).install(monkeypatch)
    with pytest.raises(UserError, match=r"too few nodes for 2 workers for 2 minutes: .*--run.wait.*--run.resume"):
        awaited(run(2), "cpu", 0.0, 2.0, lambda line: None)
    assert 120 < cluster.now < 122 and cluster.removed == 1


def test_own_workers_count_as_room(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster([(0, 8)], [(99, 2.0)]).install(monkeypatch)
    assert available(run(Elastic(1, 8), cpus=0.5), "cpu", held=2) == 14


def test_room_in_halves_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster([(0, 1.5), (0, 0.5), (0, 2)], [(99, 1.0)]).install(monkeypatch)
    assert available(run(4), "cpu") == 2  # half a CPU on each of two nodes is no room for a worker


def test_nodes_for_data_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([(0, 4)]).install(monkeypatch)
    lines: list[str] = []
    with pytest.raises(UserError, match="too few nodes"):
        awaited(run(1, data_on="group=cpu"), "cpu", 1.0, 1.0, lines.append)
    assert (
        "1 workers of 1 CPU and, for data stages, 1 CPU on group=cpu (free: 4 CPU)" in lines[0] and cluster.removed == 1
    )


# ---------------------------------------------------------------------------------------- one after another


DRIVERS = "1a" * 28
"""ID of the driver's node."""


class Actor:
    """An actor that is here: `it.method.remote(...)` calls it."""

    def __init__(self, it: Any) -> None:
        self.it = it

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.it, name))


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    it = Board()

    def options(num_cpus: float, scheduling_strategy: NodeAffinitySchedulingStrategy) -> Any:
        """It is lost with the driver alone."""
        assert (scheduling_strategy.node_id, scheduling_strategy.soft, num_cpus) == (DRIVERS, False, 0)
        return SimpleNamespace(remote=lambda: Actor(it))

    monkeypatch.setattr(ray, "remote", lambda _: SimpleNamespace(options=options))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: DRIVERS))
    monkeypatch.setattr(ray, "get", lambda value, timeout=0: value)
    monkeypatch.setattr(ray, "put", lambda value: value)
    return it


Group = Callable[[int], None]


def trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: list[Group], **fields: Any
) -> tuple[list[int], list[str]]:
    """Runs `fit` where each group of workers does what the next of `groups` does. Returns the numbers of workers, and
    what was said."""
    sizes: list[int] = []
    left = iter(groups)

    class Trainer:
        def __init__(self, _: Any, *, train_loop_config: Any, scaling_config: Any, run_config: Any) -> None:
            assert run_config.failure_config.max_failures == 0
            assert train_loop_config["task"].place.data_cpus == scaling_config.num_workers  # of so many
            sizes.append(scaling_config.num_workers)

        def fit(self) -> None:
            next(left)(sizes[-1])

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    task = group.Task(
        find_recipe("demo"),
        run(**fields),
        PLACE,
        open_folder(str(tmp_path)),
        *[None] * 6,  # type: ignore[arg-type]
    )
    seen: list[Any] = []

    @contextmanager
    def follow(actor: Actor, epochs: int, steps: int) -> Iterator[None]:
        seen.append(actor.it)
        yield

    try:
        fit(task, lambda n: replace(PLACE, data_cpus=n), 10, follow)
    finally:
        lines = seen[0].read()[1]
    return sizes, lines


def dies(*at: int, board: Board) -> Group:
    """Workers that say these steps and are lost."""

    def die(_: int) -> None:
        for step in at:
            board.say({"step": step})
        raise WorkerGroupError("Training failed due to worker errors:\n...", {1: RuntimeError("killed [/at] noon\n")})

    return die


def test_workers_that_are_lost_are_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, board: Board) -> None:
    Cluster([(0, 4)]).install(monkeypatch)
    groups = [dies(20, board=board), lambda n: None]
    sizes, lines = trained(monkeypatch, tmp_path, groups, workers=2)
    assert sizes == [2, 2]
    assert lines == [
        "[yellow]workers were lost at step 20, and are started again[/] (rank 1: RuntimeError: killed \\[/at] noon)"
    ]


def test_who_gets_no_further_is_not_started_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, board: Board
) -> None:
    """Twice at new steps, which counts anew, then thrice at the same."""
    Cluster([(0, 4)]).install(monkeypatch)
    groups = [dies(step, board=board) for step in (5, 9, 9, 7)]
    with pytest.raises(
        UserError, match=r"failed 3 times: rank 1: RuntimeError: killed \[/at\] noon; the whole trace is in .*error.txt"
    ):
        trained(monkeypatch, tmp_path, groups, workers=2, retries=2)
    assert "WorkerGroupError" in (tmp_path / "error.txt").read_text()


def test_a_failure_that_needs_the_user_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, board: Board) -> None:
    Cluster([(0, 4)]).install(monkeypatch)

    def raising(_: int) -> None:
        board.fail("lower the rate")
        raise RuntimeError

    for fails in (raising, lambda n: board.fail("lower the rate")):
        with pytest.raises(UserError, match=r"^lower the rate$"):
            trained(monkeypatch, tmp_path, [fails], workers=2)


def test_who_has_collapsed_is_not_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, board: Board) -> None:
    """Rank 0 said so, and another was lost before all had stopped."""
    Cluster([(0, 4)]).install(monkeypatch)

    def collapses(_: int) -> None:
        (tmp_path / "collapsed.json").write_text('{"step": 5, "feature_std": 0.01}')
        dies(5, board=board)(2)

    sizes, _ = trained(monkeypatch, tmp_path, [collapses], workers=2, collapse_std=0.1)
    assert sizes == [2]


def test_an_elastic_run_shrinks_and_grows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, board: Board) -> None:
    """Four workers on two nodes, of which one is lost; then two, until there is room for four and rank 0 asks."""
    cluster = Cluster([(0, 2), (0, 2)]).install(monkeypatch)

    def lost(_: int) -> None:
        cluster.nodes.pop()
        dies(30, board=board)(4)

    def leave(_: int) -> None:
        cluster.nodes.append((0, 2))
        board.ask("room for 4 workers")
        assert board.asked()
        board.leave()

    def unasked(_: int) -> None:
        board.ask("room for 8 workers")  # too late: nobody has left for it

    sizes, lines = trained(monkeypatch, tmp_path, [lost, leave, unasked], workers=Elastic(1, 8))
    assert sizes == [4, 2, 4]
    assert lines[1] == "room for 4 workers: workers leave, others go on"


def test_room_for_more_is_told_while_it_trains(monkeypatch: pytest.MonkeyPatch, board: Board) -> None:
    Cluster([(0, 8)], [(99, 2.0)]).install(monkeypatch)
    monkeypatch.setattr(group, "LOOKING", 0.01)
    with watched(run(Elastic(1, 8)), "cpu", 0.0, 2, Actor(board)):
        assert told(monkeypatch, board).wait(10)
    board.leave()
    assert board.left() == "room for 8 workers" and not board.asked()


def test_nodes_that_data_needs_are_missed_aloud(monkeypatch: pytest.MonkeyPatch, board: Board) -> None:
    """Two workers and a node for their data, which is lost; said once."""
    cluster = Cluster([(0, 2), (0, 1)]).install(monkeypatch)
    monkeypatch.setattr(group, "LOOKING", 0.01)
    with watched(run(2), "cpu", 1.0, 2, Actor(board)):
        assert all(cluster.looks.acquire(timeout=10) for _ in range(6)) and not board.read()[1]
        cluster.nodes.pop()
        assert all(cluster.looks.acquire(timeout=10) for _ in range(9))
    assert board.read()[1] == ["[yellow]nodes were lost: training may wait for others to make its data[/]"]
    assert not board.asked()


def told(monkeypatch: pytest.MonkeyPatch, board: Board) -> threading.Event:
    """Set where the board is to ask for something."""
    event, ask = threading.Event(), board.ask

    def heard(why: str) -> None:
        ask(why)
        event.set()

    monkeypatch.setattr(board, "ask", heard)
    return event


@pytest.mark.parametrize("workers", [2, Elastic(1, 4)])
def test_a_node_that_is_about_to_go_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, board: Board, workers: int | Elastic
) -> None:
    """Another node than the workers' may go; nor are any started on one that goes."""
    cluster = Cluster([(0, 2), (0, 2)], going={"1"}).install(monkeypatch)
    monkeypatch.setattr(group, "LOOKING", 0.01)
    heard = told(monkeypatch, board)

    def notice(number: int) -> None:
        assert number == 2
        board.on("0")
        assert all(cluster.looks.acquire(timeout=10) for _ in range(20)) and not board.asked()
        cluster.going = {"0"}
        assert heard.wait(10)
        board.leave()

    sizes, lines = trained(monkeypatch, tmp_path, [notice, lambda n: None], workers=workers)
    assert sizes == [2, 2]
    assert lines == ["a node is about to go: workers leave, others go on"]


def test_the_board_forgets_what_nobody_left_for() -> None:
    board = Board()
    assert not board.asked() and board.left() is None
    board.ask("room for 4 workers")
    assert board.asked() and board.left() is None and not board.asked()
    board.on("a")
    assert board.nodes() == {"a"} and board.left() is None and board.nodes() == set()
    assert board.furthest() == 0
    for step in (7, 3):
        board.say({"step": step})
    assert board.furthest() == 7

"""Placement groups that stopped trials leave behind are removed, and no others."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.util.state.exception import RayStateApiException

from tuning.trials import Reservations


def test_a_dashboard_that_does_not_answer_costs_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def unanswered(self: Reservations) -> set[str]:
        raise RayStateApiException("too slow")

    def never(self: Reservations, groups: set[str]) -> None:
        raise AssertionError(groups)

    monkeypatch.setattr(Reservations, "EVERY", 0.0)
    monkeypatch.setattr(Reservations, "remove", never)
    with monkeypatch.context() as gone:
        gone.setattr(Reservations, "reserved", unanswered)
        unheard = Reservations()
        unheard.setup()
    monkeypatch.setattr(Reservations, "reserved", lambda self: {"of somebody else"})
    unheard.on_step_end(1, [])  # what was there before it could not learn: it removes nothing
    unheard.on_experiment_end([])
    reservations = Reservations()
    reservations.setup()
    monkeypatch.setattr(Reservations, "reserved", unanswered)
    reservations.on_step_end(1, [])
    reservations.on_experiment_end([])


@pytest.mark.parametrize(("lasting", "asked"), [(3, 4), (1000, 6)])
def test_the_end_waits_for_controllers_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, lasting: int, asked: int
) -> None:
    """On a clock of its own: each pause is half a second, and patience 2.5."""
    now, calls, removed = [0.0], [0], list[set[str]]()

    def controllers(self: Reservations) -> bool:
        calls[0] += 1
        assert not removed
        return calls[0] <= lasting

    def pause(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("tuning.trials.time", SimpleNamespace(monotonic=lambda: now[0], sleep=pause))
    monkeypatch.setattr(Reservations, "PATIENCE", 2.5)
    monkeypatch.setattr(Reservations, "controllers", controllers)
    monkeypatch.setattr(Reservations, "remove", lambda self, groups: removed.append(groups))
    monkeypatch.setattr(Reservations, "reserved", lambda self: {"before"})
    reservations = Reservations()
    reservations.setup()
    monkeypatch.setattr(Reservations, "reserved", lambda self: {"before", "left"})
    reservations.on_experiment_end([])
    assert removed == [{"left"}] and calls[0] == asked


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_reservation_without_an_actor_is_removed_at_the_second_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def reserve() -> PlacementGroup:
        group = placement_group([{"CPU": 0.1}], lifetime="detached")  # as Ray Train makes them
        ray.get(group.ready())
        return group

    @ray.remote(num_cpus=0.1)
    class Worker:
        def __init__(self, gate: Path) -> None:
            gate.read_text()  # of a pipe: until somebody writes

        def works(self) -> bool:
            return True

    monkeypatch.setattr(Reservations, "EVERY", 0.0)
    others = reserve()
    reservations = Reservations()
    reservations.setup()
    before = reservations.others
    assert before is not None and others.id.hex() in before
    group, left = reserve(), reserve()
    os.mkfifo(gate := tmp_path / "gate")
    worker = Worker.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote(gate)  # type: ignore[attr-defined]
    reservations.on_step_end(1, [])  # the actor is being made
    assert reservations.reserved() - before == {group.id.hex(), left.id.hex()}
    reservations.on_step_end(2, [])
    assert reservations.reserved() - before == {group.id.hex()}
    gate.write_text("made")
    assert ray.get(worker.works.remote())
    ray.kill(worker)
    reservations.on_experiment_end([])
    assert reservations.reserved() == before
    remove_placement_group(others)

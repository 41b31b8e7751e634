"""Where a run is placed: what is decided, and what is refused because Ray would wait for it in silence."""

from dataclasses import replace
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.place import check_labels, fitting, for_workers, placed, room
from pipelines.recipe import Elastic, Run, find_recipe

CLUSTER = {"CPU": 4.0, "object_store_memory": 2.0**30}


def test_what_is_auto_is_decided() -> None:
    place = placed(find_recipe("demo"), Run(workers=2), 1000, CLUSTER)
    assert (place.device, place.precision, place.feed, place.views_on) == ("cpu", "float32", "resident", "device")
    assert place.data_cpus == 3.0
    place = placed(find_recipe("demo"), Run(workers=2), 10**9, CLUSTER)
    assert (place.feed, place.views_on) == ("stream", "data")
    place = placed(find_recipe("demo"), Run(workers=2, feed="stream"), 1000, {**CLUSTER, "GPU": 2.0})
    assert (place.device, place.precision, place.views_on) == ("cuda", "bf16", "device")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Run(workers=5), "5 workers need as many CPUs, the cluster has 4"),
        (Run(workers=2, device="cuda"), "2 workers of 1 GPUs are more than the cluster's 0"),
        (Run(workers=2, cpus=3), "2 workers of 3 CPUs are more than the cluster's 4: give --run.cpus 2"),
        (Run(workers=2, cpus=2, feed="stream"), "leave 0 of 4 CPUs to the data stages"),
        (Run(views_on="data", feed="resident"), "the resident feed makes views on the device"),
    ],
)
def test_what_would_hang_is_refused(run: Run, message: str) -> None:
    with pytest.raises(UserError, match=message):
        placed(find_recipe("demo"), run, 1000, CLUSTER)


def node(cpus: float, gpus: float = 0.0, alive: bool = True, **labels: str) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}, "Labels": labels}


def test_labels_that_no_node_has_are_refused() -> None:
    nodes = [node(4, group="cpu"), node(4, alive=False, group="gone"), node(0, group="head")]
    check_labels(Run(train_on="group=cpu", data_on="group=cpu"), nodes)
    check_labels(Run(), nodes)
    for label in ("group=cpus", "group=gone", "group=head"):
        with pytest.raises(UserError, match=rf"the label {label} of --run.data-on: start one with .*--labels {label}"):
            check_labels(Run(data_on=label), nodes)
        with pytest.raises(UserError, match="of --run"):
            check_labels(Run(train_on=label), nodes)


def test_room_is_counted_node_by_node() -> None:
    run = Run(workers=Elastic(1, 8), cpus=1.5)
    nodes = [node(4), node(4), node(2, alive=False)]
    assert room(run, "cpu", nodes, 0.0) == 4  # two on each; five would fit one node of 8
    assert room(run, "cpu", nodes, 2.0) == 4 and room(run, "cpu", nodes, 2.5) == 3  # what the data stages need
    assert room(replace(run, share=0.5), "cpu", nodes, 0.0) == 2
    small = replace(run, cpus=0.45)
    assert room(small, "cpu", nodes, 0.0) == 8  # not seventeen: a worker computes on a core
    assert room(replace(small, share=0.1), "cpu", nodes, 0.0) == 0
    assert room(run, "cuda", nodes, 0.0) == 0
    mixed = [node(4, 2, group="gpu"), node(16)]
    assert room(run, "cuda", mixed, 0.0) == 2
    assert room(replace(run, gpus=2), "cuda", mixed, 0.0) == 1
    assert room(replace(run, train_on="group=gpu"), "cpu", mixed, 0.0) == 2
    assert room(replace(run, train_on="group=none"), "cpu", mixed, 0.0) == 0
    assert room(replace(run, data_on="group=cpu"), "cuda", mixed, 1.0) == 0  # nobody would make the data
    assert room(replace(run, data_on="group=gpu"), "cuda", mixed, 1.0) == 2
    tenth = Run(workers=2, cpus=0.45, share=1 / 3)  # a share is of all nodes together
    assert room(tenth, "cpu", [node(2), node(2), node(2)], 0.0) == 2
    assert room(tenth, "cpu", [node(2), node(2)], 0.0) == 1


def test_an_elastic_run_has_as_many_workers_as_fit_and_divide() -> None:
    run = Run(workers=Elastic(4, 16))
    assert run.numbers == [16, 8, 4]
    assert [fitting(run, there) for there in (3, 4, 7, 8, 15, 40)] == [None, 4, 4, 8, 8, 16]
    assert [fitting(Run(workers=3), there) for there in (2, 3, 9)] == [None, 3, 3]
    place = placed(find_recipe("demo"), Run(workers=Elastic(2, 16)), 1000, CLUSTER)  # which has four
    assert for_workers(place, Run(workers=2), 2, CLUSTER).data_cpus == 3.0
    assert for_workers(place, Run(workers=2), 4, {"CPU": 8.0}).data_cpus == 6.0


@pytest.mark.parametrize("workers", [Elastic(8, 4), Elastic(0, 4), 0])
def test_numbers_of_workers_that_are_none(workers: int | Elastic) -> None:
    with pytest.raises(ValueError, match=r"run\.workers is"):
        Run(workers=workers)


def test_too_many_images_for_memory() -> None:
    with pytest.raises(UserError, match=r"do not fit in memory .*: give --run\.feed stream, or --data\.limit"):
        placed(find_recipe("demo"), Run(feed="resident"), 10**9, CLUSTER)


@pytest.mark.parametrize(
    "field", ["threads", "retries", "checkpoint_steps", "stop_epoch", "knn_epochs", "cpus", "wait"]
)
def test_a_run_has_no_negative_numbers(field: str) -> None:
    with pytest.raises(ValueError, match=f"run.{field} is"):
        Run(**{field: -1})  # type: ignore[arg-type]

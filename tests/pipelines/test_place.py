"""Where a run is placed: what is decided, and what is refused because Ray would wait for it in silence."""

import pytest

from pipelines.errors import UserError
from pipelines.place import placed
from pipelines.recipe import Run, find_recipe

CLUSTER = {"CPU": 4.0, "object_store_memory": 2.0**30}


def test_what_is_auto_is_decided() -> None:
    place = placed(find_recipe("demo"), Run(workers=2), 1000, CLUSTER)
    assert (place.device, place.precision, place.feed, place.views_on) == ("cpu", "float32", "resident", "device")
    assert (place.threads, place.data_cpus, place.task_cpus) == (2, 1.5, 1.0)
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


def test_too_many_images_for_memory() -> None:
    with pytest.raises(UserError, match=r"do not fit in memory .*: give --run\.feed stream, or --data\.limit"):
        placed(find_recipe("demo"), Run(feed="resident"), 10**9, CLUSTER)


@pytest.mark.parametrize("field", ["threads", "retries", "checkpoint_steps", "stop_epoch", "knn_epochs", "cpus"])
def test_a_run_has_no_negative_numbers(field: str) -> None:
    with pytest.raises(ValueError, match=f"run.{field} is"):
        Run(**{field: -1})  # type: ignore[arg-type]

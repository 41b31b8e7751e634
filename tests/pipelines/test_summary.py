"""Where the time of a run went, by hand."""

from dataclasses import replace

import pytest

from pipelines.place import Place
from pipelines.summary import Spent, spent, told

PLACE = Place("cpu", "float32", "stream", "data", 1.0)


def test_seconds_of_steps_and_of_waiting() -> None:
    """Batches of 8. Steps 11 to 20 at 16 images/s are 5 s, a quarter of it waited; 21 to 24 at 8 are 4 s, half."""
    lines = [
        {"step": 10, "images_per_second": 1.0, "waiting_for_data": 1.0},  # of the run before
        {"step": 20, "images_per_second": 16.0, "waiting_for_data": 0.25},
        {"step": 20, "features/feature_std": 0.4},
        {"step": 24, "images_per_second": 8.0, "waiting_for_data": 0.5},
    ]
    found = spent(lines, 10, 8, 12.0)
    assert found == Spent(total=12.0, stepping=5.75, waiting=3.25, samples=112)
    assert found.rest == pytest.approx(3.0)


def test_what_is_told() -> None:
    even = Spent(total=100.0, stepping=75.0, waiting=20.0, samples=4000)
    assert told(even, PLACE, "images") == [
        "1 min 40 s: 75% in steps, 20% waiting for data, 5% for the start, monitors and checkpoints; 40 images/s in all"
    ]
    assert told(replace(even, samples=0), PLACE, "images") == []
    starved = replace(even, stepping=40.0, waiting=55.0)
    for place, noun, remedy in (
        (PLACE, "images", "--run.views-on device"),
        (PLACE, "videos", "python -m pipelines data frames"),
        (replace(PLACE, views_on="device"), "images", "decoding is the limit"),
        (replace(PLACE, feed="resident", views_on="device"), "images", "--run.threads"),
    ):
        _, advice = told(starved, place, noun)
        assert advice.startswith("data is the limit") and remedy in advice
    long = Spent(total=1000.0, stepping=500.0, waiting=100.0, samples=4000)
    assert "--run.checkpoint-epochs" in told(long, PLACE, "images")[1]
    assert len(told(replace(even, stepping=40.0), PLACE, "images")) == 1  # of a short run the start is much

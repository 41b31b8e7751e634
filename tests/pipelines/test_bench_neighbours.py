"""`bench neighbours`: recall by hand and against everybody, and what it prints; its figures are no matter for tests."""

import json
import math
from dataclasses import replace

import pytest
import torch

from pipelines import bench_neighbours
from pipelines.__main__ import main
from pipelines.bench_neighbours import BenchNeighbours, exact, extrapolated, features, found, recall, search

TINY = BenchNeighbours(sizes=(300,), recall=300, dim=8, probes=3, k=20, groups=10, rounds=2, device="cpu", threads=1)


def test_what_is_found_by_hand() -> None:
    """Of three features the two nearest, 1 and 2, 2 and 0, 0 and 1; 0 has found 1, 2 has found 1 but not 0."""
    nearest = torch.tensor([[1, 2], [2, 0], [0, 1]])
    pairs = torch.tensor([[0, 2], [1, 1]])
    everywhere = torch.ones(3, 2, dtype=torch.bool)
    assert found(pairs, nearest, everywhere) == {"1": 0.3333, "2": 0.3333}
    near = torch.tensor([[True, False], [False, False], [True, True]])
    assert found(pairs, nearest, near) == {"1": 0.5, "2": 0.6667}
    assert found(pairs, nearest, ~everywhere) == {"1": None, "2": None}


def test_exact_search_is_a_naive_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_neighbours, "CHUNK", 1000)  # several blocks
    x = features(60, TINY)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(60))
    distance = torch.cdist(x, x).fill_diagonal_(math.inf)
    nearest, near = exact(x, 5, 0.9)
    torch.testing.assert_close(distance.gather(1, nearest), distance.sort(dim=1).values[:, :5], atol=1e-3, rtol=0)
    assert torch.equal(near, distance.gather(1, nearest) <= 0.9)
    assert 0 < near.double().mean() < 1


@pytest.mark.parametrize("radius", [None, 0.8])
def test_recall_is_whole_where_all_cells_are_asked(radius: float | None) -> None:
    options = replace(TINY, radius=radius)
    few = recall(options)["share_of_nearest"]
    assert few.keys() == {"1", "4", "16", "20"} and all(0.3 < share <= 1 for share in few.values())
    assert few["20"] < 1
    whole = recall(replace(options, probes=300))["share_of_nearest"]
    assert all(share == pytest.approx(1, abs=1e-3) for share in whole.values())  # but for ties


def test_it_prints_recall_time_and_memory() -> None:
    figures = search(TINY)
    json.dumps(figures)
    assert figures["sizes"].keys() == {"300"}
    of_300 = figures["sizes"]["300"]
    assert of_300["cells"] == 17 and of_300["seconds"] > 0 and len(of_300["measured"]) == 2
    assert 0 < of_300["pairs_per_feature"] <= 20
    assert figures["recall"]["samples"] == 300
    assert figures["extrapolated"]["samples"] == 1_281_167 and figures["extrapolated"]["measured"] is False


def test_extrapolation_by_hand() -> None:
    """From a quarter of ImageNet: eight times the seconds where cells are the square root, 16 times where they are
    fixed; four times the memory."""
    quarter = {"seconds": 10.0, "peak_memory_mib": 100.0, "features_mib": 5.0}
    sizes = {1000: {**quarter, "seconds": 1.0}, 1_281_167 // 4: quarter}
    rooted = extrapolated(sizes, TINY)
    assert rooted["seconds"] == pytest.approx(80, abs=0.1) and rooted["peak_memory_mib"] == pytest.approx(400, abs=0.1)
    assert "N^1.5" in rooted["how"] and "from 320291" in rooted["how"]
    assert extrapolated(sizes, replace(TINY, cells=9))["seconds"] == pytest.approx(160, abs=0.1)


def test_the_command_takes_its_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[BenchNeighbours] = []

    def searched(options: BenchNeighbours) -> dict[str, float]:
        asked.append(options)
        return {"recall": 1.0}

    monkeypatch.setattr(bench_neighbours, "search", searched)
    assert main(["bench", "neighbours", "--sizes", "200", "400", "--recall", "200", "--radius", "0.5", "--k", "8"]) == 0
    assert json.loads(capsys.readouterr().out) == {"recall": 1.0}
    assert asked == [BenchNeighbours(sizes=(200, 400), recall=200, radius=0.5, k=8)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probes": 0}, "probes is at least 1"),
        ({"sizes": (64,)}, "sizes and recall are above k = 64"),
        ({"recall": 10}, "sizes and recall are above k = 64"),
        ({"radius": 0.0}, "radius is above 0"),
    ],
)
def test_bad_options(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchNeighbours(**fields)

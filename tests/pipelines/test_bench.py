"""The benchmarks run, on tiny sizes; that both sides do the same work; their figures are no matter for tests."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from methods.views import strong
from pipelines.bench import (
    BenchFeed,
    BenchRecipe,
    BenchStep,
    Photos,
    Views,
    bare,
    build,
    encode,
    feed_of,
    in_turns,
    ours,
    recipe_step,
    step,
    synthetic,
    write_photos,
)
from pipelines.recipe import find_recipe

TINY = BenchStep(size=8, batch_size=8, steps=3, rounds=2, device="cpu", threads=1)


def test_in_turns_takes_turns_and_leaves_the_first_out() -> None:
    called: list[str] = []

    def turn(name: str) -> int:
        called.append(name)
        return 1000

    speeds = in_turns({"a": lambda: turn("a"), "b": lambda: turn("b")}, rounds=2)
    assert called == ["a", "b"] * 3
    assert [len(values) for values in speeds.values()] == [2, 2] and min(map(min, speeds.values())) > 0


def test_the_bare_loop_takes_the_same_steps() -> None:
    """Otherwise the ratio would compare different work: after six steps, weights, teacher and queue are equal."""
    methods = {side: build(TINY) for side in (ours, bare)}
    before = {name: value.clone() for name, value in methods[ours].state_dict().items()}
    for side, method in methods.items():
        turn = side(method, TINY)
        assert turn() == turn() == 24
    states = [method.state_dict() for method in methods.values()]
    for name, value in states[0].items():
        if name != "queue.pointer":
            torch.testing.assert_close(value, states[1][name], msg=name)
    moved = [name for name, value in before.items() if not torch.equal(value, states[0][name])]
    assert {"queue.keys", "projector.0.weight", "teacher.network.1.0.weight"} <= set(moved)


def test_step_gives_speed_and_memory_of_both() -> None:
    figures = step(TINY)
    json.dumps(figures)
    assert figures["images_per_second"].keys() == figures["peak_memory_mib"].keys() == {"ours", "bare"}
    assert figures["ratio_to_bare"].keys() == {"time", "memory"} and figures["ratio_to_bare"]["time"] > 0
    assert all(len(values) == 2 for values in figures["measured"].values())


@pytest.mark.parametrize("name", ["supervised_cifar10", "rotation_cifar10"])
def test_a_recipe_is_measured_without_data(name: str) -> None:
    recipe = find_recipe(name).with_(backbone="resnet20", batch_size=8)
    figures = recipe_step(BenchRecipe(recipe, steps=1, rounds=2, device="cpu", threads=1))
    json.dumps(figures)
    assert figures["images_per_second"] > 0 and len(figures["measured"]) == 2 and "accuracy" in figures["log"]


def test_photos_take_the_bytes_that_real_ones_take(tmp_path: Path) -> None:
    small = [len(encode(image, "PNG")) for image, _ in zip(synthetic(32), range(20), strict=False)]
    large = [len(encode(image, "JPEG")) for image, _ in zip(synthetic(160), range(20), strict=False)]
    assert 1500 < sum(small) / 20 < 3000  # CIFAR-10's: 2.3 kB
    assert 6000 < sum(large) / 20 < 11000  # of ImageNet's, at this size: 6 to 10 kB
    encoded = write_photos(Photos("PNG", 8, 8, 1030, 8), tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["image"].to_pylist() == encoded and len(set(encoded)) == 1024


def test_the_dataloader_makes_the_same_views() -> None:
    """In the mean over many draws: what `strong` makes of one image, and what torchvision's transforms make of it."""
    image = next(synthetic(32))
    view = strong("online", 24)
    theirs = torch.stack([Views([encode(image, "PNG")], {"online": view})[0][0] for _ in range(1500)]).float()
    index = torch.arange(6000)
    pixels = torch.from_numpy(image).permute(2, 0, 1).expand(6000, -1, -1, -1)
    mine = view.apply(pixels, view.draw(0, 0, index)).float()
    assert theirs.shape[1:] == mine.shape[1:] == (3, 24, 24)
    assert (mine.mean(0) - theirs.mean(0)).abs().mean() < 4
    assert (mine.std(0) - theirs.std(0)).abs().mean() < 4


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_feed_gives_three_speeds() -> None:
    options = BenchFeed(batch_size=16, rounds=1, cpus=1, workers=1, device="cpu")
    figures = feed_of(Photos("JPEG", 24, 16, 32, 16), options)
    json.dumps(figures)
    speeds = figures["images_per_second"]
    assert speeds.keys() == figures["measured"].keys() == {"resident", "stream", "dataloader"}
    assert all(value > 0 for value in speeds.values())
    assert figures["ratio_to_dataloader"]["stream"] == pytest.approx(speeds["stream"] / speeds["dataloader"], rel=0.05)

"""RCL's tables: figures as the paper prints them, cells that differ in what varies, and clusters in a smoke sweep."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from methods.metrics.linear import Linear
from methods.optim import Optimizer
from methods.parts import set_batch_norm
from pipelines.evaluate import PROTOCOLS
from pipelines.evaluate import Options as Evaluation
from pipelines.loop import Training, train
from pipelines.recipe import Recipe, Run, find_recipe, from_json
from pipelines.sources import Data
from pipelines.storage import open_folder
from tuning.grid import PROFILES, Profile, find_grid, grids
from tuning.report import Sweep
from tuning.sweep import trial_of

NAMES = ("rcl_table2", "rcl_table3", "rcl_table4", "rcl_figure5b", "rcl_figure5c")


def test_the_grids_are_there() -> None:
    assert {name for name in grids() if name.startswith("rcl")} == set(NAMES)


def test_figures_are_the_papers() -> None:
    assert find_grid("rcl_table3").figures == {(1, 1): 70.2, (1, 2): 71.3, (1, 3): 71.8, (1, 4): 71.4, (3, 3): 72.6}
    by_method = {("nnclr",): 70.7, ("kmeans",): 71.8, ("dbscan",): 72.3, ("online",): 72.6}
    assert find_grid("rcl_table4").figures == by_method
    queues = find_grid("rcl_figure5b").figures
    assert {cell for cell, figure in queues.items() if figure is None} == {(16384,), (32768,), (65536,), (131072,)}
    assert queues[98304.0,] == by_method["online",] == find_grid("rcl_table3").figures[3.0, 3.0]
    steps = ("baseline", "remove-grayscale", "remove-color", "crop+blur", "crop")
    assert find_grid("rcl_figure5c").figures == {(step,): None for step in steps}


def test_table_2_is_the_papers() -> None:
    grid = find_grid("rcl_table2")
    columns = ("1%-top1", "1%-top5", "10%-top1", "10%-top5")
    assert {cell: figure for cell, figure in grid.figures.items()} == {
        ("rcl", column): figure for column, figure in zip(columns, (57.2, 81.0, 70.3, 89.9), strict=True)
    }
    sums: dict[str, float] = {}
    for (_, column), figure in grid.printed.items():
        sums[str(column)] = sums.get(str(column), 0.0) + (figure or 0.0)
    # 25.4 48.3 53.2 53.9 55 56.4; 48.4 73.5 39.2 75.6 75.5 78.4 78.5 79.2 80.7;
    # 56.4 51.6 68.8 71.5 65.6 68.8 70.2 69.7 69.8; 80.4 82.4 88.5 89.1 77.4 86.2 87.8 89 89.9 89.3 89.3
    assert [round(sums[column], 1) for column in columns] == [292.2, 629.0, 592.4, 949.3]
    assert (
        len(grid.printed) == 48 and grid.printed["pcl", "10%-top5"] == 86.2 and grid.printed["uda", "1%-top1"] is None
    )
    best = {column: max(f or 0 for (_, c), f in grid.printed.items() if c == column) for column in columns}
    assert [grid.figures["rcl", column] > best[column] for column in columns] == [True, True, False, False]  # type: ignore[operator]
    measured = [grid.measured(("rcl", column)) for column in columns]
    assert measured == [("semi_supervised", f"{top}_{p}") for p in (1, 10) for top in ("top1", "top5")]
    assert len({grid.trial(cell) for cell in grid.figures}) == 1


@pytest.mark.parametrize(("name", "cell"), [("table3", (3.0, 3.0)), ("table4", ("online",)), ("figure5b", (98304.0,))])
def test_the_default_cell_is_the_papers_recipe(name: str, cell: tuple) -> None:
    assert find_grid(f"rcl_{name}").recipe(cell, "paper") == find_recipe("rcl_imagenet")
    assert find_grid("rcl_figure5c").recipe(("baseline",), "paper") == find_recipe("rcl_imagenet")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_a_recipe_of_its_own_with_an_evaluation(name: str, profile: Profile) -> None:
    grid = find_grid(name)
    plan = Sweep(name, profile, tuple(grid.figures))
    found: dict[Any, Recipe] = {}
    for cell in grid.figures:
        trial = trial_of(grid, plan, cell, 0, Run(), open_folder("s"))
        assert trial.recipe == grid.recipe(cell, profile) == from_json(trial.recipe.to_json())
        assert {measure.protocol for _, measure in trial.figures} <= PROTOCOLS.keys()
        if profile != "paper":
            assert trial.recipe.method.warmup_epochs < trial.recipe.epochs, "clusters are reached"
            assert trial.recipe.method.queue <= 2 * (trial.recipe.data.limit or 0), "at most two keys a sample"
        found[grid.trial(cell)] = trial.recipe
    recipes = list(found.values())
    assert all(recipe not in recipes[:i] for i, recipe in enumerate(recipes))


def test_cells_set_what_varies() -> None:
    base = find_recipe("rcl_imagenet")
    cell = find_grid("rcl_table3").recipe((1.0, 4.0), "paper")
    assert cell == base.with_(method={"levels": 4, "shared_predictor": True})
    table4 = find_grid("rcl_table4")
    nnclr = {"clustering": "nearest", "levels": 1, "warmup_epochs": 0}
    assert table4.recipe(("nnclr",), "paper") == base.with_(method=nnclr)
    dbscan = table4.recipe(("dbscan",), "paper").method
    radii = [round(dbscan.radius + dbscan.radius_step * step, 9) for step in range(dbscan.levels - 1)]
    assert (radii, dbscan.min_samples) == ([0.6, 0.7, 0.8], 4)
    kmeans = table4.recipe(("kmeans",), "paper").method
    counts = [round(kmeans.clusters * 1_281_167 / 2**step) for step in range(kmeans.levels - 1)]
    assert counts == [1_000_000, 500_000, 250_000]
    figure5b = find_grid("rcl_figure5b")
    assert figure5b.recipe((65536.0,), "paper") == base.with_(method={"queue": 65536})
    assert [figure5b.recipe((65536.0,), profile).method.queue for profile in ("smoke", "small")] == [256, 4096]
    figure5c = find_grid("rcl_figure5c")
    for view in figure5c.recipe(("crop",), "paper").views.values():
        assert view.crop_scale == (0.08, 1.0) and view.size == 224
        assert not any((view.flip, view.jitter, view.grayscale, view.blur, view.solarize))
    kept = [view.blur for view in figure5c.recipe(("crop+blur",), "paper").views.values()]
    assert kept == [1.0, 0.1]
    assert find_grid("rcl_table2").recipe(("rcl", "1%-top1"), "paper") == base.with_(epochs=800)


def test_the_protocols_are_the_papers_and_on_cifar10_its_own() -> None:
    """Section 5.2: LARS, rate 1, Nesterov .9, cosine, batch 4096, 90 epochs."""
    paper = Optimizer("lars", lr=1.0, scaling="none", momentum=0.9, nesterov=True, weight_decay=0.0, schedule="cosine")
    for name in NAMES:
        grid = find_grid(name)
        assert grid.linear == Linear(paper, batch_size=4096, epochs=90)
        plan = Sweep(name, "small", tuple(grid.figures))
        evaluation = trial_of(grid, plan, next(iter(grid.figures)), 0, Run(), open_folder("s")).evaluation
        if name != "rcl_table2":
            assert evaluation.linear == Linear(augment="none")
        for fields in grid.evaluation.values():
            Evaluation(data=Data(), **fields)
    few = find_grid("rcl_table2").evaluation["paper"]["semi_supervised"]
    assert (few.percents, few.one.epochs, few.ten.epochs) == ((1, 10), 60, 30) and not few.one.freeze


class Feed:
    """Noisy images of eight colours, in the recipe's own views."""

    def __init__(self, recipe: Recipe) -> None:
        generator = torch.Generator().manual_seed(0)
        self.recipe, count = recipe, recipe.data.limit or 0
        colours = torch.randint(40, 216, (8, 3, 1, 1), generator=generator)
        noise = torch.randint(-40, 40, (count, 3, 10, 10), generator=generator)
        self.images = (colours[torch.arange(count) % 8] + noise).clamp(0, 255).to(torch.uint8)
        self.steps = count // recipe.batch_size

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(epoch))
        for index in order.split(self.recipe.batch_size)[start : self.steps]:
            views = self.recipe.views.items()
            yield {name: v.apply(self.images[index], v.draw(0, epoch, index)) for name, v in views} | {"index": index}


def test_a_smoke_run_reaches_clusters() -> None:
    """One epoch without and one with labels, which are used: the grid's own recipe, but for fewer and smaller images
    and heads."""
    recipe = find_grid("rcl_table3").recipe((3.0, 3.0), "smoke")
    assert (recipe.epochs, recipe.data.limit, recipe.method.queue) == (2, 256, 384)
    heads = {"hidden": 32, "dim": 16, "predictor_hidden": 32}
    recipe = recipe.with_(views={view: {"size": 8} for view in recipe.views}, data={"limit": 128}, method=heads)
    torch.manual_seed(0)
    method: Any = set_batch_norm(recipe.build(recipe.facts(128, 10)), recipe.batch_norm)
    feed = Feed(recipe)
    training = Training(method, method, recipe.optimizers, recipe.batch_size, recipe.epochs, feed.steps, seed=0)
    logs: list[dict[str, float]] = []
    train(training, feed, log_steps=4, on_log=lambda clock, values: logs.append(values))
    first, second = logs
    assert first["retrieved"] == 0 and first["positive.2"] == 1 and first["clusters.2"] == 128
    assert method.bank.started and 0 < second["retrieved"] < 1
    assert second["positive.1"] < second["positive.2"] <= second["positive.3"]
    assert 1 < second["clusters.3"] < second["clusters.2"] < 128
    assert second["split.2"] + second["merged.2"] + second["split.3"] + second["merged.3"] > 0

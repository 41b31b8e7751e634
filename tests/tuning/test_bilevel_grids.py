"""Tables of chapter 8 of S. Jenni's thesis: figures as printed, what a row changes, what a sweep costs in steps."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

import pipelines.evaluate
from pipelines.labels import balanced, uniform_noise
from pipelines.recipe import Run, find_recipe, from_json
from pipelines.storage import open_folder
from tuning.grid import PROFILES, find_grid, grids
from tuning.report import Sweep
from tuning.sweep import trial_of

TABLES = {  # cells that are trained, trials, and the paper's alone
    "thesis_table8_1": (72, 24, 0),
    "thesis_table8_2": (6, 2, 0),
    "thesis_table8_3": (12, 12, 8),
    "thesis_figure8_2": (144, 72, 0),
    "thesis_figure8_3": (48, 24, 0),
    "thesis_figure8_4": (48, 24, 0),
}
ROWS = ("sgd", "baseline", "a-no-l1", "b-per-layer", "c-sampling", "d-dropout")
TABLE_8_1 = {  # columns of Table 8.1, from top to bottom
    ("cifarnet", 0.0, "train"): (99.99, 97.60, 96.44, 97.43, 72.69, 95.92),
    ("cifarnet", 0.0, "test"): (75.68, 75.52, 74.32, 74.36, 68.19, 74.76),
    ("cifarnet", 0.0, "gap"): (24.31, 22.08, 22.12, 23.07, 4.50, 21.16),
    ("cifarnet", 0.5, "train"): (96.75, 89.28, 95.50, 81.60, 16.13, 82.22),
    ("cifarnet", 0.5, "test"): (45.15, 47.62, 45.79, 49.62, 23.93, 49.23),
    ("inception", 0.0, "train"): (99.91, 96.13, 79.46, 90.38, 79.78, 95.58),
    ("inception", 0.0, "test"): (88.13, 87.78, 77.07, 85.25, 78.25, 87.86),
    ("inception", 0.0, "gap"): (11.78, 8.35, 2.39, 5.13, 1.53, 7.72),
    ("inception", 0.5, "train"): (65.06, 45.43, 33.86, 81.60, 17.71, 44.61),
    ("inception", 0.5, "test"): (47.64, 73.08, 62.16, 49.62, 27.20, 75.71),
}
RATIOS = (0.1, 0.25, 0.5, 0.75)
TABLE_8_3 = {
    "reed": (62.3, 46.5),
    "goldberger": (69.9, 45.8),
    "azadi": (75.0, None),
    "jiang": (76.6, 56.9),
    "mixup": (88.3, 56.4),
    "sgd": (69.6, 44.9),
    "dropout": (84.5, 50.1),
    "label-smoothing": (69.3, 46.1),
    "bilevel": (87.0, 59.8),
    "bilevel+mixup": (89.0, 61.6),
}


def test_every_table_of_the_chapter_is_there() -> None:
    assert {name for name in grids() if name.startswith(("thesis_table8", "thesis_figure8"))} == TABLES.keys()
    for name, (cells, trials, others) in TABLES.items():
        grid = find_grid(name)
        assert (len(grid.figures), len({grid.trial(cell) for cell in grid.figures}), len(grid.printed)) == (
            cells,
            trials,
            others,
        )


def test_figures_are_the_texts() -> None:
    columns = {(row, *column): x for column, found in TABLE_8_1.items() for row, x in zip(ROWS, found, strict=True)}
    figures = find_grid("thesis_table8_1").figures
    assert {cell: figure for cell, figure in figures.items() if figure is not None} == columns
    assert {cell[2:] for cell, figure in figures.items() if figure is None} == {(0.5, "gap")}
    for row, network in product(ROWS, ("cifarnet", "inception")):
        train, test, gap = (columns[row, network, 0.0, measure] for measure in ("train", "test", "gap"))
        assert gap == pytest.approx(train - test)
    assert list(find_grid("thesis_table8_2").figures.values()) == [50.0, 33.2, 16.8, 34.8, 33.6, 1.2]
    grid = find_grid("thesis_table8_3")
    both = {**grid.printed, **grid.figures}
    datasets = ("cifar10", "cifar100")
    assert both == {(row, d): x for row, pair in TABLE_8_3.items() for d, x in zip(datasets, pair, strict=True)}
    assert set(grid.printed) == set(product(("reed", "goldberger", "azadi", "jiang"), datasets))
    for name in ("thesis_figure8_2", "thesis_figure8_3", "thesis_figure8_4"):
        assert set(find_grid(name).figures.values()) == {None}


@pytest.mark.parametrize("name", TABLES)
def test_a_trial_has_the_protocol_of_the_gap(name: str, tmp_path: Path) -> None:
    """That each cell is a recipe of its own is tested in test_grid.py."""
    grid = find_grid(name)
    assert "generalization" in pipelines.evaluate.PROTOCOLS
    for profile in PROFILES:
        cell = grid.cells(profile)[-1]
        trial = trial_of(grid, Sweep(name, profile, (cell,)), cell, 0, Run(), open_folder(str(tmp_path)))
        assert trial.recipe == grid.recipe(cell, profile) == from_json(trial.recipe.to_json())
        assert trial.recipe.method_name == "bilevel"
        assert {measure.protocol for _, measure in trial.figures} == {"generalization"}
        names = grid.axes[grid.reads] if grid.reads else ["test"]
        assert len(trial.figures) == len(names)


def test_of_the_papers_profile_the_baseline_is_the_recipe() -> None:
    one, two, three = (find_grid(f"thesis_table8_{n}") for n in (1, 2, 3))
    for network in ("cifarnet", "inception"):
        paper = find_recipe(f"bilevel_cifar10_{network}")
        assert one.recipe(("baseline", network, 0.0, "test"), "paper") == paper
        assert find_grid("thesis_figure8_2").recipe(("baseline", network, 0.0, "test"), "paper") == paper
        noisy = one.recipe(("baseline", network, 0.5, "test"), "paper")
        assert noisy == paper.with_(data={"noise": 0.5}) and (noisy.epochs, noisy.batch_size) == (200, 128)
        assert noisy == find_grid("thesis_figure8_2").recipe(("baseline", network, 0.5, "train"), "paper")
    inception = find_recipe("bilevel_cifar10_inception")
    assert two.recipe(("bilevel", "gap"), "paper") == inception.with_(data={"permuted": True})
    for dataset in ("cifar10", "cifar100"):
        paper = find_recipe(f"bilevel_{dataset}_preact").with_(data={"noise": 0.4})
        assert three.recipe(("bilevel", dataset), "paper") == paper
        for number, network in ((3, "cifarnet"), (4, "inception")):
            found = find_grid(f"thesis_figure8_{number}").recipe(("bilevel", dataset, 0.9, "test"), "paper")
            assert (found.backbone, found.epochs, found.batch_size, found.data.noise) == (network, 100, 64, 0.9)
            assert found.data.mean == find_recipe(f"bilevel_{dataset}_{network}").data.mean


def test_rows_change_what_they_name() -> None:
    grid = find_grid("thesis_table8_1")
    baseline = grid.recipe(("baseline", "inception", 0.5, "test"), "paper")
    rows = {row: grid.recipe((row, "inception", 0.5, "test"), "paper") for row in ROWS}
    assert rows["sgd"] == baseline.with_(method={"reweight": False}, data={"order": "shuffle"})
    assert rows["a-no-l1"] == baseline.with_(method={"normalize": False})
    assert rows["b-per-layer"] == baseline.with_(method={"per_layer": True})
    assert rows["c-sampling"] == baseline.with_(data={"order": "shuffle"})
    assert rows["d-dropout"] == baseline.with_(method={"same_dropout": False})
    third = {row: find_grid("thesis_table8_3").recipe((row, "cifar10"), "paper") for row in list(TABLE_8_3)[4:]}
    options = {row: (r.method.reweight, r.data.order, r.method.dropout, r.method.mixup) for row, r in third.items()}
    assert options == {
        "mixup": (False, "shuffle", 0.0, 1.0),
        "sgd": (False, "shuffle", 0.0, 0.0),
        "dropout": (False, "shuffle", 0.7, 0.0),
        "label-smoothing": (False, "shuffle", 0.0, 0.0),
        "bilevel": (True, "balanced", 0.0, 0.0),
        "bilevel+mixup": (True, "balanced", 0.0, 1.0),
    }
    assert [r.method.label_smoothing for r in third.values()] == [0.0, 0.0, 0.0, 0.1, 0.0, 0.0]


def test_the_sweeps_of_figure_8_2() -> None:
    """Mini-batches shrink as their number grows; at a fixed number the batch changes, and the images seen do not."""
    grid = find_grid("thesis_figure8_2")
    found = {s: grid.recipe((s, "cifarnet", 0.5, "test"), "paper") for s in map(str, grid.axes["setting"])}
    images = {s: (r.method.parts, r.batch_size // r.method.parts, r.method.mu) for s, r in found.items()}
    assert images == {
        "baseline": (8, 16, 0.01),
        **{f"validation={ratio:g}": (8, 16, 0.01) for ratio in RATIOS},
        "k=2": (2, 64, 0.01),
        "k=4": (4, 32, 0.01),
        "k=16": (16, 8, 0.01),
        "k=32": (32, 4, 0.01),
        "images=1": (8, 1, 0.01),
        "images=2": (8, 2, 0.01),
        "images=4": (8, 4, 0.01),
        "images=8": (8, 8, 0.01),
        "images=32": (8, 32, 0.01),
        "mu=0.0001": (8, 16, 0.0001),
        "mu=0.001": (8, 16, 0.001),
        "mu=0.1": (8, 16, 0.1),
        "mu=1": (8, 16, 1.0),
    }
    assert {r.epochs for r in found.values()} == {200}
    ratios = {setting: r.data.validation_ratio for setting, r in found.items() if r.data.validation_ratio}
    assert ratios == {f"validation={ratio:g}": ratio for ratio in RATIOS}


@pytest.mark.parametrize("name", TABLES)
def test_parts_can_be_balanced(name: str) -> None:
    """Of as many images as a profile has, with its noise: few are left out, and parts divide the batch."""
    grid, found = find_grid(name), set()
    for profile in PROFILES:
        for cell in {grid.trial(cell): cell for cell in grid.cells(profile)}.values():
            recipe, classes = grid.recipe(cell, profile), 100 if "cifar100" in cell else 10
            assert recipe.batch_size % recipe.method.parts == 0, cell
            if recipe.balance is not None and recipe.data.limit is not None:
                found.add((recipe.balance, recipe.batch_size, recipe.data.limit, classes, recipe.data.noise))
    assert found
    for balance, batch_size, limit, classes, noise in found:
        index = torch.arange(limit)
        label = uniform_noise(index % classes, index, classes, noise, 0)
        rows = balanced(label, index, balance, batch_size, 0, 0).view(-1, balance.parts, batch_size // balance.parts)
        trained = rows[:, 1:] if balance.validation_ratio else rows
        assert trained.numel() > 0.8 * (1 - balance.validation_ratio) * limit, (balance, classes, noise)


def test_smoke_trains_few_small_networks() -> None:
    grid = find_grid("thesis_table8_1")
    cells = grid.cells("smoke")
    assert {cell[:3] for cell in cells} == {(row, "cifarnet", pi) for row in ("sgd", "baseline") for pi in (0.0, 0.5)}
    for cell in cells:
        recipe = grid.recipe(cell, "smoke")
        assert (recipe.epochs, recipe.batch_size, recipe.method.parts, recipe.data.limit) == (2, 32, 4, 512)
    assert all(
        find_grid("thesis_table8_3").recipe(("bilevel", d), "small").backbone == "resnet20" for d in ("cifar10",)
    )
    assert find_grid("thesis_table8_3").recipe(("bilevel", "cifar10"), "paper").backbone == "preact_resnet18"


def test_a_figure_that_the_table_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="experiment has no e"):
        replace(find_grid("thesis_table8_1"), figures={("e", "cifarnet", 0.0, "test"): 1.0})

"""Grids: every figure where the paper has it, every cell a recipe that differs in what varies alone."""

import re
from dataclasses import replace
from typing import Any

import pytest

from methods.metrics.linear import Linear
from pipelines.errors import UserError
from pipelines.recipe import Recipe, find_recipe
from tuning.__main__ import main
from tuning.cost import hours, shown
from tuning.grid import PROFILES, Profile, find_grid, grids, named, table

DATASETS = ("cifar10", "cifar100", "stl10", "tinyimagenet")
CELLS = {  # counted by hand in the papers
    "prelax_table1": 5,
    "prelax_table2a": 12,
    "prelax_table2b": 8,
    "prelax_table2b_cifar100": 4,
    "prelax_table3a": 6,
    "prelax_table3b": 9,
    "rcl_figure5b": 5,
    "rcl_figure5c": 5,
    "rcl_table2": 4,
    "rcl_table3": 5,
    "rcl_table4": 4,
    "ressl_table1": 80,
    "ressl_table2": 80,
    "ressl_table3": 8,
    "ressl_table4": 56,
    "ressl_table5": 8,
    "ressl_table6": 28,
    "ressl_table7": 4,
    "ressl_table8": 2,
    "ressl_table9": 9,
    "ressl_table10": 4,
    "ressl_table11": 12,
    "ressl_table13": 15,
    "ressl_table14": 10,
    "sce_table1": 11,
    "sce_table3": 10,
    "sce_table4": 8,
    "sce_table5": 18,
    "sce_table6": 16,
    "sce_table9": 11,
    "sce_table10": 4,
    "simsiam_figure2": 2,
    "thesis_figure8_2": 144,
    "thesis_figure8_3": 48,
    "thesis_figure8_4": 48,
    "thesis_table3_1": 11,
    "thesis_table4_1": 7,
    "thesis_table4_2": 35,
    "thesis_table4_3": 35,
    "thesis_table5_1": 16,
    "thesis_table5_1_hmdb51": 16,
    "thesis_table5_2": 5,
    "thesis_table5_2_hmdb51": 5,
    "thesis_table5_3": 6,
    "thesis_table5_4": 5,
    "thesis_table6_1": 39,
    "thesis_table6_2": 3,
    "thesis_table6_2_s1": 3,
    "thesis_table7_1": 40,
    "thesis_table7_3": 44,
    "thesis_table7_4": 48,
    "thesis_table8_1": 72,
    "thesis_table8_2": 6,
    "thesis_table8_3": 12,
}


def test_every_table_is_there_whole() -> None:
    assert {name: len(grid.figures) for name, grid in grids().items()} == CELLS
    assert all(name == grid.name for name, grid in grids().items())


def printed(name: str) -> dict[Any, float]:
    return {cell: figure for cell, figure in find_grid(name).figures.items() if figure is not None}


def test_tables_agree_where_they_print_the_same_run() -> None:
    """The papers repeat their default setting from table to table: a figure in a wrong place breaks that."""
    one, two, three, four, five, six = (printed(f"ressl_table{n}") for n in range(1, 7))
    for dataset, best, queue in zip(DATASETS, (0.04, 0.03, 0.03, 0.03), (4096, 4096, 16384, 16384), strict=True):
        default = one[dataset, 0.1, best]
        assert default == max(v for cell, v in one.items() if cell[0] == dataset)
        assert default == three[dataset, "without"] == four["crop+flip", dataset]
        assert default == five[dataset, "weak"] == six[queue, dataset]
        assert five[dataset, "contrastive"] == four["crop+flip+jitter+grayscale+blur", dataset]
        collapsed = [v for (d, tau_s, tau_t), v in two.items() if (d, tau_s) == (dataset, 0.1) and tau_t >= 0.08]
        chance = {"cifar10": 10.0, "cifar100": 1.0, "stl10": 10.0, "tinyimagenet": 0.5}[dataset]
        assert collapsed == pytest.approx([chance] * 3, abs=0.1)
    one, three, four, five, six = (printed(f"sce_table{n}") for n in (1, 3, 4, 5, 6))
    assert one[0.5,] == three[0.5, 0.5, 0.5, 0.05] == four["strong", "weak", "no"] == six[0.1, 0.05] == 82.94
    assert one[1.0,] == three[1.0, 0.0, 0.0, 0.05] == three[1.0, 0.0, 0.0, 0.07]
    assert one[0.0,] == three[0.0, 1.0, 1.0, 0.05]
    assert three[0.5, 0.5, 0.5, 0.07] == six[0.1, 0.07] == five["sce", "imagenet100"] == max(six.values())
    two, cited = printed("ressl_table2"), find_grid("sce_table5").cited
    for dataset, tau_t in zip(DATASETS, (0.05, 0.04, 0.05, 0.04), strict=True):
        assert cited["ressl", dataset] == two[dataset, 0.1, tau_t]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("profile", PROFILES)
def test_each_cell_is_a_recipe_of_its_own(name: str, profile: Profile) -> None:
    """But for datasets that have one recipe, whose images differ."""
    grid = find_grid(name)
    cells = list({grid.trial(cell): cell for cell in grid.cells(profile)}.values())
    shared = "dataset" if "{dataset}" not in grid.bases[profile] else ""
    found = [(grid.recipe(cell, profile), dict(zip(grid.axes, cell, strict=True)).get(shared)) for cell in cells]
    for i, one in enumerate(found):
        assert one not in found[:i], named(cells[i])


def test_smoke_is_a_corner() -> None:
    assert find_grid("sce_table6").cells("smoke") == [(0.1, 0.03), (0.1, 0.04), (0.2, 0.03), (0.2, 0.04)]
    assert find_grid("sce_table1").cells("smoke") == [(0.0,), (0.1,)]
    corner = find_grid("ressl_table1").cells("smoke")
    assert corner == [("cifar10", s, t) for s in (0.1, 0.2) for t in (0.01, 0.02)]
    assert all(1 < len(grid.cells("smoke")) <= 4 for grid in grids().values())


@pytest.mark.parametrize(
    ("grid", "cell", "recipe"),
    [
        *(("ressl_table1", (d, 0.1, 0.04 if d == "cifar10" else 0.03), f"ressl_{d}") for d in DATASETS),
        *(("ressl_table3", (d, "without"), f"ressl_{d}") for d in DATASETS),
        *(("ressl_table4", ("crop+flip", d), f"ressl_{d}") for d in DATASETS),
        *(("ressl_table5", (d, "weak"), f"ressl_{d}") for d in DATASETS),
        *(("ressl_table6", (4096.0 if d.startswith("cifar") else 16384.0, d), f"ressl_{d}") for d in DATASETS),
        ("sce_table1", (0.5,), "sce_imagenet100"),
        ("sce_table4", ("strong", "weak", "no"), "sce_imagenet100"),
        ("sce_table6", (0.1, 0.05), "sce_imagenet100"),
        ("sce_table5", ("moco", "cifar10"), "moco_cifar10"),
        *(("sce_table5", ("sce", d), f"sce_{d}") for d in ("imagenet", *DATASETS)),
    ],
)
def test_the_default_cell_is_the_papers_recipe(grid: str, cell: tuple, recipe: str) -> None:
    assert find_grid(grid).recipe(cell, "paper") == normal(find_recipe(recipe))


@pytest.mark.parametrize(("profile", "before", "whole"), [("smoke", 1, 2), ("small", 5, 15), ("paper", 100, 300)])
def test_the_classifier_learns_as_long_beside_a_frozen_inpainter(profile: Profile, before: int, whole: int) -> None:
    grid = find_grid("thesis_table4_1")
    frozen, baseline = (grid.recipe((name,), profile) for name in ("frozen-inpainter", "baseline"))
    assert (frozen.method.inpainter_epochs, frozen.epochs) == (before, whole)
    assert (baseline.method.inpainter_epochs, baseline.epochs) == (0, whole - before)


def test_gans_take_cifar10s_network_below_the_papers_setting() -> None:
    seven_one, seven_three = (find_grid(f"thesis_table7_{n}") for n in (1, 3))
    for grid, noise, dataset in ((seven_one, "df-1", "stl10"), (seven_three, "dcgan", "celeba")):
        pixels = [grid.recipe((noise, dataset, "fid"), profile).views["image"].size for profile in PROFILES]
        assert pixels == [32, 32, 64]
    learned = seven_one.recipe(("noise-only-learned", "stl10", "fid"), "paper").method
    assert learned.noise_penalty == 1.0, "not STL-10's own .1"


def test_layers_are_read_as_the_thesis_reads_them() -> None:
    protocols = [find_grid(f"thesis_table{n}").evaluation["paper"]["layerwise"] for n in ("3_1", "4_1", "4_2", "4_3")]
    assert [(it.size, it.norm, it.epochs) for it in protocols] == [
        (96, False, 200),
        (96, True, 500),
        (64, True, 700),
        (96, True, 100),
    ]


def normal(recipe: Recipe) -> Recipe:
    """MoCo's constant momentum may be written out."""
    if recipe.method_name == "moco" and recipe.method.momentum_end is None:
        return replace(recipe, method=replace(recipe.method, momentum_end=recipe.method.momentum))
    return recipe


@pytest.mark.parametrize("name", CELLS)
def test_the_smoke_corner_builds(name: str) -> None:
    grid = find_grid(name)
    for cell in grid.cells("smoke"):
        recipe = grid.recipe(cell, "smoke")
        recipe.build(recipe.facts(256, 10))


def test_cells_are_picked_by_value() -> None:
    grid = find_grid("sce_table1")
    assert grid.picked("0.,0.5,1.") == [(0.0,), (0.5,), (1.0,)]
    assert find_grid("sce_table6").picked("0.1/0.05, .2/.10") == [(0.1, 0.05), (0.2, 0.10)]
    assert find_grid("ressl_table6").picked("4096/cifar10") == [(4096.0, "cifar10")]


def test_what_is_not_there() -> None:
    with pytest.raises(UserError, match="no grid sce_tabel1; did you mean sce_table1"):
        find_grid("sce_tabel1")
    with pytest.raises(UserError, match=r"sce_table6 has no cell 0\.1/0\.06x; did you mean 0\.1/0\.06"):
        find_grid("sce_table6").picked("0.1/0.06x")
    grid = find_grid("sce_table1")
    with pytest.raises(ValueError, match=r"sce_table1: lam has no 0\.55"):
        replace(grid, figures={(0.55,): 80.0})
    with pytest.raises(ValueError, match="has 2 values, the axes are lam"):
        replace(grid, figures={(0.5, 0.1): 80.0})
    with pytest.raises(ValueError, match="every axis needs values"):
        replace(grid, axes={"lam": ()}, figures={})


def test_a_table_is_read_as_it_is_printed() -> None:
    axes = {"a": ("x", "y"), "b": (1.0, 2.0, 3.0)}
    assert table(axes, "1 - 3", "4 5 6") == {
        ("x", 1.0): 1.0,
        ("x", 2.0): None,
        ("x", 3.0): 3.0,
        ("y", 1.0): 4.0,
        ("y", 2.0): 5.0,
        ("y", 3.0): 6.0,
    }
    with pytest.raises(ValueError, match="1 rows of figures for 2"):
        table(axes, "1 2 3")
    with pytest.raises(ValueError):
        table(axes, "1 2", "4 5 6")


def test_a_grid_has_its_papers_protocol() -> None:
    linear = [it for it in grids().values() if {it.measured(cell)[0] for cell in it.figures} == {"linear"}]
    rates = {it.name: it.linear.optimizer.lr for it in linear}
    papers = {"prelax": 30.0, "rcl": 1.0, "ressl": 10.0, "sce": 30.0, "simsiam": 0.02}
    papers |= dict.fromkeys(("ressl_table7", "ressl_table8", "ressl_table13"), 0.1)  # ImageNet
    assert all(rate == papers.get(name, papers[name.partition("_")[0]]) for name, rate in rates.items())
    assert find_grid("sce_table1").linear == Linear()


def test_the_list_shows_whole_names_and_costs_also_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, grid in grids().items():
        (line,) = (line for line in lines if f" {name} " in line)
        words = [word.strip() for word in line.split("│")]
        assert words[1] == name and words[4] == str(len(grid.figures))
        assert all(re.fullmatch(r"[\d.,]+ (min|h|d)", cost) for cost in words[6:9]), words


def test_cost_is_images_over_measured_images_a_second_and_the_starts_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.cost.RATES", {("resnet20", 32): 200.0})
    grid = find_grid("sce_table1")
    monkeypatch.setattr("tuning.cost.STARTS", 60.0)
    assert hours(grid, "small") == pytest.approx(11 * (10 * 10_000 / 200 + 60) / 3600)
    assert hours(grid, "paper") is None
    symmetric = find_grid("sce_table4")
    assert hours(symmetric, "small") == pytest.approx(((5 + 2 * 3) * 10 * 10_000 / 200 + 8 * 60) / 3600)
    assert [shown(value) for value in (None, 0.001, 0.5, 3.25, 480.0)] == ["-", "1 min", "30 min", "3.2 h", "20 d"]

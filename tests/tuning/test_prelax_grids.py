"""Tables 1 to 3b of Prelax: figures typed again, each row's terms, a step of every cell, other data for Table 2b."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from methods.method import Clock
from methods.metrics.linear import Linear
from pipelines.errors import UserError
from pipelines.recipe import Recipe, Run, find_recipe, from_json
from pipelines.storage import open_folder
from tuning.grid import PROFILES, Cell, Grid, Profile, find_grid, grids
from tuning.report import Outcome, Sweep, report, trial_name, write_outcomes
from tuning.sweep import Options, asked, check_labelled, trial_of

NAMES = [f"prelax_table{table}" for table in ("1", "2a", "2b", "2b_cifar100", "3a", "3b")]
SIM = {"similarity": 1.0, "forward_similarity": 1.0}
STD = {"r2s": 1.0, "pl": 0.1, "similarity": 1.0}
ROT = {"r3s": 1.0, "rotation_pl": 0.1, "similarity": 1.0}
ALL = {"r2s": 0.5, "r3s": 0.5, "pl": 0.05, "rotation_pl": 0.05, "similarity": 1.0}
VARIANTS = {"simsiam": SIM, "std": STD, "rot": ROT, "all": ALL}
ROWS: Mapping[str, Mapping[str, Mapping[str, float]]] = {  # the weights above 0; gamma .1, beta 1 (section 5)
    "prelax_table1": {
        "rotation": {"rotation": 1.0},
        "simsiam": SIM,
        "simsiam+prelax": ALL,
        "byol": SIM,
        "byol+prelax": ALL,
    },
    "prelax_table2a": VARIANTS,
    "prelax_table2b": VARIANTS,
    "prelax_table2b_cifar100": VARIANTS,
    "prelax_table3a": {
        "simsiam": SIM,
        "simsiam+margin-loss": SIM,
        "rotation": {"rotation": 1.0},
        "simsiam+rotation-aug": SIM,
        "simsiam+rotation-loss": {**SIM, "rotation": 1.0},
        "simsiam+prelax": ALL,
    },
    "prelax_table3b": {
        "sim": SIM,
        "sim+pl": {**SIM, "pl": 0.1},
        "sim+r2s": {"r2s": 1.0, "similarity": 1.0},
        "r2s+pl": {"r2s": 1.0, "pl": 0.1},
        "sim+pl+r2s": STD,
        "sim+rotpl": {**SIM, "rotation_pl": 0.1},
        "sim+r3s": {"r3s": 1.0, "similarity": 1.0},
        "r3s+rotpl": {"r3s": 1.0, "rotation_pl": 0.1},
        "sim+rotpl+r3s": ROT,
    },
}
FIGURES: Mapping[str, Mapping[Cell, float]] = {
    "prelax_table1": {
        ("rotation", "cifar10"): 88.3,
        ("simsiam", "cifar10"): 91.8,
        ("simsiam+prelax", "cifar10"): 93.4,
        ("byol", "imagenette"): 91.9,
        ("byol+prelax", "imagenette"): 92.6,
    },
    "prelax_table2a": {
        ("simsiam", "cifar10"): 91.8,
        ("std", "cifar10"): 92.5,
        ("rot", "cifar10"): 92.4,
        ("all", "cifar10"): 93.4,
        ("simsiam", "cifar100"): 66.9,
        ("std", "cifar100"): 67.5,
        ("rot", "cifar100"): 67.3,
        ("all", "cifar100"): 70.0,
        ("simsiam", "tinyimagenet"): 47.7,
        ("std", "tinyimagenet"): 47.9,
        ("rot", "tinyimagenet"): 47.1,
        ("all", "tinyimagenet"): 49.2,
    },
    "prelax_table2b": {
        ("simsiam", "cifar100"): 44.1,
        ("std", "cifar100"): 45.0,
        ("rot", "cifar100"): 45.0,
        ("all", "cifar100"): 44.9,
        ("simsiam", "tinyimagenet"): 43.9,
        ("std", "tinyimagenet"): 45.1,
        ("rot", "tinyimagenet"): 45.1,
        ("all", "tinyimagenet"): 44.6,
    },
    "prelax_table2b_cifar100": {
        ("simsiam", "tinyimagenet"): 21.8,
        ("std", "tinyimagenet"): 21.8,
        ("rot", "tinyimagenet"): 22.0,
        ("all", "tinyimagenet"): 22.1,
    },
    "prelax_table3a": {
        ("simsiam",): 91.8,
        ("simsiam+margin-loss",): 91.9,
        ("rotation",): 88.3,
        ("simsiam+rotation-aug",): 87.9,
        ("simsiam+rotation-loss",): 91.7,
        ("simsiam+prelax",): 93.4,
    },
    "prelax_table3b": {
        ("sim",): 91.8,
        ("sim+pl",): 92.2,
        ("sim+r2s",): 91.5,
        ("r2s+pl",): 91.7,
        ("sim+pl+r2s",): 92.5,
        ("sim+rotpl",): 91.1,
        ("sim+r3s",): 91.9,
        ("r3s+rotpl",): 79.8,
        ("sim+rotpl+r3s",): 92.4,
    },
}
OTHERS = {  # of Table 1
    ("supervised", "cifar10"): 95.0,
    ("byol", "cifar10"): 91.1,
    ("simclr", "cifar10"): 91.1,
    ("supervised", "imagenette"): 91.0,
    ("supervised+tta", "imagenette"): 92.2,
    ("byol-resnet50", "imagenette"): 92.3,
}
CELLS = [(name, cell) for name, figures in FIGURES.items() for cell in figures]


def test_figures_are_the_papers() -> None:
    assert [name for name in grids() if name.startswith("prelax")] == NAMES
    assert {name: find_grid(name).figures for name in NAMES} == FIGURES
    assert find_grid("prelax_table1").printed == OTHERS


def test_tables_agree_where_they_print_the_same_run() -> None:
    one, two, a, b = (find_grid(f"prelax_table{table}").figures for table in ("1", "2a", "3a", "3b"))
    assert one["simsiam", "cifar10"] == two["simsiam", "cifar10"] == a["simsiam",] == b["sim",]
    assert one["simsiam+prelax", "cifar10"] == two["all", "cifar10"] == a["simsiam+prelax",]
    assert one["rotation", "cifar10"] == a["rotation",]
    assert (two["std", "cifar10"], two["rot", "cifar10"]) == (b["sim+pl+r2s",], b["sim+rotpl+r3s",])


def test_improvements_that_the_text_states() -> None:
    """Section 5.2: all over SimSiam by 1.6, 3.1 and 1.5; 5.1: BYOL by .7, over ResNet-50 by .3; 5.3: -.7."""
    two, one, b = (find_grid(f"prelax_table{table}").figures for table in ("2a", "1", "3b"))
    gains = [two["all", d] - two["simsiam", d] for d in ("cifar10", "cifar100", "tinyimagenet")]  # type: ignore[operator]
    assert gains == pytest.approx([1.6, 3.1, 1.5])
    prelax = one["byol+prelax", "imagenette"]
    assert prelax is not None and prelax - OTHERS["byol-resnet50", "imagenette"] == pytest.approx(0.3)
    assert prelax - FIGURES["prelax_table1"]["byol", "imagenette"] == pytest.approx(0.7)
    assert b["sim+rotpl",] - b["sim",] == pytest.approx(-0.7)  # type: ignore[operator]
    assert b["sim+rotpl+r3s",] - b["sim",] == pytest.approx(0.6)  # type: ignore[operator]


# --------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_a_row_sets_its_terms_and_nothing_else(name: str, cell: Cell) -> None:
    grid = find_grid(name)
    dataset = cell[1] if len(cell) > 1 else "cifar10"
    base, recipe = find_recipe(f"prelax_{dataset}"), grid.recipe(cell, "paper")
    assert {term: weight for term, weight in recipe.method.weights.items() if weight} == ROWS[name][str(cell[0])]
    assert recipe.method.margin == (0.5 if cell[0] == "simsiam+margin-loss" else 0.0)
    assert recipe.method.rotation_augmentation == (cell[0] == "simsiam+rotation-aug")
    assert recipe.with_(method=base.method) == base
    same = ("base", "simsiam", "byol", "r2s_alpha", "r3s_alpha", "reverse_residual", "normalize", "head")
    assert recipe.method.scale == (1.0 if cell[0] == "rotation" else base.method.scale)  # alone, not a term of Eq. 20
    assert {field: getattr(recipe.method, field) for field in same} == {
        field: getattr(base.method, field) for field in same
    }


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        *(("prelax_table2a", ("all", dataset)) for dataset in ("cifar10", "cifar100", "tinyimagenet")),
        *(("prelax_table2b", ("all", dataset)) for dataset in ("cifar100", "tinyimagenet")),
        ("prelax_table1", ("byol+prelax", "imagenette")),
        ("prelax_table3a", ("simsiam+prelax",)),
    ],
)
def test_prelax_all_is_the_recipe(name: str, cell: Cell) -> None:
    dataset = cell[1] if len(cell) > 1 else "cifar10"
    assert find_grid(name).recipe(cell, "paper") == find_recipe(f"prelax_{dataset}")


def stand_in(recipe: Recipe) -> Recipe:
    """The same recipe with ResNet-20, small heads and views of 8 pixels."""
    small = {"hidden": 16, "dim": 8, "predictor_hidden": 12}
    views = {name: {"size": 8} for name in recipe.views}
    return recipe.with_(backbone="resnet20", method={"simsiam": small, "byol": small}, views=views)


@cache
def images() -> torch.Tensor:
    return torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_every_cell_builds_and_takes_a_step(name: str, cell: Cell) -> None:
    recipe = stand_in(find_grid(name).recipe(cell, "paper"))
    index = torch.arange(8)
    drawn = {view: recipe.views[view].draw(0, 0, index) for view in recipe.views}
    batch = {view: recipe.views[view].apply(images(), drawn[view]) for view in recipe.views}
    batch |= {f"{view}.parameters": parameters for view, parameters in drawn.items()}
    torch.manual_seed(0)
    method = recipe.build(recipe.facts(8, 10))
    loss, log = method({**batch, "index": index}, Clock(0, 10, 1, 0, 0), "model")
    loss.backward()
    weights = ROWS[name][str(cell[0])]
    assert log.keys() - {"teacher_momentum"} == weights.keys()
    expected = recipe.method.scale * sum(weight * log[term] for term, weight in weights.items())
    torch.testing.assert_close(loss.detach(), expected)
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


# -------------------------------------------------------------------------------------------- profiles


def test_smoke_trains_a_few_cells_of_cifar10() -> None:
    for name in NAMES:
        grid = find_grid(name)
        for cell in grid.cells("smoke"):
            recipe = grid.recipe(cell, "smoke")
            base = find_recipe("prelax_cifar10")
            small = {"backbone": "resnet20", "epochs": 2, "batch_size": 32, "data": {"limit": 256}}
            assert recipe == base.with_(method=recipe.method, **small)
    assert find_grid("prelax_table3b").cells("smoke") == [("sim",), ("sim+pl+r2s",), ("sim+rotpl+r3s",)]
    assert {len(find_grid(name).cells("smoke")) for name in NAMES} == {2, 3, 4}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_has_an_evaluation(name: str, profile: Profile, tmp_path: Path) -> None:
    """Section 5: rate 30, batch 256, 100 epochs; of BYOL on ImageNette rate .5, Nesterov, batch 25, 80 epochs."""
    grid = find_grid(name)
    plan = Sweep(name, profile, tuple(grid.figures))
    for cell in grid.figures:
        trial = trial_of(grid, plan, cell, 0, Run(), open_folder(str(tmp_path)))
        assert trial.recipe == grid.recipe(cell, profile) == from_json(trial.recipe.to_json())
        assert trial.protocols == ["linear"] and trial.figures == ((cell, grid.measure(cell)),)
        found = trial.evaluation.linear
        if profile == "paper" and cell[-1] == "imagenette":
            assert (found.optimizer.lr, found.optimizer.nesterov, found.optimizer.momentum) == (0.5, True, 0.9)
            assert (found.batch_size, found.epochs, found.augment) == (25, 80, "crop_flip")
        elif profile == "paper":
            assert found == Linear()
        else:
            assert (found.optimizer, found.augment) == (Linear().optimizer, "none")


# ------------------------------------------------------------------------------------------- table 2b


def test_table_2b_is_of_other_data_in_the_papers_profile(tmp_path: Path) -> None:
    """{dataset} is the set of the pretraining; --labelled names the target."""
    grid, cells = find_grid("prelax_table2b"), {}
    with pytest.raises(UserError, match=r"other data than the pretraining's: give --labelled and --labelled-test"):
        check_labelled(grid, asked(grid, Options(profile="paper"), {"train": "/{dataset}/train.parquet"}))
    with pytest.raises(UserError, match=r"span cifar100, tinyimagenet: write \{dataset\} in --data.train"):
        asked(grid, Options(profile="paper"), {"train": "/c.parquet"})
    options = Options(profile="paper", labelled="/cifar10/train.parquet", labelled_test="/cifar10/test.parquet")
    plan = asked(grid, options, {"train": "/{dataset}/train.parquet", "test": "/{dataset}/test.parquet"})
    check_labelled(grid, plan)
    for cell in grid.figures:
        trial = trial_of(grid, plan, cell, 0, Run(), open_folder(str(tmp_path)))
        assert (trial.evaluation.data.train, trial.evaluation.data.test) == (options.labelled, options.labelled_test)
        assert (trial.evaluation.data.size, trial.evaluation.data.limit) == (32, None)
        cells[cell] = trial.recipe.data.train
    assert cells["std", "cifar100"] == "/cifar100/train.parquet"
    assert cells["all", "tinyimagenet"] == "/tinyimagenet/train.parquet"


def test_without_other_data_smaller_profiles_evaluate_on_their_own(tmp_path: Path) -> None:
    grid = find_grid("prelax_table2b_cifar100")
    plan = asked(grid, Options(profile="smoke"), {"train": "/c/train.parquet", "test": "/c/test.parquet"})
    check_labelled(grid, plan)
    trial = trial_of(grid, plan, grid.smoke[0], 0, Run(), open_folder(str(tmp_path)))
    assert trial.evaluation.data == trial.recipe.data


# --------------------------------------------------------------------------------------------- reports


def written(grid: Grid, tmp_path: Path) -> str:
    folder = open_folder(str(tmp_path))
    Sweep(grid.name, "small", tuple(grid.figures)).write(folder)
    for cell, figure in grid.figures.items():
        assert figure is not None
        write_outcomes(folder / "trials" / trial_name(grid, cell, 0), [Outcome(cell, 0, "finished", figure - 1)])
    return report(folder)


def test_reports_show_others_beside_ours(tmp_path: Path) -> None:
    grid = find_grid("prelax_table1")
    text = written(grid, tmp_path)
    for figure in (*OTHERS.values(), 93.4, 92.4, 92.6, 91.6):
        assert f"{figure}" in text
    assert json.loads((tmp_path / "sweep.json").read_text())["grid"] == "prelax_table1"


def test_what_is_the_papers_alone_cannot_be_picked() -> None:
    with pytest.raises(UserError, match="byol/cifar10 is the paper's alone, and can't be trained here"):
        find_grid("prelax_table1").picked("byol/cifar10")
    grid = find_grid("prelax_table3b")
    assert grid.picked("sim+pl,r3s+rotpl") == [("sim+pl",), ("r3s+rotpl",)]
    with pytest.raises(UserError, match=r"has no cell sim\+pr2s; did you mean"):
        grid.picked("sim+pr2s")
    with pytest.raises(ValueError, match="method has no sim\\+all"):
        replace(grid, figures={("sim+all",): 1.0})

"""ReSSL's Tables 7 to 11, 13 and 14, SCE's 9 and 10: figures typed again, cells' recipes and steps, evaluations."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from steps import take_a_step

import tuning.sweep
from methods.metrics.linear import Linear
from pipelines.errors import UserError
from pipelines.evaluate import Options as Evaluation
from pipelines.recipe import Recipe, Run, find_recipe, from_json
from pipelines.storage import open_folder
from tuning.grid import PROFILES, Cell, Grid, Profile, find_grid
from tuning.report import Outcome, Sweep, markdown, trial_name
from tuning.sweep import Options, asked, check_labelled, done_before, outcomes_of, trial_of

RESSL = [f"ressl_table{number}" for number in (7, 8, 9, 10, 11, 13, 14)]
NAMES = [*RESSL, "sce_table9", "sce_table10"]
LIGHT = {  # of Table 13: 1 crop, 2 crops, multi-crop; of Table 14: multi-crop with 1% and 10%
    "resnet18": ((62.4, 63.8, 66.5), (45.6, 62.3)),
    "resnet34": ((66.3, 68.4, 71.0), (55.4, 67.8)),
    "efficientnet_b0": ((69.7, 70.9, 72.2), (55.6, 68.2)),
    "efficientnet_b1": ((71.1, 73.1, None), (59.5, 70.9)),
    "mobilenet_v3_large": ((64.7, 66.6, 68.2), (50.9, 62.8)),
}
CROPS = ("ressl-1-crop", "ressl-2-crops", "ressl-multi")
MANY_SHOT = {  # ReSSL's Table 9 and SCE's: SimCLR, BYOL, NNCLR, the paper's own, supervised
    "ressl_table9": {
        "cifar10": (90.5, 91.3, 93.7, 93.8, 93.6),
        "cifar100": (74.4, 78.4, 79.0, 78.5, 78.3),
        "food101": (72.8, 75.3, 76.7, 77.2, 72.3),
        "cars": (49.3, 67.8, 67.1, 68.3, 66.7),
        "dtd": (75.7, 75.5, 75.5, 76.6, 74.9),
        "pets": (84.6, 90.4, 91.8, 90.7, 91.5),
        "flowers": (92.6, 96.1, 95.1, 94.8, 94.7),
        "aircraft": (50.3, 60.6, 64.1, 65.1, 61.0),
        "caltech101": (89.3, 94.2, 91.3, 94.5, 94.5),
        "mean": (75.5, 81.1, 81.6, 82.2, 80.8),
    },
    "sce_table9": {
        "food101": (72.8, 75.3, 76.7, 77.7, 72.3),
        "cifar10": (90.5, 91.3, 93.7, 94.8, 93.6),
        "cifar100": (74.4, 78.4, 79.0, 80.4, 78.3),
        "sun397": (60.6, 62.2, 62.5, 65.3, 61.9),
        "cars": (49.3, 67.8, 67.1, 65.7, 66.7),
        "aircraft": (49.8, 60.6, 64.1, 59.6, 61.0),
        "voc2007": (81.4, 82.5, 83.0, 84.0, 82.8),
        "dtd": (75.7, 75.5, 75.5, 77.1, 74.9),
        "pets": (84.6, 90.4, 91.8, 90.9, 91.5),
        "caltech101": (89.3, 94.2, 91.3, 92.7, 94.5),
        "flowers": (92.6, 96.1, 95.1, 96.1, 94.7),
        "mean": (74.6, 79.5, 80.0, 80.4, 79.3),
    },
}
SCE_FIGURES = dict.fromkeys(("aircraft", "caltech101", "pets", "flowers"), "mean_per_class") | {"voc2007": "map"}
FIGURES: Mapping[str, Mapping[Cell, float | None]] = {
    "ressl_table7": {
        ("ressl-conference-1-crop",): 69.9,
        ("ressl-1-crop",): 72.0,
        ("ressl-conference-2-crops",): 71.4,
        ("ressl-2-crops",): 73.2,
    },
    "ressl_table8": {("ressl-multi",): 76.0, ("ressl-strong",): 76.3},
    "ressl_table9": {("ressl", d): row[3] for d, row in MANY_SHOT["ressl_table9"].items() if d != "mean"},
    "ressl_table10": {
        ("ressl", "1%-top1"): 57.8,
        ("ressl", "1%-top5"): 81.6,
        ("ressl", "10%-top1"): 71.2,
        ("ressl", "10%-top5"): 90.2,
    },
    "ressl_table11": {
        **{("random", k): v for k, v in {"4": 10.1, "8": 10.4, "16": 10.8, "32": 11.3, "64": 11.9}.items()},
        ("random", "full"): 12.4,
        **{("ressl", k): v for k, v in {"4": 66.8, "8": 75.3, "16": 80.5, "32": 83.8, "64": 86.0}.items()},
        ("ressl", "full"): 88.6,
    },
    "ressl_table13": {(b, name): v for b, (row, _) in LIGHT.items() for name, v in zip(CROPS, row, strict=True)},
    "ressl_table14": {
        (b, "ressl-multi", percent): v
        for b, (_, row) in LIGHT.items()
        for percent, v in zip(("1%", "10%"), row, strict=True)
    },
    "sce_table9": {("sce", d): row[3] for d, row in MANY_SHOT["sce_table9"].items() if d != "mean"},
    "sce_table10": {("sce", "16"): 79.47, ("sce", "32"): 83.05, ("sce", "64"): 85.47, ("sce", "full"): 88.24},
}
CELLS = [(name, cell) for name, figures in FIGURES.items() for cell in figures]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_the_papers(name: str) -> None:
    assert find_grid(name).figures == FIGURES[name]


def test_what_the_papers_say_of_their_tables() -> None:
    """Differences that the texts name, means that the tables print."""
    seven, eight = find_grid("ressl_table7"), find_grid("ressl_table8")
    of, others = seven.figures, seven.printed
    gains = {  # "drops 2.1% and 1.8%", "1.9%" over InfoMin, "0.4%" over MoCo v3
        of["ressl-1-crop",]: (of["ressl-conference-1-crop",], 2.1),
        of["ressl-2-crops",]: (of["ressl-conference-2-crops",], 1.8),
    }
    assert all(ours - before == pytest.approx(gain) for ours, (before, gain) in gains.items())  # type: ignore
    assert of["ressl-1-crop",] - others["infomin",] == pytest.approx(1.9)  # type: ignore[operator]
    assert of["ressl-2-crops",] - others["moco-v3",] == pytest.approx(0.4)  # type: ignore[operator]
    assert max(v for v in eight.printed.values() if v) == eight.printed["clsa-multi-800",] == 76.2
    ten = find_grid("ressl_table10")
    assert ten.figures["ressl", "1%-top1"] - ten.printed["nnclr", "1%-top1"] == pytest.approx(1.4)  # type: ignore
    assert ten.figures["ressl", "10%-top1"] - ten.printed["swav", "10%-top1"] == pytest.approx(1.0)  # type: ignore
    for name, rows in MANY_SHOT.items():
        *columns, means = rows.values()
        for k, mean in enumerate(means):
            assert sum(column[k] for column in columns) / len(columns) == pytest.approx(mean, abs=0.06), (name, k)


def test_others_rows_are_the_papers_alone() -> None:
    counts = {"7": 21, "8": 13, "9": 41, "10": 34, "11": 30, "13": 33, "14": 32}
    assert {n: len(find_grid(f"ressl_table{n}").printed) for n in counts} == counts
    for name, rows in MANY_SHOT.items():
        printed = {(cell[0], cell[1]): v for cell, v in find_grid(name).printed.items()}
        own = name.partition("_")[0]
        for d, row in rows.items():
            for method, v in zip(("simclr", "byol", "nnclr", own, "supervised"), row, strict=True):
                assert printed.get((method, d)) == (None if method == own and d != "mean" else v), (name, method, d)
    fourteen, thirteen = find_grid("ressl_table14").printed, find_grid("ressl_table13").printed
    assert fourteen["efficientnet_b0", "disco-resnet152", "1%"] == 52.0
    assert fourteen["resnet18", "swav", "10%"] == 60.4
    assert (thirteen["resnet34", "moco-v2"], thirteen["resnet34", "seed-resnet50"]) == (57.4, 58.5)
    assert (thirteen["resnet18", "seed-resnet50"], thirteen["efficientnet_b1", "disco-resnet152"]) == (57.9, 73.1)
    eleven, sce = find_grid("ressl_table11").printed, find_grid("sce_table10").printed
    shots = {
        "moco-v2": (76.14, 79.16, 81.52, 84.60),
        "pcl-v2": (78.34, 80.72, 82.67, 85.43),
        "ressl": (79.17, 81.96, 83.81, 86.31),
        "swav": (78.38, 81.86, 84.40, 87.47),
        "wcl": (80.24, 82.97, 85.01, 87.75),
    }
    assert sce == {(m, k): v for m, row in shots.items() for k, v in zip(("16", "32", "64", "full"), row, strict=True)}
    for method in ("moco-v2", "pcl-v2"):  # both papers print the same runs
        for k in ("16", "32", "64", "full"):
            assert eleven[method, k] == pytest.approx(sce[method, k], abs=0.051)


# ------------------------------------------------------------------------------------------------ cells


def test_the_papers_cells_are_its_recipes() -> None:
    def of(name: str, *cell: str) -> Recipe:
        return find_grid(name).recipe(cell, "paper")

    assert of("ressl_table7", "ressl-1-crop") == find_recipe("ressl_imagenet")
    assert of("ressl_table7", "ressl-2-crops") == find_recipe("ressl_imagenet_two_crops")
    assert of("ressl_table7", "ressl-conference-1-crop") == find_recipe("ressl_imagenet_conference")
    two = of("ressl_table7", "ressl-conference-2-crops")
    assert two.views["second"] == replace(two.views["online"], name="second") and two.batch_size == 256
    multi = find_recipe("ressl_imagenet_multicrop")
    assert of("ressl_table8", "ressl-multi") == multi
    strong = of("ressl_table8", "ressl-strong")
    assert {name: view.operations for name, view in strong.views.items()} == {
        **dict.fromkeys(("online", "local_1", "local_2", "local_3", "local_4"), 5),
        "target": 0,
    }
    assert strong.with_(views={name: {"operations": 0} for name in strong.views}) == multi
    for name, cell in (("ressl_table9", "cars"), ("ressl_table10", "1%-top5"), ("ressl_table11", "64")):
        assert of(name, "ressl", cell) == multi
    assert of("ressl_table11", "random", "4") == multi
    for backbone in LIGHT:
        plain = find_recipe("ressl_imagenet").with_(backbone=backbone)
        assert of("ressl_table13", backbone, "ressl-1-crop") == plain
        assert of("ressl_table13", backbone, "ressl-multi") == multi.with_(backbone=backbone)
        assert of("ressl_table14", backbone, "ressl-multi", "1%") == multi.with_(backbone=backbone)
    assert of("sce_table9", "sce", "voc2007") == find_recipe("sce_imagenet_multicrop")
    assert of("sce_table10", "sce", "full") == find_recipe("sce_imagenet_multicrop")


def stand_in(recipe: Recipe) -> Recipe:
    """The same recipe with ResNet-20, small heads and small views."""
    shrink = 28 if recipe.views["target"].size == 224 else 4
    views = {name: {"size": max(view.size // shrink, 5)} for name, view in recipe.views.items()}
    small = {"hidden": 16, "dim": 8, "queue": 24}
    small |= {"predictor_hidden": 16} if recipe.method_name == "sce" else {}
    return recipe.with_(backbone="resnet20", method=small, views=views)


@pytest.mark.parametrize("profile", ["small", "paper"])
@pytest.mark.parametrize("name", ["ressl_table7", "ressl_table8", "ressl_table13", "sce_table10"])
def test_every_pretraining_takes_a_step(name: str, profile: Profile) -> None:
    grid = find_grid(name)
    taken: list[Recipe] = []
    for cell in grid.figures:
        recipe = stand_in(grid.recipe(cell, profile))
        if recipe not in taken:
            take_a_step(recipe, 12)
            taken.append(recipe)


def test_the_smoke_corner_steps_with_a_light_backbone_on_small_crops() -> None:
    grid = find_grid("ressl_table14")
    recipe = grid.recipe(grid.smoke[0], "smoke").with_(method={"hidden": 16, "dim": 8, "queue": 24})
    assert recipe.backbone == "mobilenet_v3_large"
    assert sorted(view.size for view in recipe.views.values()) == [14, 18, 23, 27, 32, 32]
    take_a_step(replace(recipe, views={name: recipe.views[name] for name in ("target", "online", "local_4")}), 12)


# ------------------------------------------------------------------------------------------- evaluation


PROTOCOL = {
    "ressl_table7": "linear",
    "ressl_table8": "linear",
    "ressl_table9": "transfer",
    "ressl_table10": "semi_supervised",
    "ressl_table11": "low_shot",
    "ressl_table13": "linear",
    "ressl_table14": "semi_supervised",
    "sce_table9": "transfer",
    "sce_table10": "low_shot",
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_has_an_evaluation(name: str, profile: Profile, tmp_path: Path) -> None:
    grid = find_grid(name)
    plan = Sweep(name, profile, tuple(grid.figures), labelled="/l/{dataset}.parquet", labelled_test="/l/t.parquet")
    for cell in grid.figures:
        trial = trial_of(grid, plan, cell, 0, Run(), open_folder(str(tmp_path)))
        assert trial.recipe == grid.recipe(cell, profile) == from_json(trial.recipe.to_json())
        assert trial.protocols == [PROTOCOL[name]] and (cell, grid.measure(cell)) in trial.figures
        chosen = trial.elsewhere.get(cell, trial.evaluation)
        if PROTOCOL[name] == "linear" and profile == "paper":  # .1 * batch / 256, cosine, Nesterov, 90 epochs
            rate = chosen.linear.optimizer
            assert (rate.lr, rate.scaling, rate.schedule, rate.nesterov) == (0.1, "linear", "cosine", True)
            assert (rate.weight_decay, rate.momentum, chosen.linear.epochs) == (0.0, 0.9, 90)
        elif PROTOCOL[name] == "linear":  # of CIFAR-10: 10, x.1 at 60 and 80
            assert (chosen.linear.optimizer.lr, chosen.linear.augment) == (10.0, "none")
            assert chosen.linear.optimizer.milestones == Linear().optimizer.milestones == (60.0, 80.0)
        if PROTOCOL[name] == "transfer":
            assert (chosen.transfer.train, chosen.transfer.test) == (f"/l/{cell[1]}.parquet", "/l/t.parquet")
            assert len(chosen.transfer.regularizations) == {"smoke": 3, "small": 9, "paper": 45}[profile]
            mean = name == "sce_table9" and SCE_FIGURES.get(str(cell[1])) == "mean_per_class"
            assert chosen.transfer.metric == ("mean_per_class" if mean else "top1")
        if PROTOCOL[name] == "low_shot":
            assert chosen.low_shot.shots == ((4, 8, 16, 32, 64) if name == "ressl_table11" else (16, 32, 64))
            assert (chosen.low_shot.draws, chosen.low_shot.full) == (1 if profile == "smoke" else 5, True)
        if PROTOCOL[name] == "semi_supervised" and profile != "smoke":  # section 5.1
            one, ten = chosen.semi_supervised.one, chosen.semi_supervised.ten
            assert (one.freeze, one.optimizer.lr, one.epochs) == (True, 0.1, 60)
            assert (ten.freeze, ten.optimizer.lr, ten.epochs) == (False, 0.02, 20)
            assert one.optimizer.weight_decay == ten.optimizer.weight_decay == 0.0


def test_figures_of_one_run_are_of_one_trial() -> None:
    trials = {name: {find_grid(name).trial(cell) for cell in FIGURES[name]} for name in NAMES}
    assert {name: len(found) for name, found in trials.items()} == {
        "ressl_table7": 4,
        "ressl_table8": 2,
        "ressl_table9": 1,
        "ressl_table10": 1,
        "ressl_table11": 1,
        "ressl_table13": 15,
        "ressl_table14": 5,
        "sce_table9": 1,
        "sce_table10": 1,
    }
    eleven = find_grid("ressl_table11")
    assert (eleven.measure(("random", "8")).of, eleven.measure(("ressl", "8")).of) == ("random_init", "run")
    assert eleven.measured(("ressl", "full")) == ("low_shot", "map_full")
    assert find_grid("ressl_table10").measured(("ressl", "1%-top5")) == ("semi_supervised", "top5_1")
    assert find_grid("ressl_table14").measured(("resnet18", "ressl-multi", "10%")) == ("semi_supervised", "top1_10")
    nine = find_grid("sce_table9")
    for cell in nine.figures:
        assert nine.measured(cell) == ("transfer", SCE_FIGURES.get(str(cell[1]), "top1"))


def test_a_dataset_that_is_added_to_a_finished_trial_is_evaluated(tmp_path: Path) -> None:
    grid, folder = find_grid("sce_table9"), open_folder(str(tmp_path))
    method = next(iter(grid.figures))[0]
    cells = tuple(cell for cell in grid.figures if cell[0] == method)[:3]
    ended = [Outcome(cell, 0, "finished", 1.0) for cell in cells[:2]]

    def done(*wanted: Cell, ended: list[Outcome] = ended) -> set[str]:
        plan = Sweep(grid.name, "paper", wanted, labelled="l/{dataset}", labelled_test="t/{dataset}")
        trials = {"one": trial_of(grid, plan, wanted[0], 0, Run(), folder)}
        return done_before(trials, plan, ended)

    assert done(*cells[:2]) == {"one"} and done(*cells) == set()
    assert done(*cells[:2], ended=[ended[0], replace(ended[1], status="failed")]) == set()


def test_smoke_trains_a_few_cells_of_cifar10() -> None:
    for name in NAMES:
        grid = find_grid(name)
        base = find_recipe("sce_cifar10" if name.startswith("sce") else "ressl_cifar10")
        assert 2 <= len(grid.cells("smoke")) <= 3
        for cell in grid.cells("smoke"):
            recipe = grid.recipe(cell, "smoke")
            assert (recipe.epochs, recipe.batch_size, recipe.data.limit) == (2, 32, 256)
            assert recipe.data.mean == base.data.mean and recipe.optimizers == base.optimizers
            assert recipe.backbone == (
                "mobilenet_v3_large" if name in ("ressl_table13", "ressl_table14") else "resnet20"
            )


@pytest.mark.parametrize("name", ["ressl_table9", "ressl_table11", "sce_table9", "sce_table10"])
def test_other_data_is_asked_for_in_the_papers_profile(name: str, tmp_path: Path) -> None:
    grid = find_grid(name)
    with pytest.raises(UserError, match="give --labelled and --labelled-test"):
        check_labelled(grid, asked(grid, Options(profile="paper"), {"train": "/i.parquet"}))
    plan = asked(grid, Options(profile="smoke"), {"train": "/c/train.parquet", "test": "/c/test.parquet"})
    check_labelled(grid, plan)
    for cell in grid.cells("smoke"):
        found = trial_of(grid, plan, cell, 0, Run(), open_folder(str(tmp_path))).evaluation
        assert (found.data.train, found.data.test) == ("/c/train.parquet", "/c/test.parquet")
        if PROTOCOL[name] == "transfer":
            assert (found.transfer.train, found.transfer.test) == ("/c/train.parquet", "/c/test.parquet")


@pytest.mark.parametrize("name", NAMES)
def test_reports_show_others_beside_ours(name: str) -> None:
    grid: Grid = find_grid(name)
    cells = tuple(grid.cells("smoke"))
    ended = [Outcome(cell, 0, "finished", 40.0 + k, 1) for k, cell in enumerate(cells)]
    text = markdown(grid, Sweep(name, "smoke", cells), ended)
    assert text.count("the paper's alone") == len(grid.printed)
    assert "41.00" in text


def test_one_run_is_evaluated_on_each_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretrained once; VOC 2007 by mAP, as many as the plan has cells."""
    grid, seen = find_grid("sce_table9"), []

    def evaluate(target: str, protocols: list[str], options: Evaluation) -> dict[str, Any]:
        seen.append((options.transfer.train, options.transfer.metric, protocols))
        value = len(seen) / 100
        return {
            "transfer": {"top1": value, "mean_per_class": value + 0.5, "map": value + 0.7},
            "protocol": {"transfer": {"step": 7}},
        }

    monkeypatch.setattr(tuning.sweep.evaluation, "evaluate", evaluate)
    monkeypatch.setattr(tuning.sweep, "pretrain", lambda *given, **others: open_folder(str(tmp_path)))
    cells = (("sce", "cars"), ("sce", "aircraft"), ("sce", "voc2007"))
    plan = Sweep(grid.name, "paper", cells, labelled="/l/{dataset}.parquet", labelled_test="/l/{dataset}-test.parquet")
    assert len({trial_name(grid, cell, 0) for cell in grid.figures}) == 1
    trial = trial_of(grid, plan, cells[0], 0, Run(), open_folder(str(tmp_path)))
    alone = trial_of(grid, dataclasses.replace(plan, cells=cells[:1]), cells[0], 0, Run(), open_folder(str(tmp_path)))
    assert [cell for cell, _ in alone.figures] == [cells[0]]  # and not all datasets by the figure of one
    ended = {outcome.cell: outcome.figure for outcome in outcomes_of(trial)}
    assert ended == {cells[0]: pytest.approx(1.0), cells[1]: pytest.approx(52.0), cells[2]: pytest.approx(73.0)}
    assert seen == [
        ("/l/cars.parquet", "top1", ["transfer"]),
        ("/l/aircraft.parquet", "mean_per_class", ["transfer"]),
        ("/l/voc2007.parquet", "top1", ["transfer"]),
    ]

"""Tables of videos and of several cameras: figures as printed, rows that share a run, other data, what less means."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipelines.evaluate
from methods import supervised
from pipelines.errors import UserError
from pipelines.evaluate import Options as Evaluation
from pipelines.recipe import Run, find_recipe, from_json
from pipelines.sources import Data
from pipelines.storage import Folder, open_folder
from tuning.grid import PROFILES, Cell, Grid, Measure, Profile, find_grid
from tuning.report import Outcome, Sweep, cells_frame, picture, report, trial_name, write_outcomes
from tuning.sweep import Options, Trial, asked, check_data, check_labelled, outcomes_of, trial_of

TABLES = {  # cells that are trained, the paper's alone, and sums of all printed figures, which were made from the text
    "thesis_table5_1": (16, 0, 853.5),
    "thesis_table5_1_hmdb51": (16, 0, 552.6),
    "thesis_table5_2": (5, 18, 1574.5),
    "thesis_table5_2_hmdb51": (5, 18, 784.1),
    "thesis_table5_3": (6, 6, 425.39),
    "thesis_table5_4": (5, 30, 1472.2),
    "thesis_table6_1": (39, 0, 4590.4),
    "thesis_table6_2": (3, 27, 1654.2),
    "thesis_table6_2_s1": (3, 27, 2535.4),
}


@pytest.mark.parametrize("name", TABLES)
def test_figures_are_the_texts(name: str) -> None:
    """Sums over all rows of a table, which a misprinted or a missing figure changes."""
    grid = find_grid(name)
    figures = [*grid.figures.values(), *grid.printed.values()]
    total = sum(figure for figure in figures if figure is not None)
    assert (len(grid.figures), len(grid.printed), round(total, 2)) == TABLES[name]


def test_tables_agree_where_they_print_the_same_run() -> None:
    views, subject = find_grid("thesis_table6_1").figures, find_grid("thesis_table6_2_s1").figures
    for measure in ("mpjpe", "nmpjpe", "pmpjpe"):
        same = ("d-ssl-without-background", "g-sync-and-flip", "k-fusion-mult", "m-multi-view")
        assert {views[row, measure] for row in same} == {subject["ours", measure]}
    for name in TABLES:
        grid = find_grid(name)
        rows: dict[Cell, list[float]] = {}
        for cell, figure in {**grid.figures, **grid.printed}.items():
            if figure is not None:
                rows.setdefault(cell[:-1], []).append(figure)
        for row, figures in rows.items():
            if name in ("thesis_table6_1", "thesis_table6_2", "thesis_table6_2_s1"):
                assert figures == sorted(figures, reverse=True), f"{name} {row}: each metric aligns more"
            if name == "thesis_table5_4":
                assert figures == sorted(figures), f"{name} {row}: more neighbours"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", TABLES)
def test_every_cell_has_a_recipe_and_an_evaluation(name: str, profile: Profile, tmp_path: Path) -> None:
    """Of smoke it is built, too, in tests/tuning/test_grid.py."""
    grid = find_grid(name)
    plan = Sweep(name, profile, tuple(grid.figures))
    for cell in grid.figures:
        trial = trial_of(grid, plan, cell, 0, Run(), open_folder(str(tmp_path)))
        assert trial.recipe == grid.recipe(cell, profile) == from_json(trial.recipe.to_json())
        assert {measure.protocol for _, measure in trial.figures} <= pipelines.evaluate.PROTOCOLS.keys()
        assert (cell, grid.measure(cell)) in trial.figures
        if trial.recipe.data.media == "take":
            assert trial.evaluation.data.pose == "pose" and not trial.recipe.data.pose


# ------------------------------------------------------------------------------------------- chapter 5


def test_rows_of_table_5_1_are_kinds_and_a_loss() -> None:
    grid, paper = find_grid("thesis_table5_1"), find_recipe("temporal_ucf101")
    assert grid.recipe(("speed+random+periodic+warp", "yes"), "paper") == paper.with_(epochs=50)
    found = grid.recipe(("speed+periodic", "no"), "paper")
    assert found == paper.with_(epochs=50, method={"transformations": ("speed", "periodic"), "speed_loss": False})
    assert list(found.views_used) == ["speed", "periodic"]
    assert grid.evaluation["paper"]["layerwise"].head == (2048, 2048)
    assert find_grid("thesis_table5_1_hmdb51").evaluation["paper"]["finetune"].epochs == 50
    for name in ("thesis_table5_1", "thesis_table5_1_hmdb51", "thesis_table5_2", "thesis_table5_2_hmdb51"):
        assert find_grid(name).evaluation["paper"]["clips"].count == 32  # "all center-cropped sub-sequences"
    assert "paper" not in find_grid("thesis_table5_4").evaluation  # 10, the default


@pytest.mark.parametrize("profile", PROFILES)
def test_action_labels_are_learned_from_clips_as_many_as_the_others_have(profile: Profile) -> None:
    grid = find_grid("thesis_table5_1")
    labels, ours = (
        grid.recipe(cell, profile) for cell in (("action-labels", "none"), ("speed+random+periodic+warp", "yes"))
    )
    assert labels.method == supervised.Config(freeze_backbone=False)
    assert labels.batch_size == len(ours.views_used) * ours.batch_size
    assert (labels.backbone, labels.epochs, labels.optimizers) == (ours.backbone, ours.epochs, ours.optimizers)
    (view,) = labels.views.values()
    assert view.shape(3) == ours.views["speed"].shape(3) and view.speed == 2
    method = labels.build(labels.facts(64, 8)) if profile == "smoke" else None
    assert method is None or all(weight.requires_grad for weight in method.parameters())


def test_networks_have_their_epochs() -> None:
    """100 or 200 on UCF101, 15 on Kinetics; 75 or 150 of fine-tuning."""
    grid = find_grid("thesis_table5_2_hmdb51")
    plan = Sweep(grid.name, "paper", tuple(grid.figures), labelled="l", labelled_test="t")
    found = {}
    for cell in grid.figures:
        trial = trial_of(grid, plan, cell, 0, Run(), open_folder("s"))
        found[cell[1:]] = (trial.recipe.backbone, trial.recipe.epochs, trial.evaluation.finetune.epochs)
        assert (trial.evaluation.data.train, trial.evaluation.data.test) == ("l", "t")
    assert found == {
        ("c3d", "ucf101"): ("c3d", 100, 75),
        ("c3d", "kinetics"): ("c3d", 15, 75),
        ("resnet3d18", "ucf101"): ("resnet3d18", 200, 150),
        ("resnet3d18", "kinetics"): ("resnet3d18", 15, 150),
        ("r2plus1d18", "ucf101"): ("r2plus1d18", 200, 150),
    }


def test_table_5_4_is_read_of_one_run() -> None:
    grid = find_grid("thesis_table5_4")
    assert len({grid.trial(cell) for cell in grid.figures}) == 1
    recipe = grid.recipe(("ours", "resnet3d18", "top1"), "paper")
    assert recipe == find_recipe("temporal_kinetics").with_(backbone="resnet3d18")


# ------------------------------------------------------------------------------------------- chapter 6


def test_rows_of_table_6_1() -> None:
    grid, paper = find_grid("thesis_table6_1"), find_recipe("multiview_h36m")
    found = {cell[0]: grid.recipe(cell, "paper") for cell in grid.figures}
    for row in ("d-ssl-without-background", "g-sync-and-flip", "k-fusion-mult", "m-multi-view"):
        assert found[row] == paper
    assert {view.background for view in found["c-ssl-with-background"].views.values()} == {"keep"}
    assert list(found["e-only-flip"].views_used) == ["anchor", "synchronized"]
    assert not found["f-only-sync"].method.flipping
    fusions = [found[f"{row}"].method.fusion for row in ("h-fusion-concat", "i-fusion-add", "j-fusion-diff")]
    assert fusions == ["concat", "add", "diff"]
    for view in found["l-single-view"].views.values():
        assert view.cameras == "one" and view.rotation > 0 and view.shift > 0 and view.scale[0] < 1 < view.scale[1]
    assert len({grid.trial(cell) for cell in grid.figures}) == 8


def test_the_background_is_named_so_that_random_initialization_is_measured_with_and_without_it(tmp_path: Path) -> None:
    grid = find_grid("thesis_table6_1")
    plan = Sweep(grid.name, "paper", tuple(grid.figures), labelled="s1.parquet")
    for cell in grid.figures:
        trial = trial_of(grid, plan, cell, 0, Run(), open_folder(str(tmp_path)))
        kept = cell[0] in ("a-random-with-background", "c-ssl-with-background")
        assert trial.evaluation.posing.background == ("keep" if kept else "remove")
        assert trial.evaluation.data.train == "s1.parquet" and trial.evaluation.posing.every == 64


def test_few_labels_stand_for_one_subject_in_the_small_profile(tmp_path: Path) -> None:
    limits = {}
    for name in ("thesis_table6_1", "thesis_table6_2", "thesis_table6_2_s1"):
        grid = find_grid(name)
        for profile in PROFILES:
            plan = Sweep(name, profile, tuple(grid.figures))
            trial = trial_of(grid, plan, next(iter(grid.figures)), 0, Run(), open_folder(str(tmp_path)))
            limits[name[7:], profile] = trial.evaluation.data.limit
    assert limits["table6_1", "small"] == limits["table6_2_s1", "small"] == 200 and limits["table6_2", "small"] is None
    assert {limits[name, "paper"] for name in ("table6_1", "table6_2", "table6_2_s1")} == {None}


# --------------------------------------------------------------------------------------------- sweeps


def test_figures_of_other_data_need_it_in_the_papers_profile(tmp_path: Path) -> None:
    grid = find_grid("thesis_table5_1_hmdb51")
    with pytest.raises(UserError, match=r"other data than the pretraining's: give --labelled and --labelled-test"):
        check_labelled(grid, asked(grid, Options(profile="paper"), {"train": "u.parquet"}))
    check_labelled(grid, asked(grid, Options(profile="small"), {"train": "u.parquet"}))
    plan = asked(grid, Options(profile="paper", labelled="/h.parquet", labelled_test="/t.parquet"), {"train": "/u"})
    check_labelled(grid, plan)
    trial = trial_of(grid, plan, ("speed", "yes"), 0, Run(), open_folder(str(tmp_path)))
    assert (trial.recipe.data.train, trial.evaluation.data.train) == ("/u", "/h.parquet")
    assert trial.evaluation.data.test == "/t.parquet"
    plan.write(open_folder(str(tmp_path / "s")))
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["labelled_test"] == "/t.parquet"
    with pytest.raises(ValueError, match="labelled_test goes with labelled"):
        Options(labelled_test="t.parquet")
    needs_one = find_grid("thesis_table6_1")
    with pytest.raises(UserError, match=r"give --labelled$"):
        check_labelled(needs_one, asked(needs_one, Options(profile="paper"), {}))


def test_paths_are_of_each_pretraining_set(tmp_path: Path) -> None:
    grid = find_grid("thesis_table5_2")
    with pytest.raises(UserError, match=r"span kinetics, ucf101: write \{dataset\} in --data.train"):
        asked(grid, Options(profile="paper"), {"train": "u.parquet"})
    plan = asked(grid, Options(profile="paper"), {"train": "/{dataset}/a.parquet"})
    trial = trial_of(grid, plan, ("ours", "c3d", "kinetics"), 0, Run(), open_folder(str(tmp_path)))
    assert trial.recipe.data.train == "/kinetics/a.parquet" and trial.recipe.epochs == 15


def test_what_is_the_papers_alone_cannot_be_picked() -> None:
    with pytest.raises(UserError, match="prp/r3d/top1 is the paper's alone, and can't be trained here"):
        find_grid("thesis_table5_4").picked("prp/r3d/top1")


def test_poses_and_time_need_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        classes = None

    monkeypatch.setattr("tuning.sweep.open_source", lambda *arguments: Plain())
    monkeypatch.setattr("tuning.sweep.check_classes", lambda *arguments: None)

    def check(name: str, *cell: str) -> None:
        grid = find_grid(name)
        plan = Sweep(name, "smoke", tuple(grid.figures), data={"train": "a", "test": "b"})
        check_data({"x": trial_of(grid, plan, cell, 0, Run(), open_folder(str(tmp_path)))})

    check("thesis_table6_1", "l-single-view", "mpjpe")
    check("thesis_table5_3", "ours", "sync-mae")
    with pytest.raises(UserError, match="no labels, from which action-labels-seed0 learns: leave it out"):
        check("thesis_table5_3", "action-labels", "sync-mae")
    with pytest.raises(UserError, match="no labels to evaluate with"):
        check("thesis_table5_4", "ours", "resnet3d18", "top1")


def ended(trial: Trial, figures: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """Outcomes of a trial whose training and evaluation are these figures."""
    monkeypatch.setattr("tuning.sweep.pretrain", lambda *arguments, **options: open_folder(str(tmp_path / "none")))
    monkeypatch.setattr("tuning.sweep.evaluation.evaluate", lambda *arguments: figures)
    return outcomes_of(trial)


def test_a_row_at_random_initialization_is_read_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = find_grid("thesis_table6_1")
    plan = Sweep(grid.name, "smoke", tuple(grid.figures))
    trial = trial_of(grid, plan, ("b-random-without-background", "mpjpe"), 0, Run(), open_folder(str(tmp_path)))
    assert trial.run.name == "d-ssl-without-background-seed0"
    figures = {
        "pose": {"mpjpe": 100.0, "nmpjpe": 90.0, "pmpjpe": 80.0},
        "random_init": {"pose": {"mpjpe": 160.0, "nmpjpe": 150.0, "pmpjpe": 120.0}},
        "protocol": {"pose": {"step": 7}},
    }
    found = {it.cell: it for it in ended(trial, figures, tmp_path, monkeypatch)}
    assert len(found) == 15, "rows b, d, g, k and m"
    assert found["b-random-without-background", "mpjpe"].figure == 160.0, "millimetres, and no percents"
    assert found["b-random-without-background", "mpjpe"].random_init is None
    assert found["m-multi-view", "pmpjpe"] == Outcome(
        ("m-multi-view", "pmpjpe"), 0, "finished", 80.0, 7, random_init=120.0
    )


def test_each_measure_has_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = find_grid("thesis_table5_3")
    plan = Sweep(grid.name, "smoke", tuple(grid.figures))
    trial = trial_of(grid, plan, ("ours", "sync-mae"), 0, Run(), open_folder(str(tmp_path)))
    assert trial.protocols == ["synchronization", "before_after"]
    figures = {
        "synchronization": {"accuracy": 0.4, "mae": 1.5},
        "before_after": {"accuracy": 0.7},
        "protocol": {name: {"step": 3} for name in ("synchronization", "before_after")},
    }
    assert [it.figure for it in ended(trial, figures, tmp_path, monkeypatch)] == pytest.approx([40.0, 1.5, 70.0])


# --------------------------------------------------------------------------------------------- reports


def swept(folder: Folder, name: str, figures: dict[Cell, float]) -> str:
    grid = find_grid(name)
    Sweep(name, "small", tuple(figures)).write(folder)
    trials: dict[str, list[Outcome]] = {}
    for cell, figure in figures.items():
        trials.setdefault(trial_name(grid, cell, 0), []).append(Outcome(cell, 0, "finished", figure))
    for trial, mine in trials.items():
        write_outcomes(folder / "trials" / trial, mine)
    return report(folder)


def test_measures_are_ranked_apart_and_what_less_means_is_said(tmp_path: Path) -> None:
    """Ours are the paper's figures, but that Procrustes' are of reversed order: together they would correlate. A run
    that is printed four times counts once: of (c) and (d) alone there is no rank correlation."""
    grid = find_grid("thesis_table6_1")
    figures = {cell: -figure if cell[1] == "pmpjpe" else figure for cell, figure in grid.figures.items() if figure}
    text = swept(open_folder(str(tmp_path)), grid.name, figures)
    assert "of our column and the paper's: mpjpe 1.00, nmpjpe 1.00, pmpjpe -1.00." in text
    assert "mpjpe, nmpjpe, pmpjpe by pose, in millimetres (less is better)." in text
    assert np.asarray(Image.open(tmp_path / "results.png").convert("RGB")).std() > 10
    some = {cell: figure for cell, figure in figures.items() if cell[0][0] in "cdgkm" and cell[1] == "mpjpe"}  # type: ignore[index]
    assert "and the paper's: -." in swept(open_folder(str(tmp_path / "some")), grid.name, some)
    told = sorted(path.parent.name for path in tmp_path.glob("tensorboard/*/events.*"))
    assert len(told) == 8 and told[0] == "c-ssl-with-background-seed0"


def test_rows_of_others_are_shown_as_the_papers_alone(tmp_path: Path) -> None:
    figures: dict[Cell, float] = {("ours", "sync-accuracy"): 30.0, ("ours", "sync-mae"): 2.0}
    text = swept(open_folder(str(tmp_path)), "thesis_table5_3", figures)
    assert "| ours | sync-mae | 2.00 | - | 1.61 |  |" in text
    assert "| rotnet3d | sync-mae | - | - | 2.84 | the paper's alone |" in text
    assert "accuracy, mae by synchronization; sync-accuracy, before-after in percent, sync-mae in frames (less" in text


def test_units_have_panels_of_their_own_in_which_bright_is_good() -> None:
    for name, less in (("thesis_table5_3", [False, True, False]), ("thesis_table6_1", [True])):
        grid = find_grid(name)
        done = [Outcome(cell, 0, "finished", figure) for cell, figure in grid.figures.items()]
        sweep = Sweep(name, "small", tuple(grid.figures))
        panels = picture(grid, sweep, cells_frame(grid, sweep, done)).axes[: len(less)]
        assert ["less is better" in panel.get_title() for panel in panels] == less
    (image,) = panels[0].images
    assert image.get_cmap().name == "viridis_r"


def test_a_grid_that_contradicts_itself() -> None:
    grid: Grid = find_grid("thesis_table5_3")
    with pytest.raises(ValueError, match="measures are of each value of the axis that it reads"):
        replace(grid, measures={"sync-mae": Measure("synchronization", "mae")})
    with pytest.raises(ValueError, match="is a cell, and not the paper's alone"):
        replace(grid, printed={("ours", "sync-mae"): 1.0})
    with pytest.raises(ValueError, match="has no row theirs"):
        replace(grid, repeats={"theirs": "ours"})
    assert Measure("pose", "mpjpe", unit="millimetres").printed(3.0) == 3.0 and Measure("a", "b").printed(0.5) == 50.0


def test_defaults_of_a_profile_are_options() -> None:
    for name in TABLES:
        for fields in find_grid(name).evaluation.values():
            replace(Evaluation(data=Data()), **fields)

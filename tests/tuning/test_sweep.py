"""Sweeps: what may run at once, what is claimed and refused, and a sweep that fails in one cell, collapses in another,
and is gone on with."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import write_images

import tuning.grids.sce
import tuning.sweep
from methods.metrics.linear import Linear
from pipelines.errors import UserError
from pipelines.recipe import Recipe, Run, find_recipe
from pipelines.sources import Data
from pipelines.storage import open_folder
from tuning.__main__ import given, main
from tuning.grid import Grid, find_grid
from tuning.report import Outcome, Sweep, outcomes, read_sweep, write_outcomes
from tuning.sweep import Options, Trial, asked, check_data, drive, planned, sweep, trial_of
from tuning.trials import one_of, run_trials, side_by_side

HERE = {"object_store_memory": 4e9}


@pytest.fixture
def recipe(images: tuple[Path, Path]) -> Recipe:
    return find_recipe("sce_cifar10").with_(
        backbone="resnet20", data={"train": str(images[0]), "test": str(images[1]), "size": 16}
    )


@pytest.mark.parametrize(
    ("run", "resources", "most", "slots"),
    [
        (Run(cpus=0.45), {"CPU": 2}, 0, 2),  # 2 (.05 + .45) + 1 = 2
        (Run(cpus=0.45), {"CPU": 2}, 1, 1),
        (Run(cpus=0.5), {"CPU": 2}, 0, 1),
        (Run(cpus=0.45), {"CPU": 16}, 0, 16),  # thirty would fit, but a worker computes on a core
        (Run(cpus=0.45, workers=2), {"CPU": 16}, 0, 8),
        (Run(cpus=1.0), {"CPU": 16}, 0, 14),
        (Run(cpus=0.45), {"CPU": 16, "GPU": 2}, 0, 2),
        (Run(cpus=0.45, gpus=0.25), {"CPU": 16, "GPU": 2}, 0, 8),
        (Run(cpus=0.45, gpus=0.25), {"CPU": 3, "GPU": 2}, 0, 4),
        (Run(cpus=0.45, gpus=0.4), {"CPU": 16, "GPU": 2}, 0, 4),  # two on each GPU, though five times .4 is 2
        (Run(cpus=0.45, share=0.5), {"CPU": 16}, 0, 8),
        (Run(cpus=0.45, device="cpu"), {"CPU": 4, "GPU": 1}, 0, 4),
        (Run(cpus=0.5, feed="stream"), {"CPU": 6}, 0, 4),  # each share leaves a CPU to its data stages
    ],
)
def test_as_many_trials_at_once_as_never_wait_for_one_another(
    recipe: Recipe, run: Run, resources: dict[str, float], most: int, slots: int
) -> None:
    assert side_by_side([recipe], run, resources | HERE, most) == slots
    taken = slots * (0.05 + run.most * run.cpus)
    assert taken + 1 <= run.share * resources["CPU"] + 1e-6, "no CPU is left for the data tasks"


@pytest.mark.parametrize(
    ("run", "resources", "device", "wait"),
    [
        (Run(), {"CPU": 4}, "cpu", 10.0),
        (Run(wait=0.0, share=0.5), {"CPU": 4, "GPU": 2}, "cuda", 0.0),
        (Run(workers=2, wait=25.0), {"CPU": 4, "GPU": 1}, "cpu", 25.0),
        (Run(device="cpu"), {"CPU": 4, "GPU": 1}, "cpu", 10.0),
    ],
)
def test_a_trial_whose_node_was_lost_waits_for_one_of_its_kind(
    run: Run, resources: dict[str, float], device: str, wait: float
) -> None:
    each = one_of(run, 2, resources)
    assert (each.device, each.wait, each.share) == (device, wait, run.share / 2)
    assert replace(each, device=run.device, wait=run.wait, share=run.share) == run


def test_no_resources_for_one_trial_says_what_is_needed(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"a trial needs 1.55 CPUs .* the cluster has 1: lower --run.workers or"):
        side_by_side([recipe], Run(cpus=0.5), {"CPU": 1.0, **HERE})
    with pytest.raises(UserError, match=r"and 4 GPUs, the cluster has 16 and 2: lower"):
        side_by_side([recipe], Run(workers=4, device="cuda"), {"CPU": 16.0, "GPU": 2.0, **HERE})


# ------------------------------------------------------------------------------------------------ plan


def plan(grid: str = "sce_table6", cells: str = "0.1/0.03", seeds: int = 1, **data: Any) -> tuple[Sweep, Options]:
    options = Options(profile="smoke", cells=cells, seeds=seeds)
    return asked(find_grid(grid), options, data), options


def resumed(options: Options) -> Options:
    return replace(options, run=replace(options.run, resume=True))


def test_a_folder_is_one_sweep(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path / "a"))
    first, options = plan(train="x.parquet")
    assert planned(folder, first, options) == first and not folder.exists("sweep.json")
    first.write(folder)
    with pytest.raises(UserError, match=r"--run\.resume to go on with it, or another --run\.name"):
        planned(folder, first, options)
    assert planned(folder, replace(first, data={}), resumed(options)) == first, "what was given is remembered"

    more, options = plan(cells="0.2/0.03", seeds=2)
    whole = planned(folder, more, resumed(options))
    assert whole.cells == ((0.1, 0.03), (0.2, 0.03)) and whole.seeds == 2 and whole.data == first.data
    whole.write(folder)
    assert read_sweep(folder) == whole
    every, options = plan(cells="")
    assert planned(folder, every, resumed(options)) == whole, "no cells given: those of the sweep"

    with pytest.raises(UserError, match="has the grid sce_table6, not sce_table1"):
        planned(folder, *plan_resumed("sce_table1", "0.5"))
    with pytest.raises(UserError, match="has the profile smoke, not small"):
        planned(folder, replace(first, profile="small"), resumed(options))
    with pytest.raises(UserError, match="has other --data: leave it out"):
        planned(folder, replace(first, data={"train": "/y.parquet"}), resumed(options))

    other = open_folder(str(tmp_path / "b"))
    other.write("recipe.json", b"{}")
    with pytest.raises(UserError, match="holds something else than a sweep"):
        planned(other, first, options)


def test_what_was_given_comes_back_from_json(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    first, options = plan(mean=(0.5, 0.5, 0.5), limit=7)
    first.write(folder)
    assert planned(folder, first, resumed(options)) == first
    hash(trial_of(find_grid("sce_table6"), read_sweep(folder), (0.1, 0.03), 0, Run(), folder).recipe.data)


def test_one_path_is_not_taken_for_several_datasets() -> None:
    several, one = "none/cifar10,none/stl10", "none/stl10"
    with pytest.raises(UserError, match=r"span cifar10, stl10: write \{dataset\} in --data.test"):
        plan("ressl_table4", several, train="{dataset}/a.parquet", test="b.parquet")
    assert len(plan("ressl_table4", several, train="{dataset}/a.parquet", limit=5)[0].cells) == 2
    assert len(plan("ressl_table4", one, train="a.parquet", test="b.parquet")[0].cells) == 1
    gans = "df-1/cifar10/fid,df-1/stl10/fid"
    assert len(plan("thesis_table7_1", gans, train="a.parquet")[0].cells) == 2, "both have the recipe of CIFAR-10"


def plan_resumed(grid: str, cells: str) -> tuple[Sweep, Options]:
    first, options = plan(grid, cells)
    return first, resumed(options)


def test_given_data_stands_in_for_every_cells_own(tmp_path: Path, images: tuple[Path, Path]) -> None:
    grid = find_grid("ressl_table4")
    options = Options(profile="small")
    for name in ("stl10", "cifar10"):
        (tmp_path / name).mkdir()
        table = pq.read_table(images[0])
        pq.write_table(table if name == "cifar10" else table.select(["image"]), tmp_path / name / "train.parquet")
    told = {"train": f"{tmp_path}/{{dataset}}/train.parquet", "test": "s3://b/{dataset}.parquet", "limit": 99}
    wanted = replace(asked(grid, options, told), labelled="/l/{dataset}.parquet")
    folder = open_folder(str(tmp_path / "s"))
    trial = trial_of(grid, wanted, ("none", "stl10"), 3, options.run, folder)
    assert trial.recipe.data == replace(
        find_recipe("ressl_stl10").data, train=f"{tmp_path}/stl10/train.parquet", test="s3://b/stl10.parquet", limit=99
    )
    assert trial.recipe.seed == 3 and trial.recipe.backbone == "resnet20"
    assert trial.evaluation.data.train == "/l/stl10.parquet" and trial.evaluation.data.limit is None
    assert trial.evaluation.linear.augment == "none"
    assert (trial.run.name, trial.run.resume) == ("none_stl10-seed3", True)
    labelled = trial_of(grid, wanted, ("none", "cifar10"), 0, options.run, folder)
    assert labelled.evaluation.data == labelled.recipe.data, "its own images have labels"


def test_fields_named_on_the_command_line_are_given() -> None:
    data = Data(train="a", test="b", size=32, limit=5)
    words = ["--data.train", "a", "--data.limit=5", "--run.cpus", "1", "--data.max_bad", "0.1"]
    assert given(data, words) == {"train": "a", "limit": 5, "max_bad": data.max_bad}


def test_data_is_looked_at_before_anything_starts(tmp_path: Path, images: tuple[Path, Path]) -> None:
    grid, options = find_grid("sce_table1"), Options(profile="smoke")

    def check(train: str | Path, test: str | Path | None) -> None:
        wanted = asked(grid, options, {"train": str(train), "test": str(test) if test else None})
        check_data({"x": trial_of(grid, wanted, (0.5,), 0, options.run, open_folder(str(tmp_path)))})

    check(*images)
    with pytest.raises(UserError, match=r"give --data\.train and --data\.test"):
        check(images[0], None)
    with pytest.raises(UserError, match="nothing"):
        check(tmp_path / "nothing-*.parquet", images[1])
    unlabelled = without_labels(tmp_path)
    with pytest.raises(UserError, match="no labels to evaluate with: give --labelled"):
        check(unlabelled, images[1])


def without_labels(folder: Path) -> Path:
    path = write_images(folder / "plain.parquet", 20)
    pq.write_table(pq.read_table(path).select(["image"]), path)
    return path


def test_figures_of_generated_images_need_no_labels(tmp_path: Path, images: tuple[Path, Path]) -> None:
    unlabelled, grid = str(without_labels(tmp_path)), find_grid("thesis_table7_1")

    def trial(**asked_for: str) -> Trial:
        wanted = asked(grid, Options(profile="smoke", **asked_for), {"train": unlabelled})  # type: ignore[arg-type]
        return trial_of(grid, wanted, ("df-1", "stl10", "fid"), 0, Run(keep=2), open_folder(str(tmp_path / "s")))

    own = trial(labelled=str(images[0]), extractor="inception")
    check_data({"x": own})
    assert own.evaluation.data == own.recipe.data and own.evaluation.data.train == unlabelled
    with pytest.raises(UserError, match=r"no labels for the classifier .* give --extractor inception"):
        check_data({"x": trial()})


def test_checkpoints_are_kept_for_fid_alone(tmp_path: Path, images: tuple[Path, Path]) -> None:
    run, folder = Run(keep=2), open_folder(str(tmp_path))
    for name, cell, kept in (("thesis_table7_4", ("a", "dfgan", "fid"), 5), ("sce_table1", (0.5,), 2)):
        wanted = asked(find_grid(name), Options(profile="small"), {"train": str(images[0])})
        assert trial_of(find_grid(name), wanted, cell, 0, run, folder).run.keep == kept


@pytest.mark.parametrize("extractor", ["", "nothing", "text.pth", "run"])
def test_an_extractor_is_looked_at_before_anything_starts(
    extractor: str,
    tmp_path: Path,
    images: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The weights absent and not to be fetched; no such file; no weights in it; a run of something else."""

    def offline(*args: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("pipelines.extractors.urlopen", offline)
    (tmp_path / "text.pth").write_text("no weights")
    run = open_folder(str(tmp_path / "run"))
    run.write("recipe.json", find_recipe("simsiam_cifar10").to_json().encode())
    run.write("run.json", json.dumps({"found": {"rows": 330, "classes": 4}}).encode())
    words = ["sweep", "thesis_table7_4", "--profile", "paper", "--data.train", str(images[0]), "--run.storage", "s"]
    assert main([*words, *(["--extractor", extractor] if extractor else [])]) == 1
    told = capsys.readouterr().err
    assert "--extractor" in told and "generative" not in told and "Traceback" not in told
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep", "sce_table66"], "no grid sce_table66; did you mean sce_table6"),
        (["sweep", "sce_table6", "--cells", "0.1/0.33"], "no cell 0.1/0.33; did you mean 0.1/0.03"),
        (["sweep", "sce_table6", "--data.train", "none.parquet", "--data.test", "x"], "none.parquet"),
        (["report", "."], "no sweep lies at"),
        (["search", "sce_cifar11"], "no recipe sce_cifar11; did you mean sce_cifar10"),
        (["search", "sce_cifar10", "--space", "lambdas"], "no space lambdas; did you mean lambda"),
        (["search", "simsiam_cifar10", "--space", "lambda"], "simsiam has no lambda to search"),
        (["search", "sce_cifar10", "--space", "nowhere.py:x"], "nowhere.py can't be read"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error and len(error.strip().splitlines()) <= 2


def test_an_unknown_field_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "sce_table6", "--seedz", "2"])
    assert "--seeds" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- a sweep


def tiny(base: Recipe, what: str) -> Recipe:
    small = base.with_(
        method={"queue": 128, "hidden": 32, "dim": 16},
        data={"size": 16},
        views={view: {"size": 16} for view in base.views},
    )
    if what == "broken":
        return small.with_(batch_norm="split:7")
    return small.with_(optimizers={"model": {"lr": 1e-9 if what == "still" else 0.06}})


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Iterator[Grid]:
    made = Grid(
        name="tiny",
        paper="none",
        table="Table 0",
        title="what goes wrong",
        setting="nowhere",
        axes={"what": ("good", "still", "broken")},
        bases={"smoke": "sce_cifar10", "small": "sce_cifar10", "paper": "sce_cifar10"},
        derive=tiny,
        figures={("good",): 50.0, ("still",): 40.0, ("broken",): None},
        linear=Linear(),
    )
    monkeypatch.setattr(tuning.grids.sce, "tiny", made, raising=False)
    yield made


@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_outlives_its_failures_and_is_gone_on_with(
    grid: Grid, images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good cell; on resuming it is not run again, and further cells are, of which one fails and one collapses."""
    grids: list[Any] = []

    def kept(*args: Any, **options: Any) -> Any:
        grids.append(run_trials(*args, **options))
        return grids[-1]

    monkeypatch.setattr(tuning.sweep, "run_trials", kept)
    told = {"train": str(images[0]), "test": str(images[1])}
    run = Run(storage=str(tmp_path), name="s", cpus=0.4)
    options = Options(profile="smoke", cells="good", run=run)
    sweep("tiny", options, told)
    folder = tmp_path / "s"
    (good,) = outcomes(open_folder(str(folder)), read_sweep(open_folder(str(folder))))
    assert (good.status, good.step) == ("finished", 16)
    assert good.figure is not None and 0 < good.figure <= 100
    written = json.loads((folder / "trials/good-seed0/evaluation.json").read_text())
    assert good.figure == pytest.approx(100 * written["linear"]["top1"])
    assert good.raw_pixels == pytest.approx(100 * written["raw_pixels"]["linear"]["top1"])
    before = (folder / "trials/good-seed0/outcome.json").stat().st_mtime_ns

    # every network's features lie below this: the further cell counts as collapsed after its first epoch
    again = replace(options, cells="good,still,broken", run=replace(run, resume=True, collapse_std=2.0))
    with pytest.raises(UserError, match=r"1 of 3 trials failed, the first \(broken-seed0\): .*split.*--run.resume"):
        sweep("tiny", again, {})
    opened = [each.get_dataframe().set_index("config/trial/what") for each in grids]  # Tune's ResultGrid
    assert opened[0].top1["good"] == pytest.approx(good.figure) and "split" in opened[1].error["broken"]
    assert (folder / "trials/good-seed0/outcome.json").stat().st_mtime_ns == before
    left: list[str] = []
    monkeypatch.setattr(tuning.sweep, "carry_out", lambda trials, *arguments: left.extend(trials))
    with pytest.raises(UserError, match="1 of 3 trials failed"):
        sweep("tiny", again, {})
    assert left == ["broken-seed0"], "what failed is tried again, what ended is not"
    frame = pd.read_csv(folder / "results.csv").set_index("what")
    assert frame.status.to_dict() == {"good": "finished", "broken": "failed", "still": "collapsed"}
    assert frame.ours["still"] == 25.0, "chance level of four classes"
    assert frame.step["still"] == 8, "stopped at the end of its first epoch"
    text = (folder / "results.md").read_text()
    assert "1 collapsed" in text and "1 failed" in text and "split" in text
    assert (folder / "results.png").stat().st_size > 5000 and list((folder / "tensorboard").rglob("events.*"))


def test_an_outcome_is_kept_as_it_was_written(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    wanted = Sweep("sce_table1", "smoke", ((0.5,),))
    outcome = Outcome((0.5,), 0, "finished", 12.5, 30, random_init=10.0, raw_pixels=11.0)
    write_outcomes(folder / "trials" / "0.5-seed0", [outcome])
    assert outcomes(folder, wanted) == [outcome]


def test_a_trial_whose_folder_cannot_be_written_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: tuple[Path, Path]
) -> None:
    """As where the disk is full: there is no outcome.json, so that resuming runs the trial again."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", told.append)
    (tmp_path / "trials").write_text("a file where the trials' folder should be")
    grid, options = find_grid("sce_table1"), Options(profile="smoke")
    wanted = asked(grid, options, {"train": str(images[0]), "test": str(images[1])})
    trial = trial_of(grid, wanted, (0.5,), 0, options.run, open_folder(str(tmp_path)))
    drive({"trial": {"name": trial.run.name}}, {trial.run.name: trial})
    assert told[0]["status"] == "failed" and "cannot write" in told[0]["error"] and "--run.resume" in told[0]["error"]
    assert outcomes(open_folder(str(tmp_path)), wanted) == []

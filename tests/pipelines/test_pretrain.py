"""Pretraining on Ray Train: runs end to end, resume to the bit, and every mistake has a clear error."""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import write_images

from methods import sce
from methods.optim import Optimizer
from methods.views import strong, weak
from pipelines.errors import UserError
from pipelines.pretrain import pretrain
from pipelines.recipe import Recipe, Run
from pipelines.sources import Data
from pipelines.storage import Checkpoints, open_folder

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def recipe(images: tuple[Path, Path], **fields: Any) -> Recipe:
    return Recipe(
        method=sce.Config(hidden=32, dim=16, queue=100, momentum=0.9, momentum_end=1.0),
        backbone="resnet20",
        data=Data(train=str(images[0]), test=str(images[1]), size=16),
        views={"online": strong("online", 16), "target": weak("target", 16)},
        optimizers={"model": Optimizer(lr=0.06, warmup_epochs=1)},
        epochs=4,
        batch_size=32,
    ).with_(**fields)


def run(storage: Path, name: str, **fields: Any) -> Run:
    return Run(
        **{"storage": str(storage), "name": name, "workers": 2, "cpus": 1.0, "threads": 1, "log_steps": 1, **fields}
    )


def final(storage: Path, name: str) -> dict[str, Any]:
    state, broken = Checkpoints(open_folder(str(storage / name)) / "checkpoints").newest()
    assert state is not None and not broken
    return state


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """To the bit, through all of a checkpoint."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def lines(storage: Path, name: str) -> list[dict[str, float]]:
    path = storage / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def killer(storage: Path, name: str, epoch: int, killed: list[int]) -> threading.Thread:
    """Sends SIGKILL to a training worker once the run is in the middle of `epoch` (from 0)."""

    def watch() -> None:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and not killed:
            if any(line["epoch"] == epoch for line in lines_so_far(storage / name)):
                workers = [
                    p
                    for p in psutil.Process().children(recursive=True)
                    if any("RayTrainWorker" in word for word in p.cmdline())
                ]
                if workers:
                    workers[-1].send_signal(signal.SIGKILL)
                    killed.append(workers[-1].pid)
            threading.Event().wait(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def lines_so_far(folder: Path) -> list[dict[str, float]]:
    """Whole lines of a file that is being written."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


@pytest.fixture(scope="module")
def undisturbed(
    images: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> dict[str, tuple[Path, str]]:
    storage = tmp_path_factory.mktemp("undisturbed")
    for feed in ("resident", "stream"):
        pretrain(recipe(images), run(storage, feed, feed=feed, knn_epochs=2 if feed == "resident" else 0), "test")
    return {feed: (storage, feed) for feed in ("resident", "stream")}


def test_a_run_leaves_what_it_promises(undisturbed: dict[str, tuple[Path, str]]) -> None:
    storage, name = undisturbed["resident"]
    folder = storage / name
    assert {"recipe.json", "run.json", "metrics.jsonl", "tensorboard", "checkpoints"} <= {
        p.name for p in folder.iterdir()
    }
    written = lines(storage, name)
    steps = [line for line in written if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 41))
    assert {"loss", "lr", "teacher_momentum", "images_per_second", "waiting_for_data", "memory_mib"} <= steps[0].keys()
    ends = [line for line in written if "features/feature_std" in line]
    assert [line["epoch"] for line in ends] == [0, 1, 2, 3]
    assert {f"features/{n}" for n in ("feature_std", "effective_rank", "alignment", "uniformity")} <= ends[0].keys()
    assert [line["epoch"] for line in written if "knn/top1" in line] == [1, 3]
    assert all(0.25 < line["knn/top1"] <= 1 for line in written if "knn/top1" in line)  # colours tell the 4 classes
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert {"views/online", "views/target"} <= set(events.Tags()["images"])
    curve = events.Scalars("train/loss")
    assert [e.step for e in curve] == list(range(1, 41))
    assert curve[-1].value == pytest.approx(steps[-1]["loss"], rel=1e-6)
    settings = json.loads((folder / "run.json").read_text())
    assert settings["recipe"] == "test" and settings["found"]["samples"] == 330 and settings["found"]["classes"] == 4


@pytest.mark.parametrize("feed", ["resident", "stream"])
def test_a_killed_worker_is_restarted_and_ends_with_the_same_weights(
    images: tuple[Path, Path], undisturbed: dict[str, tuple[Path, str]], tmp_path: Path, feed: str
) -> None:
    killed: list[int] = []
    thread = killer(tmp_path, "killed", 2, killed)
    pretrain(recipe(images), run(tmp_path, "killed", feed=feed), "test")
    thread.join()
    assert killed, "the run was over before a worker could be killed"
    assert_equal(final(tmp_path, "killed"), final(*undisturbed[feed]))
    assert [line["step"] for line in lines(tmp_path, "killed") if "loss" in line] == list(range(1, 41))


def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(
    images: tuple[Path, Path],
    undisturbed: dict[str, tuple[Path, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretrain(recipe(images), run(tmp_path, "stopped", feed="stream", stop_epoch=2), "test")
    assert final(tmp_path, "stopped")["step"] == 20
    with pytest.raises(UserError, match=r"a run lies at .*--run.resume"):
        pretrain(recipe(images), run(tmp_path, "stopped"), "test")
    with pytest.raises(UserError, match=r"another recipe \(it differs in method.temperature\)"):
        pretrain(recipe(images, method={"temperature": 0.2}), run(tmp_path, "stopped", resume=True), "test")
    newest = tmp_path / "stopped" / "checkpoints" / "step-00000020.pt"
    newest.write_bytes(newest.read_bytes()[:1000])  # cut: the one before is used
    pretrain(recipe(images), run(tmp_path, "stopped", feed="stream", resume=True), "test")
    shown = " ".join(capsys.readouterr().err.split())
    assert "step-00000020.pt is broken: 1000 bytes of" in shown and "the one before is used" in shown
    assert_equal(final(tmp_path, "stopped"), final(*undisturbed["stream"]))


def test_mid_epoch_checkpoints_resume_exactly(
    images: tuple[Path, Path], undisturbed: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    """The folder of a run that was killed at step 26: its newest checkpoint lies within the third epoch."""
    pretrain(recipe(images), run(tmp_path, "mid", checkpoint_steps=13, keep=9), "test")
    for path in (tmp_path / "mid" / "checkpoints").iterdir():
        if int(path.stem[5:]) > 26:
            path.unlink()
    pretrain(recipe(images), run(tmp_path, "mid", resume=True), "test")
    assert_equal(final(tmp_path, "mid"), final(*undisturbed["resident"]))


def test_a_collapsed_run_stops_on_all_ranks_and_does_not_go_on(
    images: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of any features feature_std is below 2: rank 0 says so, and rank 1 must not wait for a next step."""
    folder = pretrain(recipe(images), run(tmp_path, "flat", collapse_std=2.0), "test")
    found = json.loads(folder.read("collapsed.json"))
    last = [line for line in lines(tmp_path, "flat") if "features/feature_std" in line]
    assert len(last) == 1 and found["step"] == final(tmp_path, "flat")["step"] == 10
    assert found["feature_std"] == last[0]["features/feature_std"] < 2
    assert "collapsed at step 10" in " ".join(capsys.readouterr().err.split())
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "flat" / "checkpoints").iterdir())
    pretrain(recipe(images), run(tmp_path, "flat", collapse_std=2.0, resume=True), "test")
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "flat" / "checkpoints").iterdir()) == before


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(images: tuple[Path, Path], tmp_path: Path) -> None:
    bad = recipe(images, optimizers={"model": {"lr": 1e30, "warmup_epochs": 0.0}})
    with pytest.raises(UserError, match=r"loss is not finite at step \d+; the last good checkpoint is none yet"):
        pretrain(bad, run(tmp_path, "nan"), "test")


def test_what_would_hang_or_cannot_work_is_refused_at_once(images: tuple[Path, Path], tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"64 workers need as many CPUs, the cluster has 4"):
        pretrain(recipe(images, batch_size=64), run(tmp_path, "a", workers=64), "test")
    with pytest.raises(UserError, match=r"leave 0 of 4 CPUs to the data stages.*--run.cpus"):
        pretrain(recipe(images), run(tmp_path, "b", workers=2, cpus=2.0, feed="stream"), "test")
    with pytest.raises(
        UserError, match=r"a batch of 512 is larger than the dataset of 330 images: give --batch-size 256"
    ):
        pretrain(recipe(images, batch_size=512), run(tmp_path, "c"), "test")
    with pytest.raises(UserError, match=r"a batch of 33 can't be shared equally by 2 workers: give --batch-size 32"):
        pretrain(recipe(images, batch_size=33), run(tmp_path, "d"), "test")
    with pytest.raises(UserError, match="GPUs"):
        pretrain(recipe(images), run(tmp_path, "e", device="cuda"), "test")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*--run.storage"):
        pretrain(recipe(images), run(tmp_path / "file", "f"), "test")
    assert time.monotonic() - begin < 60


def test_an_error_that_would_come_again_is_not_tried_four_times(images: tuple[Path, Path], tmp_path: Path) -> None:
    """split:7 does not divide a worker's batch of 16: the same exception on each start."""
    with pytest.raises(UserError, match=r"split:7 does not divide a worker's batch of 16"):
        pretrain(recipe(images, batch_norm="split:7"), run(tmp_path, "again"), "test")


def test_one_truncated_image_is_skipped_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(write_images(tmp_path / "good.parquet", 200))
    rows = table["image"].to_pylist()
    rows[77] = rows[77][: len(rows[77]) // 2]
    pq.write_table(table.set_column(0, "image", pa.array(rows)), tmp_path / "one.parquet")
    images = (tmp_path / "one.parquet", tmp_path / "one.parquet")
    pretrain(recipe(images, epochs=1), run(tmp_path, "one"), "test")
    shown = " ".join(capsys.readouterr().err.split())
    assert "199 images (1 broken, skipped)" in shown and "one.parquet:77" in shown
    found = json.loads((tmp_path / "one" / "run.json").read_text())["found"]
    assert found["samples"] == 199 and found["broken"][0]["index"] == 77


def test_start_from_takes_the_backbone_and_refuses_what_does_not_fit(
    images: tuple[Path, Path], undisturbed: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    storage, name = undisturbed["resident"]
    begun = recipe(images, start_from=str(storage / name), epochs=1)
    pretrain(begun.with_(optimizers={"model": {"lr": 1e-12}}), run(tmp_path, "from"), "test")
    before, after = final(storage, name)["method"], final(tmp_path, "from")["method"]
    key = "backbone.network.conv1.weight"
    key = key if key in before else next(k for k in before if k.startswith("backbone.network") and before[k].dim() == 4)
    assert torch.allclose(before[key], after[key], atol=1e-6) and not torch.equal(before[key], torch.zeros(1))
    with pytest.raises(UserError, match="no run lies there"):
        pretrain(begun.with_(start_from=str(tmp_path / "nothing")), run(tmp_path, "x"), "test")
    with pytest.raises(UserError, match=r"resnet20, does not fit mobilenet_v3_large: give --backbone resnet20"):
        pretrain(begun.with_(backbone="mobilenet_v3_large"), run(tmp_path, "y"), "test")

"""Pretraining on Ray Train: runs end to end, resume to the bit, and every mistake has a clear error."""

import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import assert_equal, write_images

from methods import artifacts, autoencoder, sce
from methods.method import Facts
from methods.optim import Optimizer
from methods.views import View, strong, weak
from pipelines import labels
from pipelines.errors import UserError
from pipelines.feed import Survey
from pipelines.pretrain import claim_data, pretrain
from pipelines.recipe import Recipe, Run
from pipelines.sources import Data
from pipelines.storage import Checkpoints, open_folder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_cluster")]


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


def spotting(images: tuple[Path, Path], storage: Path, **fields: Any) -> Recipe:
    """Artifacts: two optimizers, and a history that 40 steps do not fill; from an autoencoder's run."""
    small = autoencoder.Config(widths=(4, 8))
    optimizer = Optimizer("adam", lr=1e-3, scaling="none", betas=(0.5, 0.999), weight_decay=0.0)
    base = recipe(images).with_(backbone="own", batch_norm="global")
    base = replace(base, method=small, views={"image": View("image", 16)}, optimizers={"model": optimizer})
    folder = open_folder(str(storage / "autoencoder"))
    if not folder.exists("recipe.json"):
        folder.write("recipe.json", base.to_json().encode())
        weights = base.build(base.facts(330, 4)).state_dict()
        Checkpoints(folder / "checkpoints").save(10, {"method": weights, "step": 10})
    whole = replace(
        base,
        method=artifacts.Config(autoencoder=small, hidden=16, history=900),
        backbone="resnet20",
        optimizers={"model": optimizer, "repairer": optimizer},
        start_from=str(storage / "autoencoder"),
    )
    return whole.with_(**fields)


def run(storage: Path, name: str, **fields: Any) -> Run:
    return Run(
        **{"storage": str(storage), "name": name, "workers": 2, "cpus": 1.0, "threads": 1, "log_steps": 1, **fields}
    )


def final(storage: Path, name: str) -> dict[str, Any]:
    state, broken = Checkpoints(open_folder(str(storage / name)) / "checkpoints").newest()
    assert state is not None and not broken
    return state


def lines(storage: Path, name: str) -> list[dict[str, float]]:
    path = storage / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def logged(storage: Path, name: str) -> list[float]:
    """The steps of which metrics.jsonl has a line."""
    return [line["step"] for line in lines(storage, name) if "images_per_second" in line]


def killer(folder: Path, ready: Callable[[Path], bool], killed: list[int]) -> threading.Thread:
    """Sends SIGKILL to a training worker of the run in `folder` once it is `ready`, and notes its newest checkpoint."""

    def watch() -> None:
        limit = time.monotonic() + 240
        while time.monotonic() < limit and not killed:
            if ready(folder):
                workers = [
                    p
                    for p in psutil.Process().children(recursive=True)
                    if any("RayTrainWorker" in word for word in p.cmdline())
                ]
                if workers:
                    workers[-1].send_signal(signal.SIGKILL)
                    workers[-1].wait(10)
                    killed.append(checkpoints_of(folder)[-1])
            threading.Event().wait(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def checkpoints_of(folder: Path) -> list[int]:
    return Checkpoints(open_folder(str(folder)) / "checkpoints").steps()


def third_epoch(folder: Path) -> bool:
    """A step of it is logged: whole lines of a file that is being written."""
    path = folder / "metrics.jsonl"
    written = path.read_text().splitlines() if path.exists() else []
    return any(json.loads(line)["epoch"] == 2 for line in written if line.endswith("}"))


@pytest.fixture(scope="module")
def undisturbed(
    images: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> dict[str, tuple[Path, str]]:
    storage = tmp_path_factory.mktemp("undisturbed")
    pretrain(recipe(images), run(storage, "resident", feed="resident", knn_epochs=2), "test")
    pretrain(recipe(images), run(storage, "stream", feed="stream"), "test")
    pretrain(spotting(images, storage), run(storage, "artifacts"), "test")
    return {name: (storage, name) for name in ("resident", "stream", "artifacts")}


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
    assert all(line["step_images_per_second"] >= line["images_per_second"] for line in steps)
    assert not any("data_images_per_second" in line for line in steps)
    assert any(line.get("data_images_per_second", 0) > 0 for line in lines(storage, "stream"))
    ends = [line for line in written if "features/feature_std" in line]
    assert [line["epoch"] for line in ends] == [0, 1, 2, 3]
    assert {f"features/{n}" for n in ("feature_std", "effective_rank", "alignment", "uniformity")} <= ends[0].keys()
    assert [line["epoch"] for line in written if "knn/top1" in line] == [1, 3]
    assert all(0.25 < line["knn/top1"] <= 1 for line in written if "knn/top1" in line)  # colours tell the 4 classes
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert {"views/online", "views/target"} <= set(events.Tags()["images"])
    assert {f"system/{n}" for n in ("images_per_second", "waiting_for_data", "memory_mib")} <= set(
        events.Tags()["scalars"]
    )
    curve = events.Scalars("train/loss")
    assert [e.step for e in curve] == list(range(1, 41))
    assert curve[-1].value == pytest.approx(steps[-1]["loss"], rel=1e-6)
    settings = json.loads((folder / "run.json").read_text())
    assert settings["recipe"] == "test" and settings["found"]["samples"] == 330 and settings["found"]["classes"] == 4


@pytest.mark.parametrize(
    ("name", "fields", "ready", "newest"),
    [
        ("stream", {"feed": "stream"}, third_epoch, {20, 30}),
        ("artifacts", {"checkpoint_steps": 13, "keep": 9}, lambda folder: 26 in checkpoints_of(folder), {26}),
    ],
    ids=["stream", "artifacts, within an epoch"],
)
def test_a_killed_worker_is_restarted_and_ends_with_the_same_weights(
    images: tuple[Path, Path],
    undisturbed: dict[str, tuple[Path, str]],
    tmp_path: Path,
    name: str,
    fields: dict[str, Any],
    ready: Callable[[Path], bool],
    newest: set[int],
) -> None:
    killed: list[int] = []
    thread = killer(tmp_path / "killed", ready, killed)
    what = spotting(images, undisturbed[name][0]) if name == "artifacts" else recipe(images)
    pretrain(what, run(tmp_path, "killed", **fields), "test")
    thread.join()
    assert killed, "the run was over before a worker could be killed"
    assert killed[0] in newest
    assert_equal(final(tmp_path, "killed"), final(*undisturbed[name]))
    assert logged(tmp_path, "killed") == [*range(1, 41)]


def test_the_frozen_autoencoder_is_the_one_that_was_given(
    undisturbed: dict[str, tuple[Path, str]], images: tuple[Path, Path]
) -> None:
    """After 40 steps on two workers: each weight and each statistic, to the bit; its history is partly filled."""
    storage, name = undisturbed["artifacts"]
    given, trained = final(storage, "autoencoder")["method"], final(storage, name)["method"]
    assert_equal({k: trained[f"autoencoder.{k}"] for k in given}, dict(given))
    assert 0 < int(trained["history.filled"]) == 40 * 16 < 900
    before = spotting(images, storage).build(Facts(330, 4, {"image": ((3, 16, 16), 0)})).state_dict()
    assert not torch.equal(trained["repairs.0.residual.0.weight"], before["repairs.0.residual.0.weight"])


def test_what_artifacts_cannot_start_from(
    images: tuple[Path, Path], undisturbed: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    storage, _ = undisturbed["artifacts"]
    good = spotting(images, storage)
    for fields, message in (
        ({"start_from": None}, r"artifacts starts from a trained autoencoder: give --start-from RUN"),
        ({"start_from": str(tmp_path)}, "no run lies there"),
        ({"start_from": str(storage / "resident")}, r"a run of sce, give one of autoencoder"),
        ({"method": {"autoencoder": {"widths": (4, 6)}}}, r"another one .* give its options as --method.autoencoder.X"),
        ({"batch_norm": "none"}, r"that run has --batch-norm global, and with none its weights mean something else"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain(good.with_(**fields), run(tmp_path, "x"), "test")


def test_a_stopped_run_goes_on_is_killed_and_ends_with_the_same_weights(
    images: tuple[Path, Path],
    undisturbed: dict[str, tuple[Path, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretrain(recipe(images), run(tmp_path, "stopped", stop_epoch=2), "test")
    assert final(tmp_path, "stopped")["step"] == 20
    with pytest.raises(UserError, match=r"a run lies at .*--run.resume"):
        pretrain(recipe(images), run(tmp_path, "stopped"), "test")
    with pytest.raises(UserError, match=r"another recipe \(it differs in method.temperature\)"):
        pretrain(recipe(images, method={"temperature": 0.2}), run(tmp_path, "stopped", resume=True), "test")
    newest = tmp_path / "stopped" / "checkpoints" / "step-00000020.pt"
    newest.write_bytes(newest.read_bytes()[:1000])  # cut: the one before is used
    killed: list[int] = []
    thread = killer(tmp_path / "stopped", lambda folder: 26 in checkpoints_of(folder), killed)
    pretrain(recipe(images), run(tmp_path, "stopped", resume=True, checkpoint_steps=13, keep=9), "test")
    thread.join()
    assert killed == [26], "within an epoch"
    shown = " ".join(capsys.readouterr().err.split())
    assert "step-00000020.pt is broken: 1000 bytes of" in shown and "the one before is used" in shown
    assert_equal(final(tmp_path, "stopped"), final(*undisturbed["resident"]))
    assert logged(tmp_path, "stopped") == [*range(1, 41)]


def test_a_collapsed_run_stops_on_all_ranks_and_does_not_go_on(
    images: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of any features feature_std is below 2: rank 0 says so, and rank 1 must not wait for a next step.

    One of its images is truncated: skipped, counted and named before it starts.
    """
    table = pq.read_table(write_images(tmp_path / "good.parquet", 331))
    rows = table["image"].to_pylist()
    rows[77] = rows[77][: len(rows[77]) // 2]
    pq.write_table(table.set_column(0, "image", pa.array(rows)), tmp_path / "one.parquet")
    what = recipe((tmp_path / "one.parquet", images[1]))
    folder = pretrain(what, run(tmp_path, "flat", collapse_std=2.0), "test")
    shown = " ".join(capsys.readouterr().err.split())
    assert "330 images (1 broken, skipped)" in shown and "one.parquet:77" in shown
    data = json.loads(folder.read("run.json"))["found"]
    assert data["samples"] == 330 and data["broken"][0]["index"] == 77
    found = json.loads(folder.read("collapsed.json"))
    last = [line for line in lines(tmp_path, "flat") if "features/feature_std" in line]
    assert len(last) == 1 and found["step"] == final(tmp_path, "flat")["step"] == 10
    assert found["feature_std"] == last[0]["features/feature_std"] < 2
    assert "collapsed at step 10" in shown
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "flat" / "checkpoints").iterdir())
    pretrain(what, run(tmp_path, "flat", collapse_std=2.0, resume=True), "test")
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "flat" / "checkpoints").iterdir()) == before


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(images: tuple[Path, Path], tmp_path: Path) -> None:
    bad = recipe(images, optimizers={"model": {"lr": 1e30, "warmup_epochs": 0.0}})
    with pytest.raises(UserError, match=r"loss is not finite at step \d+; the last good checkpoint is none yet"):
        pretrain(bad, run(tmp_path, "nan", workers=1), "test")


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
    """split:7 does not divide a worker's batch of 32: the same exception on each start."""
    with pytest.raises(UserError, match=r"split:7 does not divide a worker's batch of 32"):
        pretrain(recipe(images, batch_norm="split:7"), run(tmp_path, "again", workers=1), "test")


def test_start_from_takes_the_backbone_and_refuses_what_does_not_fit(
    images: tuple[Path, Path], undisturbed: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    storage, name = undisturbed["resident"]
    begun = recipe(images, start_from=str(storage / name), epochs=1)
    pretrain(begun.with_(optimizers={"model": {"lr": 1e-12}}), run(tmp_path, "from", workers=1), "test")
    before, after = final(storage, name)["method"], final(tmp_path, "from")["method"]
    key = "backbone.network.conv1.weight"
    key = key if key in before else next(k for k in before if k.startswith("backbone.network") and before[k].dim() == 4)
    assert torch.allclose(before[key], after[key], atol=1e-6) and not torch.equal(before[key], torch.zeros(1))
    with pytest.raises(UserError, match="no run lies there"):
        pretrain(begun.with_(start_from=str(tmp_path / "nothing")), run(tmp_path, "x"), "test")
    with pytest.raises(UserError, match=r"resnet20, does not fit mobilenet_v3_large: give --backbone resnet20"):
        pretrain(begun.with_(backbone="mobilenet_v3_large"), run(tmp_path, "y"), "test")


def test_other_data_under_the_same_path_are_refused(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    found = Survey(np.arange(4), np.array([0, 1, 0, 1]), [], [])
    claim_data(folder, "abc", found)  # a new run
    kept = {"fingerprint": "abc", "labels": labels.digest(found.usable, found.label)}
    folder.write("run.json", json.dumps({"found": kept}).encode())
    claim_data(folder, "abc", found)
    with pytest.raises(UserError, match="the files under the same path have changed"):
        claim_data(folder, "abd", found)
    for changed in (found._replace(usable=np.arange(1, 5)), found._replace(label=np.array([1, 0, 0, 1]))):
        with pytest.raises(UserError, match="the labels or broken rows under the same path have changed"):
            claim_data(folder, "abc", changed)
    folder.write("run.json", b'{"found": {"samples": 4}}')  # of a version that kept neither
    claim_data(folder, "abd", found)

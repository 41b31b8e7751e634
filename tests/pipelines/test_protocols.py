"""Protocols on few labels, within one set and on other data; without a cluster but for the last ones."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import encoded, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pipelines.evaluate as evaluation
from methods import sce
from methods.metrics.knn import knn_loocv
from methods.metrics.linear import Linear
from methods.metrics.logistic import logistic, logistic_several
from methods.metrics.svm import SVM, low_shot
from methods.optim import Optimizer
from methods.views import strong, weak
from pipelines import shots, transfer
from pipelines.command_line import parsed
from pipelines.errors import UserError
from pipelines.evaluate import PROTOCOLS, Options, Ready, Subject, evaluate, measure
from pipelines.features import Features
from pipelines.pretrain import pretrain
from pipelines.recipe import Recipe, Run
from pipelines.shots import RCL, LeaveOneOut, LowShot, SemiSupervised, Transfer
from pipelines.sources import Data, load, open_source
from pipelines.storage import open_folder
from pipelines.transfer import Finetune

CLASSES = 4


def recipe_on(images: tuple[Path, Path]) -> Recipe:
    return Recipe(
        method=sce.Config(hidden=32, dim=16, queue=100, momentum=0.9, momentum_end=1.0),
        backbone="resnet20",
        data=Data(train=str(images[0]), test=str(images[1]), size=16),
        views={"online": strong("online", 16), "target": weak("target", 16)},
        optimizers={"model": Optimizer(lr=0.06)},
        epochs=1,
        batch_size=64,
    )


def made(images: tuple[Path, Path], folder: Path, **fields: Any) -> Ready:
    """A run that is there in name alone."""
    recipe = recipe_on(images)
    it = Subject(None, None, open_folder(str(folder / "run")), "", 16, recipe=recipe, step=4)
    return Ready(it, replace(Options(data=recipe.data), **fields))


def features_of(source_label: Tensor, seed: int, shift: float) -> Tensor:
    """(n, 8): a class's corner, with noise."""
    noise = torch.randn(len(source_label), 8, generator=torch.Generator().manual_seed(seed))
    return F8[source_label.clamp(min=0)] + shift * noise


F8 = torch.eye(8)


@pytest.fixture
def extraction(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """In place of the networks' features those of `features_of`; what was asked for, by part and file."""
    asked: list[tuple[str, str]] = []

    def extracted(self: Ready, part: evaluation.Part, networks: Any, **options: Any) -> Features:
        asked.append((part, Path(getattr(self.options.data, part)).name))
        source = self.source(part)
        label = torch.arange(source.rows) % CLASSES if source.labelled else torch.full((source.rows,), -1)
        corner = torch.arange(source.rows) % CLASSES
        of = {name: features_of(corner, len(part), shift) for name, shift in (("trained", 0.3), ("raw_pixels", 0.9))}
        return Features(torch.arange(source.rows), label, of)

    monkeypatch.setattr(Ready, "extracted", extracted)
    return asked


def measured(name: str, ready: Ready) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    measure(name, ready, figures, {})
    json.dumps(figures)
    return figures


def test_the_new_protocols_are_listed_with_a_line() -> None:
    for name in ("low_shot", "knn_loocv", "transfer", "semi_supervised"):
        assert len((PROTOCOLS[name].__doc__ or "").splitlines()[0]) > 40, name
        assert hasattr(Options(data=Data()), name)


def test_options_from_the_command_line() -> None:
    words = "--low-shot.shots 1 2 --low-shot.svm.costs .1 1 --transfer.train a --transfer.metric mean_per_class"
    words += " --knn-loocv.ks 3 --semi-supervised.percents 10 --semi-supervised.ten.optimizer.lr .1"
    found = parsed(Options, Options(data=Data()), words.split(), "test")
    assert found.low_shot.shots == (1, 2) and found.low_shot.svm.costs == (0.1, 1.0) and found.knn_loocv.ks == (3,)
    assert (found.transfer.train, found.transfer.metric) == ("a", "mean_per_class")
    assert found.semi_supervised.percents == (10,) and found.semi_supervised.ten.optimizer.lr == 0.1


# --------------------------------------------------------------------------------------- what papers say


def test_ressl_semi_supervised() -> None:
    """ReSSL, section 5.1: "For 1%, we freeze the backbone layers and set the learning rate to 0.1 for the final linear
    layer. For 10%, we use a learning rate of 0.02 and 0.2 for the backbone layers and the final linear layer. [...] 60
    and 20 epochs [...] with a cosine learning rate scheduler. We do not apply any weight decay"."""
    it = SemiSupervised()
    assert (it.one.freeze, it.one.optimizer.lr, it.one.epochs) == (True, 0.1, 60)
    assert (it.ten.freeze, it.ten.optimizer.lr, it.ten.epochs) == (False, 0.02, 20)
    assert it.ten.optimizer.lr * it.ten.classifier_rate == pytest.approx(0.2) and it.one.classifier_rate == 1
    for chosen in (it.one, it.ten):
        assert chosen.optimizer.schedule == "cosine" and chosen.optimizer.scaling == "none"
        assert chosen.optimizer.weight_decay == 0 and chosen.from_layer == chosen.layer == ""


def test_rcl_semi_supervised() -> None:
    """RCL, section 5.2: "fine-tuning the whole base network [...] without regularization", as SimCLR does."""
    for chosen, epochs in ((RCL.one, 60), (RCL.ten, 30)):
        assert not chosen.freeze and chosen.optimizer.weight_decay == 0 and chosen.epochs == epochs
        assert chosen.optimizer.lr * chosen.batch_size / 256 == pytest.approx(0.8) and chosen.optimizer.nesterov


def test_low_shot_and_transfer_defaults() -> None:
    """ReSSL, Table 11: k = 4, 8, 16, 32, 64 and full, "average performance over 5 runs (except for k=full)". SimCLR: 45
    strengths, spaced evenly in the logarithm from 1e-6 to 1e5."""
    assert (LowShot().shots, LowShot().draws, LowShot().full) == ((4, 8, 16, 32, 64), 5, True)
    strengths = Transfer().regularizations
    assert len(strengths) == 45 and (strengths[0], strengths[-1]) == pytest.approx((1e5, 1e-6))
    ratios = np.divide(strengths[:-1], strengths[1:])
    assert np.allclose(ratios, ratios[0])


# -------------------------------------------------------------------------------------------- low shot


def test_low_shot_beside_raw_pixels(
    images: tuple[Path, Path], tmp_path: Path, extraction: list[tuple[str, str]]
) -> None:
    ready = made(images, tmp_path, low_shot=LowShot(shots=(2, 8), draws=3), seed=7)
    found = measured("low_shot", ready)
    for of, place in (("trained", found), ("raw_pixels", found["raw_pixels"])):
        train, test = ready.train, ready.test
        expected = low_shot(
            train.of[of], train.label, test.of[of], test.label, SVM(), shots=(2, 8), draws=3, seed=7, classes=CLASSES
        )
        assert place["low_shot"] == expected
    assert found["low_shot"]["top1_8"] > found["raw_pixels"]["low_shot"]["top1_8"]
    assert found["protocol"]["low_shot"]["svm"]["costs"] == (0.5,)
    assert found["protocol"]["low_shot"]["train_images"] == 330


def several(path: Path, labels: list[list[int]], difficult: list[list[int]] | None, names: int = 3) -> Path:
    images = [encoded(np.full((8, 8, 3), i % 256, np.uint8)) for i in range(len(labels))]
    columns: dict[str, Any] = {"image": images, "labels": pa.array(labels, pa.list_(pa.int32()))}
    if difficult is not None:
        columns["difficult"] = pa.array(difficult, pa.list_(pa.int32()))
    metadata = {"class_names": json.dumps([f"class {i}" for i in range(names)])} if names else {}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def test_images_with_several_labels(tmp_path: Path) -> None:
    """Two files; the second has an image without any class, and none of its objects is difficult."""
    several(tmp_path / "a.parquet", [[0, 2], [1], []], [[1], [], [0, 2]])
    several(tmp_path / "b.parquet", [[], [2]], None)
    shown, hard = shots.several_labels(open_source(str(tmp_path / "*.parquet"), Data()))
    assert shown.int().tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert hard.int().tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_several_labels_that_cannot_be_read(tmp_path: Path, images: tuple[Path, Path]) -> None:
    def read(path: Path) -> Any:
        return shots.several_labels(open_source(str(path), Data()))

    with pytest.raises(UserError, match=r"give --data.label, or Parquet files with lists in `labels`"):
        read(images[0])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(encoded(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(UserError, match="lists in `labels`"):
        read(tmp_path / "folder")
    with pytest.raises(UserError, match="need class_names"):
        read(several(tmp_path / "nameless.parquet", [[0]], None, names=0))
    with pytest.raises(UserError, match="column labels has other classes than the 3 of class_names"):
        read(several(tmp_path / "far.parquet", [[3]], None))
    with pytest.raises(UserError, match="column difficult has other classes"):
        read(several(tmp_path / "hard.parquet", [[0]], [[-1]]))


@pytest.fixture
def voc(tmp_path: Path) -> tuple[Path, Path]:
    """Row i shows class i mod 4 if that is below 3, and with it the next; each fifth shows class 0 as difficult."""
    paths = []
    for name, count in (("voc_train", 60), ("voc_test", 40)):
        corner = [i % CLASSES for i in range(count)]
        labels = [[c, (c + 1) % 3] if c < 3 and i % 3 == 0 else [c] if c < 3 else [] for i, c in enumerate(corner)]
        difficult = [[0] if i % 5 == 0 and 0 not in labels[i] else [] for i in range(count)]
        paths.append(several(tmp_path / f"{name}.parquet", labels, difficult))
    return paths[0], paths[1]


def test_low_shot_of_several_labels(voc: tuple[Path, Path], tmp_path: Path, extraction: list[tuple[str, str]]) -> None:
    """Difficult objects count as absent, as in PCL's code, or not at all."""
    ready = made(voc, tmp_path, low_shot=LowShot(shots=(4,), draws=2))
    found = measured("low_shot", ready)["low_shot"]
    (shown, hard), (test_shown, test_hard) = (shots.several_labels(ready.source(part)) for part in ("train", "test"))
    data = ready.train.of["trained"], shown, ready.test.of["trained"], test_shown
    assert found == low_shot(*data, SVM(), shots=(4,), draws=2)
    assert list(found) == ["map_4", "deviation_4", "map_full"]
    ready = made(voc, tmp_path, low_shot=LowShot(shots=(4,), draws=2, difficult="left_out"))
    left_out = measured("low_shot", ready)["low_shot"]
    assert left_out == low_shot(*data, SVM(), shots=(4,), draws=2, train_known=~hard, test_known=~test_hard)
    assert left_out != found
    with pytest.raises(UserError, match="label for each image"):
        measured("knn", ready)


# ----------------------------------------------------------------------------------------- leave one out


def test_leave_one_out_looks_at_the_test_images_alone(
    images: tuple[Path, Path], tmp_path: Path, extraction: list[tuple[str, str]]
) -> None:
    ready = made(images, tmp_path, knn_loocv=LeaveOneOut(ks=(1, 5, 80)))
    found = measured("knn_loocv", ready)
    assert extraction == [("test", images[1].name)]
    assert found["knn_loocv"] == knn_loocv(ready.test.of["trained"], ready.test.label, ks=(1, 5))
    assert list(found["knn_loocv"]) == ["top1_1", "top1_5"] and "raw_pixels" in found
    settings = found["protocol"]["knn_loocv"]
    assert settings["test_images"] == 80 and "train_images" not in settings


# ---------------------------------------------------------------------------------------------- transfer


def test_transfer_is_to_other_data(
    images: tuple[Path, Path], tmp_path: Path, extraction: list[tuple[str, str]]
) -> None:
    other = write_images(tmp_path / "other.parquet", 120), write_images(tmp_path / "other_test.parquet", 60, seed=1)
    chosen = Transfer(train=str(other[0]), test=str(other[1]), regularizations=(1.0, 1e-3), metric="mean_per_class")
    ready = made(images, tmp_path, transfer=chosen)
    ready = replace(ready, options=replace(ready.options, data=replace(ready.options.data, limit=50, noise=0.5)))
    found = measured("transfer", ready)
    assert [*dict.fromkeys(extraction)] == [("train", "other.parquet"), ("test", "other_test.parquet")]
    there = shots.elsewhere(ready)
    assert there.options.data.limit is None and there.options.data.noise == 0 and there.options.data.size == 16
    strengths: dict[str, Any] = {"regularizations": (1.0, 1e-3), "validation": 0.2, "metric": "mean_per_class"}
    expected = logistic(*there.split("trained"), **strengths)
    assert found["transfer"] == expected and {"top1", "mean_per_class"} <= expected.keys()
    assert found["protocol"]["transfer"]["train"] == str(other[0]) and "raw_pixels" in found
    linear = replace(chosen, classifier="linear")
    short = replace(Linear(), augment="none", epochs=2, batch_size=20)
    ready = replace(ready, options=replace(ready.options, transfer=linear, linear=short))
    assert measured("transfer", ready)["transfer"] == evaluation.run_linear(shots.elsewhere(ready), "trained")[0]
    with pytest.raises(UserError, match=r"give --transfer.train and --transfer.test"):
        measured("transfer", made(images, tmp_path, transfer=Transfer(train="a")))


def test_transfer_to_several_labels(
    images: tuple[Path, Path], voc: tuple[Path, Path], tmp_path: Path, extraction: list[tuple[str, str]]
) -> None:
    """VOC 2007's own protocol: at 11 points, difficult objects left out."""
    ready = made(images, tmp_path, transfer=Transfer(train=str(voc[0]), test=str(voc[1]), regularizations=(1.0,)))
    there = shots.elsewhere(ready)
    (shown, hard), (test_shown, test_hard) = (shots.several_labels(there.source(part)) for part in ("train", "test"))
    data = there.train.of["trained"], shown, there.test.of["trained"], test_shown
    known: dict[str, Any] = {"train_known": ~hard, "test_known": ~test_hard}
    expected = logistic_several(*data, **known, regularizations=(1.0,), validation=0.2, points=11)
    assert measured("transfer", ready)["transfer"] == expected and 0.5 < expected["map"] <= 1


# --------------------------------------------------------------------------------------- semi-supervised


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.01, 1), st.integers(0, 2**31))
def test_labelled_images_are_as_many_of_each_class(sizes: list[int], share: float, seed: int) -> None:
    """Their number is the share of all, rounded down, where no class is too small for its part of them; parts differ by
    one at most, and each class has one."""
    label = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    label, index = 3 * label[order] - 1, 2 * torch.arange(len(label)) + 5
    rows = shots.balanced_rows(label, index, share, seed)
    assert torch.equal(rows, rows.unique()) and not set(rows.tolist()) - set(index.tolist())
    found = Counter(label[(rows - 5) // 2].tolist())
    total = int(share * len(label))
    each = total // len(sizes)
    for c, size in enumerate(sizes):
        assert min(size, max(each, 1)) <= found[3 * c - 1] <= min(size, max(each + 1, 1))
    if min(sizes) > each and each:
        assert len(rows) == total
    assert torch.equal(rows, shots.balanced_rows(label, index, share, seed))


def test_one_percent_is_among_ten(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Of 330 images of 4 classes 33, and 3, where each class has at least one."""
    ready = made(images, tmp_path)
    one, ten = (shots.subset(ready, share) for share in (0.01, 0.1))
    assert (len(one), len(ten)) == (4, 33) and not set(one.tolist()) - set(ten.tolist())
    assert sorted(Counter((ten % CLASSES).tolist()).values()) == [8, 8, 8, 9]
    other = replace(ready, options=replace(ready.options, seed=1))
    assert not torch.equal(shots.subset(other, 0.1), ten)
    limited = replace(ready, options=replace(ready.options, data=replace(ready.options.data, limit=40)))
    assert len(shots.subset(limited, 0.1)) == 4
    assert not set(shots.subset(limited, 0.1).tolist()) - set(limited.wanted("train").tolist())


def test_classes_of_folders_and_tars(tmp_path: Path) -> None:
    import io
    import tarfile

    picture = encoded(np.zeros((8, 8, 3), np.uint8))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, c in enumerate((1, 0, 1, 2)):
            for name, content in ((f"{i}.png", picture), (f"{i}.cls", str(c).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    for i, name in enumerate(("b", "a", "b", "c")):
        (tmp_path / "folder" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name / f"{i}.png").write_bytes(picture)
    assert shots.classes_of(open_source(str(tmp_path / "a.tar"), Data())).tolist() == [1, 0, 1, 2]
    assert shots.classes_of(open_source(str(tmp_path / "folder"), Data())).tolist() == [0, 1, 1, 2]


def test_labelled_images_by_a_list(images: tuple[Path, Path], tmp_path: Path) -> None:
    table = pq.read_table(images[0])
    named = table.append_column("name", pa.array([f"n{i}.JPEG" for i in range(len(table))]))
    pq.write_table(named, tmp_path / "named.parquet", row_group_size=50)
    ready = made((tmp_path / "named.parquet", images[1]), tmp_path)
    (tmp_path / "names.txt").write_text("n7.JPEG\n\nn300.JPEG\nn12.JPEG\n")
    (tmp_path / "positions.txt").write_text("300\n7\n12")
    for name in ("names.txt", "positions.txt"):
        assert shots.subset(ready, 0.01, str(tmp_path / name)).tolist() == [7, 12, 300]
    (tmp_path / "wrong.txt").write_text("n7.JPEG\nelsewhere.JPEG\n")
    with pytest.raises(UserError, match="names 2 images, of which 1 are among the training images"):
        shots.subset(ready, 0.01, str(tmp_path / "wrong.txt"))
    with pytest.raises(UserError, match="no Parquet column name: list positions"):
        shots.subset(made(images, tmp_path), 0.01, str(tmp_path / "names.txt"))
    (tmp_path / "far.txt").write_text("330\n")
    with pytest.raises(UserError, match="there are 330 training images, numbered from 0"):
        shots.subset(ready, 0.01, str(tmp_path / "far.txt"))
    with pytest.raises(UserError, match="cannot be read"):
        shots.subset(ready, 0.01, str(tmp_path / "none.txt"))


def test_labelled_images_are_copied(images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are, with their labels, in files of a bounded size; once."""
    monkeypatch.setattr(shots, "BYTES_PER_FILE", 8000)
    ready = made(images, tmp_path)
    rows = shots.subset(ready, 0.1)
    noisy = replace(ready, options=replace(ready.options, data=replace(ready.options.data, noise=0.5, limit=300)))
    data = shots.written(noisy, rows, open_folder(str(tmp_path / "evaluation")))
    assert (data.noise, data.limit, data.size, data.test) == (0.0, None, 16, str(images[1]))
    [folder] = (tmp_path / "evaluation").iterdir()
    assert len(list(folder.glob("labelled-*.parquet"))) > 1
    copied, original = open_source(data.train, data), ready.source("train")
    assert (copied.rows, copied.class_names) == (33, original.class_names)
    parts = [load(copied, group, np.arange(group.rows), 16) for group in copied.groups]
    image, label = (np.concatenate([part[i] for part in parts]) for i in (0, 2))
    assert np.array_equal(image, ready.images("train", rows).numpy()) and np.array_equal(label, (rows % 4).numpy())
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert shots.written(noisy, rows, open_folder(str(tmp_path / "evaluation"))) == data
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "whole.json").unlink()  # as if it had been stopped: it is written anew
    assert shots.written(noisy, rows, open_folder(str(tmp_path / "evaluation"))) == data


def test_semi_supervised_trains_on_the_labelled_images(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batches no larger than they are, which the workers can share."""
    recipes: list[tuple[str, str, Recipe]] = []

    def trained(
        ready: Ready, protocol: str, of: str, recipe: Recipe, chosen: Finetune
    ) -> tuple[dict[str, Tensor], Tensor]:
        recipes.append((protocol, of, recipe))
        return {"features": torch.eye(CLASSES)}, torch.tensor([0, 1, 2, 0])

    monkeypatch.setattr(transfer, "trained", trained)
    ready = made(images, tmp_path, workers=2)
    figures, _ = shots.run_semi_supervised(ready, "random_init")
    labels = {"labels_1": 4, "batch_1": 4, "labels_10": 33, "batch_10": 32}
    assert figures == {"top1_1": 0.75, "top1_10": 0.75, **labels}
    (protocol, of, one), (_, _, ten) = recipes
    assert (protocol, of) == ("semi_supervised", "random_init")
    assert (one.batch_size, one.epochs, ten.batch_size, ten.epochs) == (4, 60, 32, 20)
    assert one.method.freeze_backbone and not ten.method.freeze_backbone
    assert one.optimizers["model"].lr == 0.1 and ten.optimizers["model"].lr == 0.02
    assert (one.method.classifier_rate, ten.method.classifier_rate) == (1, 10)
    for recipe, rows in ((one, 4), (ten, 33)):
        assert open_source(recipe.data.train, recipe.data).rows == rows
        assert recipe.views["image"].crop_scale == (0.08, 1.0) and recipe.data.test == str(images[1])
    short = SemiSupervised(percents=(10,), ten=replace(ready.options.semi_supervised.ten, batch_size=8))
    only = replace(ready, options=replace(ready.options, semi_supervised=short))
    assert list(shots.run_semi_supervised(only, "trained")[0]) == ["top1_10", "labels_10", "batch_10"]
    assert recipes[-1][2].batch_size == 8


def test_semi_supervised_mistakes(voc: tuple[Path, Path], images: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1, 10 or both"):
        SemiSupervised(percents=())
    with pytest.raises(UserError, match=r"give --data.label"):
        shots.run_semi_supervised(made(voc, tmp_path), "trained")
    ready = made(images, tmp_path)
    videos = replace(ready, options=replace(ready.options, data=replace(ready.options.data, media="video")))
    with pytest.raises(UserError, match="is for images"):
        shots.run_semi_supervised(videos, "trained")
    table = pq.read_table(images[0])
    holes = pa.array([None if i % 4 == 3 else i % 4 for i in range(len(table))], pa.int32())
    pq.write_table(table.set_column(1, "label", holes), tmp_path / "holes.parquet")
    ready = made((tmp_path / "holes.parquet", images[1]), tmp_path)
    with pytest.raises(UserError, match="label for each training image"):
        shots.written(ready, torch.arange(8), open_folder(str(tmp_path / "evaluation")))


# ------------------------------------------------------------------------------------------- on a cluster


@pytest.mark.ray
def test_protocols_on_a_run(images: tuple[Path, Path], tmp_path: Path, ray_cluster: None) -> None:
    """Raw pixels tell the classes; both shares of labels are trained on, beside the random initialization."""
    pretrain(recipe_on(images), Run(storage=str(tmp_path), name="run"), "test")
    run = tmp_path / "run"
    short = Finetune(epochs=2, batch_size=16)
    options = replace(
        evaluation.defaults(str(run)),
        low_shot=LowShot(shots=(4,), draws=2),
        semi_supervised=SemiSupervised(one=replace(short, freeze=True), ten=short),
        transfer=Transfer(train=str(images[0]), test=str(images[1]), regularizations=(1.0,)),
    )
    figures = evaluate(str(run), ["low_shot", "knn_loocv", "transfer", "semi_supervised"], options)
    assert json.loads(json.dumps(figures)) == json.loads((run / "evaluation.json").read_text())
    assert figures["raw_pixels"]["low_shot"]["top1_full"] > 0.9 and figures["raw_pixels"]["transfer"]["top1"] > 0.9
    for place in (figures, figures["random_init"]):
        found = place["semi_supervised"]
        assert (found["labels_1"], found["labels_10"]) == (4, 33) and 0 <= found["top1_1"] <= 1 >= found["top1_10"]
    assert len(list((run / "evaluation").glob("semi_supervised-*"))) == 4
    assert len(list((run / "evaluation").glob("labelled-*"))) == 2

"""Noisy labels and balanced batches through a whole run: what is learned, and what is kept beside."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from methods import bilevel
from methods.metrics.linear import Linear
from methods.optim import Optimizer
from methods.views import View
from pipelines import labels
from pipelines.errors import UserError
from pipelines.evaluate import Options as Evaluation
from pipelines.evaluate import evaluate
from pipelines.place import placed
from pipelines.pretrain import pretrain
from pipelines.recipe import Recipe, Run
from pipelines.sources import Data, load, open_source, permuted
from pipelines.storage import Checkpoints, open_folder


def recipe(images: tuple[Path, Path], **fields: object) -> Recipe:
    """CifarNet without batch norm, on batches of 4 parts of 8."""
    return Recipe(
        method=bilevel.Config(parts=4, dropout=0.2),
        backbone="cifarnet",
        data=Data(train=str(images[0]), test=str(images[1]), size=16, order="balanced", noise=0.5),
        views={"image": View("image", 16)},
        optimizers={"model": Optimizer(lr=0.01, weight_decay=0.0)},
        epochs=2,
        batch_size=32,
        batch_norm="none",
    ).with_(**fields)


@pytest.fixture(scope="module")
def runs(images: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """The same recipe on one and on two workers."""
    storage = tmp_path_factory.mktemp("noise")
    for workers in (1, 2):
        place = Run(storage=str(storage), name=f"{workers}", workers=workers, cpus=0.5, threads=1, log_steps=1)
        pretrain(recipe(images), place, "bilevel")
    return storage


def table(folder: Path) -> dict[str, np.ndarray]:
    found = pq.read_table(folder / labels.FILE)
    return {name: found[name].to_numpy().copy() for name in found.column_names}


@pytest.mark.ray
def test_half_of_each_class_is_learned_wrong_and_the_true_label_is_kept(runs: Path, images: tuple[Path, Path]) -> None:
    found, truth = table(runs / "1"), pq.read_table(images[0])["label"].to_numpy()
    assert np.array_equal(found["true_label"], truth[found["index"]])
    for c, size in enumerate(np.bincount(found["true_label"])):
        assert (found["label"][found["true_label"] == c] != c).sum() == round(size / 2)
    assert all(np.array_equal(column, table(runs / "2")[name]) for name, column in found.items())


@pytest.mark.ray
def test_two_workers_learn_what_one_does(runs: Path) -> None:
    one, two = (Checkpoints(open_folder(str(runs / name)) / "checkpoints").newest()[0] for name in "12")
    assert one is not None and two is not None and one["step"] == two["step"] == 2 * one["steps_per_epoch"]
    for name, value in one["method"].items():
        torch.testing.assert_close(two["method"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    first, second = (
        [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()] for name in "12"
    )
    losses = [[line["loss"] for line in lines if "images_per_second" in line] for lines in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == one["step"]
    assert {"accuracy", "true_accuracy"} <= first[0].keys()


@pytest.mark.ray
def test_generalization_is_of_the_labels_that_were_learned(runs: Path, images: tuple[Path, Path]) -> None:
    found = evaluate(str(runs / "2"), ["generalization"], Evaluation(data=recipe(images).data))["generalization"]
    state, _ = Checkpoints(open_folder(str(runs / "2")) / "checkpoints").newest()
    assert state is not None
    source = open_source(str(images[0]), recipe(images).data)
    method = recipe(images).build(recipe(images).facts(source.rows, source.classes))
    torch.nn.Module.load_state_dict(method, state["method"], strict=False)
    kept = table(runs / "2")
    said = []
    for group in source.groups:
        offsets = kept["index"][(kept["index"] >= group.first) & (kept["index"] < group.first + group.rows)]
        pixels = torch.from_numpy(load(source, group, offsets - group.first, 16).image)
        said.append(method.eval().classify(method.backbone(pixels)).argmax(1))
    answers = torch.cat(said).numpy()
    assert found["train_accuracy"] == pytest.approx((answers == kept["label"]).mean(), abs=2 / len(answers))
    assert found["train_true_accuracy"] == pytest.approx((answers == kept["true_label"]).mean(), abs=2 / len(answers))
    assert found["gap"] == pytest.approx(found["train_accuracy"] - found["test_accuracy"])
    other = recipe(images, data={"train": str(images[1])}).data
    with pytest.raises(UserError, match="did not see all of these images"):
        evaluate(str(runs / "2"), ["generalization"], Evaluation(data=other))
    learned = evaluate(str(runs / "2"), ["linear"], Evaluation(data=recipe(images).data, linear=Linear(epochs=1)))
    assert 0 <= learned["linear"]["top1"] <= 1  # of true labels, in plain order


@pytest.mark.ray
def test_a_run_goes_on_with_the_labels_that_it_learned_alone(runs: Path, images: tuple[Path, Path]) -> None:
    folder = open_folder(str(runs / "1"))
    before = folder.read(labels.FILE)
    found = table(runs / "1")
    noisy = torch.full((int(found["index"].max()) + 1,), -1)
    noisy[torch.tensor(found["index"])] = torch.tensor((found["label"] + 1) % 4)
    labels.write(folder, found["index"], found["true_label"], noisy)
    try:
        with pytest.raises(UserError, match="learned other labels"):
            place = Run(storage=str(runs), name="1", cpus=0.5, threads=1, log_steps=1, resume=True)
            pretrain(recipe(images), place, "bilevel")
    finally:
        folder.write(labels.FILE, before)


# ----------------------------------------------------------------------------------------------- without Ray


def test_what_cannot_be_balanced_is_refused(images: tuple[Path, Path]) -> None:
    from methods import simsiam

    with pytest.raises(ValueError, match="take a batch apart"):
        recipe(images, method={}).with_(method=simsiam.Config())
    with pytest.raises(UserError, match=r"--data.validation-ratio is of balanced parts"):
        recipe(images, data={"order": "shuffle", "validation_ratio": 0.5})
    with pytest.raises(ValueError, match=r"holds for the first part"):
        recipe(images, data={"validation_ratio": 0.5}).with_(method={"validation": "drawn"})
    with pytest.raises(UserError, match="resident feed"):
        placed(recipe(images), Run(feed="stream"), 300, {"CPU": 4.0, "object_store_memory": 1e9})


def labels_of(path: Path, images: tuple[Path, Path]) -> torch.Tensor | None:
    data = Data(train=str(images[0]), size=16, noise_file=str(path))
    source = open_source(str(images[0]), data)
    usable = np.arange(1, source.rows, dtype=np.int64)  # the first is broken, say
    return labels.learned(data, source, usable, np.zeros(len(usable), np.int64), 0)


@pytest.mark.parametrize("kind", ["txt", "npy", "parquet"])
def test_a_file_has_a_label_for_each_row(kind: str, images: tuple[Path, Path], tmp_path: Path) -> None:
    rows = open_source(str(images[0]), Data(size=16)).rows
    wrong = np.arange(rows) % 4
    path = tmp_path / f"noisy.{kind}"
    if kind == "txt":
        path.write_text("\n".join(map(str, wrong)))
    elif kind == "npy":
        np.save(path, wrong)
    else:
        pq.write_table(pa.table({"guessed": wrong}), path)
        path = Path(f"{path}:guessed")
    found = labels_of(path, images)
    assert found is not None and np.array_equal(found.numpy()[1:], wrong[1:]) and found[0] == -1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1], "one for each"),
        ([0.5] * 330, "integers from 0 to 3"),
        ([4] * 330, "the class 4 of 4"),
        ([-1] * 330, "the class -1 of 4"),
        (["cat"] * 330, "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    values: list[object], message: str, images: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "noisy.txt"
    path.write_text("\n".join(map(str, values)))
    with pytest.raises(UserError, match=message):
        labels_of(path, images)
    with pytest.raises(UserError, match="name its column"):
        labels_of(tmp_path / "noisy.parquet", images)
    with pytest.raises(UserError, match="no such file"):
        labels_of(tmp_path / "none.txt", images)


def test_options_that_contradict_each_other_are_refused() -> None:
    for fields, message in (
        ({"noise": 1.5}, "a share"),
        ({"noise": 0.5, "noise_file": "a.txt"}, "leave out"),
        ({"noise": 0.5, "media": "video"}, "for images"),
        ({"order": "sorted"}, "one of shuffle, balanced"),
    ):
        with pytest.raises(UserError, match=message):
            Data(**fields)


def test_permuted_pixels_are_the_image_s_own_in_an_order_of_its_own(images: tuple[Path, Path]) -> None:
    plain = open_source(str(images[0]), Data(size=16))
    mixed = open_source(str(images[0]), Data(size=16, permuted=True))
    rows = np.arange(20)
    before, after = (load(source, source.groups[0], rows, 16).image for source in (plain, mixed))
    assert np.array_equal(load(mixed, mixed.groups[0], rows[3:5], 16).image, after[3:5])
    colours = np.array([1, 256, 65536])
    first, second = (np.sort(colours @ image.reshape(20, 3, 256).astype(np.int64), axis=1) for image in (before, after))
    assert np.array_equal(first, second) and (before != after).mean() > 0.5
    same = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(2, axis=0)
    assert not np.array_equal(*permuted(same, np.array([7, 8])))

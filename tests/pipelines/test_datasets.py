"""What is published is stood in for by small folders in the published layout, made here."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision.datasets as published
from PIL import Image
from scipy.io import savemat

from methods.metrics.knn import knn
from pipelines import datasets
from pipelines.datasets import SHAPES, DatasetOptions, draw_shape, write
from pipelines.errors import UserError
from pipelines.sources import Data, load, open_source


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (value, value, value)).save(path, "JPEG")
    return path


def loaded(pattern, size=8):
    source = open_source(str(pattern), Data(size=size))
    parts = [load(source, group, np.arange(group.rows), size) for group in source.groups]
    image, _, label = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return source, image, label


# ---------------------------------------------------------------------------------------------- shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write("shapes", DatasetOptions(to=str(folder), images=1500, size=32))
    return folder


def test_shapes_are_labelled_evenly(shapes):
    train, image, label = loaded(shapes / "train-*.parquet", 32)
    test, _, test_label = loaded(shapes / "test-*.parquet", 32)
    assert (train.rows, test.rows, image.shape[1:]) == (1500, 250, (3, 32, 32))
    assert train.class_names == test.class_names == tuple(sorted(SHAPES)) and len(SHAPES) == 10
    assert Counter(label.tolist()) == dict.fromkeys(range(10), 150) and set(test_label.tolist()) == set(range(10))
    assert [group.rows for group in train.groups] == [1000, 500]


def test_shapes_are_a_function_of_the_seed(tmp_path):
    def made(name, images, seed):
        folder = tmp_path / name
        write("shapes", DatasetOptions(to=str(folder), images=images, size=16, seed=seed))
        return loaded(folder / "train-*.parquet", 16)[1], loaded(folder / "test-*.parquet", 16)[1]

    (a, a_test), (b, _), (c, _) = made("a", 40, 0), made("b", 60, 0), made("c", 40, 1)
    assert np.array_equal(a, b[:40])  # more images leave the first as they are
    assert not np.array_equal(a, c) and not np.array_equal(a[:6], a_test[:6])


def test_raw_pixels_hardly_tell_shapes_apart(shapes):
    """Nearest neighbours of pixels: near chance (.1), below .3: the shapes have equal areas."""
    area = [(draw_shape(name, 64, np.random.default_rng(0)) > 128).mean() for name in sorted(SHAPES)]
    assert max(area) < 1.5 * min(area)  # the same places, sizes and tones; what overlaps counts once
    _, image, label = loaded(shapes / "train-*.parquet", 32)
    _, test, test_label = loaded(shapes / "test-*.parquet", 32)

    def flat(images):
        return (torch.from_numpy(images).float() / 127.5 - 1).flatten(1)

    labels = torch.from_numpy(label), torch.from_numpy(test_label)
    assert knn(flat(image), labels[0], flat(test), labels[1])["top1"] < 0.3


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_shape_differs_from_its_ground_in_brightness(name):
    """Which grayscale views keep: two clusters of brightness, apart by more than the noise's 8 of 255."""
    for seed in range(5):
        grey = draw_shape(name, 64, np.random.default_rng(seed)) @ np.array([0.299, 0.587, 0.114])
        low, high = np.percentile(grey, [3, 97])
        assert high - low > 50


def test_shapes_too_few_or_too_small(tmp_path):
    for options in (DatasetOptions(str(tmp_path), images=5), DatasetOptions(str(tmp_path), size=4)):
        with pytest.raises(UserError, match="shapes needs --images of at least 10 and --size of at least 8"):
            write("shapes", options)


# -------------------------------------------------------------------------------------------- the writer


def test_a_split_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def failing(name, size, rng):
        drawn.append(name)
        if len(drawn) > 30:
            raise RuntimeError("killed")
        return draw_shape(name, size, rng)

    drawn: list[str] = []
    monkeypatch.setattr(datasets, "draw_shape", failing)
    with pytest.raises(RuntimeError, match="killed"):
        write("shapes", DatasetOptions(to=str(tmp_path), images=60, size=8))
    assert list(tmp_path.iterdir()) == []


def test_files_of_ten_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(datasets, "ROWS_PER_FILE", 8)
    paths = write("shapes", DatasetOptions(to=str(tmp_path), images=21, size=8, split="train"))
    assert [path.name for path in paths] == [f"train-0000{i}.parquet" for i in range(3)]
    source, _, label = loaded(tmp_path / "train-*.parquet")
    assert [group.rows for group in source.groups] == [4, 4, 4, 4, 4, 1]
    assert label.tolist() == [i % 10 for i in range(21)]
    column = pq.ParquetFile(paths[0]).metadata.row_group(0).column(0)
    assert column.compression == "UNCOMPRESSED"


def test_what_is_there_is_not_overwritten(shapes, tmp_path):
    with pytest.raises(UserError, match=r"train-00000\.parquet is there already: remove it"):
        write("shapes", DatasetOptions(to=str(shapes)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write shapes to"):
        write("shapes", DatasetOptions(to=str(tmp_path / "file" / "folder")))


def test_unknown_names(tmp_path):
    with pytest.raises(UserError, match="no dataset is called cifar: choose one of shapes, cifar10"):
        write("cifar", DatasetOptions(to=str(tmp_path)))
    with pytest.raises(UserError, match="cifar10 has no split val: choose one of train, test"):
        write("cifar10", DatasetOptions(to=str(tmp_path), split="val"))


# ------------------------------------------------------------------------------------ torchvision's own


def test_arrays_become_png_without_loss(tmp_path, monkeypatch):
    """CIFAR-10's class stood in for, as torchvision checks the published files' MD5."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    asked = []

    class Cifar:
        classes = tuple("abcdefghij")

        def __init__(self, root, train, download):
            asked.append((Path(root), train, download))
            self.data = pixels if train else pixels[:2]
            self.targets = [*range(10), 3, 4] if train else [1, 0]

    stand_in = datasets.partial(datasets._cifar, Cifar, "the folder")
    monkeypatch.setitem(datasets.DATASETS, "cifar10", (("train", "test"), stand_in))
    write("cifar10", DatasetOptions(to=str(tmp_path)))
    write("cifar10", DatasetOptions(to=str(tmp_path / "b"), source=str(tmp_path / "own"), split="test"))
    original, own = tmp_path / "original", tmp_path / "own"
    assert asked == [(original, True, True), (original, False, True), (own, False, False)]
    source, image, label = loaded(tmp_path / "train-*.parquet", 32)
    assert np.array_equal(image, pixels.transpose(0, 3, 1, 2)) and source.class_names == tuple("abcdefghij")
    assert label.tolist() == [*range(10), 3, 4]


def test_stl10_both(tmp_path, monkeypatch):
    class Stl10:
        classes = ("airplane", "bird")

        def __init__(self, root, split, download):
            assert split == "train+unlabeled"
            self.data = np.arange(3 * 3 * 96 * 96).reshape(3, 3, 96, 96).astype(np.uint8)
            self.labels = np.array([1, 0, -1])

    monkeypatch.setattr(published, "STL10", Stl10)
    (path,) = write("stl10", DatasetOptions(to=str(tmp_path), split="both"))
    _, image, label = loaded(path, 96)
    assert path.name == "both-00000.parquet" and label.tolist() == [1, 0, -1]
    assert np.array_equal(image[0], np.arange(3 * 96 * 96).reshape(3, 96, 96).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("stl10", "stl10_binary"),
        ("celeba", "celeba"),
        ("voc2007", "VOCdevkit/VOC2007"),
        ("imagenette", "imagenette2 "),
        ("imagenette_160", "imagenette2-160"),
        ("food101", "food-101"),
        ("sun397", "SUN397"),
        ("cars", "stanford_cars"),
        ("aircraft", "fgvc-aircraft-2013b"),
        ("dtd", "dtd"),
        ("pets", "oxford-iiit-pet"),
        ("caltech101", "caltech101"),
        ("flowers", "flowers-102"),
    ],
)
def test_missing_files_say_what_to_put_where(tmp_path, name, layout):
    with pytest.raises(UserError, match=rf"not found, or damaged: .*\nPut the folder {layout}.* with --source"):
        write(name, DatasetOptions(to=str(tmp_path / "to"), source=str(tmp_path)))


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refused)
    with pytest.raises(UserError, match=r"download failed: Network is unreachable\nPut the folder cifar-10-batches-py"):
        write("cifar10", DatasetOptions(to=str(tmp_path)))


def test_voc2007(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for part, names in (("trainval", ["000005", "000007"]), ("test", ["000001"])):
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names))
        for name in names:
            picture(root / "JPEGImages" / f"{name}.jpg")
            (root / "Annotations").mkdir(exist_ok=True)
            objects = [("dog", 0), ("dog", 1), ("car", 1)] if part == "trainval" else [("person", 0), ("bird", 0)]
            body = "".join(f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in objects)
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")
    train, test = (pq.read_table(p) for p in write("voc2007", DatasetOptions(str(tmp_path / "to"), str(tmp_path))))
    assert train.num_rows == 2 and train["labels"].to_pylist() == [[11], [11]]
    assert train["difficult"].to_pylist() == [[6], [6]]
    assert test["labels"].to_pylist() == [[2, 14]] and test["difficult"].to_pylist() == [[]]
    assert json.loads(train.schema.metadata[b"class_names"])[11] == "dog"
    assert train["image"][0].as_py() == (root / "JPEGImages" / "000005.jpg").read_bytes()  # copied, not made anew


def test_celeba(tmp_path, monkeypatch):
    monkeypatch.setattr(published.CelebA, "_check_integrity", lambda self: True)  # it compares MD5 sums
    base = tmp_path / "celeba"
    files = [f"{i}.jpg" for i in range(6)]  # two in each split
    for i, file in enumerate(files):
        picture(base / "img_align_celeba" / file, i)
    signs = [" ".join(str(1 if (i + k) % 2 else -1) for k in range(40)) for i in range(6)]
    (base / "list_eval_partition.txt").write_text("".join(f"{file} {i // 2}\n" for i, file in enumerate(files)))
    (base / "identity_CelebA.txt").write_text("".join(f"{file} 1\n" for file in files))
    for name in ("list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        (base / name).write_text("6\nx y\n" + "".join(f"{file} 1 2\n" for file in files))
    header = " ".join(f"a{k}" for k in range(40))
    rows = "".join(f"{file} {sign}\n" for file, sign in zip(files, signs, strict=True))
    (base / "list_attr_celeba.txt").write_text(f"6\n{header} \n{rows}")
    paths = write("celeba", DatasetOptions(str(tmp_path / "to"), str(tmp_path)))
    assert [path.name for path in paths] == [f"{split}-00000.parquet" for split in ("train", "val", "test")]
    val = pq.read_table(paths[1])
    assert val["attributes"].to_pylist() == [[k % 2 for k in range(40)], [1 - k % 2 for k in range(40)]]
    assert json.loads(val.schema.metadata[b"class_names"]) == [f"a{k}" for k in range(40)]
    assert not open_source(str(paths[1]), Data()).labelled


# -------------------------------------------------------------------------------- folders sorted by class


def test_imagenette(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        for wnid in ("n01440764", "n02102040"):
            for i in range(count):
                picture(tmp_path / "imagenette2" / split / wnid / f"{split}{i}.JPEG")
    train, val = write("imagenette", DatasetOptions(str(tmp_path / "to"), str(tmp_path)))
    source, _, label = loaded(train)
    assert source.class_names == ("tench", "English springer") and sorted(label.tolist()) == [0] * 3 + [1] * 3
    assert loaded(val)[0].rows == 2


def test_imagenet_is_shuffled_and_copied(tmp_path):
    for c in range(4):
        for i in range(5):
            picture(tmp_path / "train" / f"n{c}" / f"n{c}_{i}.JPEG", 50 * c + i)
    options = DatasetOptions(str(tmp_path / "to"), str(tmp_path), split="train")
    (path,) = write("imagenet", options)
    source, image, label = loaded(path, 6)
    assert source.class_names == ("n0", "n1", "n2", "n3")
    assert label.tolist() != sorted(label.tolist()) and Counter(label.tolist()) == dict.fromkeys(range(4), 5)
    assert np.array_equal(image[:, 0, 0, 0] // 50, label)
    first = pq.read_table(path)["image"][0].as_py()
    assert first in [file.read_bytes() for file in (tmp_path / "train").rglob("*.JPEG")]


def test_imagenet100_by_its_class_list(tmp_path):
    for name in ("n3", "n1", "n2"):
        picture(tmp_path / "train" / name / "a.JPEG", int(name[1]))
    (tmp_path / "classes.txt").write_text("n3 great grey owl\n\nn1\n")
    options = DatasetOptions(
        str(tmp_path / "to"), str(tmp_path), split="train", class_list=str(tmp_path / "classes.txt")
    )
    (path,) = write("imagenet100", options)
    source, image, label = loaded(path, 6)
    assert source.class_names == ("n1", "n3")
    assert dict(zip(label.tolist(), image[:, 0, 0, 0].tolist(), strict=True)) == {0: 1, 1: 3}
    (tmp_path / "classes.txt").write_text("n1\nn9\n")
    with pytest.raises(UserError, match=r"1 of 2 class folders are missing under .*, as n9"):
        write("imagenet100", DatasetOptions(str(tmp_path / "b"), options.source, "train", options.class_list))


@pytest.mark.parametrize("name", ["imagenet", "imagenet100", "tinyimagenet"])
def test_folder_sets_need_a_source(tmp_path, name):
    with pytest.raises(UserError, match="--source names"):
        write(name, DatasetOptions(to=str(tmp_path)))
    with pytest.raises(UserError, match=r"--source names|--class-list names"):
        write(name, DatasetOptions(to=str(tmp_path), source=str(tmp_path / "none")))


def test_tinyimagenet(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n2", "n1"):
        picture(root / "train" / name / "images" / f"{name}_0.JPEG", int(name[1]) * 40)
        picture(root / "val" / "images" / f"val_{name}.JPEG", int(name[1]) * 40)
    (root / "wnids.txt").write_text("n2\nn1\n")
    (root / "words.txt").write_text("n1\tgoldfish, Carassius auratus\nn2\tbullfrog\nn3\tother\n")
    (root / "val" / "val_annotations.txt").write_text("val_n2.JPEG\tn2\t0\t0\t5\t5\nval_n1.JPEG\tn1\t0\t0\t5\t5\n")
    for path in write("tinyimagenet", DatasetOptions(str(tmp_path / "to"), str(root))):
        source, image, label = loaded(path, 6)
        assert source.class_names == ("goldfish", "bullfrog") and source.rows == 2
        assert np.array_equal(image[:, 0, 0, 0] // 40 - 1, label)


# ----------------------------------------------------------------------------------- many-shot transfer


def food101(root):
    """Three training images and one test image of each of two classes, as the published archive has them."""
    for split, numbers in (("train", (1, 2, 3)), ("test", (4,))):
        lists = {name: [f"{name}/{i}" for i in numbers] for name in ("waffles", "apple_pie")}
        (root / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(lists))
        for name, files in lists.items():
            for file in files:
                picture(root / "food-101" / "images" / f"{file}.jpg", 200 if name == "waffles" else 10)
    return ["apple_pie", "waffles"], {"train": 3, "test": 1}


def dtd(root):
    """Of the first fold two lists are train; the second fold has other images."""
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for fold in (1, 2):
        for part, number in (("train", 0), ("val", 1), ("test", 2)):
            lines = [f"{name}/{name}_{10 * fold + number}.jpg" for name in ("zigzagged", "banded")]
            (base / "labels" / f"{part}{fold}.txt").write_text("\n".join(lines))
            for line in lines:
                picture(base / "images" / line, 200 if line[0] == "z" else 10)
    return ["banded", "zigzagged"], {"train": 2, "test": 1}


def pets(root):
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for part, numbers in (("trainval", (1, 2)), ("test", (3,))):
        rows = [(name, label, i) for label, name in ((1, "Abyssinian"), (2, "great_pyrenees")) for i in numbers]
        text = "".join(f"{name}_{i} {label} 1 1\n" for name, label, i in rows)
        (base / "annotations" / f"{part}.txt").write_text(text)
        for name, label, i in rows:
            picture(base / "images" / f"{name}_{i}.jpg", 10 if label == 1 else 200)
    return ["Abyssinian", "Great Pyrenees"], {"train": 2, "test": 1}


def aircraft(root):
    base = root / "fgvc-aircraft-2013b" / "data"
    base.mkdir(parents=True)
    (base / "variants.txt").write_text("707-320\nA300B4\n")
    for part, numbers in (("trainval", ("0000001", "0000002")), ("test", ("0000003",))):
        rows = [
            (f"{label}{number[1:]}", name) for label, name in enumerate(("707-320", "A300B4")) for number in numbers
        ]
        (base / f"images_variant_{part}.txt").write_text("".join(f"{file} {name}\n" for file, name in rows))
        for file, name in rows:
            picture(base / "images" / f"{file}.jpg", 10 if name == "707-320" else 200)
    return ["707-320", "A300B4"], {"train": 2, "test": 1}


def cars(root):
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    for part, count, file in (
        ("train", 4, "devkit/cars_train_annos.mat"),
        ("test", 2, "cars_test_annos_withlabels.mat"),
    ):
        rows = [(f"{i:05}.jpg", 1 + i % 2) for i in range(count)]
        kind = [("fname", object), ("class", np.uint8)]
        savemat(base / file, {"annotations": np.array(rows, dtype=kind)})
        for name, label in rows:
            picture(base / f"cars_{part}" / name, 10 if label == 1 else 200)
    return names.tolist(), {"train": 2, "test": 1}


def flowers(root):
    """Six images; 1 and 2 are training, 3 and 4 validation, 5 and 6 test images."""
    base = root / "flowers-102"
    base.mkdir()
    savemat(base / "imagelabels.mat", {"labels": np.array([1, 2, 1, 2, 1, 2])})
    savemat(base / "setid.mat", {"trnid": np.array([1, 2]), "valid": np.array([3, 4]), "tstid": np.array([5, 6])})
    for i in range(1, 7):
        picture(base / "jpg" / f"image_{i:05}.jpg", 10 if i % 2 else 200)
    return list(published.Flowers102.classes), {"train": 2, "test": 1}


def sun397(root):
    base = root / "SUN397"
    classes = ["abbey", "apartment_building/outdoor"]
    lists = {"Training_01.txt": (1, 2), "Testing_01.txt": (3,)}
    for name in classes:
        for i in range(1, 5):  # the fourth is in no list
            picture(base / "a" / name / f"sun_{i}.jpg", 10 if name == "abbey" else 200)
    (base / "ClassName.txt").write_text("".join(f"/a/{name}\n" for name in classes))
    for file, numbers in lists.items():
        (base / file).write_text("".join(f"/a/{name}/sun_{i}.jpg\n" for name in classes for i in numbers))
    return classes, {"train": 2, "test": 1}


def caltech101(root):
    base = root / "caltech101" / "101_ObjectCategories"
    for value, name in ((10, "BACKGROUND_Google"), (200, "accordion")):
        for i in range(1, 33):
            picture(base / name / f"image_{i:04}.jpg", value)
    return ["BACKGROUND_Google", "accordion"], {"train": 30, "test": 2}


@pytest.mark.parametrize("made", [food101, dtd, pets, aircraft, cars, flowers, sun397, caltech101])
def test_many_shot_sets_have_their_published_splits(tmp_path, monkeypatch, made):
    """Read by torchvision out of the published layout; dark images are of class 0. Files are copied, in a mixture."""
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5: Path(path).is_file())
    (tmp_path / "own").mkdir()
    classes, counts = made(tmp_path / "own")
    options = DatasetOptions(str(tmp_path / "to"), str(tmp_path / "own"))
    paths = write(made.__name__, options)
    assert [path.name for path in paths] == ["train-00000.parquet", "test-00000.parquet"]
    seen: list[tuple[str, int]] = []
    for path, count in zip(paths, counts.values(), strict=True):
        source, image, label = loaded(path, 6)
        assert list(source.class_names) == classes and Counter(label.tolist()) == {0: count, 1: count}
        assert np.array_equal(image[:, 0, 3, 3] > 100, label == 1)
        table = pq.read_table(path)
        seen += zip(table["name"].to_pylist(), table["label"].to_pylist(), strict=True)
    if made is not cars:  # whose training and test images are numbered alike
        assert len(set(seen)) == 2 * sum(counts.values())  # no image twice, and none in both splits


def test_folds_of_dtd_and_splits_of_caltech(tmp_path):
    dtd(tmp_path)
    options = DatasetOptions(str(tmp_path / "to"), str(tmp_path), "test", fold=2)
    assert sorted(pq.read_table(write("dtd", options))["name"].to_pylist()) == ["banded_22.jpg", "zigzagged_22.jpg"]
    with pytest.raises(UserError, match="--fold is 1 to 10, got 11"):
        write("dtd", DatasetOptions(str(tmp_path / "other"), str(tmp_path), fold=11))
    caltech101(tmp_path)

    def named(seed, split):
        options = DatasetOptions(str(tmp_path / f"{seed}"), str(tmp_path), split, seed=seed)
        return {*pq.read_table(write("caltech101", options))["name"].to_pylist()}

    assert named(0, "test") != named(1, "test")


def test_sun397_needs_its_partitions(tmp_path):
    sun397(tmp_path)
    (tmp_path / "SUN397" / "Testing_01.txt").unlink()
    with pytest.raises(UserError, match=r"no file .*Testing_01.txt: unpack Partitions.zip"):
        write("sun397", DatasetOptions(str(tmp_path / "to"), str(tmp_path), "test"))


def test_cars_cannot_be_downloaded(tmp_path):
    with pytest.raises(UserError, match=r"download failed: .*broken.*\nPut the folder stanford_cars"):
        write("cars", DatasetOptions(str(tmp_path)))

"""Datasets as Parquet: `write("cifar10", DatasetOptions(to="data/cifar10"))`.

Files are `<to>/<split>-00000.parquet` and so on: column `image` (encoded bytes), `label` (int32) where there is one,
class names in the schema metadata under `class_names` (JSON, index = label), row groups of 1,000, no compression (the
images have theirs). Sets published as arrays become PNG, without loss; image files are copied as they are.

CelebA has no single label: `attributes` is a list of 40 zeros and ones. VOC 2007 has several: `labels` lists the
classes of an image, `difficult` those of which it shows difficult objects alone (which VOC's protocol leaves out of
the evaluation). `class_names` are the names of attributes or classes there.

Videos are a column `video` (the published file's bytes, or one made here without loss) in row groups of up to 64 rows
and 32 MiB. Takes, what several cameras saw at once, are one row a camera: `take`, `camera`, `video`, `num_frames`
(which all its cameras have), and where there are any `label`, `pose` (floats, frame by frame and joint by joint x, y,
z in mm, in the camera's coordinates: x right, y down, z forward), `box` (floats, frame by frame centre x, centre y
and side in pixels of the video as a player shows it) and `keypoints` (floats, frame by frame and keypoint by keypoint
x, y in such pixels and a confidence, 0 where it was not found). A take is one row group. Schema metadata name the
joints (`joint_names`, `joint_parents`, `joint_mirror`) and keypoints (`keypoint_names`) and describe cameras that are
the same in all takes (`cameras`; see `pipelines.cameras`), as JSON.

The other sets of many-shot transfer (ReSSL, Table 9; SCE, Table 9) are food101, sun397, cars, aircraft, dtd, pets,
caltech101 and flowers, with `train` and `test` alone: published training and validation images are train together.

Rows keep the published order, but those of sets that are sorted by class (imagenette, tinyimagenet, imagenet, those of
many-shot transfer, ucf101, hmdb51, kinetics) are shuffled with `seed`, so that a row group is a mixture; `name` is then
the published file's name, without folders.
"""

import io
import json
import os
import urllib.error
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torchvision.datasets as published
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import Progress

from pipelines import bodies, video_datasets
from pipelines.errors import UserError
from pipelines.motions import MOTIONS
from pipelines.sources import IMAGES

ROWS_PER_GROUP = 1_000  # of images
ROWS_PER_FILE = 10_000
VIDEOS_PER_GROUP = 64
BYTES_PER_GROUP = 32 * 2**20  # of videos, unless one alone has more
BYTES_PER_FILE = 2**30

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetOptions:
    to: str
    """Folder for the Parquet files."""
    source: str | None = None
    """Folder that holds the unpacked published files (of takes: or a Parquet file). None: they are downloaded to
    TO/original."""
    split: str | None = None
    """One split alone. stl10 has the further split `both`: train and unlabeled together."""
    class_list: str | None = None
    """imagenet100: a text file with a class folder's name (n01558993) at the start of each line."""
    images: int = 6000
    """shapes: images of the train split; the test split has a sixth of that."""
    videos: int = 600
    """motions: videos of the train split; the test split has a sixth of that."""
    takes: int = 64
    """poses: takes of the train split; the test split has a sixth of that, of other subjects."""
    frames: int = 64
    """poses: frames of a take."""
    backgrounds: Literal["static", "varied"] = "static"
    """poses: static: one for each camera, in all takes; varied: new ones in each take."""
    angle: float = 30.0
    """poses: degrees between neighbouring cameras, which stand on a circle. At 90 they are all round, as Human3.6M's;
    what synchronization teaches then takes far longer to learn."""
    size: int | None = None
    """shapes, motions, poses: pixels a side. None: 32, of poses 128."""
    fold: int = 1
    """ucf101, hmdb51: which of the three official splits. dtd, sun397: which of the ten; ReSSL's and SCE's is not said,
    the first is customary."""
    allow_missing: bool = False
    """ucf101, hmdb51, kinetics, takes, h36m: what is missing or broken is left out and counted, and is no error."""
    take: str | None = None
    """takes from Parquet: the column that names the take. None: take, or scene."""
    slack: int = 8
    """takes, h36m: frames by which the videos of a take (and its poses, boxes and keypoints) may differ; the first that
    all have count."""
    least_motion: float = 0.0
    """h36m, train: frames in which no joint is so many mm from where the last kept frame had it are left out, and
    the videos encoded anew. 0: all frames are kept, and the files' bytes."""
    subjects: tuple[str, ...] = ()
    """h36m: these alone, as S1 (labels of one subject, Table 6.1 of the thesis). Empty: all of a split."""
    seed: int = 0
    """shapes, motions, poses: of what is drawn. Sets sorted by class: of the order of rows; caltech101: and of the
    split."""


class Split(NamedTuple):
    """What becomes the files of a split."""

    name: str
    rows: int  # at most, where some may turn out to be broken
    examples: Iterable[tuple[Any, ...]]  # a value for each column of `media`, then for each of `columns`
    columns: tuple[pa.Field, ...]
    class_names: Sequence[str] | None
    media: Literal["image", "video", "take"] = "image"
    metadata: Mapping[str, Any] | None = None  # further ones of the schema; they become JSON


LABEL = (pa.field("label", pa.int32()),)
NAME = pa.field("name", pa.string())
MEDIA = {
    "image": (pa.field("image", pa.binary()),),
    "video": (pa.field("video", pa.binary()),),
    "take": (
        pa.field("take", pa.string()),
        pa.field("camera", pa.string()),
        pa.field("video", pa.binary()),
        pa.field("num_frames", pa.int32()),
    ),
}
POSE = (*LABEL, pa.field("pose", pa.list_(pa.float32())), pa.field("box", pa.list_(pa.float32())))


def write(name: str, options: DatasetOptions) -> list[Path]:
    """Writes the splits of a dataset as Parquet -> the files. A split is there whole, or not at all.

    Raises:
        UserError: no such dataset or split, files that are missing or cannot be fetched, a split that is there already,
            a folder that cannot be written.
    """
    if name not in DATASETS:
        raise UserError(f"no dataset is called {name}: choose one of {', '.join(DATASETS)}")
    splits, make = DATASETS[name]
    default = [split for split in splits if split != "both"]
    if options.split is not None and options.split not in splits:
        raise UserError(f"{name} has no split {options.split}: choose one of {', '.join(splits)}")
    wanted = default if options.split is None else [options.split]
    folder = Path(options.to).expanduser()
    for split in wanted:
        if there := sorted(folder.glob(f"{split}-*.parquet")):
            raise UserError(f"{there[0]} is there already: remove it, or choose another folder with --to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [path for split in wanted for path in _write(make(split, options), folder)]
    except OSError as error:
        raise UserError(f"cannot write {name} to {folder}: {error}") from error


def _groups(split: Split) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of each row group."""
    if split.media == "take":
        for _, rows in groupby(split.examples, lambda row: row[0]):
            yield list(rows)
        return
    most = ROWS_PER_GROUP if split.media == "image" else VIDEOS_PER_GROUP
    group: list[tuple[Any, ...]] = []
    size = 0
    for row in split.examples:
        if group and (len(group) == most or (split.media == "video" and size + len(row[0]) > BYTES_PER_GROUP)):
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row[0])
    if group:
        yield group


def _write(split: Split, folder: Path) -> list[Path]:
    named = {} if split.class_names is None else {"class_names": list(split.class_names)}
    metadata = {key: json.dumps(value) for key, value in {**named, **(split.metadata or {})}.items()}
    schema = pa.schema([*MEDIA[split.media], *split.columns], metadata)
    groups = iter(_groups(split))
    ahead = next(groups, None)
    temporary: list[Path] = []
    noun = "images" if split.media == "image" else "videos"
    try:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(f"{split.name}: {split.rows} {noun}", total=split.rows)
            while ahead is not None or not temporary:
                temporary.append(folder / f".{split.name}-{len(temporary):05}.parquet.part")
                rows = 0
                with pq.ParquetWriter(temporary[-1], schema, compression="none", use_dictionary=False) as writer:
                    while ahead and (not rows or not _full(temporary[-1], rows + len(ahead))):
                        columns = zip(*ahead, strict=True)
                        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
                        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                        rows += len(ahead)
                        progress.advance(task, len(ahead))
                        ahead = next(groups, None)
        final = [path.with_name(path.name[1:].removesuffix(".part")) for path in temporary]
        for path, name in zip(temporary, final, strict=True):
            os.replace(path, name)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return final


def _full(path: Path, rows: int) -> bool:
    return rows > ROWS_PER_FILE or path.stat().st_size >= BYTES_PER_FILE


def _png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) -> PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# ------------------------------------------------------------------------------------ torchvision's own


def _published(options: DatasetOptions, layout: str, make: Callable[[Path, bool], T]) -> T:
    """`make(folder, download)`, with what can go wrong said in the user's terms."""
    folder = Path(options.source or Path(options.to) / "original").expanduser()
    try:
        if options.source is None:
            folder.mkdir(parents=True, exist_ok=True)
        return make(folder, options.source is None)
    except (OSError, RuntimeError, ImportError, ValueError, urllib.error.URLError) as error:
        did = "download failed" if options.source is None else "not found, or damaged"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{did}: {reason}\nPut {layout} into a folder and name it with --source") from error


def _arrays(name: str, images: np.ndarray, labels: Iterable[int], class_names: Sequence[str]) -> Split:
    """images: uint8 (N, H, W, 3)."""
    examples = ((_png(pixels), int(label)) for pixels, label in zip(images, labels, strict=True))
    return Split(name, len(images), examples, LABEL, class_names)


def _cifar(dataset: type[published.CIFAR10], layout: str, split: str, options: DatasetOptions) -> Split:
    data = _published(options, layout, lambda root, get: dataset(root, train=split == "train", download=get))
    return _arrays(split, data.data, data.targets, data.classes)


def _stl10(split: str, options: DatasetOptions) -> Split:
    """Images without a label have the label -1."""
    part = "train+unlabeled" if split == "both" else split
    layout = "the folder stl10_binary (train_X.bin, ...)"
    data = _published(options, layout, lambda root, get: published.STL10(root, split=part, download=get))
    return _arrays(split, data.data.transpose(0, 2, 3, 1), data.labels, data.classes)


def _celeba(split: str, options: DatasetOptions) -> Split:
    part = "valid" if split == "val" else split
    layout = "the folder celeba (img_align_celeba/ and the five .txt lists)"
    data = _published(options, layout, lambda root, get: published.CelebA(root, split=part, download=get))
    images = Path(data.root) / data.base_folder / "img_align_celeba"
    rows = zip(data.filename, data.attr.tolist(), strict=True)
    examples = (((images / file).read_bytes(), attributes) for file, attributes in rows)
    columns = (pa.field("attributes", pa.list_(pa.int8())),)
    return Split(split, len(data.filename), examples, columns, [name for name in data.attr_names if name])


VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def _voc2007(split: str, options: DatasetOptions) -> Split:
    part = "trainval" if split == "train" else split
    layout = "the folder VOCdevkit/VOC2007 (JPEGImages/, Annotations/, ImageSets/)"
    data = _published(
        options, layout, lambda root, get: published.VOCDetection(root, year="2007", image_set=part, download=get)
    )
    examples = (
        (Path(image).read_bytes(), *_voc_labels(annotation))
        for image, annotation in zip(data.images, data.annotations, strict=True)
    )
    columns = (pa.field("labels", pa.list_(pa.int32())), pa.field("difficult", pa.list_(pa.int32())))
    return Split(split, len(data.images), examples, columns, VOC)


def _voc_labels(annotation: str) -> tuple[list[int], list[int]]:
    objects = [(o.findtext("name"), o.findtext("difficult")) for o in xml.parse(annotation).iter("object")]
    clear = {VOC.index(name) for name, difficult in objects if name and difficult != "1"}
    hard = {VOC.index(name) for name, _ in objects if name} - clear
    return sorted(clear), sorted(hard)


# -------------------------------------------------------------------------------- folders sorted by class


def _tree(split: str, folder: Path, names: dict[str, str] | None, seed: int) -> Split:
    """`folder/class/**/image`, shuffled. names: class folder -> name, the classes; None: all folders, by themselves."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: --source names the folder that holds it")
    names = names or {path.name: path.name for path in folder.iterdir() if path.is_dir()}
    if missing := sorted(name for name in names if not (folder / name).is_dir()):
        raise UserError(f"{len(missing)} of {len(names)} class folders are missing under {folder}, as {missing[0]}")
    files = [(file, label) for label, name in enumerate(sorted(names)) for file in _images(folder / name)]
    if not files:
        raise UserError(f"no images under {folder}: they lie in a folder for each class, as {folder.name}/n01440764/")
    return _files(split, files, [names[name] for name in sorted(names)], seed)


def _files(split: str, files: Sequence[tuple[Path, int]], class_names: Sequence[str], seed: int) -> Split:
    order = np.random.default_rng(seed).permutation(len(files)).tolist()
    examples = ((files[i][0].read_bytes(), files[i][1], files[i][0].name) for i in order)
    return Split(split, len(files), examples, (*LABEL, NAME), class_names)


def _images(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix[1:].lower() in IMAGES and not f.name.startswith("."))


def _imagenette(size: str, split: str, options: DatasetOptions) -> Split:
    layout = f"the folder imagenette2{'' if size == 'full' else '-' + size[:-2]} (train/, val/)"
    data = _published(
        options, layout, lambda root, get: published.Imagenette(root, split=split, size=size, download=get)
    )
    folder = Path(data.root) / ("imagenette2" if size == "full" else f"imagenette2-{size[:-2]}") / split
    names = dict(zip(data.wnids, (names[0] for names in data.classes), strict=True))
    return _tree(split, folder, names, options.seed)


def _given(options: DatasetOptions, what: str) -> Path:
    if options.source is None:
        raise UserError(f"this set is read from a folder: --source names {what}")
    return Path(options.source).expanduser()


def _imagenet(split: str, options: DatasetOptions) -> Split:
    """The tree that torchvision.datasets.ImageNet makes of the published archives: train/ and val/, sorted by class."""
    root = _given(options, "the folder that holds train/n01440764/*.JPEG and val/n01440764/*.JPEG")
    return _tree(split, root / split, None, options.seed)


def _imagenet100(split: str, options: DatasetOptions) -> Split:
    root = _given(options, "the folder that holds train/n01440764/*.JPEG and val/n01440764/*.JPEG")
    if options.class_list is None:
        raise UserError("imagenet100 is a choice of 100 classes: --class-list names a file with one of them on a line")
    lines = Path(options.class_list).expanduser().read_text().splitlines()
    wnids = [line.split()[0] for line in lines if line.strip()]
    if not wnids:
        raise UserError(f"{options.class_list} is empty: one class folder's name on a line")
    return _tree(split, root / split, {wnid: wnid for wnid in wnids}, options.seed)


def _tinyimagenet(split: str, options: DatasetOptions) -> Split:
    root = _given(options, "tiny-imagenet-200 (wnids.txt, words.txt, train/, val/)")
    lists = {name: root / name for name in ("wnids.txt", "words.txt", "val/val_annotations.txt")}
    if missing := [str(path) for path in lists.values() if not path.is_file()]:
        raise UserError(f"no file {missing[0]}: --source names the published folder, tiny-imagenet-200")
    wnids = sorted(lists["wnids.txt"].read_text().split())
    words = dict(line.split("\t")[:2] for line in lists["words.txt"].read_text().splitlines() if "\t" in line)
    names = {wnid: words.get(wnid, wnid).split(",")[0] for wnid in wnids}
    if split == "train":
        return _tree(split, root / "train", names, options.seed)
    lines = [line.split() for line in lists["val/val_annotations.txt"].read_text().splitlines()]
    files = [(root / "val" / "images" / line[0], wnids.index(line[1])) for line in lines if line]
    return _files(split, files, [names[wnid] for wnid in wnids], options.seed)


# ----------------------------------------------------------------------------------- many-shot transfer


def _many_shot(
    kind: Callable[..., Any], layout: str, parts: Mapping[str, Sequence[str]], split: str, options: DatasetOptions
) -> Split:
    """Image files as a class of torchvision lists them. parts: a split -> the published ones that it consists of."""
    found = [
        _published(options, layout, lambda root, get, part=part: kind(root, split=part, download=get))  # type: ignore[misc]
        for part in parts[split]
    ]
    pairs = [(Path(file), int(label)) for one in found for file, label in _listing(one)]
    return _files(split, pairs, found[0].classes, options.seed)


def _listing(dataset: Any) -> Iterable[tuple[Any, int]]:
    """(file, label) of each image; torchvision has no public name for them."""
    if isinstance(dataset, published.StanfordCars):
        return dataset._samples
    files = dataset._images if isinstance(dataset, published.OxfordIIITPet) else dataset._image_files
    return zip(files, dataset._labels, strict=True)


def _dtd(split: str, options: DatasetOptions) -> Split:
    """Of fold k `labels/trainK.txt` and `labels/valK.txt` are train."""
    kind = partial(published.DTD, partition=_tenth(options))
    return _many_shot(kind, "the folder dtd (dtd/images/, dtd/labels/)", _WITH_VAL, split, options)


def _tenth(options: DatasetOptions) -> int:
    if not 1 <= options.fold <= 10:
        raise UserError(f"--fold is 1 to 10, got {options.fold}")
    return options.fold


def _sun397(split: str, options: DatasetOptions) -> Split:
    """The published archive has no splits: they are in Partitions.zip of the set's page, 50 and 50 images a class."""
    layout = "the folder SUN397 (ClassName.txt, a/, b/, ...)"
    data = _published(options, layout, lambda root, get: published.SUN397(root, download=get))
    name = f"{'Training' if split == 'train' else 'Testing'}_{_tenth(options):02}.txt"
    lists = [data._data_dir / name, data._data_dir.parent / name, data._data_dir / "Partitions" / name]
    there = next((path for path in lists if path.is_file()), None)
    if there is None:
        raise UserError(
            f"no file {lists[0]}: unpack Partitions.zip (https://vision.princeton.edu/projects/2010/SUN) there"
        )
    lines = [
        line.strip() for line in there.read_text().splitlines() if line.strip()
    ]  # /a/abbey/sun_aaalbzqrimafwbiv.jpg
    pairs = [(data._data_dir / line[1:], data.class_to_idx["/".join(line.split("/")[2:-1])]) for line in lines]
    return _files(split, pairs, data.classes, options.seed)


CALTECH_TRAIN = 30  # images a class


def _caltech101(split: str, options: DatasetOptions) -> Split:
    """No split is published: 30 images of each class, drawn with `seed`, are train, the others test, as in BYOL's and
    SimCLR's evaluation, whose 102 classes count BACKGROUND_Google as one. No text says which 30 (ours)."""
    layout = "the folder caltech101 (101_ObjectCategories/)"
    data = _published(options, layout, lambda root, get: published.Caltech101(root, download=get))
    folder = Path(data.root) / "101_ObjectCategories"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    pairs: list[tuple[Path, int]] = []
    for label, name in enumerate(names):
        files = _images(folder / name)
        order = np.random.default_rng([options.seed, label]).permutation(len(files))
        chosen = order[:CALTECH_TRAIN] if split == "train" else order[CALTECH_TRAIN:]
        pairs += [(files[i], label) for i in sorted(chosen.tolist())]
    return _files(split, pairs, names, options.seed)


# ---------------------------------------------------------------------------------------------- shapes

Outline = tuple[np.ndarray, ...]  # polygons (V, 2) about the origin; the first is filled, the second cut out


def _area(outline: Outline) -> float:
    first, *cut = (abs(p[:, 0] @ np.roll(p[:, 1], -1) - p[:, 1] @ np.roll(p[:, 0], -1)) / 2 for p in outline)
    return float(first - sum(cut))


def _polygon(corners: int, radius: float = 1.0, inner: float | None = None) -> np.ndarray:
    """A regular polygon, or with `inner` a star of so many points."""
    points = corners * (1 if inner is None else 2)
    angle = 2 * np.pi * np.arange(points) / points
    reach = np.where(np.arange(points) % 2 == 0, radius, radius if inner is None else inner)
    return np.stack([reach * np.cos(angle), reach * np.sin(angle)], 1)


_CROSS = [(-1, 3), (1, 3), (1, 1), (3, 1), (3, -1), (1, -1), (1, -3), (-1, -3), (-1, -1), (-3, -1), (-3, 1), (-1, 1)]
_ARROW = [(4, 0), (0, 4), (0, 1.5), (-4, 1.5), (-4, -1.5), (0, -1.5), (0, -4)]

_OUTLINES: dict[str, Outline] = {
    "arrow": (np.array(_ARROW),),
    "bar": (np.array([(1, 0.28), (-1, 0.28), (-1, -0.28), (1, -0.28)]),),
    "crescent": (_polygon(32, 0.95), _polygon(32, 0.75) + np.array([0.42, 0])),
    "cross": (np.array(_CROSS),),
    "disk": (_polygon(32),),
    "frame": (_polygon(4), _polygon(4, 0.6)),
    "ring": (_polygon(32, 0.92), _polygon(32, 0.55)),
    "square": (_polygon(4),),
    "star": (_polygon(5, 1.0, 0.4),),
    "triangle": (_polygon(3),),
}

SHAPES = {name: tuple(p * (1.5 / _area(o)) ** 0.5 for p in o) for name, o in _OUTLINES.items()}
"""The classes. None turns into another by rotation, mirroring or colour, so that the usual views keep it; all have the
same area, which alone would tell them apart by their pixels."""


def _shapes(split: str, options: DatasetOptions) -> Split:
    """Ten classes of shapes, three of one kind in an image (see `draw_shape`).

    The label i of row i goes round: i mod 10. Row i is a function of (seed, split, i).
    """
    size = 32 if options.size is None else options.size
    if options.images < len(SHAPES) or size < 8:
        raise UserError(f"shapes needs --images of at least {len(SHAPES)} and --size of at least 8")
    rows = options.images if split == "train" else max(options.images // 6, len(SHAPES))
    names = sorted(SHAPES)
    offset = 0 if split == "train" else 1

    def example(i: int) -> tuple[bytes, int]:
        rng = np.random.default_rng([options.seed, offset, i])
        label = i % len(names)
        return _png(draw_shape(names[label], size, rng)), label

    return Split(split, rows, map(example, range(rows)), LABEL, names)


_DARK = np.array([0.85, 0.95, 1.3])  # tints of the dark and the light tone, the same in all images
_LIGHT = np.array([1.03, 1.0, 0.88])


def draw_shape(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (size, size, 3): three shapes, light on dark or dark on light.

    Places, angles, sizes, both tones and the noise are random; hues and the number of shapes are not. Two views of an
    image would be matched by them rather than by the shape: with free colours kNN did not rise in pretraining.
    """
    fine = 4 * size  # drawn large, then reduced: antialiased
    mask = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(mask)
    turns = rng.uniform(0, 2 * np.pi, 3)
    for place, radius, turn in zip(_places(rng, 3), rng.uniform(0.19, 0.25, 3), turns, strict=True):
        rotation = radius * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        for fill, polygon in zip((255, 0), SHAPES[name], strict=False):
            pen.polygon([tuple(p) for p in ((polygon @ rotation + place) * fine).tolist()], fill=fill)
    cover = np.asarray(mask.reduce(4), np.float32)[..., None] / 255  # (S, S, 1)
    ground, figure = rng.permutation([rng.uniform(0, 90) * _DARK, rng.uniform(165, 255) * _LIGHT])
    pixels = ground + cover * (figure - ground) + rng.normal(0, 8, (size, size, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def _places(rng: np.random.Generator, count: int) -> np.ndarray:
    """Centres (count, 2) in the unit square: of 24 draws the one whose closest two lie furthest apart."""
    draws = rng.uniform(0.18, 0.82, (24, count, 2))
    apart = np.linalg.norm(draws[:, :, None] - draws[:, None], axis=-1) + 9 * np.eye(count)
    return draws[apart.min((1, 2)).argmax()]


# -------------------------------------------------------------------------------------------- videos, takes


def _motions(split: str, options: DatasetOptions) -> Split:
    """Classes of motion (see `pipelines.motions`). Row i is a function of (seed, split, i); its label is i mod 8."""
    size = 32 if options.size is None else options.size
    if options.videos < len(MOTIONS) or size < 16:
        raise UserError(f"motions needs --videos of at least {len(MOTIONS)} and --size of at least 16")
    rows = options.videos if split == "train" else max(options.videos // 6, len(MOTIONS))
    examples = (video_datasets.motion(options.seed, int(split == "test"), i, size) for i in range(rows))
    return Split(split, rows, examples, (*LABEL, pa.field("num_frames", pa.int32())), MOTIONS, "video")


_SKELETON = {"joint_names": bodies.JOINTS, "joint_parents": bodies.PARENTS, "joint_mirror": bodies.MIRROR}


def _poses(split: str, options: DatasetOptions) -> Split:
    """Takes of an articulated body (see `pipelines.bodies`); labels are subjects, none of which is in both splits."""
    size = 128 if options.size is None else options.size
    if options.takes < 1 or options.frames < 2 or size < 16:
        raise UserError("poses needs --takes of at least 1, --frames of at least 2 and --size of at least 16")
    trained, tested = video_datasets.TRAINED, video_datasets.TESTED
    takes = options.takes if split == "train" else max(options.takes // 6, tested)
    varied, angle = options.backgrounds == "varied", options.angle
    make = partial(video_datasets.pose_take, frames=options.frames, size=size, varied=varied, angle=angle)
    examples = (row for i in range(takes) for row in make(options.seed, int(split == "test"), i))
    cameras = {name: lens.entry() for name, lens in video_datasets.pose_rig(options.seed, size, angle).items()}
    names = [f"subject {i}" for i in range(trained + tested)]
    return Split(split, takes * len(cameras), examples, POSE, names, "take", {**_SKELETON, "cameras": cameras})


def _listed(listed: video_datasets.Listed, split: str, seed: int) -> Split:
    """Files as they are, shuffled; `name` is the file's, without folders."""
    files = listed.files
    order = np.random.default_rng(seed).permutation(len(files)).tolist()
    examples = ((files[i][0].read_bytes(), files[i][1], files[i][0].name) for i in order)
    return Split(split, len(files), examples, (*LABEL, NAME), listed.class_names, "video")


def _folds(split: str, options: DatasetOptions, what: Callable[[Path, str, int, bool], video_datasets.Listed]) -> Split:
    root = _given(options, "the folder that holds the classes' folders and the split files")
    if options.fold not in (1, 2, 3):
        raise UserError(f"--fold is 1, 2 or 3, got {options.fold}")
    return _listed(what(root, split, options.fold, options.allow_missing), split, options.seed)


def _kinetics(split: str, options: DatasetOptions) -> Split:
    root = _given(options, "the folder that holds train.csv, val.csv and the videos")
    return _listed(video_datasets.kinetics(root, split, options.allow_missing), split, options.seed)


def _takes(split: str, options: DatasetOptions) -> Split:
    """One split, called train. From Parquet with labels, where its files hold them."""
    source = _given(options, "a folder of TAKE/CAMERA.mp4, or a Parquet file")
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not files:
        stored = video_datasets.StoredTakes(video_datasets.folder_takes(source), {}, None, (), {})
    else:
        if not source.exists():
            raise UserError(f"no file {source}: --source names a folder of TAKE/CAMERA.mp4, or a Parquet file")
        try:
            stored = video_datasets.stored_takes(files, options.take)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{source} is neither a folder nor a Parquet file ({str(error).splitlines()[0]})"
            ) from error
    takes = video_datasets.whole_takes(stored.takes, options.allow_missing)
    labels = stored.labels if stored.labels and all(stored.labels[name] is not None for name in takes) else None
    examples = video_datasets.take_rows(takes, labels, options.slack, options.allow_missing, stored.lists)
    columns = (*(LABEL if labels else ()), *(pa.field(name, pa.list_(pa.float32())) for name in stored.lists))
    names = stored.class_names if labels else None
    return Split(split, sum(map(len, takes.values())), examples, columns, names, "take", stored.metadata)


def _h36m(split: str, options: DatasetOptions) -> Split:
    root = _given(options, "the folder that holds S1/Videos, S1/Poses, ... and cameras.toml")
    if unknown := set(options.subjects) - {name for names in video_datasets.H36M.values() for name in names}:
        raise UserError(f"h36m has no subject {min(unknown)}")
    found = video_datasets.h36m(root, split, options.allow_missing)
    subjects = [subject for subject in found if not options.subjects or subject.name in options.subjects]
    if not subjects:
        raise UserError(f"--subjects {' '.join(options.subjects)} leaves none of the split {split}: give --split")
    least = options.least_motion if split == "train" else 0.0
    examples = video_datasets.h36m_rows(root, subjects, options.slack, least, options.allow_missing)
    rows = sum(len(views) for subject in subjects for views in subject.takes.values())
    names = [name for names in video_datasets.H36M.values() for name in names]
    return Split(split, rows, examples, POSE, names, "take", _SKELETON)


_SPLITS = {"train": ("train",), "test": ("test",)}
_WITH_VAL = {"train": ("train", "val"), "test": ("test",)}
_TRAINVAL = {"train": ("trainval",), "test": ("test",)}
_FOOD101 = "the folder food-101 (images/, meta/)"
_CARS = "the folder stanford_cars (devkit/, cars_train/, cars_test/, cars_test_annos_withlabels.mat)"
_AIRCRAFT = "the folder fgvc-aircraft-2013b (data/)"
_PETS = "the folder oxford-iiit-pet (images/, annotations/)"
_FLOWERS = "the folder flowers-102 (jpg/, imagelabels.mat, setid.mat)"
_CIFAR10 = "the folder cifar-10-batches-py (data_batch_1, ...)"
_CIFAR100 = "the folder cifar-100-python (train, test, meta)"

DATASETS: dict[str, tuple[tuple[str, ...], Callable[[str, DatasetOptions], Split]]] = {
    "shapes": (("train", "test"), _shapes),
    "cifar10": (("train", "test"), partial(_cifar, published.CIFAR10, _CIFAR10)),
    "cifar100": (("train", "test"), partial(_cifar, published.CIFAR100, _CIFAR100)),
    "stl10": (("train", "unlabeled", "test", "both"), _stl10),
    "imagenette": (("train", "val"), partial(_imagenette, "full")),
    "imagenette_320": (("train", "val"), partial(_imagenette, "320px")),
    "imagenette_160": (("train", "val"), partial(_imagenette, "160px")),
    "celeba": (("train", "val", "test"), _celeba),
    "voc2007": (("train", "test"), _voc2007),
    "food101": (("train", "test"), partial(_many_shot, published.Food101, _FOOD101, _SPLITS)),
    "sun397": (("train", "test"), _sun397),
    "cars": (("train", "test"), partial(_many_shot, published.StanfordCars, _CARS, _SPLITS)),
    "aircraft": (("train", "test"), partial(_many_shot, published.FGVCAircraft, _AIRCRAFT, _TRAINVAL)),
    "dtd": (("train", "test"), _dtd),
    "pets": (("train", "test"), partial(_many_shot, published.OxfordIIITPet, _PETS, _TRAINVAL)),
    "caltech101": (("train", "test"), _caltech101),
    "flowers": (("train", "test"), partial(_many_shot, published.Flowers102, _FLOWERS, _WITH_VAL)),
    "tinyimagenet": (("train", "val"), _tinyimagenet),
    "imagenet": (("train", "val"), _imagenet),
    "imagenet100": (("train", "val"), _imagenet100),
    "motions": (("train", "test"), _motions),
    "poses": (("train", "test"), _poses),
    "ucf101": (("train", "test"), partial(_folds, what=video_datasets.ucf101)),
    "hmdb51": (("train", "test"), partial(_folds, what=video_datasets.hmdb51)),
    "kinetics": (("train", "val"), _kinetics),
    "takes": (("train",), _takes),
    "h36m": (("train", "test"), _h36m),
}
"""Name -> (splits, what makes one)."""

NAMES = tuple(DATASETS)

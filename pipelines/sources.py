"""Reading images and videos: Parquet files, folders and WebDataset tars, from a disk or an object store.

`open_source` lists files and reads metadata alone (of tars the headers); `load` reads and decodes rows of one group.
Everything here is a function of its arguments: no Ray, no state but caches of listings and filesystems.

Images become uint8 RGB, (3, S, S): the central square, resized with antialiasing. That is the shorter side resized to
S and a centre crop, in the order that bounds memory (the filter does not reach beyond the square). Alpha is dropped,
not blended; grey is repeated; CMYK and palettes are converted; of 16 bits the upper 8 are kept; of an animation the
first frame; EXIF orientation is applied. Videos are handed on as they are encoded (see pipelines.clips and
pipelines.takes).

Legend: N rows of a dataset, n rows read together, S decoded size.
"""

import glob
import hashlib
import io
import json
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem
from torch import Tensor

from methods.parts import draw
from pipelines.errors import UserError
from pipelines.storage import refuse_keys

Media = Literal["image", "video", "take"]
Order = Literal["shuffle", "balanced"]
IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
VIDEOS = frozenset({"mp4", "avi", "webm", "mkv", "mov", "m4v", "mpg", "mpeg", "wmv", "flv"})
EXTENSIONS: Mapping[Media, frozenset[str]] = {"image": IMAGES, "video": VIDEOS, "take": VIDEOS}
NOUNS: Mapping[Media, str] = {"image": "images", "video": "videos", "take": "moments"}
"""What samples are called."""
PER_GROUP = 512  # files of a folder, or samples of a tar, that are read together
MOST_PIXELS = 178_956_970  # beyond this an image is taken for a decompression bomb, as Pillow does
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What Pillow may open: the formats of `IMAGES`. Some others are programs, which it hands to Ghostscript."""
MOST_EXPANSION = 100  # times its size in the file that a row group may take in memory; more is a decompression bomb
ALWAYS = 2**30  # bytes that a row group may take, however small it is in the file
MOST_ROWS = 2**20  # rows, or frames of a take, that a Parquet file may declare beyond one for each of its bytes
PORTION = 16  # rows of a compressed row group that are read before their size is looked at
REQUESTS = 16  # at a time, to an object store


@dataclass(frozen=True)
class Data:
    """The data of a recipe. A path is local or a URI (s3://, gs://, file://); globs are allowed for files."""

    train: str = ""
    """Parquet file(s), a folder of files (`folder/class/*.jpg`, `*.mp4`; or without classes), or WebDataset tar(s)."""
    test: str | None = None
    """Likewise, for evaluation."""
    media: Media = "image"
    """What a row holds. image; video: a file; take: the video of one of several cameras, whose frames are in step; a
    sample is then a moment, and the cameras of a take lie in one row group."""
    size: int = 32
    """Pixels: the central square of each image or frame is resized to size x size."""
    width: int | None = None
    """Pixels: whole frames of videos are resized to size x width instead (C3D: 128 x 171). None: the central square."""
    image: str = "image"
    """Parquet column of encoded bytes, or of the Hub's struct of bytes and path."""
    video: str = "video"
    """Parquet column of encoded files, of videos and takes."""
    take: str = "take"
    """Parquet column that names the take."""
    camera: str = "camera"
    """Parquet column that names the camera."""
    pose: str = ""
    """Parquet column of 3D joints, for methods that learn them (`pose`). Empty: they are not read."""
    label: str = "label"
    """Parquet column of integers, or of strings (whose sorted values are the classes). It may be absent."""
    limit: int | None = None
    """Training rows, evenly spaced over the dataset, so that sorted data keep the shares of their classes."""
    max_bad: float = 0.01
    """Share of broken rows above which reading stops."""
    order: Order = "shuffle"
    """balanced: a batch consists of `--method.parts` parts with identical label counts (bilevel; resident feed only);
    what can't be balanced is left out of an epoch, and counted."""
    validation_ratio: float = 0.0
    """With order balanced: the share of each class's images that are in the first part alone, which validates, and are
    never trained on (section 8.4.1 of S. Jenni's thesis). 0: each image may be in any part."""
    noise: float = 0.0
    """Share of each class's training labels that is replaced by uniform ones of the other classes, drawn from the
    recipe's seed. The true label is kept beside, for figures alone."""
    noise_file: str = ""
    """Labels that are learned in place of the true ones, one for each training row: a text file of integers, an array
    (.npy), or FILE.parquet:COLUMN, which may be the training data themselves. Empty: the true ones."""
    permuted: bool = False
    """The pixels of each image, of training and of test, in a random order, fixed for each image, before any view."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of R, G, B in [0, 1], subtracted by the network's input. Default: ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"--data.size is a number of pixels above 0, got {self.size}")
        if self.width is not None and (self.width < 1 or self.media == "image"):
            raise UserError(f"--data.width is a number of pixels above 0, for videos, got {self.width}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--data.limit is a number of rows above 0, got {self.limit}")
        for name in ("max_bad", "noise", "validation_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--data.{name.replace('_', '-')} is a share in [0, 1], got {getattr(self, name)}")
        if self.noise and self.noise_file:
            raise UserError("--data.noise-file has the noise: leave out --data.noise")
        for name in ("noise", "noise_file", "permuted"):
            if getattr(self, name) and self.media != "image":
                raise UserError(f"--data.{name.replace('_', '-')} is for images, not for --data.media {self.media}")
        if self.validation_ratio and self.order != "balanced":
            raise UserError("--data.validation-ratio is of balanced parts: give --data.order balanced")
        if self.order not in get_args(Order):
            raise UserError(f"--data.order is one of {', '.join(get_args(Order))}, got {self.order}")
        if min(self.std) <= 0:
            raise UserError(f"--data.std is above 0, got {self.std}")

    def clean(self) -> "Data":
        """The same rows in plain order, with their true labels."""
        return replace(self, order="shuffle", validation_ratio=0.0, noise=0.0, noise_file="")

    @property
    def column(self) -> str:
        """The Parquet column of encoded bytes."""
        return self.image if self.media == "image" else self.video

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of a decoded image or frame."""
        return self.size, self.width or self.size


@dataclass(frozen=True)
class Group:
    """What is read together: a row group, up to `PER_GROUP` files of one folder, or as many samples of a tar; of takes,
    one, whose rows are its moments."""

    path: str
    """Of the file or folder, within the source's filesystem."""
    part: int
    """Number of the row group; number of the first file in the sorted folder; byte of the first tar header."""
    first: int
    """Dataset index of the first row."""
    rows: int


@dataclass(frozen=True)
class Take:
    """What the cameras of one scene saw at the same time."""

    name: str
    cameras: tuple[str, ...]
    """In ascending order."""
    rows: tuple[int, ...]
    """Where each camera's row lies in the row group."""
    label: int
    """Of the first camera's row; -1 where there is none."""


class Encoded(NamedTuple):
    files: list[bytes | None]
    label: np.ndarray | None  # int64 (n,), -1 where a row has none
    names: list[str]  # file and row, for messages


@dataclass(frozen=True, order=True)
class Bad:
    """A row that was skipped."""

    index: int
    """Its position in the dataset."""
    where: str
    """File and row."""
    reason: str


class Loaded(NamedTuple):
    """The readable rows of a group, in order, and those that are not."""

    image: np.ndarray  # uint8 (n, 3, S, S)
    index: np.ndarray  # type: ignore[assignment]  # int64 (n,), position in the dataset
    label: np.ndarray  # int64 (n,), -1 where there is none
    bad: list[Bad]


@dataclass(frozen=True)
class Source:
    """A dataset, described: small and picklable. Made once by `open_source`, read anywhere."""

    kind: Literal["parquet", "folder", "tar"]
    media: Media
    filesystem: str
    """URI from which the filesystem is made; empty for local files."""
    root: str
    """The folder (of classes); the folder of the first file otherwise."""
    column: str
    """Of the encoded bytes, in Parquet."""
    label: str
    groups: tuple[Group, ...]
    rows: int
    """N."""
    labelled: bool
    classes: int | None
    """Number of classes: that of `class_names`, or the highest label + 1. None without labels."""
    class_names: tuple[str, ...] | None
    """Index = label. From `class_names` (JSON) or the Hub's features in a Parquet schema, string labels or folders."""
    takes: "tuple[Take, ...]" = ()
    """Of media take: what each group holds."""
    permuted: bool = False
    """Whether the pixels of images are in a random order (`Data.permuted`)."""

    def read(self, group: Group, rows: np.ndarray) -> Encoded:
        """The rows of `group` at the ascending offsets `rows`, int64 (n,).

        Raises:
            UserError: a file cannot be read, or is not what it was when the source was opened.
        """
        reader = {"parquet": _read_parquet, "folder": _read_folder, "tar": _read_tar}[self.kind]
        try:
            return reader(self, group, rows)
        except (OSError, pa.ArrowException, tarfile.TarError) as error:
            raise UserError(f"{group.path} cannot be read (part {group.part}): {_brief(error)}") from error


def fingerprint(source: Source) -> str:
    """SHA-256 of what the dataset's groups and files are: their names, sizes in bytes and rows. Files whose content
    changed and whose size did not are not told apart; nor are those of a folder whose number did not."""
    paths = list(dict.fromkeys(group.path for group in source.groups))
    infos = _filesystem(source.filesystem).get_file_info(paths)
    files = [(posixpath.basename(path), info.size) for path, info in zip(paths, infos, strict=True)]
    groups = [(paths.index(group.path), group.part, group.rows) for group in source.groups]
    return hashlib.sha256(json.dumps([files, groups]).encode()).hexdigest()


def open_source(pattern: str, data: Data) -> Source:
    """Lists the files of `pattern` in sorted order and reads what describes them. The result is deterministic.

    Raises:
        UserError: nothing there, nothing of a known kind, no image column, no rows, labels of a wrong type.
    """
    if not pattern:
        raise UserError("no data: give --data.train a Parquet file or glob, an image folder or WebDataset tars")
    try:
        filesystem, root, files = _list(pattern)
        suffix = {posixpath.splitext(file)[1].lower() for file in files}
        if data.media == "take":
            return _open_takes(filesystem, [f for f in files if f.lower().endswith(".parquet")], data, pattern)
        if ".parquet" in suffix:
            return _open_parquet(filesystem, [f for f in files if f.lower().endswith(".parquet")], data)
        if ".tar" in suffix:
            return _open_tars(filesystem, [f for f in files if f.lower().endswith(".tar")], data)
        if root is not None:
            return _open_folder(filesystem, root, files, data)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{pattern} cannot be opened: {_brief(error)}") from error
    raise UserError(f"{pattern}: neither .parquet nor .tar files; images and videos are read by naming their folder")


def check_classes(train: Source, test: Source) -> None:
    """Raises UserError where both sets name their classes, and not the same: their labels would not agree."""
    if train.class_names and test.class_names and train.class_names != test.class_names:
        differing = sorted(set(train.class_names) ^ set(test.class_names)) or ["their order"]
        shown = ", ".join(differing[:5])
        raise UserError(f"training and test data have different classes ({shown}), so their labels do not agree")


def selected(source: Source, limit: int | None) -> np.ndarray:
    """int64 dataset indices, ascending: all, or `limit` of them, evenly spaced."""
    count = source.rows if limit is None else min(limit, source.rows)
    return np.arange(count, dtype=np.int64) * source.rows // count


def permuted(image: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Images uint8 (n, C, H, W) with their pixels in an order that is drawn from each one's index (n,) alone."""
    order = draw(0, 0, torch.from_numpy(index), "pixels", image.shape[2] * image.shape[3]).argsort(dim=1, stable=True)
    pixels = image.reshape(*image.shape[:2], -1)
    return np.take_along_axis(pixels, order.numpy()[:, None], axis=2).reshape(image.shape)


def load(source: Source, group: Group, rows: np.ndarray, size: int) -> Loaded:
    """Reads and decodes the rows of `group` at the ascending offsets `rows`; broken ones are skipped and listed."""
    encoded = source.read(group, rows)
    image = np.empty((len(rows), 3, size, size), np.uint8)
    good, bad = np.ones(len(rows), bool), []
    for i, content in enumerate(encoded.files):
        try:
            if content is None:
                raise ValueError("no image bytes (null)")
            image[i] = decode(content, size)
        except ValueError as error:
            good[i] = False
            bad.append(Bad(group.first + int(rows[i]), encoded.names[i], str(error)))
    index = group.first + np.asarray(rows, np.int64)
    label = np.full(len(rows), -1, np.int64) if encoded.label is None else encoded.label
    if source.permuted:
        image = permuted(image, index)
    return Loaded(image[good], index[good], label[good], bad) if bad else Loaded(image, index, label, bad)


def check_bad(bad: Sequence[Bad], total: int, max_bad: float) -> None:
    """Raises UserError, with file and row of the first, where more than `max_bad` of `total` rows are broken."""
    if len(bad) > max_bad * total:
        first = min(bad)
        raise UserError(
            f"{len(bad)} of {total} rows are broken, more than --data.max-bad {max_bad:g}; the first is {first.where}: "
            f"{first.reason}. Mend or remove them, or raise --data.max-bad"
        )


# --------------------------------------------------------------------------------------------- decoding

_decode_fast = getattr(torchvision.io, "decode_image", None)  # deprecated in 0.29; the same pixels as Pillow, faster


def decode(encoded: bytes, size: int) -> np.ndarray:
    """Encoded bytes -> uint8 (3, size, size), as the module's head says.

    Raises:
        ValueError: the bytes are not a whole image, or one beyond `MOST_PIXELS`; the text is the reason.
    """
    image = _decoded(encoded)  # (3, H, W)
    height, width = image.shape[1:]
    if height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[:, top : top + side, left : left + side]
    if image.shape[1] != size:
        image = F.interpolate(image[None], size=(size, size), mode="bilinear", antialias=True)[0]
    return image.numpy()


def _decoded(encoded: bytes) -> Tensor:
    size = _header(encoded) if _decode_fast is not None else None
    if size is not None and _decode_fast is not None:
        _check_pixels(*size)
        try:
            return _decode_fast(
                torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode="RGB", apply_exif_orientation=True
            )
        except RuntimeError:  # Pillow reads more variants, and says better what is wrong
            pass
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as file:
            _check_pixels(*file.size)
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith("I"):  # 16 bits, which convert would clip
                upright = Image.fromarray((np.asarray(upright).clip(0, 65535) >> 8).astype(np.uint8))
            return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)
    except Image.UnidentifiedImageError:
        start = bytes(encoded[:16])
        raise ValueError(f"not an image that is known (it begins with {start!r})" if start else "empty") from None
    except Exception as error:  # broken bytes make Pillow's decoders raise almost anything
        raise ValueError(_brief(error)) from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS}: taken for a decompression bomb")


def _header(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG or plain WebP, microseconds instead of Pillow's tens; None for all else, and for a JPEG
    of which decoders may find another frame header than this does. None for a PNG too: a damaged one ends the process
    in torchvision's decoder (0.29, libpng's errors)."""
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    if data[:2] == b"\xff\xd8":
        at = 2
        while at + 9 <= len(data) and data[at] == 0xFF:
            marker = data[at + 1]
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
                return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
            if marker <= 0x01 or 0xD0 <= marker <= 0xDA:  # no length follows, or no header any more
                return None
            at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# ---------------------------------------------------------------------------------------------- listing


@lru_cache(maxsize=16)
def _filesystem(uri: str) -> FileSystem:
    return FileSystem.from_uri(uri)[0] if uri else LocalFileSystem()


def _below(filesystem: FileSystem, folder: str, recursive: bool) -> list[FileInfo]:
    """Files under `folder`, sorted by path; hidden ones and those in hidden folders are left out."""
    infos = filesystem.get_file_info(FileSelector(folder, recursive=recursive))
    files = [info for info in infos if info.type == FileType.File]
    shown = [i for i in files if not re.search(r"(^|/)\.", i.path[len(folder) :])]
    return sorted(shown, key=lambda info: posixpath.split(info.path))


def _list(pattern: str) -> tuple[str, str | None, list[str]]:
    """-> (URI of the filesystem or empty, the folder if `pattern` is one, files in sorted order)."""
    if "://" in pattern:
        refuse_keys(pattern)
        parts = urlsplit(pattern)
        steps = parts.path.split("/")
        fixed = next((i for i, step in enumerate(steps) if glob.has_magic(step)), len(steps))
        uri = urlunsplit((parts.scheme, parts.netloc, "/".join(steps[:fixed]) or "/", parts.query, ""))
        filesystem, base = FileSystem.from_uri(uri)
        if wanted := steps[fixed:]:
            infos = _below(filesystem, base, recursive=len(wanted) > 1)
            found = [i.path for i in infos if _matches(i.path[len(base) :].strip("/").split("/"), wanted)]
        else:
            found = [base]
    else:
        uri, filesystem = "", LocalFileSystem()
        local = str(Path(pattern).expanduser())
        matches = [local] if Path(local).exists() else sorted(glob.glob(local, recursive=True))
        found = [Path(match).absolute().as_posix() for match in matches]
    infos = filesystem.get_file_info(found)
    files = [info.path for info in infos if info.type == FileType.File]
    folders = [info.path for info in infos if info.type == FileType.Directory]
    if files:
        return uri, None, files
    if len(folders) != 1:
        told = "matches several folders: name the one that holds them" if folders else "no such file or folder"
        raise UserError(f"{pattern}: {told}")
    below = [info.path for info in _below(filesystem, folders[0], recursive=True)]
    splits = {posixpath.basename(f).split("-")[0] for f in below if f.endswith((".parquet", ".tar"))}
    if len(splits & {"train", "test", "val", "valid", "validation", "unlabeled"}) > 1:
        raise UserError(
            f"{pattern} holds several splits ({', '.join(sorted(splits))}): give a glob, as train-*.parquet"
        )
    return uri, folders[0], below


def _matches(steps: Sequence[str], patterns: Sequence[str]) -> bool:
    return len(steps) == len(patterns) and all(map(fnmatchcase, steps, patterns))


def _numbered(parts: Iterable[tuple[str, int, int]]) -> tuple[Group, ...]:
    """(path, part, rows) in the dataset's order -> groups with their first index."""
    groups, first = [], 0
    for path, part, rows in parts:
        groups.append(Group(path, part, first, rows))
        first += rows
    return tuple(groups)


# ---------------------------------------------------------------------------------------------- Parquet


class _File(NamedTuple):
    sizes: list[int]  # rows of each row group
    labels: list[int | str]  # distinct
    names: tuple[str, ...] | None


def _open_parquet(filesystem: str, files: list[str], data: Data) -> Source:
    with ThreadPoolExecutor(REQUESTS) as pool:
        described = list(pool.map(lambda path: _describe(filesystem, path, data), files))
    parts = zip(files, described, strict=True)
    groups = _numbered((path, i, rows) for path, file in parts for i, rows in enumerate(file.sizes) if rows)
    if not groups:
        raise UserError(f"{files[0]} and the {len(files) - 1} other files hold no rows")
    classes, names = _classes(described, data.label)
    return Source(
        "parquet",
        data.media,
        filesystem,
        posixpath.dirname(files[0]),
        data.column,
        data.label,
        groups,
        sum(group.rows for group in groups),
        classes is not None,
        classes,
        names,
        permuted=data.permuted,
    )


def _classes(described: Sequence[_File], label: str) -> tuple[int | None, tuple[str, ...] | None]:
    """Their number and names; the sorted values are the names of labels that are strings. None without labels."""
    values = {value for file in described for value in file.labels}
    strings = {value for value in values if isinstance(value, str)}
    if strings and len(strings) < len(values):
        raise UserError(f"column {label} holds strings in some files and integers in others")
    named = [file.names for file in described if file.names]
    names = tuple(sorted(strings)) or (named[0] if named else None)
    highest = max((value for value in values if isinstance(value, int)), default=-1)
    if not strings and highest < 0:
        return None, None
    return max(len(names or ()), highest + 1), names


@contextmanager
def parquet_file(filesystem: str, path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file.

    Raises:
        UserError: one that is damaged, or declares more rows than it can hold.
    """
    try:
        with _filesystem(filesystem).open_input_file(path) as content, pq.ParquetFile(content) as file:
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            if min(rows, default=0) < 0:
                raise UserError(f"{path} is damaged: a row group has {min(rows)} rows. Write it anew")
            check_rows(sum(rows), "rows", path, content.size())
            yield file
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a Parquet file, or is damaged: {_brief(error)}") from error


def check_rows(count: int, what: str, path: str, size: int) -> None:
    """Raises UserError where a file of `size` bytes declares more of something than it can hold."""
    if count > MOST_ROWS + size:
        raise UserError(f"{path} declares {count:,} {what} in {size:,} bytes: taken for a decompression bomb")


def read_group(
    file: pq.ParquetFile, part: int, where: str, columns: list[str] | None = None, rows: np.ndarray | None = None
) -> pa.Table:
    """Columns (None: all) of a row group at the ascending offsets `rows`, int64 (n,) (None: all).

    Read in portions, so that what expands without bound is refused before it fills the memory: a row group takes
    `ALWAYS` bytes or `MOST_EXPANSION` times its size in the file, whichever is more, and a portion besides.

    Raises:
        UserError: it takes more, or declares to, or has other rows than it declares.
    """
    group, schema = file.metadata.row_group(part), file.schema_arrow
    prefixes = [f"{name}." for name in columns or []]
    chunks = [group.column(i) for i in range(group.num_columns)]
    chunks = [one for one in chunks if columns is None or f"{one.path_in_schema}.".startswith(tuple(prefixes))]
    most = max(ALWAYS, MOST_EXPANSION * sum(one.total_compressed_size for one in chunks))

    def check(size: int) -> None:
        if size > most:
            raise UserError(
                f"{where}: a row group expands to more than {most / 2**30:.0f} GiB, {MOST_EXPANSION} times its size in "
                "the file: taken for a decompression bomb. If it is none, write it with smaller row groups"
            )

    check(sum(max(one.total_uncompressed_size, one.num_values) for one in chunks))
    plain = all(one.compression == "UNCOMPRESSED" and not one.has_dictionary_page for one in chunks)
    kept, first, size = [], 0, 0
    for batch in file.iter_batches(PORTION * (16 if plain else 1), [part], columns, use_threads=False):
        check(size := size + batch.nbytes)
        if rows is None:
            kept.append(batch)
        elif len(wanted := rows[slice(*np.searchsorted(rows, [first, first + len(batch)]))]):
            kept.append(batch if len(wanted) == len(batch) else batch.take(pa.array(wanted - first)))
        first += len(batch)
    if first != group.num_rows:
        raise UserError(f"{where}: a row group has {first:,} rows and declares {group.num_rows:,}: write the file anew")
    fields = [field for field in schema if columns is None or field.name in columns]
    table = pa.Table.from_batches(kept, kept[0].schema if kept else pa.schema(fields))
    return table.replace_schema_metadata(schema.metadata)


def _describe(filesystem: str, path: str, data: Data) -> _File:
    with parquet_file(filesystem, path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        _check_columns(schema, path, data)
        if data.label not in schema.names:
            return _File(sizes, [], None)
        found: dict[int | str, None] = {}
        most = 2**10 if pa.types.is_dictionary(kind := schema.field(data.label).type) or _is_string(kind) else 2**16
        for batch in file.iter_batches(most, columns=[data.label], use_threads=False):
            found |= dict.fromkeys(_plain(pa.chunked_array([batch[0].unique()])).drop_null().to_pylist())
    return _File(sizes, list(found), _class_names(schema, data.label, path))


def _check_columns(schema: pa.Schema, path: str, data: Data) -> None:
    columns = ", ".join(schema.names)
    option = "image" if data.media == "image" else "video"
    if data.column not in schema.names:
        raise UserError(f"{path} has no column {data.column}; its columns are {columns}: name one with --data.{option}")
    if data.label not in schema.names and data.label != Data.label:
        raise UserError(f"{path} has no column {data.label}; its columns are {columns}: name one with --data.label")
    column = schema.field(data.column).type
    inner = (
        column.field("bytes").type if pa.types.is_struct(column) and column.get_field_index("bytes") >= 0 else column
    )
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner) or pa.types.is_binary_view(inner)):
        told = f"column {data.column} is of type {column}, not encoded bytes"
        raise UserError(f"{path}: {told}: choose with --data.{option}")
    if data.label in schema.names:
        label = schema.field(data.label).type
        inner = label.value_type if pa.types.is_dictionary(label) else label
        if not (
            pa.types.is_integer(inner) or pa.types.is_boolean(inner) or pa.types.is_null(inner) or _is_string(inner)
        ):
            raise UserError(f"{path}: column {data.label} is of type {label}, not a class: choose with --data.label")


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels as int64 or strings."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column if _is_string(column.type) else column.cast(pa.int64())


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _class_names(schema: pa.Schema, label: str, path: str = "the file") -> tuple[str, ...] | None:
    own = json_of(schema, "class_names", path)
    if own is None:
        own = json_of(schema, "huggingface", path)
        for name in ("info", "features", label, "names"):
            own = own.get(name) if isinstance(own, dict) else None
    if not own:
        return None
    if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
        raise UserError(f"{path}: the names of classes in the schema's metadata are no list of strings: write it anew")
    return tuple(own)


def json_of(schema: pa.Schema, name: str, path: str) -> Any:
    """What the schema's metadata hold, as JSON, under `name`; None without it.

    Raises:
        UserError: not JSON.
    """
    try:
        return json.loads((schema.metadata or {}).get(name.encode(), b"null"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: {name} in the schema's metadata is not JSON ({_brief(error)}): write it anew"
        ) from None


def _read_parquet(source: Source, group: Group, rows: np.ndarray) -> Encoded:
    with parquet_file(source.filesystem, group.path) as file:
        before = sum(file.metadata.row_group(i).num_rows for i in range(group.part))
        if file.num_row_groups <= group.part or file.metadata.row_group(group.part).num_rows != group.rows:
            raise UserError(f"{group.path} is no longer what it was when the run began: start again")
        wanted = [name for name in (source.column, source.label) if name in file.schema_arrow.names]
        table = read_group(file, group.part, group.path, wanted, rows)
    column = table[source.column]
    files = (pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column).to_pylist()
    names = [f"{group.path}:{before + row}" for row in rows.tolist()]
    if source.label not in table.column_names:
        return Encoded(files, None, names)
    label = _plain(table[source.label])
    if label.type != pa.int64():
        label = pc.index_in(label, pa.array(source.class_names, label.type)).cast(pa.int64())
    return Encoded(files, label.fill_null(-1).to_numpy(), names)


def read_column(source: Source, name: str) -> Tensor:
    """int64 (N,): a further column of a Parquet dataset, its values numbered in sorted order.

    Raises:
        UserError: the dataset is not of Parquet files, or has no such column.
    """
    values = []
    for path in dict.fromkeys(group.path for group in source.groups):
        try:
            values.append(_column(source.filesystem, path, name))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise UserError(f"{path} has no column {name} that could be read: {_brief(error)}") from error
    column = np.concatenate([some.to_numpy() for some in values])
    return torch.from_numpy(np.unique(column, return_inverse=True)[1].astype(np.int64))


def _column(filesystem: str, path: str, name: str) -> pa.ChunkedArray:
    """A whole column of a Parquet file. Raises KeyError without it."""
    with parquet_file(filesystem, path) as file:
        parts = [read_group(file, part, path, [name]) for part in range(file.num_row_groups)]
        empty = file.schema_arrow.field(name).type
    return pa.chunked_array([chunk for part in parts for chunk in part[name].chunks], empty)


def read_labels(path: str, rows: int, classes: int) -> np.ndarray:
    """int64 (rows,): `Data.noise_file`, by dataset index.

    Raises:
        UserError: it cannot be read, holds anything but integers, another number of them, or a class out of range.
    """
    name, _, column = path.rpartition(":")
    told = f"--data.noise-file {path}"
    if path.lower().endswith(".parquet"):
        raise UserError(f"{told}: name its column too, as {path}:COLUMN")
    try:
        if name.lower().endswith(".parquet"):
            filesystem, _, files = _list(name)
            found = np.concatenate([_column(filesystem, file, column).to_numpy() for file in files])
        else:
            filesystem, _, files = _list(path)
            with _filesystem(filesystem).open_input_file(files[0]) as file:
                content = io.BytesIO(file.read())
            npy = path.lower().endswith(".npy")
            found = np.load(content, allow_pickle=False) if npy else np.loadtxt(content, ndmin=1)
            if not isinstance(found, np.ndarray):
                raise ValueError("it is a .npz, which holds several arrays")
    except (OSError, pa.ArrowException, KeyError, ValueError, EOFError, MemoryError) as error:
        expected = "an array of integers (.npy), one in each line of a text file, or FILE.parquet:COLUMN"
        raise UserError(f"{told} cannot be read ({_brief(error)}): it is {expected}") from error
    if found.ndim != 1 or len(found) != rows:
        raise UserError(f"{told} holds {found.size:,} labels for {rows:,} rows of training data: it needs one for each")
    if found.dtype.kind not in "iuf" or not np.array_equal(found, found.astype(np.int64)):
        raise UserError(f"{told} holds other values than integers from 0 to {classes - 1}")
    if found.min() < 0 or found.max() >= classes:
        raise UserError(f"{told} has the class {found.min() if found.min() < 0 else found.max():g} of {classes}")
    return found.astype(np.int64)


# ------------------------------------------------------------------------------------------------ takes


class _Scene(NamedTuple):
    take: Take
    path: str
    part: int
    moments: int


def _open_takes(filesystem: str, files: list[str], data: Data, pattern: str) -> Source:
    """A group for each take; its moments are as many as its longest camera has frames."""
    if not files:
        raise UserError(f"{pattern}: takes are read from Parquet files: python -m pipelines data takes writes them")
    with ThreadPoolExecutor(REQUESTS) as pool:
        classes, names = _classes(list(pool.map(lambda path: _describe(filesystem, path, data), files)), data.label)
        found = pool.map(lambda path: _scenes(filesystem, path, data, names), files)
        scenes = [scene for some in found for scene in some]
    places: dict[str, _Scene] = {}
    for scene in scenes:
        there = places.setdefault(scene.take.name, scene)
        if there is not scene:
            raise UserError(
                f"take {scene.take.name} lies in several row groups ({there.path}:{there.part} and {scene.path}:"
                f"{scene.part}): python -m pipelines data takes writes each into one"
            )
    groups = _numbered((scene.path, scene.part, scene.moments) for scene in scenes)
    rows = sum(group.rows for group in groups)
    if not rows:
        raise UserError(f"{pattern} holds no moments of any take")
    return Source(
        "parquet",
        "take",
        filesystem,
        posixpath.dirname(files[0]),
        data.column,
        data.label,
        groups,
        rows,
        classes is not None,
        classes,
        names,
        tuple(scene.take for scene in scenes),
    )


def _scenes(filesystem: str, path: str, data: Data, class_names: tuple[str, ...] | None) -> list[_Scene]:
    from pipelines.video import table

    scenes = []
    with parquet_file(filesystem, path) as file:
        names = file.schema_arrow.names
        for option in ("take", "camera", *(["pose"] if data.pose else [])):
            if getattr(data, option) not in names:
                told = f"{path} has no column {getattr(data, option)}; its columns are {', '.join(names)}"
                raise UserError(f"{told}: name one with --data.{option}")
        for name in sorted({"box", "keypoints", data.pose} & set(names)):
            if not holds_numbers(column := file.schema_arrow.field(name).type):
                raise UserError(f"{path}: column {name} is of type {column}, not a list of floats: mend or rename it")
        counted = "num_frames" in names
        wanted = [data.take, data.camera, "num_frames" if counted else data.column]
        wanted += [data.label] if data.label in names else []
        for part in range(file.num_row_groups):
            rows = read_group(file, part, path, wanted).to_pylist()
            by_take: dict[str, dict[str, int]] = {}
            for at, row in enumerate(rows):
                cameras = by_take.setdefault(str(row[data.take]), {})
                if cameras.setdefault(str(row[data.camera]), at) != at:
                    twice = f"camera {row[data.camera]} of take {row[data.take]} twice"
                    raise UserError(f"{path} has {twice}: takes need names of their own, see --data.take")
            for name, cameras in by_take.items():
                places = [cameras[camera] for camera in sorted(cameras)]
                label = rows[places[0]].get(data.label)
                if isinstance(label, str) and class_names:
                    label = class_names.index(label)
                take = Take(name, tuple(sorted(cameras)), tuple(places), -1 if label is None else int(label))
                if counted:
                    moments = max(rows[at]["num_frames"] or 0 for at in places)
                else:
                    moments = max(_length(table, rows[at][data.column]) for at in places)
                scenes.append(_Scene(take, path, part, max(moments, 1)))
        size = _filesystem(filesystem).get_file_info(path).size
        check_rows(max((scene.moments for scene in scenes), default=0), "frames of a take", path, size or 0)
    return scenes


def _length(table: Callable[[bytes], Any], encoded: bytes | None) -> int:
    try:
        return len(table(encoded or b""))
    except ValueError:  # told where the data is looked through
        return 0


def holds_numbers(column: pa.DataType) -> bool:
    """Whether a column's rows are flat lists of numbers."""
    if not (pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column)):
        return False
    return pa.types.is_floating(column.value_type) or pa.types.is_integer(column.value_type)


def by_frame(values: Sequence[float] | np.ndarray, name: str, width: int, where: str) -> np.ndarray:
    """A row's list, `width` values a frame -> float32 (F, width).

    Raises:
        ValueError: it does not hold whole frames.
    """
    found = np.asarray(values, np.float32)
    if len(found) % width:
        raise ValueError(f"{where}: {name} holds {len(found)} values, which are not {width} a frame: mend the row")
    return found.reshape(-1, width)


def keypoints_by_frame(
    values: Sequence[float] | np.ndarray, names: Sequence[str | None], frames: int | None, where: str
) -> np.ndarray:
    """A row's `keypoints` -> float32 (F, K, 3). K is the number of `names` (`keypoint_names` of the schema); where
    there are none, what `frames`, the row's num_frames, leaves.

    Raises:
        ValueError: the list does not hold whole frames of K, or K cannot be known.
    """
    if names:
        return by_frame(values, "keypoints", 3 * len(names), where).reshape(-1, len(names), 3)
    if not frames:
        raise ValueError(
            f"{where}: how many keypoints a frame has is not known: store num_frames, or keypoint_names (a JSON list) "
            "in the schema's metadata"
        )
    if not len(values) or len(values) % (3 * frames):
        raise ValueError(
            f"{where}: keypoints holds {len(values)} values, which are not 3 for each keypoint of {frames} frames: "
            "mend the row, or store keypoint_names (a JSON list) in the schema's metadata"
        )
    return np.asarray(values, np.float32).reshape(frames, -1, 3)


class Cameras(NamedTuple):
    """A take as it is stored, a list entry a camera."""

    videos: list[bytes | None]
    pose: list[np.ndarray | None]
    """float32 (F, J, 3), where they are read: in the camera's coordinates. Of a camera without boxes relative to the
    root, joint 0: its frames are not cropped about the subject, so that no turned camera sees their middle."""
    box: list[np.ndarray | None]
    """float32 (F, 3): centre x, centre y and side in pixels of the upright video, where the file has them, or
    keypoints to make them of (see `pipelines.cameras.subject_boxes`)."""
    joints: tuple[str, ...]
    """Their names, from the schema's metadata."""
    mirror: tuple[int, ...]
    """Of each joint the one on the other side, or itself; from the schema's metadata."""
    parents: tuple[int, ...]
    """Of each joint the one that it hangs on; -1 for the root."""


def read_take(source: Source, number: int, pose: str = "") -> Cameras:
    """The take of group `number`. `pose`: column of the joints, or empty.

    Raises:
        UserError: the file cannot be read, or does not say what its joints are.
        ValueError: joints, boxes or keypoints of a camera that are not whole frames.
    """
    from pipelines.cameras import subject_boxes

    group, take = source.groups[number], source.takes[number]
    try:
        with parquet_file(source.filesystem, group.path) as file:
            names = file.schema_arrow.names
            metadata = file.schema_arrow.metadata or {}

            def listed(name: str, kind: type) -> list | None:
                found = json_of(file.schema_arrow, name, group.path)
                if found is None or (isinstance(found, list) and all(isinstance(one, kind) for one in found)):
                    return found
                raise UserError(f"{group.path}: {name} in the schema's metadata is no list: write it anew")

            joints = tuple(listed("joint_names", str) or [])
            mirror = tuple(listed("joint_mirror", int) or range(len(joints)))
            parents = tuple(listed("joint_parents", int) or [-1] * len(joints))
            if len(mirror) != len(joints) or any(not 0 <= other < len(joints) for other in mirror):
                raise UserError(
                    f"{group.path}: joint_mirror gives each of the {len(joints)} joints one of them: mend it"
                )
            keypoints = listed("keypoint_names", object) or []
            wanted = [source.column, *(name for name in (pose, "box", "keypoints", "num_frames") if name in names)]
            rows = read_group(file, group.part, group.path, wanted).take(list(take.rows)).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{group.path} cannot be read (part {group.part}): {_brief(error)}") from error

    if pose and not (joints and b"joint_mirror" in metadata):
        raise UserError(
            f"{group.path} does not say what its joints are: joint_names, joint_parents and joint_mirror (which joint "
            "each becomes in a mirror) stand in the schema's metadata, as JSON"
        )

    nothing: list[None] = [None] * len(take.rows)
    places = [f"take {take.name}, camera {camera}" for camera in take.cameras]

    def arrays(name: str, width: int) -> list[np.ndarray | None]:
        pairs = zip(rows.get(name, nothing), places, strict=True)
        return [None if values is None else by_frame(values, name, width, where) for values, where in pairs]

    joined = [None if one is None else one.reshape(-1, len(joints), 3) for one in arrays(pose, 3 * len(joints))]
    box = arrays("box", 3)
    given = zip(rows.get("keypoints", nothing), rows.get("num_frames", nothing), places, strict=True)
    for camera, (values, frames, where) in enumerate(given):
        if box[camera] is None and values is not None and frames != 0:  # of 0 frames: a video that is broken
            box[camera] = subject_boxes(keypoints_by_frame(values, keypoints, frames, where))
    for camera, (known, around) in enumerate(zip(joined, box, strict=True)):
        if known is not None and around is None:
            joined[camera] = known - known[:, :1]
    return Cameras(rows[source.column], joined, box, joints, mirror, parents)


# ---------------------------------------------------------------------------------------------- folders


def _is(media: Media, path: str) -> bool:
    return posixpath.splitext(path)[1][1:].lower() in EXTENSIONS[media]


def _open_folder(filesystem: str, root: str, files: list[str], data: Data) -> Source:
    """Classes are the folders straight under `root`; files straight in it mean that there are no classes."""
    found = [file for file in files if _is(data.media, file)]
    if not found:
        told = f"known are {', '.join(sorted(EXTENSIONS[data.media]))}, .parquet and .tar" if files else "it is empty"
        raise UserError(f"no {data.media} files under {root}: {told}")
    folders = {folder: len(list(run)) for folder, run in groupby(found, posixpath.dirname)}
    parts = ((folder, at, min(PER_GROUP, n - at)) for folder, n in folders.items() for at in range(0, n, PER_GROUP))
    names = None if root in folders else tuple(sorted({_class(root, folder) for folder in folders}))
    classes = None if names is None else len(names)
    return Source(
        "folder",
        data.media,
        filesystem,
        root,
        data.column,
        data.label,
        _numbered(parts),
        len(found),
        classes is not None,
        classes,
        names,
        permuted=data.permuted,
    )


def _class(root: str, folder: str) -> str:
    return posixpath.relpath(folder, root).split("/")[0]


@lru_cache(maxsize=8)
def _files_in(filesystem: str, folder: str, media: Media) -> tuple[str, ...]:
    infos = _below(_filesystem(filesystem), folder, recursive=False)
    return tuple(info.path for info in infos if _is(media, info.path))


def _read_folder(source: Source, group: Group, rows: np.ndarray) -> Encoded:
    there = _files_in(source.filesystem, group.path, source.media)[group.part : group.part + group.rows]
    if len(there) != group.rows:
        raise UserError(f"{group.path} is no longer what it was when the run began: start again")
    names = [there[row] for row in rows.tolist()]
    filesystem = _filesystem(source.filesystem)
    files: list[bytes | None]
    if source.filesystem:
        with ThreadPoolExecutor(REQUESTS) as pool:
            files = list(pool.map(lambda name: _content(filesystem, name), names))
    else:
        files = [Path(name).read_bytes() for name in names]
    if source.class_names is None:
        return Encoded(files, None, names)
    label = source.class_names.index(_class(source.root, group.path))
    return Encoded(files, np.full(len(rows), label, np.int64), names)


def _content(filesystem: FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as file:
        return file.read()


# ------------------------------------------------------------------------------------------------- tars


class _Sample(NamedTuple):
    at: int  # byte of the first header
    file: tarfile.TarInfo
    label: tarfile.TarInfo | None


def _samples(tar: tarfile.TarFile, media: Media) -> Iterator[_Sample]:
    """Neighbouring members whose names agree up to the first dot are a sample; those without an image, or a video, are
    left out."""
    members = (m for m in tar if m.isfile() and not posixpath.basename(m.name).startswith("."))
    for _, run in groupby(members, lambda m: _key(m.name)[0]):
        sample = [(_key(member.name)[1].lower(), member) for member in run]
        file = next((member for extension, member in sample if extension in EXTENSIONS[media]), None)
        label = next((member for extension, member in sample if extension == "cls"), None)
        if file is not None:
            yield _Sample(sample[0][1].offset, file, label)


def _key(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    return posixpath.join(folder, stem), extension


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> int:
    text = tar.extractfile(member).read() if member is not None else b"-1"  # type: ignore[union-attr]
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{member.name} in a tar holds {text[:20]!r}: .cls is one integer") from None  # type: ignore[union-attr]


def _open_tars(filesystem: str, files: list[str], data: Data) -> Source:
    with ThreadPoolExecutor(REQUESTS if filesystem else 1) as pool:
        scanned = list(pool.map(lambda path: _scan(filesystem, path, data.media), files))
    groups = _numbered(part for parts, _ in scanned for part in parts)
    if not groups:
        known = ", ".join(sorted(EXTENSIONS[data.media]))
        raise UserError(f"no samples in {files[0]} and {len(files) - 1} other tars: names are KEY.EXT, EXT of {known}")
    classes = max(highest for _, highest in scanned) + 1 or None
    return Source(
        "tar",
        data.media,
        filesystem,
        posixpath.dirname(files[0]),
        data.column,
        data.label,
        groups,
        sum(group.rows for group in groups),
        classes is not None,
        classes,
        None,
        permuted=data.permuted,
    )


def _scan(filesystem: str, path: str, media: Media) -> tuple[list[tuple[str, int, int]], int]:
    """Reads the headers of a tar, and its labels -> (groups, the highest label)."""
    starts, highest = [], -1
    try:
        with (
            _filesystem(filesystem).open_input_file(path) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for sample in _samples(tar, media):
                starts.append(sample.at)
                highest = max(highest, _label(tar, sample.label))
    except tarfile.TarError as error:
        raise UserError(f"{path} is not an uncompressed tar, or is cut off: {_brief(error)}") from error
    return [(path, starts[i], min(PER_GROUP, len(starts) - i)) for i in range(0, len(starts), PER_GROUP)], highest


def _read_tar(source: Source, group: Group, rows: np.ndarray) -> Encoded:
    wanted = set(rows.tolist())
    files: list[bytes | None] = []
    labels, names = [], []
    with _filesystem(source.filesystem).open_input_file(group.path) as file:
        file.seek(group.part)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for row, sample in enumerate(islice(_samples(tar, source.media), group.rows)):
                if row in wanted:
                    files.append(tar.extractfile(sample.file).read())  # type: ignore[union-attr]
                    labels.append(_label(tar, sample.label))
                    names.append(f"{group.path}:{sample.file.name}")
    if len(files) != len(rows):
        raise UserError(f"{group.path} is no longer what it was when the run began: start again")
    return Encoded(files, np.array(labels, np.int64) if source.labelled else None, names)

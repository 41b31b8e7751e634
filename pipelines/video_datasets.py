"""Datasets of videos and takes: published, synthesised, or in folders; `pipelines.datasets` writes them.

Folders (SOURCE is what --source names):

- ucf101: `CLASS/v_CLASS_g01_c01.avi` (in any case), straight in SOURCE or in its folder `UCF-101`, and
  `ucfTrainTestlist/` with
  `classInd.txt` (`1 ApplyEyeMakeup`), `trainlist01.txt` (`CLASS/NAME.avi 1`) and `testlist01.txt` (`CLASS/NAME.avi`).
- hmdb51: `CLASS/NAME.avi`, straight in SOURCE or in its folder `hmdb51_org`, and `testTrainMulti_7030_splits/`
  with `CLASS_test_split1.txt` (`NAME.avi 1`: 1 train, 2 test, 0 neither).
- kinetics: `train.csv`, `val.csv` (columns label, youtube_id, time_start, time_end) and anywhere below SOURCE
  `ID_SSSSSS_EEEEEE.mp4` (the times in six digits), or `ID.mp4`; below `SOURCE/train` alone if it is there.
- takes: `TAKE/CAMERA.mp4`, or Parquet with a column of videos and those that name take and camera. Of Parquet labels,
  the lists `box`, `keypoints` and `pose` and the schema's metadata of joints and keypoints are carried over.
- h36m: `S1/Videos/NAME.CAMERA.mp4` as published (`Directions 1.54138969.mp4`; those that begin with `_` are passed
  over), `S1/Poses/NAME.npy` and `cameras.toml`. A pose file holds floats (F, 17, 3) in the order of
  `pipelines.bodies.JOINTS`, or (F, 32, 3) in Human3.6M's own: millimetres of the world. `cameras.toml` has a table
  for each camera, `[S1.54138969]` (or `["54138969"]` for one that is the same for all subjects), with size (width,
  height), matrix (3 x 3), distortions (k1, k2, p1, p2, k3), rotation (a Rodrigues vector, or 3 x 3) and translation
  (mm), such that X_camera = R X_world + t.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from pipelines import bodies
from pipelines.cameras import Camera, boxes, camera, read_tables
from pipelines.errors import UserError
from pipelines.motions import MOTIONS, clip
from pipelines.sources import VIDEOS, _class_names, _classes, _File, _plain, by_frame, holds_numbers, keypoints_by_frame

GROUP_OF_PICTURES = 12  # frames from a key frame to the next, in what is encoded here


class Listed(NamedTuple):
    files: list[tuple[Path, int]]  # with their labels
    class_names: list[str]


def encode(frames: Iterable[np.ndarray], lossless: bool = True, rate: int = 25) -> bytes:
    """uint8 (H, W, 3) each -> Matroska, H.264 with a key frame in every 12; without lossless, of visually high quality.

    One thread: the bytes are a function of the arguments (and of the encoder's version).
    """
    buffer = io.BytesIO()
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    with av.open(buffer, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        options = {"preset": "veryfast", "g": str(GROUP_OF_PICTURES), "bf": "0", "sc_threshold": "0", "threads": "1"}
        if lossless:
            stream = container.add_stream("libx264rgb", rate=rate, options={**options, "qp": "0"})
            stream.pix_fmt = "rgb24"
        else:
            stream = container.add_stream("libx264", rate=rate, options={**options, "crf": "17"})
            stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        stream.width, stream.height = width, height
        picture: np.ndarray | None = first
        while picture is not None:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            picture = next(frames, None)
        container.mux(stream.encode())
    return buffer.getvalue()


def count_frames(encoded: bytes) -> int:
    """Packets of the first video stream: demultiplexed, not decoded.

    Raises:
        ValueError: no video that can be opened; the text is the reason.
    """
    try:
        with av.open(io.BytesIO(encoded), "r") as container:
            if not container.streams.video:
                raise ValueError("it has no pictures")
            return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    except av.FFmpegError as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _left_out(count: int, of: int, what: str, first: str) -> None:
    Console(stderr=True).print(f"left out: {count} of {of} {what}, the first {first}", highlight=False)


# -------------------------------------------------------------------------------------------- synthesised


def motion(seed: int, split: int, row: int, size: int) -> tuple[bytes, int, int]:
    """Row `row` of motions -> (video, label, frames); the label goes round."""
    label = row % len(MOTIONS)
    frames = clip(label, size, np.random.default_rng([seed, split, row]))
    return encode(frames), label, len(frames)


TRAINED, TESTED = 16, 4
"""Subjects of poses in the train and in the test split."""


def pose_rig(seed: int, size: int, angle: float) -> dict[str, Camera]:
    """The cameras of poses, the same in all takes and both splits."""
    return bodies.rig(size, np.random.default_rng([seed, 0]), angle)


def pose_take(
    seed: int, split: int, number: int, frames: int, size: int, varied: bool, angle: float
) -> Iterator[tuple]:
    """A take of poses -> a row a camera: take, camera, video, num_frames, label, pose, box.

    Subjects go round. Static backgrounds are one a camera, in all takes; varied ones are new in each take.
    """
    person = number % TRAINED if split == 0 else TRAINED + number % TESTED
    rng = np.random.default_rng([seed, 2, split, number])
    body = bodies.subject(np.random.default_rng([seed, 1, person]))
    joints, axes = bodies.move(body, frames, rng)
    shapes = bodies.capsules(body, joints, axes)
    for i, (name, lens) in enumerate(pose_rig(seed, size, angle).items()):
        background = bodies.room(size, rng if varied else np.random.default_rng([seed, 3, i]))
        video = encode(bodies.render(shapes, lens, background))
        pose, box = lens.to_camera(joints), boxes(lens.project(joints))
        yield f"{number:05}", name, video, frames, person, _flat(pose), _flat(box)


def _flat(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).ravel()


# ---------------------------------------------------------------------------------- lists of a published split


def _listing(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"no split file {path}: --source names the folder that holds it ({error.strerror})") from error


def _is_video(path: Path) -> bool:
    return path.suffix[1:].lower() in VIDEOS and not path.name.startswith(".")


def _found(
    wanted: list[tuple[str, int]],
    find: Callable[[str], Path | None],
    class_names: list[str],
    root: Path,
    allow_missing: bool,
) -> Listed:
    """The files of `wanted`, (key, label), as far as `find` knows them.

    Raises:
        UserError: some are not there, and `allow_missing` is not set; none is; none is wanted.
    """
    if not wanted:
        raise UserError(f"the split files under {root} name no videos")
    pairs = [(find(key), label) for key, label in wanted]
    files = [(file, label) for file, label in pairs if file is not None]
    missing = [key for (key, _), (file, _) in zip(wanted, pairs, strict=True) if file is None]
    if not files:
        raise UserError(f"none of the split's {len(wanted)} videos lie under {root}, as {missing[0]}")
    if missing and not allow_missing:
        shown = ", ".join(missing[:3])
        raise UserError(
            f"{len(missing)} of the split's {len(wanted)} videos are missing under {root}: {shown}"
            f"{', ...' if len(missing) > 3 else ''}\nPut them there, or leave them out with --allow-missing"
        )
    if missing:
        _left_out(len(missing), len(wanted), "videos, which are missing", missing[0])
    return Listed(files, class_names)


def _by_class(root: Path, inner: str) -> Callable[[str], Path | None]:
    """Finds `class/name`, of any case, in `root/inner` if that is there, else in `root`."""
    root = root / inner if (root / inner).is_dir() else root
    there = {f"{f.parent.name}/{f.name}".lower(): f for f in sorted(root.glob("*/*")) if _is_video(f)}
    return lambda key: there.get(key.lower())


def ucf101(root: Path, split: str, fold: int, allow_missing: bool) -> Listed:
    lists = root / "ucfTrainTestlist"
    names = [line.split()[-1] for line in sorted(_listing(lists / "classInd.txt"), key=_number)]
    wanted = []
    for line in _listing(lists / f"{split}list{fold:02}.txt"):
        key = line.split()[0].replace("\\", "/")
        if (name := key.split("/")[0]) not in names:
            raise UserError(f"{lists}: {split}list{fold:02}.txt names the class {name}, which classInd.txt lacks")
        wanted.append((key, names.index(name)))
    return _found(wanted, _by_class(root, "UCF-101"), names, root, allow_missing)


def _number(line: str) -> int:
    number = line.split()[0]
    if not number.isdigit():
        raise UserError(f"classInd.txt: a line is a number and a class, as `1 ApplyEyeMakeup`, got {line!r}")
    return int(number)


def hmdb51(root: Path, split: str, fold: int, allow_missing: bool) -> Listed:
    lists = root / "testTrainMulti_7030_splits"
    ending = f"_test_split{fold}.txt"
    tables = {file.name.removesuffix(ending): file for file in sorted(lists.glob(f"*{ending}"))}
    if not tables:
        raise UserError(f"no split files {lists}/CLASS{ending}: --source names the folder that holds them")
    names, sign, wanted = sorted(tables), {"train": "1", "test": "2"}[split], []
    for label, name in enumerate(names):
        for line in _listing(tables[name]):
            file, _, kind = line.rpartition(" ")
            if kind not in ("0", "1", "2"):
                raise UserError(f"{tables[name]}: a line is NAME.avi and 0, 1 or 2, got {line!r}")
            if kind == sign:
                wanted.append((f"{name}/{file.strip()}", label))
    return _found(wanted, _by_class(root, "hmdb51_org"), names, root, allow_missing)


def kinetics(root: Path, split: str, allow_missing: bool) -> Listed:
    """Classes are the sorted labels of train.csv and of the split's file."""

    def rows(path: Path) -> list[dict[str, str]]:
        lines = _listing(path)
        found = list(csv.DictReader(lines))
        if not found or not {"label", "youtube_id"} <= set(found[0]):
            raise UserError(f"{path}: its first line names the columns, label and youtube_id among them")
        return found

    table = rows(root / f"{split}.csv")
    trained = rows(root / "train.csv") if (root / "train.csv").is_file() else []
    names = sorted({row["label"] for row in [*table, *trained]})
    below = root / split if (root / split).is_dir() else root
    there = {file.stem: file for file in sorted(below.rglob("*")) if _is_video(file)}
    wanted = []
    for row in table:
        key = row["youtube_id"]
        if row.get("time_start") and row.get("time_end"):
            timed = f"{key}_{round(float(row['time_start'])):06}_{round(float(row['time_end'])):06}"
            key = timed if timed in there or key not in there else key
        wanted.append((key, names.index(row["label"])))
    return _found(wanted, there.get, names, below, allow_missing)


# ------------------------------------------------------------------------------------------------- takes


def _no_lists() -> dict[str, np.ndarray | None]:
    return {}


class View(NamedTuple):
    """A camera's part of a take."""

    camera: str
    read: Callable[[], bytes]
    where: str
    lists: Callable[[], Mapping[str, np.ndarray | None]] = _no_lists
    """Columns of a value a frame and more -> float32 (F, width), None where the row has none."""


Takes = dict[str, list[View]]


class Common(NamedTuple):
    videos: list[bytes]
    frames: int  # that all have


def in_step(views: list[View], slack: int, also: Mapping[str, int] | None = None) -> Common:
    """The videos of a take, and the number of their common first frames. also: frames of what else there is, as of its
    poses, by its name.

    Raises:
        ValueError: a video that cannot be opened, or numbers of frames that differ by more than `slack`.
    """
    videos = [view.read() for view in views]
    counts = {}
    for view, video in zip(views, videos, strict=True):
        try:
            counts[view.camera] = count_frames(video)
        except ValueError as error:
            raise ValueError(f"{view.where} is no video: {error}") from error
    counts |= also or {}
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[most] - counts[least] > slack or not counts[least]:
        raise ValueError(f"{least} has {counts[least]} frames, {most} has {counts[most]}")
    return Common(videos, counts[least])


def _complete(takes: Takes, allow_missing: bool, cameras: set[str] | None = None) -> Takes:
    """Takes that have every camera that any has (or all of `cameras`), and two at least."""
    expected = cameras or {view.camera for views in takes.values() for view in views}
    whole = {name: views for name, views in takes.items() if {view.camera for view in views} >= expected}
    if incomplete := sorted(set(takes) - set(whole)):
        lacking = sorted(expected - {view.camera for view in takes[incomplete[0]]})
        told = f"{incomplete[0]}: no camera {', '.join(lacking)}"
        if not allow_missing:
            raise UserError(
                f"{len(incomplete)} of {len(takes)} takes lack a camera: {told}\nLeave them out with --allow-missing"
            )
        _left_out(len(incomplete), len(takes), "takes, which lack a camera", told)
    if not whole or len(expected) < 2:
        raise UserError(f"{len(whole)} takes of {len(expected)} cameras: a take needs two cameras at least")
    return whole


def _kept(takes: Takes, rows: Callable[[str, list[View]], list[tuple]], allow_missing: bool) -> Iterator[tuple]:
    """Rows of each take; those for which `rows` raises ValueError are left out and counted, or are an error."""
    bad = []
    for name, views in takes.items():
        try:
            yield from rows(name, views)
        except ValueError as error:
            bad.append(f"{name}: {error}")
            if not allow_missing:
                raise UserError(f"take {bad[0]}\nMend it, or leave such takes out with --allow-missing") from error
    if bad:
        _left_out(len(bad), len(takes), "takes", bad[0])


def _file(path: Path, name: str) -> View:
    return View(name, path.read_bytes, str(path))


def folder_takes(root: Path) -> Takes:
    """`TAKE/CAMERA.mp4`."""
    takes: Takes = {}
    for file in sorted(root.glob("*/*")):
        if _is_video(file):
            takes.setdefault(file.parent.name, []).append(_file(file, file.stem))
    for name, views in takes.items():
        if len({view.camera for view in views}) < len(views):
            raise UserError(f"{root / name} has two videos of one camera, which differ in their endings")
    if not takes:
        raise UserError(f"no videos under {root}: a take is a folder of one video a camera, as take1/camera1.mp4")
    return takes


LISTS = ("box", "keypoints", "pose")
"""Columns of lists that go on frame by frame."""
CARRIED = ("joint_names", "joint_parents", "joint_mirror", "keypoint_names", "cameras")
"""Of the schema's metadata, JSON each."""


class StoredTakes(NamedTuple):
    takes: Takes
    labels: dict[str, int | None]
    class_names: tuple[str, ...] | None
    lists: tuple[str, ...]
    """Those of `LISTS` that some file has."""
    metadata: dict[str, object]
    """Those of `CARRIED` that there are, the same in all files."""


def stored_takes(files: list[Path], take: str | None) -> StoredTakes:
    """Parquet with the columns video, camera, `take` (None: `take`, or `scene`), perhaps label, num_frames and `LISTS`.

    Labels that are strings become the numbers of their sorted values, as of --data.label.

    Raises:
        UserError: a column that is missing or of a wrong type, a take and camera twice, files whose metadata differ.
    """
    takes: Takes = {}
    labels: dict[str, int | str | None] = {}
    described: list[_File] = []
    there: set[str] = set()
    metadata: dict[str, object] = {}
    for file in files:
        with pq.ParquetFile(file) as stored:
            schema, names = stored.schema_arrow, stored.schema_arrow.names
            column = take or next((name for name in ("take", "scene") if name in names), "take")
            if missing := [name for name in (column, "camera", "video") if name not in names]:
                raise UserError(
                    f"{file} has no column {missing[0]}; its columns are {', '.join(names)}: --take names that of takes"
                )
            lists = [name for name in LISTS if name in names]
            for name in lists:
                if not holds_numbers(schema.field(name).type):
                    raise UserError(f"{file}: column {name} is of type {schema.field(name).type}, not a list of floats")
            there |= {*lists}
            own = {key: json.loads((schema.metadata or {}).get(key.encode(), b"null")) for key in CARRIED}
            own = {key: value for key, value in own.items() if value is not None}
            if "pose" in lists and not own.get("joint_names"):
                raise UserError(f"{file} has a column pose, but no joint_names (a JSON list) in the schema's metadata")
            if file == files[0]:
                metadata = own
            if differing := [key for key in CARRIED if own.get(key) != metadata.get(key)]:
                raise UserError(f"{file}: {differing[0]} of its metadata is not that of {files[0]}: give one by one")
            labelled = "label" in names and _is_label(schema.field("label").type)
            if labelled:
                values = _plain(stored.read(columns=["label"])["label"]).unique().drop_null().to_pylist()
                described.append(_File([], values, _class_names(schema, "label")))
            counted = ["num_frames"] if "num_frames" in names else []
            wanted = [column, "camera", *counted, *(["label"] if labelled else [])]
            for group in range(stored.num_row_groups):
                for row, found in enumerate(stored.read_row_group(group, columns=wanted).to_pylist()):
                    name, lens = str(found[column]), str(found["camera"])
                    views = takes.setdefault(name, [])
                    if lens in {view.camera for view in views}:
                        raise UserError(f"{file} has take {name}, camera {lens} twice: --take names takes' column")
                    where = f"{file}, take {name}, camera {lens}"
                    read = _reader(file, group, row)
                    rest = _lists_reader(file, group, row, lists, own, found.get("num_frames"), read, where)
                    views.append(View(lens, read, where, rest))
                    labels[name] = found.get("label")
    _, classes = _classes(described, "label")
    numbered = {k: (classes or ()).index(v) if isinstance(v, str) else v for k, v in labels.items()}
    return StoredTakes(takes, numbered, classes, tuple(name for name in LISTS if name in there), metadata)


def _is_label(column: pa.DataType) -> bool:
    inner = column.value_type if pa.types.is_dictionary(column) else column
    return pa.types.is_integer(inner) or pa.types.is_string(inner) or pa.types.is_large_string(inner)


def _reader(file: Path, group: int, row: int) -> Callable[[], bytes]:
    def read() -> bytes:
        video = _videos(file, group)[row].as_py()
        if video is None:
            raise ValueError(f"{file}: no video in row {row} of row group {group}")
        return video

    return read


def _lists_reader(
    file: Path,
    group: int,
    row: int,
    lists: list[str],
    metadata: Mapping[str, Any],
    counted: int | None,
    video: Callable[[], bytes],
    where: str,
) -> Callable[[], dict[str, np.ndarray | None]]:
    """Without names in the metadata a list has as many frames as num_frames, `counted`, says, else as the video has."""

    def read() -> dict[str, np.ndarray | None]:
        joints, keys = metadata.get("joint_names", []), metadata.get("keypoint_names", [])
        found: dict[str, np.ndarray | None] = {}
        for name in lists:
            value = _lists(file, group, name)[row]
            if not value.is_valid:
                found[name] = None
                continue
            values = value.values.to_numpy(zero_copy_only=False)
            if name == "box":
                found[name] = by_frame(values, name, 3, where)
            elif name == "pose":
                found[name] = by_frame(values, name, 3 * len(joints), where)
            else:
                frames = counted or (None if keys else count_frames(video()))
                points = keypoints_by_frame(values, keys, frames, where)
                found[name] = points.reshape(len(points), -1)
        return found

    return read


@lru_cache(maxsize=2)
def _videos(file: Path, group: int) -> pa.ChunkedArray:
    return _column(file, group, "video")


@lru_cache(maxsize=2 * len(LISTS))
def _lists(file: Path, group: int, name: str) -> pa.ChunkedArray:
    return _column(file, group, name)


def _column(file: Path, group: int, name: str) -> pa.ChunkedArray:
    with pq.ParquetFile(file) as stored:
        return stored.read_row_group(group, columns=[name])[name]


def take_rows(
    takes: Takes,
    labels: Mapping[str, int | None] | None,
    slack: int,
    allow_missing: bool,
    lists: Sequence[str] = (),
) -> Iterator[tuple]:
    """Rows take, camera, video, num_frames and, with `labels`, label, then `lists`, of num_frames frames each; cameras
    in sorted order."""

    def rows(name: str, views: list[View]) -> list[tuple]:
        views = sorted(views, key=lambda view: view.camera)
        found = {view.camera: view.lists() for view in views}
        also = {f"{k} of {c}": len(v) for c, some in found.items() for k, v in some.items() if v is not None}
        common = in_step(views, slack, also)
        label = () if labels is None else (labels[name],)
        result = []
        for view, video in zip(views, common.videos, strict=True):
            values = (found[view.camera].get(k) for k in lists)
            cut = (None if v is None else v[: common.frames].ravel() for v in values)
            result.append((name, view.camera, video, common.frames, *label, *cut))
        return result

    return _kept(takes, rows, allow_missing)


def whole_takes(takes: Takes, allow_missing: bool) -> Takes:
    """See `_complete`; sorted by name."""
    return dict(sorted(_complete(takes, allow_missing).items()))


# ---------------------------------------------------------------------------------------------- Human3.6M

H36M = {"train": ("S1", "S5", "S6", "S7", "S8"), "test": ("S9", "S11")}
_OF_32 = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)  # JOINTS among the published 32


class Subject(NamedTuple):
    name: str
    cameras: dict[str, Camera]
    takes: Takes


def h36m(root: Path, split: str, allow_missing: bool) -> list[Subject]:
    """What lies there of the subjects of a split; see the module's head."""
    tables = read_tables(root / "cameras.toml")
    subjects = []
    for name in H36M[split]:
        if not (root / name / "Videos").is_dir():
            if not allow_missing:
                raise UserError(f"no folder {root / name / 'Videos'}: leave the subject out with --allow-missing")
            _left_out(1, len(H36M[split]), "subjects", f"{name}, which has no folder Videos")
            continue
        own = {**{k: v for k, v in tables.items() if not re.fullmatch(r"S\d+", k)}, **tables.get(name, {})}
        cameras = {k: camera(v, f"{root / 'cameras.toml'}, camera {name}.{k}") for k, v in own.items()}
        takes: Takes = {}
        for file in sorted((root / name / "Videos").iterdir()):
            action, _, lens = file.stem.rpartition(".")
            if not _is_video(file) or file.name.startswith("_"):
                continue
            if lens not in cameras:
                raise UserError(
                    f"{file}: {root / 'cameras.toml'} has no table [{name}.{lens}]; a file is NAME.CAMERA.mp4"
                )
            takes.setdefault(f"{name}/{action}", []).append(_file(file, lens))
        if takes:
            subjects.append(Subject(name, cameras, _complete(takes, allow_missing)))
    if not subjects:
        raise UserError(f"no videos of {', '.join(H36M[split])} under {root}, as S1/Videos/Directions 1.54138969.mp4")
    return subjects


def h36m_rows(
    root: Path, subjects: list[Subject], slack: int, least_motion: float, allow_missing: bool
) -> Iterator[tuple]:
    """Rows take, camera, video, num_frames, label, pose, box. Frames of least motion are left out, if it is above 0."""
    labels = [name for names in H36M.values() for name in names]
    for subject in subjects:

        def rows(name: str, views: list[View], subject: Subject = subject) -> list[tuple]:
            world = _h36m_pose(root / subject.name / "Poses" / f"{name.partition('/')[2]}.npy")
            common = in_step(views, slack, {"the poses": len(world)})
            world = world[: common.frames]
            kept = moved(world, least_motion)
            result = []
            for view, video in zip(views, common.videos, strict=True):
                lens = subject.cameras[view.camera]
                shown = video if len(kept) == len(world) else _selected(video, kept)
                pose, box = lens.to_camera(world[kept]), boxes(lens.project(world[kept]))
                result.append(
                    (name, view.camera, shown, len(kept), labels.index(subject.name), _flat(pose), _flat(box))
                )
            return result

        yield from _kept(subject.takes, rows, allow_missing)


def _h36m_pose(path: Path) -> np.ndarray:
    """-> float64 (F, 17, 3)."""
    try:
        pose = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no poses {path} ({error})") from error
    if pose.ndim != 3 or pose.shape[1:] not in ((17, 3), (32, 3)) or not np.issubdtype(pose.dtype, np.floating):
        raise ValueError(f"{path} holds {pose.dtype} {pose.shape}: poses are floats (F, 17, 3) or (F, 32, 3)")
    return np.asarray(pose[:, _OF_32] if pose.shape[1] == 32 else pose, np.float64)


def moved(world: np.ndarray, least: float) -> np.ndarray:
    """Frames of (F, J, 3), ascending: the first, then each in which some joint is `least` from where the last had it.

    The thesis (Section 6.3) skips frames "without significant movement", every fourth on average, of its training set;
    it names no threshold and no measure: this one is ours.
    """
    kept = [0]
    for frame in range(1, len(world)):
        distance = np.linalg.norm(world[frame] - world[kept[-1]], axis=-1)
        if least <= 0 or (distance >= least).any():
            kept.append(frame)
    return np.array(kept)


def _selected(video: bytes, kept: np.ndarray) -> bytes:
    """The same video with frames `kept` alone, encoded anew."""
    wanted = set(kept.tolist())
    try:
        with av.open(io.BytesIO(video), "r") as container:
            frames = (f for i, f in enumerate(container.decode(container.streams.video[0])) if i in wanted)
            return encode((frame.to_ndarray(format="rgb24") for frame in frames), lossless=False)
    except av.FFmpegError as error:
        raise ValueError(f"a video cannot be decoded: {error}") from error

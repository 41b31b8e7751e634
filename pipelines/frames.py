"""The frame cache: videos decoded once, resized, and stored so that every frame is a key frame.

A clip of such a video costs its own frames and no others. `python -m pipelines data frames` writes Parquet files with
the rows, row groups and further columns of the source; what reads videos or takes reads them alike. `box` is scaled
with the frames; `keypoints` become the `box` that is made of them where there is none, and are not stored. A video that
cannot be decoded becomes a null, which is counted as a broken row where it is read.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from pipelines.cameras import subject_boxes
from pipelines.errors import UserError
from pipelines.sources import (
    Data,
    Group,
    Source,
    by_frame,
    holds_numbers,
    json_of,
    keypoints_by_frame,
    open_source,
    parquet_file,
    read_group,
)
from pipelines.video import Table, _frames, _turn, all_key, plan, table

console = Console(stderr=True)


@dataclass(frozen=True)
class FrameOptions:
    source: str
    """Videos as of --data.train: Parquet file(s) of videos or takes, a folder, or WebDataset tar(s)."""
    to: str
    """Folder for the Parquet files."""
    size: int = 128
    """Pixels: as --data.size."""
    width: int | None = None
    """Pixels: as --data.width. None: the central square."""
    raw: bool = False
    """Without loss, some ten times larger. Otherwise JPEG."""
    quality: int = 3
    """Of JPEG: 2 (best) to 31."""
    video: str = "video"
    """Parquet column of encoded files."""
    workers: int = 0
    """Processes. 0: as many as there are cores."""


@dataclass(frozen=True)
class Stored:
    """A video with key frames alone, or why there is none."""

    encoded: bytes | None
    reason: str
    frames: int
    shape: tuple[int, int]
    """(H, W) before, upright."""


def write_frames(options: FrameOptions) -> list[Path]:
    """Writes the files, one for each of the source's (of a folder one in all) -> their paths.

    Raises:
        UserError: a file that is there already, or nothing to read.
    """
    data = Data(media="video", size=options.size, width=options.width, video=options.video)
    source = open_source(options.source, data)
    folder, written = Path(options.to).expanduser(), []
    folder.mkdir(parents=True, exist_ok=True)
    bad = 0
    make = partial(stored, size=options.size, width=options.width, raw=options.raw, quality=options.quality)
    here = options.workers == 1  # in this process
    forked = partial(ProcessPoolExecutor, options.workers or None, mp_context=get_context("forkserver"))
    with (
        nullcontext() if here else forked() as pool,
        Progress(*Progress.get_default_columns(), console=console) as progress,
    ):
        bar = progress.add_task("storing frames", total=source.rows)
        each: Any = pool.map if pool else map
        for path, groups in by_file(source):
            target = folder / (
                Path(path).with_suffix(".parquet").name if source.kind != "folder" else "train-00000.parquet"
            )
            if target.exists():
                raise UserError(f"{target} is there already: remove it, or give another --to")
            writer, part = None, target.with_name(f".{target.name}.part")
            try:
                for group in groups:
                    columns, names = read(source, group)
                    found = []
                    for name, one in zip(names, each(make, columns.column("video").to_pylist()), strict=True):
                        found.append(one)
                        progress.advance(bar)
                        if one.reason:
                            bad += 1
                            progress.console.print(f"[yellow]left out[/] {escape(f'{name}: {one.reason}')}")
                    columns = replaced(columns, found, options, names)
                    writer = writer or pq.ParquetWriter(part, columns.schema, compression="none")
                    writer.write_table(columns, row_group_size=len(columns))
            finally:
                if writer:
                    writer.close()
            part.rename(target)
            written.append(target)
    console.print(f"{source.rows - bad:,} videos in {folder}" + (f", {bad} could not be decoded" if bad else ""))
    return written


def by_file(source: Source) -> Iterator[tuple[str, list[Group]]]:
    """The groups of each file of a source; of a folder all of them."""
    files: dict[str, list[Group]] = {}
    for group in source.groups:
        files.setdefault(source.root if source.kind == "folder" else group.path, []).append(group)
    yield from files.items()


def read(source: Source, group: Group) -> tuple[pa.Table, list[str]]:
    """All columns of a group, with `video`; of what is not Parquet `label` beside it. And each row's place."""
    if source.kind == "parquet":
        with parquet_file(source.filesystem, group.path) as file:
            columns = read_group(file, group.part, group.path)
        names = [f"{group.path}:{group.part}, row {i}" for i in range(len(columns))]
        renamed = columns.rename_columns(["video" if n == source.column else n for n in columns.column_names])
        return renamed.replace_schema_metadata(columns.schema.metadata), names
    found = source.read(group, np.arange(group.rows))
    columns = pa.table({"video": pa.array(found.files, pa.binary())})
    if found.label is not None:
        columns = columns.append_column("label", pa.array(found.label, pa.int32()))
        if source.class_names:
            columns = columns.replace_schema_metadata({"class_names": json.dumps(source.class_names)})
    return columns, found.names


def stored(encoded: bytes | None, *, size: int, width: int | None, raw: bool, quality: int) -> Stored:
    try:
        opened = table(encoded or b"")
        made = all_key(encoded or b"", opened, size, width or size, square=width is None, quality=quality, raw=raw)
        return Stored(made, "", len(opened), upright(encoded or b"", opened))
    except ValueError as error:
        return Stored(None, str(error), 0, (1, 1))


def upright(encoded: bytes, opened: Table) -> tuple[int, int]:
    """(H, W) of a video's frames as a player shows them. Only a frame tells whether its display matrix swaps the sides:
    the first is decoded."""
    for _, frame in _frames(encoded, opened, plan(opened, np.zeros(1, np.int64))):
        return (frame.width, frame.height) if _turn(frame).swap else (frame.height, frame.width)
    return opened.height, opened.width


def replaced(columns: pa.Table, found: list[Stored], options: FrameOptions, names: list[str]) -> pa.Table:
    """The rows with their new videos, frame numbers and boxes. `names` are the rows' places, for messages.

    Raises:
        UserError: boxes or keypoints that are not whole frames.
    """
    frames = [one.frames for one in found]
    if "num_frames" in columns.column_names:  # of takes: what all cameras have
        before = columns["num_frames"].to_pylist()
        frames = [n if old is None else min(old, n) for old, n in zip(before, frames, strict=True)]
    new = {
        "video": pa.array([one.encoded for one in found], pa.binary()),
        "num_frames": pa.array(frames, pa.int32()),
    }
    if "box" in columns.column_names or _has_keypoints(columns):
        given = zip(boxes(columns, [one.frames for one in found], names), found, strict=True)
        made = [
            None if box is None else scaled_boxes(box, one.shape, (options.size, options.width)) for box, one in given
        ]
        flat = [None if box is None else box.astype(np.float32).ravel() for box in made]
        new["box"] = pa.array(flat, pa.list_(pa.float32()))
    if _has_keypoints(columns):
        columns = columns.drop_columns(["keypoints"])
    for name, column in new.items():
        at = columns.schema.get_field_index(name)
        columns = columns.append_column(name, column) if at < 0 else columns.set_column(at, name, column)
    return columns


def _has_keypoints(columns: pa.Table) -> bool:
    at = columns.schema.get_field_index("keypoints")
    return at >= 0 and holds_numbers(columns.schema.field(at).type)


def boxes(columns: pa.Table, decoded: list[int], names: list[str]) -> list[np.ndarray | None]:
    """Of each row float32 (F, 3): its box, or that of its keypoints. `decoded`: frames of each video, 0 of a broken
    one, whose boxes are left out.

    Raises:
        UserError: a list that is not whole frames.
    """
    keys = json_of(columns.schema, "keypoint_names", names[0] if names else "the file") or []

    def values(name: str, there: bool) -> list:
        return columns[name].to_pylist() if there else [None] * len(columns)

    given = zip(
        values("box", "box" in columns.column_names),
        values("keypoints", _has_keypoints(columns)),
        values("num_frames", "num_frames" in columns.column_names),
        decoded,
        names,
        strict=True,
    )
    made: list[np.ndarray | None] = []
    for box, keypoints, count, frames, where in given:
        try:
            if box is not None and frames:
                made.append(by_frame(box, "box", 3, where))
            elif keypoints is not None and frames:
                made.append(subject_boxes(keypoints_by_frame(keypoints, keys, count or frames, where)))
            else:
                made.append(None)
        except ValueError as error:
            raise UserError(str(error)) from error
    return made


def scaled_boxes(boxes: np.ndarray, shape: tuple[int, int], to: tuple[int, int | None]) -> np.ndarray:
    """Boxes (n, 3) in pixels of frames of `shape` (H, W) -> in those of frames resized to `to`: (H, W), or (S, None),
    the central square. Where the sides' ratio changes, a box keeps its share of the area. All are of upright pictures,
    as a player shows them: of frames that a display matrix turns `shape` is that of `upright`."""
    height, width = shape
    x, y, side = boxes.T
    if to[1] is None:
        least = min(height, width)
        x, y, height, width = x - (width - least) / 2, y - (height - least) / 2, least, least
    down, along = to[0] / height, (to[1] or to[0]) / width
    return np.stack([x * along, y * down, side * (down * along) ** 0.5], 1)

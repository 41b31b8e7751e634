"""Stages of Ray Data for takes: moments in, views of what several cameras saw out.

A take is read and its videos are opened once for all its moments in a piece; of each camera only the frames that some
view names are decoded, each once. Frames that are stored as key frames (`python -m pipelines data frames`) cost no
others. A camera's background is the median of frames spread over its video.

Legend: n moments, C channels, H x W pixels of a decoded frame, S of a view, J joints.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from methods.pose import mirrored
from methods.takes import PARAMETERS, TakeView, backgrounds
from pipelines.cameras import nearest_boxes
from pipelines.clips import ends, inspected
from pipelines.frames import scaled_boxes, upright
from pipelines.sources import Bad, Cameras, Data, Source, read_take
from pipelines.video import Table, decode, table

if TYPE_CHECKING:
    from pipelines.feed import Piece

BACKGROUND_FRAMES = 48  # of a video, whose median is its background
AT_ONCE = 128  # moments whose whole frames are held
FLIP = PARAMETERS.index("flip")


class Opened(NamedTuple):
    stored: Cameras
    tables: list[Table]
    shapes: list[tuple[int, int]]
    """(H, W) of each camera's frames, in which its boxes are: upright."""

    @property
    def each(self) -> list[int]:
        """Of each camera, moments at which it has a frame, and where they are known a box and joints."""
        columns = zip(self.tables, self.stored.box, self.stored.pose, strict=True)
        return [min(len(some) for some in of if some is not None) for of in columns]

    @property
    def frames(self) -> int:
        """Moments at which every camera has them."""
        return min(self.each)


def opened(source: Source, number: int, pose: str) -> Opened:
    """Take `number` of a source.

    Raises:
        ValueError: a camera whose video cannot be opened.
    """
    return Opened(_read(source, number, pose), *_described(source, number, pose))


@lru_cache(maxsize=4)
def _read(source: Source, number: int, pose: str) -> Cameras:
    """A process that meets a take again in the next piece need not read it again."""
    return read_take(source, number, pose)


@lru_cache(maxsize=4096)
def _described(source: Source, number: int, pose: str) -> tuple[list[Table], list[tuple[int, int]]]:
    """Of each camera what is little, and takes long to find."""
    stored = _read(source, number, pose)
    tables, shapes = [], []
    for camera, encoded, box in zip(source.takes[number].cameras, stored.videos, stored.box, strict=True):
        try:
            tables.append(of := table(encoded or b""))
            shapes.append((of.height, of.width) if box is None else upright(encoded or b"", of))
        except ValueError as error:
            raise ValueError(f"camera {camera}: {error}") from error
    return tables, shapes


def decoded(take: Opened, camera: int, wanted: np.ndarray, data: Data) -> Tensor:
    """uint8 (n, C, H, W): a camera's frames of ascending numbers."""
    height, width = data.shape
    encoded = take.stored.videos[camera] or b""
    return torch.from_numpy(decode(encoded, take.tables[camera], wanted, height, width, square=data.width is None))


@lru_cache(maxsize=512)
def background(source: Source, number: int, camera: int, data: Data) -> Tensor:
    """uint8 (C, H, W): what a camera sees most of the time."""
    take = opened(source, number, data.pose)
    wanted = np.unique(np.linspace(0, len(take.tables[camera]) - 1, BACKGROUND_FRAMES).round().astype(np.int64))
    return backgrounds(decoded(take, camera, wanted, data))


def boxes(take: Opened, camera: Tensor, frame: Tensor, data: Data) -> Tensor | None:
    """float32 (n, 3): stored boxes in pixels of decoded frames, of a camera without one the greatest central square;
    None where no camera has one. A frame without a box of its own is no moment, but a pair may reach it: it has that of
    the nearest frame."""
    if all(box is None for box in take.stored.box):
        return None
    height, width = data.shape
    out = torch.tensor([width / 2, height / 2, min(height, width)]).repeat(len(camera), 1)
    for c in camera.unique().tolist():
        stored = take.stored.box[c]
        found = None if stored is None else nearest_boxes(np.asarray(stored))
        if found is None:
            continue
        mine = camera == c
        found = found[frame[mine].numpy()]
        shape = take.shapes[c]
        out[mine] = torch.from_numpy(scaled_boxes(found, shape, (data.size, data.width)))
    return out


def seen(source: Source, number: int, camera: Tensor, frame: Tensor, data: Data) -> Tensor:
    """uint8 (n, C, H, W): the frames of a take that cameras and numbers, int64 (n,), name. Each is decoded once."""
    take = opened(source, number, data.pose)
    images = torch.empty(len(camera), 3, *data.shape, dtype=torch.uint8)
    for c in camera.unique().tolist():
        mine = (camera == c).nonzero()[:, 0]
        wanted, places = frame[mine].unique(return_inverse=True)
        images.index_copy_(0, mine, decoded(take, c, wanted.numpy(), data).index_select(0, places))
    return images


def looked_at(
    source: Source, number: int, views: Mapping[str, TakeView], parameters: Mapping[str, Tensor], data: Data
) -> dict[str, Tensor]:
    """Of each view uint8 (n, C, S, S): moments of one take, as its parameters (n, P) say."""
    take = opened(source, number, data.pose)
    named = {name: view.sources(parameters[name]) for name, view in views.items()}  # (n, 3)
    camera, frame, _ = torch.cat([*named.values()]).unbind(1)
    images = seen(source, number, camera, frame, data).chunk(len(views))

    def behind(cameras: Tensor, needed: bool) -> Tensor | None:
        if not needed:
            return None
        unique, places = cameras.unique(return_inverse=True)
        return torch.stack([background(source, number, c, data) for c in unique.tolist()]).index_select(0, places)

    out = {}
    for (name, view), whole in zip(views.items(), images, strict=True):
        camera, frame, other = named[name].unbind(1)
        out[name] = view.apply(
            whole,
            parameters[name],
            box=boxes(take, camera, frame, data),
            background=behind(camera, view.background != "keep"),
            other=behind(other, view.substitutes),
        )
    return out


def poses(source: Source, number: int, parameters: Tensor, data: Data) -> Tensor:
    """float32 (n, J, 3): the joints in the coordinates of the cameras, mirrored where the view is."""
    take = opened(source, number, data.pose)
    camera, frame, _ = TakeView.sources(parameters).unbind(1)
    found = [np.asarray(take.stored.pose[c])[f] for c, f in zip(camera.tolist(), frame.tolist(), strict=True)]
    joints = torch.from_numpy(np.stack(found))
    return torch.where(parameters[:, FLIP, None, None] > 0, mirrored(joints, take.stored.mirror), joints)


@dataclass(frozen=True)
class MakeMoments:
    """Of the stream feed: columns `index`, `label`, of each view its images (n, C, S, S) and parameters, and `pose`
    (n, J, 3) of what the first view shows, where the data names a column of joints."""

    source: Source
    data: Data
    views: Mapping[str, TakeView]
    seed: int
    epoch: int
    camera: int | None = None
    """A camera for every view, where one is evaluated. None: drawn."""

    def __call__(self, pieces: "list[Piece]") -> dict[str, np.ndarray]:
        parts: dict[str, list[Tensor]] = {}
        few = [(piece.group, rows) for piece in pieces for rows in torch.from_numpy(piece.rows).split(AT_ONCE)]
        for number, frame in few:
            try:
                take = opened(self.source, number, self.data.pose)
            except ValueError as error:  # it was good when the run began
                raise OSError(f"take {self.source.takes[number].name} can no longer be read: {error}") from error
            index = self.source.groups[number].first + frame
            columns = {"index": index}
            if self.source.labelled:
                columns["label"] = torch.full_like(index, self.source.takes[number].label)
            whole = torch.full_like(index, take.frames), torch.full_like(index, len(take.tables))
            drawn = {
                name: view.draw(self.seed, self.epoch, index, frame=frame, frames=whole[0], cameras=whole[1])
                for name, view in self.views.items()
            }
            if self.camera is not None:
                for some in drawn.values():
                    some[:, PARAMETERS.index("camera")] = self.camera
                    some[:, PARAMETERS.index("substitute")] = (self.camera + 1) % len(take.tables)
            columns |= looked_at(self.source, number, self.views, drawn, self.data)
            columns |= {f"{name}.parameters": some for name, some in drawn.items()}
            if self.data.pose:
                columns["pose"] = poses(self.source, number, columns[f"{next(iter(self.views))}.parameters"], self.data)
            for name, column in columns.items():
                parts.setdefault(name, []).append(column)
        return {name: torch.cat(some).numpy() for name, some in parts.items()}


@dataclass(frozen=True)
class InspectTakes:
    """Of the survey: each take is opened, and every camera's first and last frame decoded. A moment is broken where a
    camera has no frame, or where a joint that is to be learned is not finite. Columns as of `feed.Decode`."""

    source: Source
    data: Data
    views: Mapping[str, TakeView]

    def __call__(self, pieces: "list[Piece]") -> dict[str, np.ndarray]:
        bad: list[Bad] = []
        index, label = [], []
        for piece in pieces:
            group, take = self.source.groups[piece.group], self.source.takes[piece.group]
            whole, each = self.inspect(piece.group, group.rows)
            for row in piece.rows.tolist():
                if reason := whole or each[row]:
                    bad.append(Bad(group.first + row, f"{group.path}: take {take.name}, frame {row}", reason))
                else:
                    index.append(group.first + row)
                    label.append(take.label)
        return inspected(index, label, bad)

    def inspect(self, number: int, rows: int) -> tuple[str, list[str]]:
        """What is wrong with the take as a whole, and with each of its moments; empty where nothing is."""
        names = self.source.takes[number].cameras
        each = [""] * rows
        try:
            take = opened(self.source, number, self.data.pose)
            for camera in range(len(names)):
                decoded(take, camera, ends(take.tables[camera]), self.data)
        except ValueError as error:
            return str(error), each
        needed = max((view.least_cameras for view in self.views.values()), default=1)
        if len(names) < needed:
            return f"it has {len(names)} camera(s) ({', '.join(names)}), and {needed} are needed", each
        if take.frames < max((view.least_frames for view in self.views.values()), default=1):
            return f"it has {take.frames} frame(s)", each
        shortest = take.each.index(take.frames)
        told = f"camera {names[shortest]} ends at frame {take.frames} (its video, boxes or joints)"
        each[take.frames :] = [told] * (rows - take.frames)
        for name, joints, box in zip(names, take.stored.pose, take.stored.box, strict=True):
            if self.data.pose and joints is None:
                return f"camera {name} has no joints", each
            if joints is not None:
                for frame in np.flatnonzero(~np.isfinite(joints[: take.frames]).all((1, 2))).tolist():
                    each[frame] = f"camera {name}: a joint is not finite"
            if box is not None:
                fine = np.isfinite(box[: take.frames]).all(1) & (box[: take.frames, 2] > 0)
                for frame in np.flatnonzero(~fine).tolist():
                    each[frame] = f"camera {name}: the box is not finite, or empty"
        return "", each

"""Stages of Ray Data for videos: pieces of a source in, clips out. Each video is decoded once, whatever is made of it.

A video's frames are those of its container in the order of presentation, so that a variable frame rate needs no clock:
"every second frame" is every second one that was stored.

Legend: n videos, T frames of a clip, K clips of a video, C channels, H x W pixels of a decoded frame, S of a crop.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from methods.clips import ClipView, uniform_clips
from pipelines.sources import Bad, Data, Source
from pipelines.video import Table, decode, table

if TYPE_CHECKING:
    from pipelines.feed import Piece


class Video(NamedTuple):
    encoded: bytes
    table: Table
    number: int
    """Its dataset index."""
    label: int
    where: str


def videos(source: Source, pieces: "list[Piece]", bad: list[Bad]) -> Iterator[Video]:
    """The videos of some pieces, in order, as they are encoded; those that cannot be opened are added to `bad`."""
    for piece in pieces:
        group = source.groups[piece.group]
        found = source.read(group, piece.rows)
        labels = [-1] * len(found.files) if found.label is None else found.label.tolist()
        for row, encoded, label, name in zip(piece.rows.tolist(), found.files, labels, found.names, strict=True):
            try:
                if encoded is None:
                    raise ValueError("no video (null)")
                yield Video(encoded, table(encoded), group.first + row, label, name)
            except ValueError as error:
                bad.append(Bad(group.first + row, name, str(error)))


def frames(video: Video, wanted: Tensor, data: Data) -> Tensor:
    """uint8 (..., C, H, W): the frames that `wanted`, int64 of any shape, names. Each is decoded once.

    Raises:
        ValueError: none of them can be decoded.
    """
    unique, places = wanted.unique(return_inverse=True)
    height, width = data.shape
    decoded = decode(video.encoded, video.table, unique.numpy(), height, width, square=data.width is None)
    chosen = torch.from_numpy(decoded).index_select(0, places.flatten())  # copies whole frames, as [places] does not
    return chosen.unflatten(0, places.shape)


@dataclass(frozen=True)
class MakeClips:
    """Of the stream feed: columns `index`, `label`, `length` in frames, and of each view its clips (n, T, C, S, S) and
    parameters."""

    source: Source
    data: Data
    views: Mapping[str, ClipView]
    seed: int
    epoch: int

    def __call__(self, pieces: "list[Piece]") -> dict[str, np.ndarray]:
        bad: list[Bad] = []
        found = list(videos(self.source, pieces, bad))
        if bad:  # all were good when the run began
            raise OSError(f"{bad[0].where} can no longer be read: {bad[0].reason}")
        index = torch.tensor([video.number for video in found])
        length = torch.tensor([len(video.table) for video in found])
        parameters = {
            name: view.draw(self.seed, self.epoch, index, length=length, shape=self.data.shape)
            for name, view in self.views.items()
        }
        named = [view.frames_of(parameters[name]) for name, view in self.views.items()]
        clips: dict[str, list[Tensor]] = {name: [] for name in self.views}
        for i, video in enumerate(found):
            wanted = torch.cat([some[i] for some in named])
            parts = frames(video, wanted, self.data).split([some.shape[1] for some in named])
            for (name, view), part in zip(self.views.items(), parts, strict=True):
                clips[name].append(view.apply(part[None], parameters[name][i : i + 1])[0])
        columns = {"index": index, "length": length}
        if self.source.labelled:
            columns["label"] = torch.tensor([video.label for video in found])
        for name in self.views:
            columns |= {name: torch.stack(clips[name]), f"{name}.parameters": parameters[name]}
        return {name: column.numpy() for name, column in columns.items()}


@dataclass(frozen=True)
class InspectVideos:
    """Of the survey: every video is opened and its first and last frame decoded. Columns as of `feed.Decode`."""

    source: Source
    data: Data
    views: Mapping[str, ClipView]

    def __call__(self, pieces: "list[Piece]") -> dict[str, np.ndarray]:
        bad: list[Bad] = []
        good = []
        least = max((view.least_frames for view in self.views.values()), default=1)
        for video in videos(self.source, pieces, bad):
            try:
                if len(video.table) < least:
                    raise ValueError(f"{len(video.table)} frames, and {least} are needed")
                decode(video.encoded, video.table, ends(video.table), 16, 16)
                good.append(video)
            except ValueError as error:
                bad.append(Bad(video.number, video.where, str(error)))
        return inspected([v.number for v in good], [v.label for v in good], bad)


def ends(table: Table) -> np.ndarray:
    """The numbers of the first and the last frame."""
    return np.unique(np.array([0, len(table) - 1]))


def inspected(index: list[int], label: list[int], bad: list[Bad]) -> dict[str, np.ndarray]:
    """Columns of a survey: good rows, then the broken ones with their place and the reason."""
    return {
        "index": np.array([*index, *(b.index for b in bad)], np.int64),
        "label": np.array([*label, *([-1] * len(bad))], np.int64),
        "bad": np.array([""] * len(index) + [f"{b.where}\t{b.reason}" for b in bad], dtype=object),
    }


@dataclass(frozen=True)
class UniformClips:
    """Of evaluation: columns as of `InspectVideos`, `length` (n,) in frames, and `image` uint8 (n, K, T, C, S, S), the
    central squares of clips that lie evenly over each video."""

    source: Source
    data: Data
    clips: int
    frames: int
    speed: int
    size: int
    still: bool = False
    """The first frame of a clip, T times."""

    def __call__(self, pieces: "list[Piece]") -> dict[str, np.ndarray]:
        bad: list[Bad] = []
        good, images = [], []
        for video in videos(self.source, pieces, bad):
            wanted = uniform_clips(torch.tensor([len(video.table)]), self.clips, self.frames, self.speed)[0]  # (K, T)
            wanted = wanted[:, :1].expand_as(wanted) if self.still else wanted
            try:
                found = frames(video, wanted, self.data)
            except ValueError as error:
                bad.append(Bad(video.number, video.where, str(error)))
                continue
            top, left = ((pixels - self.size) // 2 for pixels in found.shape[-2:])
            images.append(found[..., top : top + self.size, left : left + self.size])
            good.append(video)
        columns = inspected([v.number for v in good], [v.label for v in good], bad)
        empty = torch.zeros(len(bad), self.clips, self.frames, 3, self.size, self.size, dtype=torch.uint8)
        lengths = [len(video.table) for video in good] + [0] * len(bad)
        return columns | {
            "length": np.array(lengths, np.int64),
            "image": torch.cat([torch.stack(images), empty] if images else [empty]).numpy(),
        }

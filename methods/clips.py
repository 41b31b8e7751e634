"""Views of videos: clips of few frames, chosen by a temporal transformation, then cropped and mirrored alike.

A clip's frames are named before anything is decoded: `draw` needs a video's length alone, `frames_of` tells which
frames its parameters ask for, and `apply` gets those and no others. What the clips of one video share (thesis on
self-supervised learning of S. Jenni, section 5.2.3 and the released code: speed type and flip) is drawn under a name
that the view's own is no part of; the frames and the crop are each clip's own.

Legend: B videos, T frames of a clip, C channels, H x W pixels of a decoded frame, S those of the crop, P parameters.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from methods import parts
from methods.temporal import PERIODIC, Kind, frame_indices, possible_speed
from methods.views import PARAMETERS, View

DRAWS = 256
"""Random numbers for the choice of a clip's frames; a clip of more frames takes as many as it has, and 64."""
FLIP = PARAMETERS.index("flip")


@dataclass(frozen=True)
class ClipView:
    """Defaults: section 5.2.3 with C3D. A random square of S pixels out of the decoded frames, mirrored or not."""

    name: str
    """Part of the draws, and the batch's column."""
    kind: Kind = "speed"
    """How frames are chosen; see methods.temporal."""
    size: int = 112
    """S."""
    frames: int = 16
    """T."""
    speeds: int = 4
    """Speed types: kappa is drawn from 0 to this less 1, uniformly among those that the video's length allows."""
    speed: int | None = None
    """A kappa for every clip, which the length may lower too (transfer: 2). None: drawn."""
    still: bool = False
    """The first frame of the clip, T times: what is left of a video without its motion (section 5.3)."""
    whole: bool = False
    """A video shorter than the clip is left out, where it would else repeat its last frame."""
    flip: float = 0.5
    """Probability; one draw for all clips of a video."""
    central: bool = False
    """The crop is the central one, with `crop_scale` None."""
    crop_scale: tuple[float, float] | None = None
    """Range of the crop's area as a share of the frame's; it is then resized. None: S x S pixels, cut out."""
    jitter: float = 0.0
    """Probability of the four changes of colour below."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.0
    """Probability. With 3D-ResNets, as the code: .2."""
    colours: Literal["clip", "frame"] = "frame"
    """Whether jitter and grayscale are drawn once a clip, or for each frame anew (the released code)."""

    def __post_init__(self) -> None:
        rules = [(name, getattr(self, name) >= 1, "at least 1") for name in ("size", "frames", "speeds")]
        rules += [
            ("frames", self.kind != "periodic" or self.frames >= PERIODIC, f"at least {PERIODIC} of periodic clips")
        ]
        rules += [("speed", self.speed is None or self.speed >= 0, "0 or more, or None")]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"views.{self.name}.{name} is {rule}, got {getattr(self, name)}")
        if self.central and self.crop_scale is not None:
            raise ValueError(f"views.{self.name}.central is of crops that are cut out: leave crop_scale None")
        self._spatial((self.size, self.size))  # the rest is checked there

    @property
    def least_frames(self) -> int:
        """That a video needs."""
        return self.frames if self.whole else 1

    def plain(self) -> "ClipView":
        """The same clips' central squares, as they are: for evaluation."""
        return replace(self, flip=0.0, central=True, crop_scale=None, jitter=0.0, grayscale=0.0)

    @property
    def width(self) -> int:
        """P: the speed type, the frames' numbers, and the parameters of `View` (of each frame with its own colours)."""
        return 1 + self.frames + len(PARAMETERS) * (self.frames if self._coloured else 1)

    @property
    def _coloured(self) -> bool:
        return self.colours == "frame" and (self.jitter > 0 or self.grayscale > 0)

    def shape(self, channels: int) -> tuple[int, int, int, int]:
        """One sample's shape (T, C, S, S)."""
        return self.frames, channels, self.size, self.size

    def _spatial(self, shape: tuple[int, int]) -> View:
        """What happens to every frame, of H x W pixels, as a view of images."""
        area = min(self.size**2 / (shape[0] * shape[1]), 1.0)
        return View(
            self.name,
            self.size,
            crop_scale=self.crop_scale or (area, area),
            crop_ratio=(3 / 4, 4 / 3) if self.crop_scale else (1.0, 1.0),
            flip=self.flip,
            jitter=self.jitter,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            grayscale=self.grayscale,
        )

    def draw(self, seed: int, epoch: int, index: Tensor, *, length: Tensor, shape: tuple[int, int]) -> Tensor:
        """Draws each video's clip, a pure function of the arguments.

        Args:
            seed: the recipe's seed.
            epoch: epochs done before this one.
            index: int64 (B,), each video's position in the dataset.
            length: int64 (B,), its frames.
            shape: (H, W) of the decoded frames.

        Returns:
            float32 (B, P): the speed type kappa, T frame numbers (below 2^24), the parameters of `View`.

        Raises:
            ValueError: frames that are smaller than the crop.
        """
        if min(shape) < self.size and self.crop_scale is None:
            raise ValueError(
                f"views.{self.name}.size {self.size} is more than the decoded frames have, {shape[0]} x {shape[1]}: "
                "give a larger --data.size (and --data.width), or a smaller view"
            )
        wanted = self.speeds - 1 if self.speed is None else self.speed
        speed = possible_speed(torch.full_like(length, wanted), self.frames, length)
        if self.speed is None:  # uniform over those that the length allows
            speed = (parts.draw(seed, epoch, index, "clip/speed", 1)[:, 0] * (speed + 1)).long()
        u = parts.draw(seed, epoch, index, f"clip/{self.name}", max(DRAWS, self.frames + 64))
        frames = frame_indices(self.kind, speed, self.frames, length, u)  # (B, T)
        frames = frames[:, :1].expand_as(frames) if self.still else frames
        spatial = self._spatial(shape)
        flip = parts.draw(seed, epoch, index, "clip/flip", 1)[:, 0] < self.flip
        placed = spatial.draw(seed, epoch, index, aspect=shape[1] / shape[0])
        placed[:, FLIP] = flip.float()
        if self.central:
            placed[:, :2] = 0.5
        if self._coloured:
            geometry = PARAMETERS.index("jitter")  # centre, scale, ratio and flip come before it
            each = [replace(spatial, name=f"{self.name}_{t}") for t in range(self.frames)]
            drawn = torch.stack([view.draw(seed, epoch, index) for view in each], 1)  # (B, T, 14)
            placed = torch.cat([placed[:, None, :geometry].expand(-1, self.frames, -1), drawn[:, :, geometry:]], 2)
        return torch.cat([speed[:, None].float(), frames.float(), placed.flatten(1)], 1)

    def frames_of(self, parameters: Tensor) -> Tensor:
        """int64 (B, T): the frames that the clips are made of, in the clips' order."""
        return parameters[:, 1 : 1 + self.frames].long()

    @torch.no_grad()
    def apply(self, clips: Tensor, parameters: Tensor) -> Tensor:
        """Crops, mirrors and colours clips by parameters, each by its own.

        Args:
            clips: uint8 (B, T, C, H, W), the frames that `frames_of` names, of the shape that `draw` was told.
            parameters: float32 (B, P) of `draw`.

        Returns:
            uint8 (B, T, C, S, S).
        """
        batch, frames, _, height, width = clips.shape
        if clips.dtype != torch.uint8 or frames != self.frames or parameters.shape != (batch, self.width):
            raise ValueError(
                f"view {self.name} takes uint8 clips (B, {self.frames}, C, H, W) and parameters (B, {self.width}), "
                f"got {clips.dtype} {tuple(clips.shape)} and {tuple(parameters.shape)}"
            )
        spatial = self._spatial((height, width))
        placed = parameters[:, 1 + self.frames :].reshape(batch, -1, len(PARAMETERS))  # (B, 1 or T, 14)
        if self.crop_scale is None and not (self.jitter or self.grayscale):
            return self._cut_out(clips, placed[:, 0])
        placed = placed.expand(-1, frames, -1).flatten(0, 1)
        return spatial.apply(clips.flatten(0, 1), placed).unflatten(0, (batch, frames))

    def _cut_out(self, clips: Tensor, placed: Tensor) -> Tensor:
        """Where nothing is resized: bit-equal to `View.apply`, without its arithmetic."""
        p = dict(zip(PARAMETERS, placed.unbind(1), strict=True))
        extents = (p["scale"] / p["ratio"]).sqrt(), (p["scale"] * p["ratio"]).sqrt()
        corners = []
        for centre, extent, pixels in zip((p["centre_y"], p["centre_x"]), extents, clips.shape[3:], strict=True):
            place = ((centre - extent / 2) / (1 - extent).clamp(min=1e-6)).clamp(0, 1)
            room = pixels - self.size
            corners.append((place * (room + 1)).floor().clamp(max=room).long().tolist())
        size, mirrored = self.size, p["flip"].tolist()
        out = clips.new_empty(*clips.shape[:3], size, size)
        for clip, into, top, left, flip in zip(clips, out, *corners, mirrored, strict=True):
            cut = clip[..., top : top + size, left : left + size]
            into.copy_(cut.flip(-1) if flip else cut)
        return out


def uniform_clips(length: Tensor, clips: int, frames: int, speed: int) -> Tensor:
    """The frames of clips that lie evenly over a video, from its first frame to its last: what evaluation looks at.

    Args:
        length: int64 (B,), frames of each video. A speed above what it allows is lowered; a shorter video repeats its
            last frame.
        clips: K. One clip lies in the middle.
        frames: T.
        speed: kappa: every 2^kappa-th frame (thesis, section 5.3: 2).

    Returns:
        int64 (B, K, T).
    """
    steps = 2 ** possible_speed(torch.full_like(length, speed), frames, length)  # (B,)
    room = (length - 1 - (frames - 1) * steps).clamp(min=0)
    places = torch.linspace(0, 1, clips, dtype=torch.float64) if clips > 1 else torch.tensor([0.5], dtype=torch.float64)
    starts = (places * room[:, None]).round().long()  # (B, K)
    index = starts[:, :, None] + torch.arange(frames) * steps[:, None, None]
    return torch.minimum(index, length[:, None, None] - 1)

"""Views of moments: a moment is a frame of a take, and a take is what several cameras in step have seen.

S. Jenni's thesis on self-supervised learning, sections 6.2.1 to 6.2.3 (Jenni and Favaro, Self-supervised Multi-view
Synchronization Learning for 3D Pose Estimation, ACCV 2020). `draw` says which camera's frame a view shows, `sources`
reads that out of its parameters, and `apply` gets these frames, whole, and makes the views of them.

A moment (take, t) has three views: the anchor (v1, t), the synchronized one (v2, t) and the unsynchronized one
(v2, t2). Pairs: x_p = (anchor, synchronized), x_n = (anchor, unsynchronized); x_f is x_p with one of its images
mirrored, which the method does. What a moment's views share, cameras, gap and flip, is drawn under a name that the
view's own is no part of.

Where the text is silent, ours: the three pairs share their anchor, so that x_p and x_n differ in time alone; a pixel is
background where no channel differs from the median by more than `threshold`, and is black once removed; the random view
whose background is substituted is another camera of the same take; 50:50 of removed and substituted is drawn for each
image; the augmentations of ablation (l), whose ranges are not printed.

Legend: B moments, C channels, H x W pixels of a decoded frame, S those of the view, P parameters, F frames.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from methods import parts
from methods.views import CHUNK, Taps, _weighted
from methods.warp import turned_cut

Role = Literal["anchor", "synchronized", "unsynchronized"]
Background = Literal["keep", "remove", "substitute", "mixed"]
KEPT, REMOVED, SUBSTITUTED = 0, 1, 2

PARAMETERS = (
    "camera",  # whose frame it is, from 0
    "frame",  # its number in the take, from 0, below 2^24
    "flip",  # 1 mirrored left to right, else 0: the common flip, before pairs are flipped
    "shift_x",  # of the crop's centre from the box's, fraction of the box's side
    "shift_y",
    "scale",  # the crop's side, as a multiple of the box's
    "rotation",  # of the crop about its centre, degrees, from x to y: clockwise. What it shows turns the other way
    "background",  # 0 kept, 1 removed, 2 substituted
    "substitute",  # the camera whose background takes the own one's place; the own camera where it is not substituted
)
"""A view's parameters in the order of their columns; float32, what was really done."""


@dataclass(frozen=True)
class TakeView:
    """Defaults: the baseline of Table 6.1. The views of one moment agree in all fields but `name` and `role`.

    Raises:
        ValueError: a field out of range; the message names it as `views.<name>.<field>`.
    """

    name: str
    """The batch column, and part of the draws that are the view's own."""
    size: int = 224
    """S (section 6.2.3)."""
    role: Role = "anchor"
    """Which of a moment's images it is: (v1, t), (v2, t) or (v2, t2)."""
    cameras: Literal["two", "one"] = "two"
    """v1 != v2, uniform over ordered pairs; or v1 = v2 (ablation l), for which the recipe raises `shift`, `scale` and
    `rotation`: random cropping, scaling and rotations are then all in which the images of a pair differ."""
    least_gap: int = 4
    """d_min, frames: d_min < |t2 - t|."""
    greatest_gap: int = 128
    """d_max, frames: |t2 - t| < d_max."""
    flip: float = 0.5
    """Probability of mirroring all views of a moment left to right."""
    background: Background = "remove"
    """What becomes of the background (section 6.2.2); `mixed`: removed or substituted, 50:50 (section 6.3.2)."""
    threshold: float = 30.0
    """Grey levels in [0, 255): a pixel is foreground where a channel differs from the background by more. The text
    says "simple per-pixel thresholding", without a number."""
    shift: float = 0.0
    """The crop's centre lies up to so many sides of the box from the box's, each way; uniform."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Least and greatest side of the crop, multiples of the box's; uniform."""
    rotation: float = 0.0
    """The crop is turned by up to so many degrees, either way, at most 180; uniform."""

    def __post_init__(self) -> None:
        low, high = self.scale
        reserved = ("index", "label", "pose")
        rules: tuple[tuple[str, bool, str], ...] = (
            ("name", self.name.isidentifier() and self.name not in reserved, "a word, not index, label or pose"),
            ("size", self.size >= 1, "at least one pixel"),
            ("role", self.role in ("anchor", "synchronized", "unsynchronized"), "anchor, synchronized, unsynchronized"),
            ("cameras", self.cameras in ("two", "one"), "two or one"),
            ("least_gap", self.least_gap >= 0, "0 or more frames"),
            ("greatest_gap", self.greatest_gap > self.least_gap + 1, "at least two frames more than least_gap"),
            ("flip", 0 <= self.flip <= 1, "in [0, 1]"),
            ("background", self.background in ("keep", "remove", "substitute", "mixed"), "one of the four"),
            ("threshold", 0 <= self.threshold < 255, "grey levels in [0, 255)"),
            ("shift", 0 <= self.shift < math.inf, "0 or more"),
            ("scale", 0 < low <= high < math.inf, "least and greatest, above 0"),
            ("rotation", 0 <= self.rotation <= 180, "degrees in [0, 180]"),
        )
        for field, holds, rule in rules:
            if not holds:
                raise ValueError(f"views.{self.name}.{field} is {rule}, got {getattr(self, field)!r}")

    @property
    def width(self) -> int:
        """P, columns of the parameters."""
        return len(PARAMETERS)

    def shape(self, channels: int) -> tuple[int, int, int]:
        """One sample's shape (C, S, S)."""
        return channels, self.size, self.size

    @property
    def substitutes(self) -> bool:
        """Whether `apply` needs other cameras' backgrounds."""
        return self.background in ("substitute", "mixed")

    @property
    def least_cameras(self) -> int:
        """That a take needs: two where the views of a pair, or the backgrounds, are of two."""
        two = self.substitutes or (self.cameras == "two" and self.role != "anchor")
        return 2 if two else 1

    @property
    def least_frames(self) -> int:
        """That a take needs: another frame than the moment's has to be there for an unsynchronized pair."""
        return 2 if self.role == "unsynchronized" else 1

    def plain(self) -> "TakeView":
        """The same without flip, jitter or rotation, for evaluation."""
        return replace(self, flip=0.0, shift=0.0, scale=(1.0, 1.0), rotation=0.0)

    # ------------------------------------------------------------------------------------------ draw

    def draw(self, seed: int, epoch: int, index: Tensor, *, frame: Tensor, frames: Tensor, cameras: Tensor) -> Tensor:
        """Draws each moment's view, a pure function of the arguments, on the CPU.

        t2 is uniform over the frames of the take that d_min and d_max allow. Where there are none, since the take is
        short, it is the farthest frame of the take, with the first and the last equally likely where both are.

        Args:
            seed: the recipe's seed.
            epoch: epochs done before this one.
            index: int64 (B,), each moment's position in the dataset.
            frame: int64 (B,), t, the moment's frame, from 0.
            frames: int64 (B,), the take's length.
            cameras: int64 (B,), the take's cameras.

        Returns:
            float32 (B, P), columns as in `PARAMETERS`.

        Raises:
            ValueError: a frame outside its take, or a take of too few cameras or frames.
        """
        self._check(frame, frames, cameras)
        shared = parts.draw(seed, epoch, index, "take", 4).double()  # (B, 4)
        own = parts.draw(seed, epoch, index, f"view/{self.name}", 6).double()  # (B, 6)
        first, second = ordered_pair(shared[:, 0], shared[:, 1], cameras)
        camera = first if self.role == "anchor" or self.cameras == "one" else second
        if self.role == "unsynchronized":
            frame = other_time(shared[:, 2], frame, frames, self.least_gap, self.greatest_gap)
        kind = torch.full_like(camera, {"keep": KEPT, "remove": REMOVED}.get(self.background, SUBSTITUTED))
        if self.background == "mixed":
            kind = torch.where(own[:, 4] < 0.5, REMOVED, kind)
        columns = {
            "camera": camera,
            "frame": frame,
            "flip": shared[:, 3] < self.flip,
            "shift_x": self.shift * (2 * own[:, 0] - 1),
            "shift_y": self.shift * (2 * own[:, 1] - 1),
            "scale": self.scale[0] + (self.scale[1] - self.scale[0]) * own[:, 2],
            "rotation": self.rotation * (2 * own[:, 3] - 1),
            "background": kind,
            "substitute": torch.where(kind == SUBSTITUTED, another(own[:, 5], camera, cameras), camera),
        }
        return torch.stack([columns[name].float() for name in PARAMETERS], 1)

    def _check(self, frame: Tensor, frames: Tensor, cameras: Tensor) -> None:
        if ((frame < 0) | (frame >= frames)).any():
            raise ValueError(f"views.{self.name}: a moment's frame lies outside its take")
        if (cameras < self.least_cameras).any():
            raise ValueError(
                f"views.{self.name} needs takes of {self.least_cameras} cameras, got one of {int(cameras.min())}: "
                f"leave such takes out, or set views.{self.name}.cameras one and .background remove or keep"
            )
        if (frames < self.least_frames).any():
            raise ValueError(f"views.{self.name} needs takes of {self.least_frames} frames: leave shorter ones out")

    @staticmethod
    def sources(parameters: Tensor) -> Tensor:
        """What to read: parameters (B, P) -> int64 (B, 3), the camera, its frame's number, and the camera whose
        background is substituted."""
        return parameters[:, [PARAMETERS.index(name) for name in ("camera", "frame", "substitute")]].long()

    # ----------------------------------------------------------------------------------------- apply

    @torch.no_grad()
    def apply(
        self,
        images: Tensor,
        parameters: Tensor,
        *,
        box: Tensor | None = None,
        background: Tensor | None = None,
        other: Tensor | None = None,
    ) -> Tensor:
        """Backgrounds in whole frames; then crop, resize, rotation and flip, each frame by its own parameters.

        Resizing is bilinear with antialiasing. A pixel of the view is black where its centre lies outside the frame;
        nothing fades to black at the frame's edges, and the frame beside the crop counts as it does elsewhere. A view
        that rotates samples the resized crop once more, bilinearly. The result does not depend on the batch.

        Args:
            images: uint8 (B, C, H, W), whole frames as decoded, those that `sources` names.
            parameters: float32 (B, P) of `draw`.
            box: float (B, 3), centre x, centre y and side of a square, in pixels of these images: the subject. It may
                reach beyond them. None: the greatest central square.
            background: uint8 (B, C, H, W), the median of the frames' own cameras; None where it is kept.
            other: uint8 (B, C, H, W), that of the cameras which `sources` names; None where none is substituted.

        Returns:
            uint8 (B, C, S, S), rounded to the nearest level.

        Raises:
            ValueError: tensors of another type or shape, a background that is needed and missing, or a box whose side
                is not above 0.
        """
        batch, _, height, width = images.shape if images.ndim == 4 else (len(images), 0, 0, 0)
        if images.dtype != torch.uint8 or images.ndim != 4 or parameters.shape != (batch, self.width):
            raise ValueError(
                f"view {self.name} takes uint8 images (B, C, H, W) and parameters (B, {self.width}), "
                f"got {images.dtype} {tuple(images.shape)} and {tuple(parameters.shape)}"
            )
        for field, needed, given in (
            ("background", self.background != "keep", background),
            ("other", self.substitutes, other),
        ):
            if needed and (given is None or given.dtype != torch.uint8 or given.shape != images.shape):
                raise ValueError(
                    f"views.{self.name}.background {self.background} needs `{field}`, uint8 {tuple(images.shape)}: "
                    "a median for each image"
                )
        if box is None:
            box = parameters.new_tensor([width / 2, height / 2, min(width, height)]).expand(batch, 3)
        if box.shape != (batch, 3) or not (box.isfinite().all() and (box[:, 2] > 0).all()):
            raise ValueError(f"view {self.name}: boxes are finite (B, 3), centre x, centre y and a side above 0")
        rows = max(1, CHUNK // max(1, images[0].numel())) if batch and not images.is_cuda else max(1, batch)
        made = []
        for start in range(0, batch, rows):
            part = slice(start, start + rows)
            frames, p = images[part], parameters[part].float()
            if background is not None and self.background != "keep":
                frames = self._behind(frames, p, background[part], None if other is None else other[part])
            made.append(self._cropped(frames, p, box[part].float()))
        return torch.cat(made) if made else images.new_empty(0, *self.shape(images.shape[1]))

    def _behind(self, images: Tensor, parameters: Tensor, background: Tensor, other: Tensor | None) -> Tensor:
        """Frames (B, C, H, W) with another background, or black."""
        difference = torch.maximum(images, background).sub_(torch.minimum(images, background))
        foreground = (difference.amax(1, keepdim=True) > math.floor(self.threshold)).byte()  # whole levels
        kept = images * foreground  # products of bytes are some times faster than torch.where
        if other is None or not self.substitutes:
            return kept
        substituted = (parameters[:, PARAMETERS.index("background")] == SUBSTITUTED).byte()[:, None, None, None]
        return kept + other * (substituted * (1 - foreground))

    def _cropped(self, images: Tensor, parameters: Tensor, box: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, S, S)."""
        height, width = images.shape[2:]
        p = dict(zip(PARAMETERS, parameters.unbind(1), strict=True))
        side = box[:, 2] * p["scale"]
        step = side / self.size  # pixels of the image in one of the view
        turn = math.radians(min(self.rotation, 45.0))
        margin = math.ceil(self.size * (math.cos(turn) + math.sin(turn) - 1) / 2) + 1 if self.rotation else 0
        canvas = self.size + 2 * margin  # what the turned crop reaches
        left, top = (box[:, k] + p[f"shift_{axis}"] * box[:, 2] - step * canvas / 2 for k, axis in enumerate("xy"))
        with torch.autocast(images.device.type, enabled=False):
            x = _weighted(images.float(), taps(top, step, canvas, height)).transpose(2, 3).contiguous()
            x = _weighted(x, taps(left, step, canvas, width)).transpose(2, 3)
            if self.rotation:
                corner = x.new_full((len(x), 2), float(margin))
                x = turned_cut(x, corner, self.size, p["rotation"].deg2rad(), "border")
        x = torch.where(p["flip"][:, None, None, None] > 0, x.flip(3), x)
        return x.add(0.5).clamp_(0, 255).byte()


# ------------------------------------------------------------------------------------------ choices


def chosen(u: Tensor, count: Tensor) -> Tensor:
    """Uniform int64 in [0, count) of u in [0, 1), both (B,)."""
    return torch.minimum((u * count).long(), count - 1)


def another(u: Tensor, number: Tensor, count: Tensor) -> Tensor:
    """Uniform int64 (B,) in [0, count) but `number` (B,); `number` itself where there is no other."""
    found = chosen(u, (count - 1).clamp(min=1))
    return torch.where(count > 1, found + (found >= number), number)


def ordered_pair(u: Tensor, w: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """v1 and v2, int64 (B,): uniform over the ordered pairs of `count` (B,) cameras; u and w (B,) in [0, 1)."""
    first = chosen(u, count)
    return first, another(w, first, count)


def other_time(u: Tensor, frame: Tensor, frames: Tensor, least_gap: int, greatest_gap: int) -> Tensor:
    """t2, int64 (B,): uniform over 0 <= t2 < F with d_min < |t2 - t| < d_max, and the farthest where there is none.

    Args:
        u: (B,) in [0, 1).
        frame: int64 (B,), t.
        frames: int64 (B,), F.
        least_gap: d_min.
        greatest_gap: d_max.
    """
    after = frames - 1 - frame
    reach = greatest_gap - least_gap - 1
    below, above = ((room - least_gap).clamp(0, reach) for room in (frame, after))  # how many t2 on either side
    k = chosen(u, (below + above).clamp(min=1))
    found = torch.where(k < below, frame - least_gap - 1 - k, frame + least_gap + 1 + k - below)
    farthest = torch.where((frame > after) | ((frame == after) & (u < 0.5)), 0, frames - 1)
    return torch.where(below + above > 0, found, farthest)


# --------------------------------------------------------------------------------------- resampling


def taps(start: Tensor, step: Tensor, size: int, pixels: int) -> Taps:
    """Resizes along one axis: bilinear, antialiased by a triangle that is `step` wide to each side, at least a pixel.

    Args:
        start: (B,), where the first pixel of the view begins, pixels of the image; any.
        step: (B,), pixels of the image in one of the view, above 0.
        size: of the view.
        pixels: of the image. What lies outside has no weight, and view pixels whose centre does are black.
    """
    step = step[:, None, None]
    reach = step.clamp(min=1)
    middle = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * step  # (B, size, 1)
    most = min(math.ceil(2 * float(reach.amax())), pixels)  # the only wait for a GPU
    pixel = (middle - reach + 0.5).floor().clamp(min=0) + torch.arange(most, device=start.device)  # (B, size, T)
    weight = (1 - (pixel + 0.5 - middle).abs() / reach).clamp(min=0).where(pixel < pixels, 0.0)
    weight = weight / weight.sum(2, keepdim=True).clamp(min=1e-6)
    weight = weight.where((middle >= 0) & (middle <= pixels), 0.0)
    return pixel.clamp(max=pixels - 1).int(), weight


# --------------------------------------------------------------------------------------- background


def background_frames(length: int, most: int = 64) -> list[int]:
    """The frames, at most `most`, evenly spaced over a video of `length`, whose median is its background."""
    count = min(most, length)
    return [(2 * k + 1) * length // (2 * count) for k in range(count)]


def backgrounds(frames: Tensor, most: int = 64) -> Tensor:
    """A fixed camera's background: the median of each pixel and channel over time (section 6.2.2).

    Args:
        frames: uint8 (F, C, H, W) of one camera.
        most: at most so many of them are looked at, those of `background_frames`.

    Returns:
        uint8 (C, H, W); of an even number of frames the lower median.

    Raises:
        ValueError: no frames, or of another type.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or not len(frames):
        raise ValueError(f"backgrounds takes uint8 frames (F, C, H, W), got {frames.dtype} {tuple(frames.shape)}")
    seen = frames[background_frames(len(frames), most)]
    return torch.stack([row.median(0).values for row in seen.unbind(2)], 1)  # by rows: little memory

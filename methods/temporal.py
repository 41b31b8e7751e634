"""Learning video features by recognizing temporal transformations: speed, random, periodic, warp.

S. Jenni, thesis on self-supervised learning, chapter 5, and: Jenni, Meishvili, Favaro, "Video Representation Learning
by Recognizing Temporal Transformations", ECCV 2020 (arXiv 2007.10730). Released code: sjenni/temporal-ssl.

A network tells by which transformation the frames of a clip were chosen (motion), and how fast a clip plays (speed
type kappa). A transformation is a sequence of frame numbers (`frame_indices`, section 5.2.1), so that clips of one
video hold similar frames, and nothing but their evolution tells them apart.

Views: the clips of a video by their kind, `speed`, `random`, `periodic` and `warp`, uint8 (B, T, C, H, W); column 0 of
`<view>.parameters` is kappa, as the video's length allows it. All views of a batch pass through the backbone together
and share batch norm; one linear layer gives both sets of logits (code). Its initial weights are torch's.

The thesis is the default; with its number of frames, 16, written as T:
- warp: the text skips 0 to 7 frames, the printed sum has no +1: steps are 1 to 8. It and random do not depend on kappa;
- periodic: the text's words end at 2 s - (T - 1) 2^kappa, its formula at (2 s' - T + 1) 2^kappa + delta: the formula.
  Its rho, the least that leaves no frame below 0, is fixed: ours adds a uniform offset, as far as the length allows;
- Eq. 5.1 sums the cross entropies of a video's clips, and its speed term covers the speed clips alone.
Options for what the code does otherwise: `reduction` mean, `speed_on_periodic`. Its other ways to choose frames
(warp: steps up to the greatest 2^kappa, or sorted random frames; periodic: a window of a forward and a backward pass)
are not here. Where both texts are silent, ours:
- the length allows a kappa with (T - 1) 2^kappa < length (the code: T 2^kappa <= length), among which it is drawn
  uniformly (section 5.2.3; the caption of Figure 5.2 has one kappa a mini-batch, here it is one a video, as in the
  code); a greater one that is asked for is lowered; a video of less than T frames repeats its last one;
- warp in a short video: steps are 1 to m, m the greatest at most 8 of which T - 1 surely fit. In videos of less than
  2 T - 1 frames m is 1, and a warp is a speed clip of kappa 0.

Legend: B videos, K kinds, T frames of a clip, M motion logits, S speed types.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Answers, Batch, Clock, Facts, Method, Step
from methods.parts import evaluating

Kind = Literal["speed", "random", "periodic", "warp"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the thesis' order, tau of 5.2.1: the classes of the motion task, as far as they take part."""
STEPS = 8
"""Greatest step of a warp: 7 skipped frames."""
DRAWS = 64
"""Random numbers that `frame_indices` takes at least."""
PERIODIC = 7
"""Least frames of a periodic clip: at kappa 0 an integer lies between 2 and T - 3 from there on."""
SHOWN, COLUMNS = 4, 8  # of `pictures`: videos, and frames of each clip


@dataclass(frozen=True)
class Config:
    """Defaults: sections 5.2.2 and 5.2.3; last row of Table 5.1."""

    transformations: tuple[Kind, ...] = KINDS
    """Kinds that are told apart, `speed` among them (Table 5.1). It alone: no motion loss, there is nothing to tell."""
    speed_loss: bool = True
    """The second term of Eq. 5.1 (Table 5.1)."""
    speed_on_periodic: bool = False
    """The speed loss covers periodic clips too: the mean over both kinds (code; Eq. 5.1 takes speed clips alone)."""
    speeds: int = 4
    """Speed types kappa: 0 to one less. The data's must not lie above."""
    reduction: Literal["sum", "mean"] = "sum"
    """Of the motion loss over a video's clips: their sum (Eq. 5.1), or their mean (code)."""

    def __post_init__(self) -> None:
        chosen = self.transformations
        if not set(chosen) <= set(KINDS) or len(set(chosen)) < len(chosen):
            raise ValueError(f"method.transformations are some of {', '.join(KINDS)}, each once; got {chosen}")
        if "speed" not in chosen:
            raise ValueError("method.transformations hold speed, which the others are told apart from")
        if len(chosen) == 1 and not self.speed_loss:
            raise ValueError("method.transformations speed alone leaves the speed loss: set method.speed_loss True")
        if self.speed_on_periodic and not (self.speed_loss and "periodic" in chosen):
            raise ValueError("method.speed_on_periodic needs periodic clips and method.speed_loss")
        if self.speeds < 1 or (self.speeds < 2 and self.speed_loss):
            raise ValueError(f"method.speeds are at least 2, which are told apart; got {self.speeds}")
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"method.reduction is sum or mean, got {self.reduction}")

    @property
    def views(self) -> tuple[str, ...]:
        """The views that it needs, in the order of the motion classes."""
        return tuple(kind for kind in KINDS if kind in self.transformations)


# ------------------------------------------------------------------------------------------- indices


def possible_speed(speed: Tensor, frames: int, length: Tensor) -> Tensor:
    """The speed types kappa at which clips fit into their videos: lowered to the greatest with
    (frames - 1) 2^kappa + 1 <= length, but not below 0.

    Args:
        speed: int64 (B,), 0 or more.
        frames: T, at least 1.
        length: int64 (B,), frames of the videos.

    Returns:
        int64 (B,).
    """
    if frames == 1:
        return speed
    powers = 2 ** torch.arange(1, 32, device=length.device)
    longest = ((length - 1) // (frames - 1))[:, None]  # step that fits
    return torch.minimum(speed, (longest >= powers).sum(1))


def frame_indices(kind: Kind, speed: Tensor, frames: int, length: Tensor, draw: Tensor) -> Tensor:
    """The frames of a clip, rho + offsets (section 5.2.1); for the CPU, where videos are decoded.

    `speed`: 0, 1 step, ... (T - 1) steps, of 2^kappa frames. `random`: a permutation of T successive frames.
    `periodic`: forward to a turning point, then backward (`periodic_offsets`). `warp`: forward in random steps. rho is
    uniform over what the length allows; what then still lies behind the last frame becomes the last frame.

    Args:
        kind: the transformation.
        speed: kappa, int64 (B,), 0 or more; lowered by `possible_speed`. Without effect on random and warp.
        frames: T; of periodic at least 7.
        length: int64 (B,), frames of the videos, at least 1.
        draw: uniform random numbers (B, R) in [0, 1), each sample's own; R at least 64, and more than T.

    Returns:
        int64 (B, T) in [0, length).

    Raises:
        ValueError: another kind, shape or type, too few frames or random numbers, a video without frames, a speed
            below 0.
    """
    check_indices(kind, speed, frames, length, draw)
    steps = (2 ** possible_speed(speed, frames, length))[:, None]  # (B, 1)
    first, others = draw[:, 0], draw[:, 1:]
    if kind == "speed":
        offsets = steps * torch.arange(frames, device=draw.device)
    elif kind == "random":
        offsets = others[:, :frames].argsort(dim=1, stable=True)
    elif kind == "periodic":
        turn = 2 * steps + 1 + below(others[:, :1], (frames - 5) * steps - 1)
        offsets = periodic_offsets(turn, steps, frames)
    else:
        most = ((length - 1) // max(frames - 1, 1)).clamp(1, STEPS)[:, None]
        walk = 1 + below(others[:, : frames - 1], most)
        offsets = F.pad(walk.cumsum(1), (1, 0))
    least = -offsets.amin(1).clamp(max=0)  # (B,)
    room = (length - 1 - least - offsets.amax(1)).clamp(min=0)
    start = least + below(first, room + 1)  # rho
    return torch.minimum(start[:, None] + offsets, length[:, None] - 1)


def periodic_offsets(turn: Tensor, steps: Tensor, frames: int) -> Tensor:
    """Periodic frames before rho: [0, 1, ..., s'] 2^kappa, then (s' - 1) 2^kappa + delta, ..., (2 s' - T + 1) 2^kappa
    + delta, where s' = floor(s / 2^kappa) and delta = s - s' 2^kappa.

    None is above s' 2^kappa, and the span is below (T - 1) 2^kappa: it fits wherever `speed` does. The printed rho is
    minus the last one, where that is below 0.

    Args:
        turn: s, int64 (B, 1), with 2 2^kappa < s < (T - 3) 2^kappa.
        steps: 2^kappa, int64 (B, 1).
        frames: T.

    Returns:
        int64 (B, T), below 0 where the way back is longer.
    """
    position = torch.arange(frames, device=turn.device)
    whole = turn // steps  # s'
    back = (2 * whole - position) * steps + (turn - whole * steps)
    return torch.where(position <= whole, position * steps, back)


def below(draw: Tensor, count: Tensor) -> Tensor:
    """Uniform integers, int64 in [0, count), from random numbers in [0, 1)."""
    return (draw.double() * count).long()


def check_indices(kind: str, speed: Tensor, frames: int, length: Tensor, draw: Tensor) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, got {kind}")
    if frames < (least := PERIODIC if kind == "periodic" else 1):
        raise ValueError(f"a {kind} clip has at least {least} frames, got {frames}")
    if draw.ndim != 2 or not draw.is_floating_point() or draw.shape[1] < max(DRAWS, frames + 1):
        need = max(DRAWS, frames + 1)
        raise ValueError(f"draw is float (B, R), R at least {need}; got {draw.dtype} {tuple(draw.shape)}")
    for name, values, lowest in (("speed", speed, 0), ("length", length, 1)):
        if values.dtype != torch.int64 or values.shape != draw.shape[:1]:
            raise ValueError(f"{name} is int64 ({len(draw)},), got {values.dtype} {tuple(values.shape)}")
        if (values < lowest).any():
            raise ValueError(f"{name} is at least {lowest}, got {int(values.min())}")


# -------------------------------------------------------------------------------------------- losses


def motion_loss(logits: Tensor, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """First term of Eq. 5.1: cross entropy of the kinds, mean over videos.

    Args:
        logits: (K, B, K); row k has the clips of kind k.
        reduction: over the K clips of a video.
    """
    kinds, videos, _ = logits.shape
    labels = torch.arange(kinds, device=logits.device).repeat_interleave(videos)
    mean = F.cross_entropy(logits.flatten(0, 1), labels)
    return kinds * mean if reduction == "sum" else mean


def speed_loss(logits: Tensor, speed: Tensor) -> Tensor:
    """Second term of Eq. 5.1: cross entropy of logits (B, S) and speed types kappa, int64 (B,), mean over clips."""
    return F.cross_entropy(logits, speed)


# -------------------------------------------------------------------------------------------- method


class Temporal(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        check_views(config, facts)
        self.config = config
        self.kinds = config.views
        self.timed = ("speed", "periodic") if config.speed_on_periodic else ("speed",)
        """Kinds that the speed loss covers."""
        motions = len(self.kinds) if len(self.kinds) > 1 else 0
        self.widths = (motions, config.speeds if config.speed_loss else 0)
        """(M, S): logits of each task; 0 where its loss is left out."""
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, sum(self.widths))

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        motion, speed = self.logits(batch)
        losses, log = [], {}
        if motion.shape[2]:
            losses.append(motion_loss(motion, self.config.reduction))
            classes = torch.arange(len(self.kinds), device=motion.device)[:, None]
            log["motion_loss"], log["motion_accuracy"] = losses[-1].detach(), accuracy(motion, classes)
        if speed.shape[2]:
            timed = torch.cat([speed[self.kinds.index(kind)] for kind in self.timed])
            kappa = torch.cat([speed_type(batch, kind) for kind in self.timed])
            losses.append(speed_loss(timed, kappa))
            log["speed_loss"], log["speed_accuracy"] = losses[-1].detach(), accuracy(timed, kappa)
        return Step(torch.stack(losses).sum(), log)

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of all clips of a batch, in one pass: motion (K, B, M) and speed (K, B, S), float32."""
        clips = torch.cat([batch[kind] for kind in self.kinds])  # (K * B, T, C, H, W)
        logits = self.head(self.backbone(clips)).float().unflatten(0, (len(self.kinds), -1))
        motion, speed = logits.split(self.widths, dim=2)
        return motion, speed

    # ---------------------------------------------------------------------------- for evaluation

    @torch.no_grad()
    def answers(self, batch: Batch, clock: Clock) -> Mapping[str, Answers]:
        """Of what it has learned to tell: `motion`, the kind of each of a video's K clips, numbered as `Config.views`;
        `speed`, kappa of the speed clip."""
        with evaluating(self):
            motion, speed = self.logits(batch)
        found = {}
        if motion.shape[2]:
            said = motion.argmax(2).T  # (B, K)
            found["motion"] = Answers(
                said, torch.arange(len(self.kinds), device=said.device).expand_as(said), len(self.kinds)
            )
        if speed.shape[2]:
            said = speed[self.kinds.index("speed")].argmax(1, keepdim=True)  # (B, 1)
            found["speed"] = Answers(said, speed_type(batch)[:, None], self.config.speeds)
        return found

    @torch.no_grad()
    def task(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """Accuracies, and what is taken for what, as far as it has learned to tell it.

        `motion_confusion` (K, K): which share of each kind (rows) is said to be what. `speed_confusion` (S, S): the
        share of all speed clips that are of one kappa (rows) and said to be of another, so that a row's sum is how
        often that kappa is there.
        """
        found = self.answers(batch, clock)
        figures: dict[str, Tensor] = {}
        if motion := found.get("motion"):
            confusion = F.one_hot(motion.said, motion.classes).float().mean(0)
            figures |= {"motion_accuracy": confusion.diagonal().mean(), "motion_confusion": confusion}
        if speed := found.get("speed"):
            said, true = (F.one_hot(x[:, 0], speed.classes).float() for x in (speed.said, speed.true))
            confusion = true.T @ said / len(said)
            figures |= {"speed_accuracy": confusion.diagonal().sum(), "speed_confusion": confusion}
        return figures

    @torch.no_grad()
    def pictures(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """`clips` of the first videos: a row of 8 frames, evenly spaced, for each kind (a short clip repeats some)."""
        clips = torch.stack([batch[kind][:SHOWN] for kind in self.kinds], 1)  # (4, K, T, C, H, W)
        frames = torch.arange(COLUMNS, device=clips.device) * clips.shape[2] // COLUMNS
        return {"clips": clips[:, :, frames].flatten(0, 2)}

    def score(self, images: Tensor) -> Tensor:
        """The highest of the logits of clips (B, T, C, H, W): of their motion, or where it is not learned of speed."""
        motion, speed = self.head(self.backbone(images)).float().split(self.widths, dim=1)
        return (motion if motion.shape[1] else speed).amax(1)


def speed_type(batch: Batch, kind: str = "speed") -> Tensor:
    """kappa of the clips of a kind, int64 (B,)."""
    return batch[f"{kind}.parameters"][:, 0].long()


def accuracy(logits: Tensor, classes: Tensor) -> Tensor:
    """Share of logits (..., classes) whose greatest is that of its class, an integer that broadcasts to (...)."""
    return (logits.detach().argmax(-1) == classes).float().mean()


def check_views(config: Config, facts: Facts) -> None:
    views = config.views
    if not set(views) <= facts.views.keys():
        raise ValueError(f"temporal takes the views {', '.join(views)}, got {', '.join(facts.views)}")
    shapes = {facts.views[view][0] for view in views}
    if len(shapes) > 1 or len(next(iter(shapes))) != 4:
        found = ", ".join(f"{view} {facts.views[view][0]}" for view in views)
        raise ValueError(
            f"temporal takes clips (frames, channels, height, width), of one shape in all views; got {found}"
        )
    if config.speed_loss and not all(facts.views[view][1] for view in views):
        raise ValueError("temporal takes the speed type from column 0 of each view's parameters, and one has none")


METHOD = Temporal

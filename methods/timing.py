"""Time-related tasks on a pretrained backbone of clips (S. Jenni's thesis on self-supervised learning, section 5.3,
"Long-Range vs Short-Range Temporal Statistics", Figure 5.3, Table 5.3).

`synchronization`: two sequences of a video that overlap; by how many frames does the second start later? Their maps are
fused as psi(v_1) - psi(v_2). `before_after`: one sequence made of two short ones that don't overlap; which half comes
first in time? In both the map of a layer, conv5 in the thesis, goes to three new fully connected layers.

View: `clip`, `Config.span` frames, consecutive at the view's speed, from which the method cuts its sequences.

Where the text is silent, ours:
- the backbone is frozen, since features are "extracted" and "transferred" (`freeze_backbone`), and keeps its running
  statistics;
- each offset of -6 to 6 is as frequent as any other, and the pair's place within the span is uniform over what the
  offset leaves, so that neither sequence has a place of its own; the two orders are as frequent, too;
- the gap between the two short sequences is uniform from 0 to `most_gap`; 12 makes both tasks' spans equal;
- offsets and gaps count frames as the view has them: every one of the video at its speed 0;
- the hidden layers are 2,048 wide with batch norm and ReLU, as the released code's layers of C3D (sjenni/temporal-ssl),
  with its decay .975 (`norm_momentum`) and epsilon 1e-3; the last one is plain;
- the mean absolute error is that of the most probable offset. Always answering 0 has 42 / 13 = 3.23 frames, and an
  accuracy of 1 / 13.

Legend: B batch, L frames of the span, T of a sequence, C channels, H x W pixels.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Answers, Batch, Clock, Facts, Method, Step
from methods.parts import draw, evaluating, mlp
from methods.supervised import outside

Task = Literal["synchronization", "before_after"]
DRAWS = 3  # uniform numbers a sample


@dataclass(frozen=True)
class Config:
    """Defaults: Table 5.3."""

    task: Task = "synchronization"
    frames: int = 16
    """T, of what the backbone sees; even for `before_after`, whose two sequences have T / 2 each."""
    most_offset: int = 6
    """Offsets are -6 to 6, in frames; at least 1 and below `frames`, so that the sequences overlap."""
    most_gap: int = 12
    """Most frames between the two sequences of `before_after`, 0 or more."""
    head: tuple[int, ...] = (2048, 2048)
    """Widths of the hidden fully connected layers."""
    norm_momentum: float = 0.025
    """Weight of a batch in the running statistics of the head's batch norm, in (0, 1]. The code's decay .975 follows
    slowly: a run of few hundred steps is better off with .1."""
    layer: str = "conv5"
    """psi, the backbone's layer whose map is classified. Empty: the features."""
    freeze_backbone: bool = True
    """False: the backbone learns too, up to `layer`."""

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, bool, str], ...] = (
            ("task", self.task in get_args(Task), f"one of {', '.join(get_args(Task))}"),
            ("frames", self.frames >= 2, "at least 2"),
            ("frames", self.task != "before_after" or self.frames % 2 == 0, "even for before_after"),
            ("most_offset", 1 <= self.most_offset < self.frames, "at least 1 and below method.frames"),
            ("most_gap", self.most_gap >= 0, "0 or more"),
            ("norm_momentum", 0 < self.norm_momentum <= 1, "in (0, 1]"),
            ("head", all(width >= 1 for width in self.head), "widths of at least 1"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"method.{name} is {rule}, got {getattr(self, name)}")

    @property
    def span(self) -> int:
        """L, frames that the view `clip` must have."""
        return self.frames + (2 * self.most_offset if self.task == "synchronization" else self.most_gap)

    @property
    def classes(self) -> int:
        return 2 * self.most_offset + 1 if self.task == "synchronization" else 2


def pair_starts(u: Tensor, most_offset: int) -> tuple[Tensor, Tensor]:
    """Where two overlapping sequences start, Figure 5.3 (a).

    Args:
        u: (B, 2 or more) in [0, 1): the offset, and the pair's place.
        most_offset: m.

    Returns:
        starts int64 (B, 2) in 0 ... 2 m, of v_1 and v_2; and the offset int64 (B,), second - first, in -m ... m.
    """
    offset = (u[:, 0] * (2 * most_offset + 1)).long() - most_offset
    earlier = (u[:, 1] * (2 * most_offset - offset.abs() + 1)).long()
    first = earlier + (-offset).clamp(min=0)
    return torch.stack([first, first + offset], 1), offset


def halves(u: Tensor, frames: int, most_gap: int) -> tuple[Tensor, Tensor]:
    """The frames of two sequences that don't overlap, in one of two orders, Figure 5.3 (b).

    Args:
        u: (B, 3 or more) in [0, 1): the gap, the place, the order.
        frames: T, even, of both together.
        most_gap: g.

    Returns:
        indices int64 (B, T) in 0 ... T + g - 1; and int64 (B,), 0 where the first half comes first in time
        ("before"), else 1 ("after").
    """
    gap = (u[:, 0] * (most_gap + 1)).long()
    start = (u[:, 1] * (most_gap - gap + 1)).long()
    after = (u[:, 2] >= 0.5).long()
    half = torch.arange(frames // 2, device=u.device)
    earlier = start[:, None] + half  # (B, T / 2)
    later = earlier + frames // 2 + gap[:, None]
    both = torch.stack([earlier, later], 1)  # (B, 2, T / 2)
    order = torch.stack([after, 1 - after], 1)[:, :, None].expand_as(both)
    return both.gather(1, order).flatten(1), after


def cut(clips: Tensor, frames: Tensor) -> Tensor:
    """(B, L, C, H, W) and int64 (B, T) -> each sample's own frames (B, T, C, H, W)."""
    return clips[torch.arange(len(clips), device=clips.device)[:, None], frames]


class Timing(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if facts.views.keys() != {"clip"}:
            raise ValueError(f"timing takes the view clip, got {', '.join(facts.views)}")
        length, *image = facts.views["clip"][0]
        if length != config.span:
            raise ValueError(f"timing's {config.task} needs a view clip of {config.span} frames, got {length}")
        if config.layer and config.layer not in backbone.layers:
            there = f"it has {', '.join(backbone.layers)}" if backbone.layers else "this backbone names none"
            raise ValueError(f"method.layer: the backbone has no layer {config.layer} ({there}); empty: its features")
        self.config = config
        self.backbone = backbone
        width = backbone.dim
        if config.layer:  # found on torch's meta device, without computing
            ghost = deepcopy(backbone).to("meta").eval()
            width = ghost.maps(torch.empty(1, config.frames, *image, device="meta"))[config.layer].numel()
        self.head = mlp([width, *config.head, config.classes])
        for norm in self.head:
            if isinstance(norm, nn.BatchNorm1d):
                norm.eps, norm.momentum = 1e-3, config.norm_momentum
        self.train()

    def frozen(self) -> list[nn.Module]:
        if self.config.freeze_backbone:
            return list(self.backbone.modules())
        return outside(self.backbone, "", self.config.layer)

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        logits, label = self.logits(batch["clip"], draw(clock.seed, clock.step, batch["index"], "timing", DRAWS))
        return Step(F.cross_entropy(logits, label), self.figures(logits.detach().argmax(1), label))

    def logits(self, clips: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, L, C, H, W) and uniform numbers (B, DRAWS) -> float32 (B, classes) and the class int64 (B,)."""
        c = self.config
        if c.task == "before_after":
            frames, label = halves(u, c.frames, c.most_gap)
            return self.head(self.psi(cut(clips, frames))).float(), label
        starts, offset = pair_starts(u, c.most_offset)
        frames = starts[:, :, None] + torch.arange(c.frames, device=clips.device)  # (B, 2, T)
        first, second = self.psi(torch.cat([cut(clips, each) for each in frames.unbind(1)])).chunk(2)
        return self.head(first - second).float(), offset + c.most_offset

    def psi(self, clips: Tensor) -> Tensor:
        """uint8 (B, T, C, H, W) -> float32 (B, values of the layer's map)."""
        if not self.config.layer:
            return self.backbone(clips)
        return self.backbone.maps(clips)[self.config.layer].flatten(1).float()

    def figures(self, predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Of classes of one shape: `accuracy`, and of offsets `mae`, their mean absolute error in frames."""
        figures = {"accuracy": (predicted == target).float().mean()}
        if self.config.task == "synchronization":
            figures["mae"] = (predicted - target).abs().float().mean()
        return figures

    # ---------------------------------------------------------------------------- for evaluation

    @torch.no_grad()
    def answers(self, batch: Batch, clock: Clock) -> Mapping[str, Answers]:
        """By the task's name, k = 1: offset + most_offset; or 0 before, 1 after. With running statistics, and draws of
        their own that are those of the clock's seed and epoch, not of its step: the same of all runs."""
        with evaluating(self):
            u = draw(clock.seed, clock.epoch, batch["index"], "timing/task", DRAWS)
            logits, label = self.logits(batch["clip"], u)
        return {self.config.task: Answers(logits.argmax(1)[:, None], label[:, None], self.config.classes)}

    def frames(self, view: int) -> int:
        return self.config.frames

    def task(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """`accuracy` and `mae` of `answers`."""
        answers = self.answers(batch, clock)[self.config.task]
        return self.figures(answers.said, answers.true)


METHOD = Timing

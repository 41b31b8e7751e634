"""The contract between a method and the training loop.

Shapes: B samples of this rank's share of the global batch, C channels, H x W pixels, D features.

A method file defines `Config` (a frozen dataclass of hyper-parameters), one subclass of `Method`,
and `METHOD`, which names that subclass; it is built as `METHOD(config, backbone, facts)`.
Nothing is registered: the method's name is the name of its file.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from methods.backbones import Backbone

Batch = Mapping[str, Tensor]
"""Columns of a batch: one a view, uint8 (B, C, H, W), of clips (B, T, C, H, W); `<view>.parameters` float32 (B, P);
`index` int64 (B,), the sample's position in the dataset; `label` int64 (B,) where there is one; `pose` float32
(B, J, 3) where joints are learned."""


@dataclass(frozen=True)
class Clock:
    """The moment of training. Schedules and random draws are functions of it and of nothing else."""

    step: int
    """Optimizer steps done before this one, from 0."""
    total_steps: int
    steps_per_epoch: int
    epoch: int
    """Epochs done before this one, from 0."""
    seed: int


class Advice(UserWarning):
    """What who runs the method should know, by `warnings.warn`: the run's own output shows it."""


@dataclass(frozen=True)
class Facts:
    """What a method may know of the data before it sees any."""

    samples: int
    """Every `index` is below this."""
    classes: int | None
    """None where the data has no labels."""
    views: Mapping[str, tuple[tuple[int, ...], int]]
    """A view's name -> (shape of one sample, width of its parameters)."""


class Step(NamedTuple):
    loss: Tensor
    """Scalar, attached: the mean over this rank's samples."""
    log: Mapping[str, Tensor]
    """Detached scalars worth a curve."""


class Answers(NamedTuple):
    """What a method says of samples in its own task, and what is true: k answers a sample."""

    said: Tensor
    """int64 (B, k), classes from 0."""
    true: Tensor
    """int64 (B, k)."""
    classes: int

    @staticmethod
    def joined(parts: "Sequence[Answers]") -> "Answers":
        """Those of several batches as of one."""
        return Answers(torch.cat([p.said for p in parts]), torch.cat([p.true for p in parts]), parts[0].classes)


class Method(nn.Module):
    """One turn is one forward, one backward and one optimizer step; most methods have one turn.

    A method is subclassed once, never twice: parts (`Teacher`, `Queue`, `mlp`) are held, not inherited.
    All state is a parameter or a buffer, so that `state_dict()` alone resumes a run.
    """

    backbone: Backbone  # what evaluation keeps
    turns: tuple[str, ...] = ("model",)  # one optimizer each
    owns_backbone = False
    """Whether it makes its backbone itself, and is built with None in its place."""
    starts_from: str | None = None
    """A method that must have been trained before. It is held whole under its own name, as `self.autoencoder`, and
    `start_from` loads its run there."""

    def frozen(self) -> Iterable[nn.Module]:
        """Modules that never learn, each by itself, without those that it holds: their parameters have no gradient, and
        batch norm keeps its statistics. `train` sees to it, which a method that has some calls once it is made."""
        return ()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.frozen():
            module.training = False
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        return self

    def turns_at(self, clock: Clock) -> tuple[str, ...]:
        """The turns that move at this step, in order."""
        return self.turns

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch, clock, turn)")

    def parameters_of(self, turn: str) -> list[nn.Parameter] | list[dict[str, Any]]:
        """What `turn`'s optimizer moves: parameters, or groups {"params": [...], "constant": True, "rate": 10.0}, where
        `constant` ones keep the peak learning rate, and `rate` is a factor of a group's rate."""
        return [p for p in self.parameters() if p.requires_grad]

    def before_epoch(self, clock: Clock, features: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Called on every rank. `features()` -> the training set's features (N, D) and index (N,)."""

    def after_step(self, clock: Clock) -> None:
        """Called after the step's last turn. Teachers follow here."""

    def pixels(self, view: int) -> int:
        """Side of what the backbone sees of the first view, whose side is `view`: what evaluation shows it too."""
        return view

    def frames(self, view: int) -> int:
        """Frames of what the backbone sees of clips of `view` frames. A method that gives it fewer has them in its
        `Config.frames` too, by which the backbone is made."""
        return view

    def task(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """How well it does its own task, with running statistics: figures of any shape, each a mean over the batch.
        Moves no state."""
        return {}

    def answers(self, batch: Batch, clock: Clock) -> Mapping[str, Answers]:
        """What it says of each sample, with running statistics, by the question's name: for figures that need more than
        means. Moves no state."""
        return {}

    def pictures(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """What one would rather look at, of a batch's first samples: a name -> uint8 (N, C, H, W). Moves no state, and
        is called on rank 0 alone: with running statistics, as others would wait for ever."""
        return {}

    def sample(self, index: Tensor, seed: int) -> Tensor:
        """Generated images, uint8 (N, C, H, W), of a method with a generator: a function of `index` (N,) and `seed`.

        Raises:
            ValueError: it generates nothing.
        """
        raise ValueError(f"{type(self).__name__} has no generator: choose a run of dfgan")

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of the backbone's features (B, D), of a method that learns labels.

        Raises:
            ValueError: it learns none.
        """
        raise ValueError(f"{type(self).__name__} has no classifier of the backbone's features: choose other protocols")

    def score(self, images: Tensor) -> Tensor:
        """What Grad-CAM explains: uint8 (B, C, H, W), of `pixels` -> (B,), with its gradient. A method that tells
        images as they are from changed ones gives that decision; the others the length of the features."""
        return self.backbone(images).norm(dim=1)

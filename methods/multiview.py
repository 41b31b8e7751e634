"""Multi-view synchronization: telling synchronized from unsynchronized, and flipped from unflipped pairs of views
(S. Jenni's thesis on self-supervised learning, chapter 6; Jenni and Favaro, Self-supervised Multi-view Synchronization
Learning for 3D Pose Estimation, ACCV 2020).

Two cameras see a scene up to a rigid transformation at the same time, not so at different times, nor where one of the
images is mirrored. A Siamese network fuses the features of a pair, of which two linear heads tell both.

Views, of `methods.takes.TakeView`: `anchor` (v1, t), `synchronized` (v2, t), `unsynchronized` (v2, t2). Pairs:
x_p = (anchor, synchronized), x_n = (anchor, unsynchronized), and x_f, which is x_p with one of its images mirrored.
There is no released code.

Known deviations: sums over pairs are means. Where the text is silent, ours: x_p, x_n and x_f share their anchor; which
image of x_f is mirrored is drawn with equal odds; ReLU follows every fusion, as it does the product; the images of all
pairs, each once, are one batch of the backbone, which its batch norm normalizes together. The text lets features
disagree in sign; those of a standard ResNet are averages behind a ReLU, and never do.

Legend: B moments, C channels, H x W pixels, D features, W fused features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Answers, Batch, Clock, Facts, Method, Step
from methods.parts import draw, evaluating

Fusion = Literal["multiply", "add", "diff", "concat"]
SHOWN = 8
"""Moments in the pictures."""


@dataclass(frozen=True)
class Config:
    """Defaults: the baseline of Table 6.1."""

    fusion: Fusion = "multiply"
    """How the features of a pair become one (Table 6.1 h to k): product, sum, first less second, or both beside each
    other; ReLU follows."""
    synchronization: bool = True
    """F_1, synchronized or not (Table 6.1 e to g)."""
    flipping: bool = True
    """F_2, flipped or not (Table 6.1 e to g)."""

    def __post_init__(self) -> None:
        if self.fusion not in get_args(Fusion):
            raise ValueError(f"method.fusion is one of {', '.join(get_args(Fusion))}, got {self.fusion}")
        if not (self.synchronization or self.flipping):
            raise ValueError("method.synchronization and method.flipping: one of them has to be learned")

    @property
    def views(self) -> tuple[str, ...]:
        """Those that the method needs: pairs that are not synchronized are for `synchronization` alone."""
        return ("anchor", "synchronized", "unsynchronized") if self.synchronization else ("anchor", "synchronized")


def fuse(first: Tensor, second: Tensor, fusion: Fusion) -> Tensor:
    """Features (B, D) of either image -> (B, W): ReLU of their fusion; W = 2 D with `concat`, else D."""
    if fusion == "multiply":
        return F.relu(first * second)
    if fusion == "add":
        return F.relu(first + second)
    if fusion == "diff":
        return F.relu(first - second)
    return F.relu(torch.cat([first, second], 1))


def pair_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """A head's part of Eq. 6.1: -log F(positive) - log(1 - F(negative)), the mean over the pairs.

    Args:
        positive, negative: float32 (B,), logits of x_p, and of x_n for F_1 or x_f for F_2.
    """
    return F.softplus(-positive).mean() + F.softplus(negative).mean()


class Logits(NamedTuple):
    synchronized: Tensor | None
    """Float32 (B,), of F_1: the pair is synchronized. None where that is not learned."""
    unflipped: Tensor | None
    """Float32 (B,), of F_2: none of its images is flipped. None where that is not learned."""


class Multiview(Method):
    """The Siamese network F: the backbone and a linear layer for each of the two answers (section 6.2.3).

    Raises:
        ValueError: a view that the configuration needs is missing, or views of different shapes.
    """

    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if not set(config.views) <= facts.views.keys():
            raise ValueError(f"multiview takes the views {', '.join(config.views)}, got {', '.join(facts.views)}")
        shapes = {facts.views[name][0] for name in config.views}
        if len(shapes) > 1:
            raise ValueError(f"multiview takes views of one size, got {', '.join(map(str, sorted(shapes)))}")
        self.config = config
        self.backbone = backbone
        width = backbone.dim * (2 if config.fusion == "concat" else 1)
        self.synchronization = nn.Linear(width, 1) if config.synchronization else None  # omega_1
        self.flipping = nn.Linear(width, 1) if config.flipping else None  # omega_2

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        synchronized, unflipped = self.answered(batch, clock)
        log: dict[str, Tensor] = {}
        losses = []
        for name, logits in (("synchronization", synchronized), ("flipping", unflipped)):
            if logits is not None:
                losses.append(pair_loss(*logits.unbind(1)))
                log[name] = losses[-1].detach()
        log |= accuracies(synchronized, unflipped)
        return Step(torch.stack(losses).sum(), log)

    def logits(self, first: Tensor, second: Tensor) -> Logits:
        """Features (B, D) of the pairs' images -> logits: for many pairs of few images."""
        fused = fuse(first, second, self.config.fusion)
        said = [None if w is None else w(fused)[:, 0].float() for w in (self.synchronization, self.flipping)]
        return Logits(*said)

    @torch.no_grad()
    def pair_logits(self, first: Tensor, second: Tensor) -> Logits:
        """Pairs of images uint8 (B, C, H, W) -> logits, with running statistics; moves no state."""
        with evaluating(self):
            features = self.backbone(torch.cat([first, second]))
            return self.logits(*features.chunk(2))

    # ------------------------------------------------------------------------------------------ pairs

    def mirrors_first(self, index: Tensor, clock: Clock) -> Tensor:
        """Bool (B,): whether x_f is (mirrored anchor, synchronized), or (anchor, mirrored synchronized)."""
        return draw(clock.seed, clock.step, index, "flipped", 1)[:, 0] < 0.5

    def mirrored(self, batch: Batch, clock: Clock) -> Tensor:
        """The mirrored image of x_f, uint8 (B, C, H, W)."""
        first = self.mirrors_first(batch["index"], clock)[:, None, None, None]
        return torch.where(first, batch["anchor"], batch["synchronized"]).flip(3)

    def answered(self, batch: Batch, clock: Clock) -> tuple[Tensor | None, Tensor | None]:
        """Logits (B, 2) of F_1 for x_p and x_n, and of F_2 for x_p and x_f; None for what is not learned."""
        images = [batch[name] for name in self.config.views]
        if self.flipping is not None:
            images.append(self.mirrored(batch, clock))
        features = self.backbone(torch.cat(images)).chunk(len(images))  # (B, D) each
        anchor, synchronized = features[:2]
        positive = self.logits(anchor, synchronized)
        both: list[Tensor | None] = [None, None]
        if positive.synchronized is not None:
            negative = self.logits(anchor, features[2]).synchronized
            assert negative is not None
            both[0] = torch.stack([positive.synchronized, negative], 1)
        if positive.unflipped is not None:
            first = self.mirrors_first(batch["index"], clock)[:, None]
            pair = torch.where(first, features[-1], anchor), torch.where(first, synchronized, features[-1])
            flipped = self.logits(*pair).unflipped
            assert flipped is not None
            both[1] = torch.stack([positive.unflipped, flipped], 1)
        return both[0], both[1]

    # ----------------------------------------------------------------------------------- for evaluation

    @torch.no_grad()
    def verdicts(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """Each moment's logits with running statistics, float32 (B, 2): `synchronized`, of F_1 for x_p and x_n, and
        `unflipped`, of F_2 for x_p and x_f. Right is above 0 in the first column, and not so in the second. What is not
        learned is left out."""
        with evaluating(self):
            found = zip(("synchronized", "unflipped"), self.answered(batch, clock), strict=True)
        return {name: logits for name, logits in found if logits is not None}

    def answers(self, batch: Batch, clock: Clock) -> Mapping[str, Answers]:
        """Of each moment's pairs, k = 2: `synchronized`, 1 for yes, of x_p and x_n; `flipped`, 1 for yes, of x_p and
        x_f. With the time gap, from the views' parameters, they are Figure 6.4."""
        said = {name: (logits > 0).long() for name, logits in self.verdicts(batch, clock).items()}
        true = batch["index"].new_tensor([1, 0]).expand(len(batch["index"]), 2)
        found = {}
        if "synchronized" in said:
            found["synchronized"] = Answers(said["synchronized"], true, 2)
        if "unflipped" in said:
            found["flipped"] = Answers(1 - said["unflipped"], 1 - true, 2)
        return found

    def task(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """Accuracies; chance is .5."""
        found = self.verdicts(batch, clock)
        return accuracies(found.get("synchronized"), found.get("unflipped"))

    @torch.no_grad()
    def pictures(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """Of up to 8 moments, two rows for each kind of pair: first images, then second ones (Figure 6.2)."""
        names = ("index", *self.config.views)
        shown = {name: batch[name][:SHOWN] for name in names}
        pictures = {name: torch.cat([shown["anchor"], shown[name]]) for name in names[2:]}
        if self.flipping is not None:
            first = self.mirrors_first(shown["index"], clock)[:, None, None, None]
            mirrored = self.mirrored(shown, clock)
            pair = torch.where(first, mirrored, shown["anchor"]), torch.where(first, shown["synchronized"], mirrored)
            pictures["flipped"] = torch.cat(pair)
        return pictures


@torch.no_grad()
def accuracies(synchronized: Tensor | None, unflipped: Tensor | None) -> dict[str, Tensor]:
    """Of each head, and shares of either kind of its pairs that are told as such.

    Args:
        synchronized: (B, 2), logits of F_1 for x_p and x_n, or None.
        unflipped: (B, 2), logits of F_2 for x_p and x_f, or None.
    """
    found: dict[str, Tensor] = {}
    kinds = (("synchronization", "synchronized", "unsynchronized"), ("flipping", "unflipped", "flipped"))
    for (head, *names), logits in zip(kinds, (synchronized, unflipped), strict=True):
        if logits is not None:
            shares = torch.stack([logits[:, 0] > 0, logits[:, 1] <= 0]).float().mean(1)
            found[f"accuracy_{head}"] = shares.mean()
            found |= {f"accuracy_{name}": share for name, share in zip(names, shares, strict=True)}
    return found


METHOD = Multiview

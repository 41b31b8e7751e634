"""BYOL: Bootstrap Your Own Latent (Grill, Strub, Altché, Tallec, Richemond et al.; NeurIPS 2020, arXiv 2006.07733).

The online networks predict the target networks' projection of the other view; the target networks follow the online
ones by a moving average. Original code: google-deepmind/deepmind-research, byol.

Views: `online` (the paper's T, strong_alpha) and `target` (T', strong_beta); each passes through both networks.

- The loss is the sum of both directions, L + L~ (section 3.1); many re-implementations take the mean.
- Not in the paper, taken from the code: the last layers of projector and predictor have no bias.
- tau at step k of K: 1 - (1 - tau_base)(cos(pi k / K) + 1) / 2 in the paper, so that it ends just short of 1;
  `momentum_at` divides by K - 1 and ends at 1.

Legend: B batch, D projection.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.parts import Teacher, draw, mlp, momentum_at


@dataclass(frozen=True)
class Config:
    """Defaults: the paper's ImageNet setting, section 3.2."""

    hidden: int = 4096
    """Width of the projector's hidden layer."""
    dim: int = 256
    """Width of z and q(z)."""
    predictor_hidden: int = 4096
    """Width of the predictor's hidden layer."""
    momentum: float = 0.996
    """tau_base, the teacher's momentum at the start: .996 in 1000 epochs; the code has .99 in 100 and 300."""
    momentum_end: float = 1.0
    """tau at the end, by a cosine."""

    def __post_init__(self) -> None:
        if not (0 <= self.momentum <= 1 and 0 <= self.momentum_end <= 1):
            raise ValueError("method.momentum and method.momentum_end lie in [0, 1]")


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Eq. 2: the squared distance of the normalized vectors, 2 - 2 cos(q, z'), mean over the batch.

    Args:
        prediction: q (B, D), of any length; carries the gradient.
        target: z' (B, D), of any length; its gradient is stopped.

    Returns:
        Scalar in [0, 4].
    """
    return 2.0 - 2.0 * F.cosine_similarity(prediction, target.detach(), dim=1).mean()


class BYOL(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if facts.views.keys() != {"online", "target"}:
            raise ValueError(f"byol takes the views online and target, got {', '.join(facts.views)}")
        self.config = config
        self.backbone = backbone
        self.projector = mlp([backbone.dim, config.hidden, config.dim], last_bias=False)
        self.predictor = mlp([config.dim, config.predictor_hidden, config.dim], last_bias=False)
        self.teacher = Teacher(self.backbone, self.projector)

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        views = ("online", "target")
        order = draw(clock.seed, clock.step, batch["index"], "shuffle", 1)[:, 0]
        z1, z2 = (self.teacher(batch[view], order).float() for view in views)  # (B, D)
        q1, q2 = (self.predictor(self.projector(self.backbone(batch[view]))).float() for view in views)  # (B, D)
        loss = regression_loss(q1, z2) + regression_loss(q2, z1)
        return Step(loss, {"teacher_momentum": loss.new_full((), self.momentum(clock))})

    def momentum(self, clock: Clock) -> float:
        return momentum_at(clock.step, clock.total_steps, self.config.momentum, self.config.momentum_end)

    def after_step(self, clock: Clock) -> None:
        self.teacher.follow(self.backbone, self.projector, momentum=self.momentum(clock))


METHOD = BYOL

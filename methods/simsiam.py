"""SimSiam: Exploring Simple Siamese Representation Learning (Chen, He; CVPR 2021, arXiv 2011.10566).

Each view's prediction is to match the other view's projection, whose gradient is stopped: no teacher, no negatives.
Original code: facebookresearch/simsiam.

Views: `online` and `target`, drawn from one distribution: the loss is symmetric in them.

Not in the paper, taken from the code: the projector's last batch norm has no scale and shift.
`fix_predictor_lr` marks the predictor's parameters as a group of its own with `"constant": True`: the optimizer's
schedule leaves the learning rate of that group as it is.

Legend: B batch, D projection.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.parts import mlp


@dataclass(frozen=True)
class Config:
    """Defaults: the paper's ImageNet setting, section 3."""

    layers: int = 3
    """The projector's layers: 3 on ImageNet, 2 on CIFAR-10 (appendix D)."""
    hidden: int = 2048
    """Width of the projector's hidden layers."""
    dim: int = 2048
    """d, width of z and p."""
    predictor_hidden: int = 512
    """Width of the predictor's hidden layer: a bottleneck."""
    stop_gradient: bool = True
    """Off, as in section 4.1: both sides move, and the outputs collapse."""
    fix_predictor_lr: bool = True
    """The predictor's learning rate does not decay: Table 1 (c), 68.1 against 67.7 with decay; the form that the
    paper's later studies use."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"method.layers is at least 1, got {self.layers}")


def negative_cosine(prediction: Tensor, target: Tensor, *, stop_gradient: bool = True) -> Tensor:
    """Eq. 1 and 3: D(p, stopgrad(z)) = -cos(p, z), mean over the batch.

    Args:
        prediction: p (B, D), of any length; carries the gradient.
        target: z (B, D), of any length; its gradient is stopped, unless told otherwise.

    Returns:
        Scalar in [-1, 1].
    """
    return -F.cosine_similarity(prediction, target.detach() if stop_gradient else target, dim=1).mean()


class SimSiam(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if facts.views.keys() != {"online", "target"}:
            raise ValueError(f"simsiam takes the views online and target, got {', '.join(facts.views)}")
        self.config = config
        self.backbone = backbone
        self.projector = mlp([backbone.dim, *[config.hidden] * (config.layers - 1), config.dim], last_norm=None)
        self.predictor = mlp([config.dim, config.predictor_hidden, config.dim])

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        z1, z2 = (self.projector(self.backbone(batch[view])).float() for view in ("online", "target"))  # (B, D)
        p1, p2 = (self.predictor(z).float() for z in (z1, z2))  # (B, D)
        loss = partial(negative_cosine, stop_gradient=self.config.stop_gradient)
        return Step((loss(p1, z2) + loss(p2, z1)) / 2, {})

    def parameters_of(self, turn: str) -> list[dict[str, Any]]:
        """Groups: backbone and projector; the predictor, with `"constant": True` under `fix_predictor_lr`."""
        encoder = [*self.backbone.parameters(), *self.projector.parameters()]
        predictor = {"params": list(self.predictor.parameters()), "constant": self.config.fix_predictor_lr}
        return [{"params": encoder}, predictor]


METHOD = SimSiam

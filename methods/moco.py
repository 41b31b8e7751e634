"""MoCo v2: Improved Baselines with Momentum Contrastive Learning (Chen, Fan, Girshick, He; 2020, arXiv 2003.04297).

Instance discrimination by InfoNCE against a queue of past keys, which a momentum encoder made
(MoCo: He, Fan, Wu, Xie, Girshick; CVPR 2020, arXiv 1911.05722). Original code: facebookresearch/moco.

Views: `online` is the query's and `target` the key's; both are drawn from one strong distribution in the paper.
Shuffling BN (1911.05722, section 3.3) is the recipe's `--batch-norm shuffle`.

Where this differs from the released code:
- keys enter the queue after the loss, as there, but the queue's size need not be a multiple of the batch;
- the teacher moves after the optimizer's step (Algorithm 1 of 1911.05722); the code moves it at the start of the
  next forward pass, which gives the same keys in every step but not the same teacher after the last one;
- `symmetric` is not in the paper: the authors' CIFAR notebook has it and sums both directions; here they are
  averaged, so that the learning rate need not change. Keys of both views enter the queue there as here.

Legend: B batch, D projection, K queue.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.parts import Queue, Teacher, draw, mlp, momentum_at


@dataclass(frozen=True)
class Config:
    """Defaults: the paper's ImageNet setting, and 1911.05722's where v2 keeps it."""

    temperature: float = 0.2
    """tau (2003.04297, section 3)."""
    queue: int = 65536
    """K, size of the dictionary."""
    hidden: int | None = None
    """Width of the head's hidden layer. None: the backbone's features, 2048 of ResNet-50 in the paper."""
    head_norm: bool = False
    """Batch norm after the head's hidden layer: none in the paper; SCE's reproduction on small images has it."""
    dim: int = 128
    """D, width of the projection."""
    symmetric: bool = False
    """Each view is query once and key once; the loss is the mean of both directions."""
    momentum: float = 0.999
    """m, of the teacher (1911.05722, section 4.1)."""
    momentum_end: float | None = None
    """The teacher's momentum at the end, by a cosine. None: constant, as in the paper."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"method.temperature is above 0, got {self.temperature}")
        if not (0 <= self.momentum <= 1 and 0 <= (self.momentum_end or 0) <= 1):
            raise ValueError("method.momentum and method.momentum_end lie in [0, 1]")


def info_nce(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE (1911.05722, Eq. 1): -log softmax of the own key among own key and queue, mean over the batch.

    Args:
        query: q (B, D), normalized; carries the gradient.
        key: k+ (B, D), normalized, of the teacher; its gradient is stopped.
        queue: (K, D), normalized.
        temperature: tau > 0.

    Returns:
        Scalar >= 0. Autocast is off here: bf16 rounds a similarity near 1 by up to .002, which tau then divides.
    """
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * key.detach()).sum(1) / temperature  # (B,)
        negatives = (query @ queue.T / temperature).logsumexp(1)  # (B,)
        return (torch.logaddexp(positive, negatives) - positive).mean()


class MoCo(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if facts.views.keys() != {"online", "target"}:
            raise ValueError(f"moco takes the views online and target, got {', '.join(facts.views)}")
        self.config = config
        self.pairs = [("online", "target"), ("target", "online")][: 2 if config.symmetric else 1]  # query, key
        self.backbone = backbone
        self.projector = mlp(
            [backbone.dim, config.hidden or backbone.dim, config.dim],
            hidden_norm=config.head_norm,
        )
        self.teacher = Teacher(self.backbone, self.projector)
        self.queue = Queue(config.queue, config.dim)

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        order = draw(clock.seed, clock.step, batch["index"], "shuffle", 1)[:, 0]
        queue = self.queue.keys.clone()  # the backward pass reads it, after these keys have entered the buffer
        losses = []
        for online, target in self.pairs:
            q = F.normalize(self.projector(self.backbone(batch[online])).float(), dim=1)  # (B, D)
            k = F.normalize(self.teacher(batch[target], order).float(), dim=1)  # (B, D)
            losses.append(info_nce(q, k, queue, temperature=self.config.temperature))
            self.queue.enqueue(k)
        loss = torch.stack(losses).mean()
        return Step(loss, {"teacher_momentum": loss.new_full((), self.momentum(clock))})

    def momentum(self, clock: Clock) -> float:
        start, end = self.config.momentum, self.config.momentum_end
        return momentum_at(clock.step, clock.total_steps, start, start if end is None else end)

    def after_step(self, clock: Clock) -> None:
        self.teacher.follow(self.backbone, self.projector, momentum=self.momentum(clock))


METHOD = MoCo

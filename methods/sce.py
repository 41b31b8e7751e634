"""SCE: Similarity Contrastive Estimation (Denize, Rabarisoa, Orcesi, Hérault, Canu; WACV 2023, arXiv 2111.14585).

A soft contrastive loss: the online view predicts, over its own key and a queue of past keys, a target that
mixes a one-hot label (lambda) with the teacher's sharpened similarities to the queue (1 - lambda).

Views: `online` and `target`; any further view is a local crop, which the online networks alone see.

Where the authors' released code (CEA-LIST/SCE) differs, the paper is the default:
- the positive's slot in the target's relation is left out (Eq. 3, `positive_slot="masked"`); the code sets its
  logit to 0 instead, so that it keeps the weight exp(0) in the softmax (`"zero"`);
- the released CIFAR configuration keeps the teacher's momentum constant (`momentum_end` = `momentum`).
Not in the paper, taken from the code: candidates are the own key and the queue as it was before this batch
(no other keys of the batch); keys enter the queue after the loss; with `symmetric` those of both views do;
the teacher starts as a copy of the online networks (the code of 2023 leaves it at its own random start).

Legend: B batch, D projection, K queue.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.parts import Queue, Teacher, draw, mlp, momentum_at

PositiveSlot = Literal["masked", "zero"]


@dataclass(frozen=True)
class Config:
    """Defaults: the paper's ImageNet-100 setting, section 4.1."""

    coefficient: float = 0.5
    """lambda, weight of the contrastive part (Table 1)."""
    temperature: float = 0.1
    """tau, of the online distribution (Eq. 7, Table 6)."""
    target_temperature: float = 0.05
    """tau_m, of the target's relation (Eq. 3, Table 6)."""
    symmetric: bool = False
    """Average the loss over both directions (Table 4)."""
    positive_slot: PositiveSlot = "masked"
    """What the positive's slot holds in the target's relation: left out (paper) or logit 0 (released code)."""
    relation_weight: float | None = None
    """mu of Eq. 9, free of lambda (Table 3). None: the cross entropy of Eq. 8, where mu = 1 - lambda."""
    ceil_weight: float | None = None
    """eta of Eq. 9, free of lambda (Table 3). None: as `relation_weight`."""
    queue: int = 65536
    """M, size of the memory buffer."""
    hidden: int = 4096
    """Width of the projector's hidden layers."""
    layers: int = 2
    """The projector's layers: 2 on ImageNet-100, 3 on ImageNet."""
    projector_norm: bool = True
    """Batch norm after each hidden layer of the projector. The paper names it for ImageNet alone."""
    projector_last_norm: bool = False
    """Batch norm without scale and shift after the projector's last layer (the ImageNet code)."""
    dim: int = 256
    """Width of z."""
    predictor: bool = False
    """A predictor on the online branch (section 4.3)."""
    predictor_hidden: int = 4096
    momentum: float = 0.996
    """The teacher's momentum at the start."""
    momentum_end: float = 1.0
    """The teacher's momentum at the end, by a cosine."""

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient <= 1:
            raise ValueError(f"method.coefficient is lambda in [0, 1], got {self.coefficient}")
        if self.temperature <= 0 or self.target_temperature <= 0:
            raise ValueError("method.temperature and method.target_temperature are above 0")
        if self.layers < 2:
            raise ValueError(f"method.layers is at least 2, got {self.layers}")
        if not 0 <= self.momentum <= self.momentum_end <= 1:
            raise ValueError("method.momentum and method.momentum_end lie in [0, 1], the end not below the start")
        if self.positive_slot == "zero" and (self.relation_weight is not None or self.ceil_weight is not None):
            raise ValueError("free weights of Eq. 9 need method.positive_slot masked: Proposition 1 holds for it alone")


def sce_terms(
    online: Tensor, target: Tensor, queue: Tensor, *, temperature: float, target_temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of Proposition 1: L_SCE = lambda InfoNCE + mu ReSSL + eta Ceil, mu = eta = 1 - lambda.

    Args:
        online: z1 (B, D), normalized; carries the gradient.
        target: z2 (B, D), normalized, of the teacher; its gradient is stopped.
        queue: (K, D), normalized.
        temperature: tau > 0 of the online distribution.
        target_temperature: tau_m > 0 of the target's relation, in which the positive is masked.

    Returns:
        (info_nce, relation, ceil), scalars, each the mean over the batch.
    """
    with torch.autocast(online.device.type, enabled=False):  # a small temperature needs more than bf16
        target = target.detach()
        positive = (online * target).sum(1) / temperature  # (B,)
        negative = online @ queue.T / temperature  # (B, K)
        relation = F.softmax(target @ queue.T / target_temperature, dim=1)  # (B, K)
        others = negative.logsumexp(1)  # (B,)
        everything = torch.logaddexp(positive, others)  # (B,)
        cross_entropy = -(relation * (negative - others[:, None])).sum(1)
        return (everything - positive).mean(), cross_entropy.mean(), (everything - others).mean()


def sce_loss(
    online: Tensor,
    target: Tensor,
    queue: Tensor,
    *,
    temperature: float,
    target_temperature: float,
    coefficient: float,
    positive_slot: PositiveSlot = "masked",
) -> Tensor:
    """Eq. 8: cross entropy between the target w of Eq. 6 and the online distribution p of Eq. 7, mean over the batch.

    Args:
        online: z1 (B, D), normalized; carries the gradient.
        target: z2 (B, D), normalized, of the teacher; its gradient is stopped.
        queue: (K, D), normalized.
        temperature: tau > 0 of the online distribution.
        target_temperature: tau_m > 0 of the target's relation.
        coefficient: lambda in [0, 1].
        positive_slot: "masked" leaves the positive out of the relation s (Eq. 3); "zero" gives it the logit 0, as
            the released code does.
    """
    with torch.autocast(online.device.type, enabled=False):  # a small temperature needs more than bf16
        target = target.detach()
        logits = torch.cat([(online * target).sum(1, keepdim=True), online @ queue.T], 1) / temperature  # (B, 1 + K)
        slot = -torch.inf if positive_slot == "masked" else 0.0
        relation = F.pad(target @ queue.T / target_temperature, (1, 0), value=slot)  # (B, 1 + K)
        w = (1.0 - coefficient) * F.softmax(relation, dim=1)
        w[:, 0] += coefficient
        return -(w * F.log_softmax(logits, dim=1)).sum(1).mean()


class SCE(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if not {"online", "target"} <= facts.views.keys():
            raise ValueError(f"sce takes the views online, target and local crops, got {', '.join(facts.views)}")
        self.config = config
        both = ("online", "target")
        self.teachers = both if config.symmetric else ("target",)
        self.students = [name for name in facts.views if name not in both or name == "online" or config.symmetric]
        self.backbone = backbone
        self.projector = mlp(
            [backbone.dim, *[config.hidden] * (config.layers - 1), config.dim],
            hidden_norm=config.projector_norm,
            last_norm=None if config.projector_last_norm else False,
        )
        widths = [config.dim, config.predictor_hidden, config.dim]
        self.predictor = mlp(widths, last_bias=False) if config.predictor else nn.Identity()
        self.teacher = Teacher(self.backbone, self.projector)
        self.queue = Queue(config.queue, config.dim)

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        order = draw(clock.seed, clock.step, batch["index"], "shuffle", 1)[:, 0]
        z2 = {name: F.normalize(self.teacher(batch[name], order).float(), dim=1) for name in self.teachers}  # (B, D)
        z1 = {name: F.normalize(self.online(batch[name]).float(), dim=1) for name in self.students}  # (B, D)
        queue = self.queue.keys.clone()  # the backward pass reads it, after these keys have entered the buffer
        pairs = [(student, teacher) for teacher in z2 for student in z1 if student != teacher]
        loss = torch.stack([self.loss(z1[student], z2[teacher], queue) for student, teacher in pairs]).mean()
        for keys in z2.values():
            self.queue.enqueue(keys)
        return Step(loss, {"teacher_momentum": loss.new_full((), self.momentum(clock)).detach()})

    def online(self, images: Tensor) -> Tensor:
        return self.predictor(self.projector(self.backbone(images)))

    def loss(self, online: Tensor, target: Tensor, queue: Tensor) -> Tensor:
        c = self.config
        temperatures = {"temperature": c.temperature, "target_temperature": c.target_temperature}
        if c.relation_weight is None and c.ceil_weight is None:
            return sce_loss(
                online, target, queue, coefficient=c.coefficient, positive_slot=c.positive_slot, **temperatures
            )
        info_nce, relation, ceil = sce_terms(online, target, queue, **temperatures)
        mu, eta = (1 - c.coefficient if weight is None else weight for weight in (c.relation_weight, c.ceil_weight))
        return c.coefficient * info_nce + mu * relation + eta * ceil

    def momentum(self, clock: Clock) -> float:
        return momentum_at(clock.step, clock.total_steps, self.config.momentum, self.config.momentum_end)

    def after_step(self, clock: Clock) -> None:
        self.teacher.follow(self.backbone, self.projector, momentum=self.momentum(clock))


METHOD = SCE

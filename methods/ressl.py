"""ReSSL: Relational Self-Supervised Learning (Zheng, You, Wang, Qian, Zhang, Wang, Xu).

NeurIPS 2021 (arXiv 2107.09282) and its journal version with predictor and InfoNCE warm-up (arXiv 2203.08717),
which is the default here. Original code, of the conference version: KyleZheng1997/ReSSL.

The student's relations of the strong view to a queue of past keys are to match the teacher's sharper relations of
the weak view. The own key is in neither distribution.

Views: `target` is the teacher's weak view, `online` and any further view are the student's; the loss is the mean
over the student's views. The journal does not define its "2 Crops": one further full-size view, `online` and another
against the same target, is our reading (as in the released multi-crop code, which has five); so is multi-crop.

Where this differs:
- the teacher moves after the optimizer's step; the released code moves it at the start of the next forward pass,
  which gives the same keys in every step but not the same teacher after the last one;
- conference version: `predictor=False, head_norm=False, dim=512, queue=131072, target_temperature=0.04`,
  momentum .999 throughout.
Not specified by the paper: the warm-up's length on each dataset and InfoNCE's temperature.

Legend: B batch, D projection, K queue.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.moco import info_nce
from methods.parts import Queue, Teacher, draw, mlp, momentum_at


@dataclass(frozen=True)
class Config:
    """Defaults: the journal's ImageNet setting (section 5.1), without InfoNCE."""

    student_temperature: float = 0.1
    """tau_s (Eq. 3, Table 1)."""
    teacher_temperature: float = 0.03
    """tau_t (Eq. 4, Table 1: .03 or .04 is best; .08 and more collapses without predictor, Table 2)."""
    queue: int = 65536
    """K (Table 6): 4096 on CIFAR, 16384 on STL-10 and Tiny ImageNet."""
    hidden: int = 4096
    """Width of the hidden layer of projector and predictor."""
    dim: int = 256
    """D, width of the projection."""
    head_norm: bool = True
    """Batch norm after the heads' hidden layers: in the journal; none in the conference code."""
    predictor: bool = True
    """A predictor on the student (section 3.3), built as the projector."""
    info_nce_epochs: float = 0.0
    """Length of the InfoNCE warm-up (Eq. 7): alpha rises from 0 to 1 over them. 0: none.
    It helps but for CIFAR-10 (Table 3). Length not specified by the paper."""
    info_nce_temperature: float = 0.1
    """Not specified by the paper: the default is tau_s."""
    momentum: float = 0.996
    """m of Eq. 6 at the start: .99 on small and medium datasets."""
    momentum_end: float = 1.0
    """m at the end, by a cosine; on small and medium datasets it is constant: as `momentum`."""

    def __post_init__(self) -> None:
        for name in ("student_temperature", "teacher_temperature", "info_nce_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"method.{name} is above 0, got {getattr(self, name)}")
        if self.info_nce_epochs < 0:
            raise ValueError(f"method.info_nce_epochs is 0 or more, got {self.info_nce_epochs}")
        if not (0 <= self.momentum <= 1 and 0 <= self.momentum_end <= 1):
            raise ValueError("method.momentum and method.momentum_end lie in [0, 1]")


def relation_loss(
    student: Tensor, teacher: Tensor, queue: Tensor, *, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Eq. 3 to 5: cross entropy H(p2, p1) of the relations to the queue, mean over the batch.

    Args:
        student: z1 (B, D), normalized; carries the gradient.
        teacher: z2 (B, D), normalized; its gradient is stopped.
        queue: (K, D), normalized; the own key is not among them.
        student_temperature: tau_s > 0.
        teacher_temperature: tau_t > 0, below tau_s for a sharper target.

    Returns:
        Scalar; at least the entropy of p2. Autocast is off here: bf16 rounds a similarity near 1 by up
        to .002, which tau_t = .03 turns into .07 of a logit.
    """
    with torch.autocast(student.device.type, enabled=False):
        p2 = F.softmax(teacher.detach() @ queue.T / teacher_temperature, dim=1)  # (B, K)
        log_p1 = F.log_softmax(student @ queue.T / student_temperature, dim=1)  # (B, K)
        return -(p2 * log_p1).sum(1).mean()


class ReSSL(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if not {"online", "target"} <= facts.views.keys():
            raise ValueError(f"ressl takes the views online, target and further crops, got {', '.join(facts.views)}")
        self.config = config
        self.students = [name for name in facts.views if name != "target"]
        self.backbone = backbone
        self.projector = mlp([backbone.dim, config.hidden, config.dim], hidden_norm=config.head_norm)
        predictor = mlp([config.dim, config.hidden, config.dim], hidden_norm=config.head_norm)
        self.predictor = predictor if config.predictor else nn.Identity()
        self.teacher = Teacher(self.backbone, self.projector)
        self.queue = Queue(config.queue, config.dim)

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        c, alpha = self.config, self.alpha(clock)
        order = draw(clock.seed, clock.step, batch["index"], "shuffle", 1)[:, 0]
        queue = self.queue.keys.clone()  # the backward pass reads it, after these keys have entered the buffer
        z2 = F.normalize(self.teacher(batch["target"], order).float(), dim=1)  # (B, D)
        temperatures = {"student_temperature": c.student_temperature, "teacher_temperature": c.teacher_temperature}
        relation, contrast = [], []
        for view in self.students:
            z1 = F.normalize(self.predictor(self.projector(self.backbone(batch[view]))).float(), dim=1)  # (B, D)
            relation.append(relation_loss(z1, z2, queue, **temperatures))
            if alpha < 1:
                contrast.append(info_nce(z1, z2, queue, temperature=c.info_nce_temperature))
        self.queue.enqueue(z2)
        loss = torch.stack(relation).mean()
        log = {"teacher_momentum": loss.new_full((), self.momentum(clock))}
        if alpha < 1:
            log |= {"alpha": loss.new_full((), alpha), "relation": loss.detach()}
            log["info_nce"] = torch.stack(contrast).mean().detach()
            loss = alpha * loss + (1 - alpha) * torch.stack(contrast).mean()  # Eq. 7
        return Step(loss, log)

    def alpha(self, clock: Clock) -> float:
        """Weight of the relation in Eq. 7: step / warm-up steps, 1 after the warm-up and where there is none."""
        steps = self.config.info_nce_epochs * clock.steps_per_epoch
        return min(clock.step / steps, 1.0) if steps else 1.0

    def momentum(self, clock: Clock) -> float:
        return momentum_at(clock.step, clock.total_steps, self.config.momentum, self.config.momentum_end)

    def after_step(self, clock: Clock) -> None:
        self.teacher.follow(self.backbone, self.projector, momentum=self.momentum(clock))


METHOD = ReSSL

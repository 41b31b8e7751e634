"""Supervised: a linear classifier on the backbone, which is frozen (linear evaluation) or trained (fine-tuning).

View: `image`; the batch holds `label`. Frozen is really frozen: no gradient, and batch norm keeps the running
statistics of pretraining, as in the papers' evaluations (MoCo's, SimSiam's and ReSSL's code put the model in eval
mode). The classifier starts at N(0, .01), its bias at 0, as in MoCo's code; the papers do not say.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step


@dataclass(frozen=True)
class Config:
    freeze_backbone: bool = True
    """Linear evaluation; False: fine-tuning, the backbone learns too."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, in [0, 1). The papers use none."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"method.label_smoothing lies in [0, 1), got {self.label_smoothing}")


class Supervised(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if "image" not in facts.views:
            raise ValueError(f"supervised takes the view image, got {', '.join(facts.views)}")
        if facts.classes is None:
            raise ValueError("supervised learns from labels, and this data has none: it needs a label column")
        self.config = config
        self.backbone = backbone.requires_grad_(not config.freeze_backbone)
        self.classifier = nn.Linear(backbone.dim, facts.classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.train()

    def train(self, mode: bool = True) -> "Supervised":
        super().train(mode)
        if self.config.freeze_backbone:
            self.backbone.eval()
        return self

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        logits = self.classifier(self.backbone(batch["image"]))  # (B, classes)
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.config.label_smoothing)
        return Step(loss, {"accuracy": (logits.argmax(1) == batch["label"]).float().mean()})


METHOD = Supervised

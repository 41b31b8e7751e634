"""Supervised: linear classifiers on a backbone, which is frozen (linear evaluation) or trained (fine-tuning).

View: `image`; the batch holds `label`. Frozen is really frozen: no gradient, and batch norm keeps the running
statistics of pretraining, as in the papers' evaluations (MoCo's, SimSiam's and ReSSL's code put the model in eval
mode). A classifier starts at N(0, .01), its bias at 0, as in MoCo's code; the papers do not say.

Layer by layer (S. Jenni's thesis on self-supervised learning, sections 3.4.2 and 4.4.1): a classifier on the map of
each of `layers`, all trained at once. The loss is the sum of their cross entropies, and of a frozen backbone they
share nothing: each learns as if it were alone.

Legend: B batch, c x h x w a layer's map.
"""

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step


@dataclass(frozen=True)
class Config:
    freeze_backbone: bool = True
    """Linear evaluation; False: fine-tuning, the backbone learns too."""
    from_layer: str = ""
    """Fine-tuning from this layer of the backbone on: what lies before it stays frozen. Empty: all of it learns."""
    layers: tuple[str, ...] = ()
    """Layers of the backbone whose maps are classified; of a backbone that learns, at most one, and what lies behind
    it stays frozen. Empty: the pooled features."""
    values: int | None = 9216
    """Most values of a map that its classifier sees: a larger one is average-pooled to the largest square that fits,
    at least one cell (section 3.4.2: "resized such that the flattened features are of similar size", about 9,200).
    None: all of them, as in Tables 4.2 and 4.3."""
    norm: bool = False
    """Batch norm without scale and shift before the classifier of a layer, a channel at a time (the released code of
    chapter 4; the thesis does not name it), with the code's decay .975 and epsilon 1e-3."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, in [0, 1). The papers use none."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"method.label_smoothing lies in [0, 1), got {self.label_smoothing}")
        if self.values is not None and self.values < 1:
            raise ValueError(f"method.values is at least 1, or None, got {self.values}")
        if self.from_layer and self.freeze_backbone:
            raise ValueError("method.from_layer is for a backbone that learns: set method.freeze_backbone False")
        if len(self.layers) > 1 and not self.freeze_backbone:
            raise ValueError("method.layers: a backbone that learns is classified at one layer at most")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"method.layers names one twice: {', '.join(self.layers)}")


def outside(backbone: Backbone, first: str, last: str) -> list[nn.Module]:
    """The modules of `backbone` before its layer `first` and those behind `last`; an empty name bounds nothing."""
    modules, layers = list(backbone.network.named_modules()), list(backbone.layers)

    def end(layer: str) -> int:
        path = backbone.layers[layer]
        return 1 + max(i for i, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{path}."))

    before = layers[: layers.index(first)] if first else []
    start, stop = end(before[-1]) if before else 0, end(last) if last else len(modules)
    return [module for _, module in modules[:start] + modules[stop:]]


def linear(width: int, classes: int) -> nn.Linear:
    layer = nn.Linear(width, classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def map_classifier(shape: torch.Size, classes: int, values: int | None, norm: bool) -> nn.Sequential:
    """Maps of `shape` (c, h, w) -> logits (B, classes); at least one cell of a map is left, whatever `values`."""
    c, height, width = shape
    side = isqrt(values // c) if values else max(height, width)
    rows, columns = (min(max(side, 1), whole) for whole in (height, width))
    layers: list[nn.Module] = [] if (rows, columns) == (height, width) else [nn.AdaptiveAvgPool2d((rows, columns))]
    if norm:
        layers.append(nn.BatchNorm2d(c, eps=1e-3, momentum=0.025, affine=False))
    return nn.Sequential(*layers, nn.Flatten(), linear(c * rows * columns, classes))


class Supervised(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if "image" not in facts.views:
            raise ValueError(f"supervised takes the view image, got {', '.join(facts.views)}")
        if facts.classes is None:
            raise ValueError("supervised learns from labels, and this data has none: it needs a label column")
        check_layers(config, backbone)
        self.config = config
        self.backbone = backbone.requires_grad_(not config.freeze_backbone)
        if config.layers:
            backbone.eval()
            with torch.no_grad():
                maps = backbone.maps(torch.zeros(1, *facts.views["image"][0]))
            heads: dict[str, nn.Module] = {
                name: map_classifier(maps[name].shape[1:], facts.classes, config.values, config.norm)
                for name in config.layers
            }
        else:
            heads = {"features": linear(backbone.dim, facts.classes)}
        self.classifiers = nn.ModuleDict(heads)
        for module in self.frozen():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train()

    def frozen(self) -> list[nn.Module]:
        """The backbone's modules that do not learn."""
        if self.config.freeze_backbone:
            return list(self.backbone.modules())
        return outside(self.backbone, self.config.from_layer, next(iter(self.config.layers), ""))

    def train(self, mode: bool = True) -> "Supervised":
        super().train(mode)
        for module in self.frozen():
            module.training = False
        return self

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 (B, C, H, W) -> a layer's name, or `features` where none is chosen -> (B, classes)."""
        maps = self.backbone.maps(images) if self.config.layers else {"features": self.backbone(images)}
        return {name: classifier(maps[name]) for name, classifier in self.classifiers.items()}

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        if self.training:
            self.train()  # whoever has looked at the backbone in eval mode may have left all of it in training
        label, smoothing = batch["label"], self.config.label_smoothing
        losses, log = [], {}
        for name, logits in self.logits(batch["image"]).items():
            losses.append(F.cross_entropy(logits, label, label_smoothing=smoothing))
            log[f"accuracy.{name}" if self.config.layers else "accuracy"] = (logits.argmax(1) == label).float().mean()
        return Step(torch.stack(losses).sum(), log)

    def score(self, images: Tensor) -> Tensor:
        """The highest logit, of the last layer where there are several."""
        return [*self.logits(images).values()][-1].amax(1)


def check_layers(config: Config, backbone: Backbone) -> None:
    layers = list(backbone.layers)
    for field, names in (("layers", config.layers), ("from_layer", (config.from_layer,) if config.from_layer else ())):
        for name in names:
            if name not in layers:
                there = f"it has {', '.join(layers)}" if layers else "this backbone names none"
                raise ValueError(f"method.{field}: the backbone has no layer {name} ({there})")
    if config.from_layer and any(layers.index(name) < layers.index(config.from_layer) for name in config.layers):
        raise ValueError(f"method.from_layer {config.from_layer} lies behind {config.layers[0]}, which is classified")


METHOD = Supervised

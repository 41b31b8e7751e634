"""Supervised: linear classifiers on a backbone, which is frozen (linear evaluation) or trained (fine-tuning).

View: one, of any name, of images or of clips; the batch holds `label`. Frozen is really frozen: no gradient, and batch
norm keeps the running statistics of pretraining, as in the papers' evaluations (MoCo's, SimSiam's and ReSSL's code put
the model in eval mode). A classifier starts at N(0, .01), its bias at 0, as in MoCo's code; the papers do not say.

Layer by layer (S. Jenni's thesis on self-supervised learning, sections 3.4.2 and 4.4.1): a classifier on the map of
each of `layers`, all trained at once. The loss is the sum of their cross entropies, and of a frozen backbone they
share nothing: each learns as if it were alone.

With `head` a classifier has hidden layers. Table 5.1's "conv frozen", where "three randomly initialized fully-connected
layers" learn (section 5.3), is of c3d `layers` pool5 (the released code's default features; the text says conv5),
`values` None and `head` 2048, 2048: the shapes of its own fc6, fc7 and last layer.

Legend: B batch; c x h x w a layer's map, of clips c x t x h x w, of a fully connected layer c alone.
"""

from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.parts import evaluating, mlp


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
    Of a clip's map as many steps of time as fit are kept, then the largest square (ours). None: all of them, as in
    Tables 4.2 and 4.3."""
    norm: bool = False
    """Batch norm without scale and shift before the classifier of a layer, a channel at a time (the released code of
    chapter 4; the thesis does not name it), with the code's decay .975 and epsilon 1e-3."""
    head: tuple[int, ...] = ()
    """Widths of hidden layers before each classifier, with batch norm (decay .975, epsilon 1e-3, as in c3d), ReLU and
    torch's initial weights (ours). Empty: the classifier is linear."""
    classifier_rate: float = 1.0
    """A factor of the classifiers' learning rate, beside that of a backbone that learns (ReSSL's fine-tuning with 10%
    of the labels: .2 beside .02)."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, in [0, 1). The papers use none."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"method.label_smoothing lies in [0, 1), got {self.label_smoothing}")
        if self.classifier_rate <= 0:
            raise ValueError(f"method.classifier_rate is above 0, got {self.classifier_rate}")
        if self.values is not None and self.values < 1:
            raise ValueError(f"method.values is at least 1, or None, got {self.values}")
        if any(width < 1 for width in self.head):
            raise ValueError(f"method.head: widths are at least 1, got {self.head}")
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


def classifier(width: int, classes: int, head: tuple[int, ...]) -> nn.Module:
    """Features (B, width) -> logits (B, classes), through hidden layers of the widths `head`."""
    if not head:
        return linear(width, classes)
    network = mlp([width, *head, classes])
    network[-1] = linear(head[-1], classes)
    for module in network:
        if isinstance(module, nn.BatchNorm1d):
            module.momentum, module.eps = 0.025, 1e-3
    return network


def pooled(shape: tuple[int, ...], values: int) -> tuple[int, ...]:
    """The sides (), (h, w) or (t, h, w) to which maps of `shape` (c, ...) are pooled; at least one cell is left."""
    c, *sides = shape
    cells = max(values // c, 1)
    time = [min(steps, cells) for steps in sides[:-2]]
    side = max(isqrt(cells // prod(time)), 1)
    return (*time, *(min(side, whole) for whole in sides[-2:]))


def map_classifier(
    shape: tuple[int, ...], classes: int, values: int | None, norm: bool, head: tuple[int, ...]
) -> nn.Sequential:
    """Maps of `shape` (c), (c, h, w) or (c, t, h, w) -> logits (B, classes)."""
    c, whole = shape[0], shape[1:]
    sides = whole if values is None else pooled(shape, values)
    layers: list[nn.Module] = []
    if sides != whole:
        layers.append(nn.AdaptiveAvgPool2d(sides) if len(sides) == 2 else nn.AdaptiveAvgPool3d(sides))
    if norm:
        kind = {0: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(sides)]
        layers.append(kind(c, eps=1e-3, momentum=0.025, affine=False))
    return nn.Sequential(*layers, nn.Flatten(), classifier(c * prod(sides), classes, head))


class Supervised(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if len(facts.views) != 1:
            raise ValueError(f"supervised takes the view image or another, one alone; got {', '.join(facts.views)}")
        if facts.classes is None:
            raise ValueError("supervised learns from labels, and this data has none: it needs a label column")
        check_layers(config, backbone)
        self.config = config
        [(self.view, (shape, _))] = facts.views.items()
        self.backbone = backbone
        if config.layers:
            with evaluating(backbone), torch.no_grad():
                maps = backbone.maps(torch.zeros(1, *shape))
            heads: dict[str, nn.Module] = {
                name: map_classifier(maps[name].shape[1:], facts.classes, config.values, config.norm, config.head)
                for name in config.layers
            }
        else:
            heads = {"features": classifier(backbone.dim, facts.classes, config.head)}
        self.classifiers = nn.ModuleDict(heads)
        self.train()

    def frozen(self) -> list[nn.Module]:
        if self.config.freeze_backbone:
            return list(self.backbone.modules())
        return outside(self.backbone, self.config.from_layer, next(iter(self.config.layers), ""))

    def parameters_of(self, turn: str) -> list[nn.Parameter] | list[dict[str, Any]]:
        if self.config.classifier_rate == 1:
            return super().parameters_of(turn)
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        heads: dict[str, Any] = {"params": list(self.classifiers.parameters()), "rate": self.config.classifier_rate}
        return [{"params": backbone}, heads] if backbone else [heads]

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 (B, C, H, W), of clips (B, T, C, H, W) -> a layer's name, or `features` where none is chosen -> (B,
        classes)."""
        maps = self.backbone.maps(images) if self.config.layers else {"features": self.backbone(images)}
        return {name: classifier(maps[name]) for name, classifier in self.classifiers.items()}

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        label, smoothing = batch["label"], self.config.label_smoothing
        losses, log = [], {}
        for name, logits in self.logits(batch[self.view]).items():
            losses.append(F.cross_entropy(logits, label, label_smoothing=smoothing))
            log[f"accuracy.{name}" if self.config.layers else "accuracy"] = (logits.argmax(1) == label).float().mean()
        return Step(torch.stack(losses).sum(), log)

    def classify(self, features: Tensor) -> Tensor:
        return super().classify(features) if self.config.layers else self.classifiers["features"](features)

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

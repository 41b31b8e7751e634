"""The supervised method: a frozen backbone that really is, fine-tuning, and the errors."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.backbones import Backbone
from methods.method import Clock, Facts
from methods.supervised import METHOD, Config, Supervised

CLOCK = Clock(step=0, total_steps=10, steps_per_epoch=5, epoch=0, seed=0)


def facts(classes: int | None = 3, view: str = "image") -> Facts:
    return Facts(samples=12, classes=classes, views={view: ((3, 8, 8), 0)})


def build(config: Config) -> Supervised:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return METHOD(config, Backbone(network, 4, [0.5] * 3, [0.25] * 3), facts())


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (12, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return {"image": images, "label": torch.arange(12) % 3, "index": torch.arange(12)}


def move(method: Supervised, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(method.parameters_of("model"), lr=1.0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        step = method(batch(), CLOCK, "model")
        step.loss.backward()
        optimizer.step()
        losses.append(step.loss.item())
    return losses


def test_a_frozen_backbone_does_not_change() -> None:
    method = build(Config()).train()
    before = copy.deepcopy(method.backbone.state_dict())
    assert method.training and method.classifier.training
    assert not any(module.training for module in method.backbone.modules())
    losses = move(method.train(), 20)
    assert losses[-1] < losses[0]
    assert all(p.grad is None and not p.requires_grad for p in method.backbone.parameters())
    assert all(torch.equal(before[name], value) for name, value in method.backbone.state_dict().items())
    assert {id(p) for p in method.parameters_of("model")} == {id(p) for p in method.classifier.parameters()}


def test_a_frozen_backbone_gives_the_features_of_eval_mode() -> None:
    method = build(Config())
    features = method.backbone(batch()["image"])
    method.eval()
    assert torch.equal(method.backbone(batch()["image"]), features)
    assert not features.requires_grad


def test_fine_tuning_moves_weights_and_statistics() -> None:
    method = build(Config(freeze_backbone=False)).train()
    before = copy.deepcopy(method.backbone.state_dict())
    move(method, 2)
    changed = {name for name, value in method.backbone.state_dict().items() if not torch.equal(before[name], value)}
    assert {"network.0.weight", "network.1.weight", "network.1.running_mean"} <= changed
    method.eval()
    assert not any(module.training for module in method.modules())


def test_the_loss_and_the_accuracy_by_hand() -> None:
    """A classifier of zeros with bias (0, 0, log 2): p = (1/4, 1/4, 1/2), all is called class 2. A third of the labels
    each: loss (log 4 + log 4 + log 2) / 3 = 5/3 log 2, accuracy 1/3. Smoothing .3: the target keeps .7 and gives .1
    to each class; the loss is the same, as the labels are balanced."""
    for smoothing in (0.0, 0.3):
        method = build(Config(label_smoothing=smoothing))
        nn.init.zeros_(method.classifier.weight)
        method.classifier.bias.data = torch.tensor([0.0, 0.0, math.log(2)])
        step = method(batch(), CLOCK, "model")
        assert step.loss.item() == pytest.approx(5 / 3 * math.log(2), rel=1e-6)
        assert step.log["accuracy"].item() == pytest.approx(1 / 3)
        assert not step.log["accuracy"].requires_grad


def test_label_smoothing_spreads_the_target() -> None:
    method = build(Config(label_smoothing=0.3))
    logits = method.classifier(method.backbone(batch()["image"]))
    target = 0.7 * F.one_hot(batch()["label"], 3) + 0.1
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(method(batch(), CLOCK, "model").loss, expected)


def test_errors_name_the_remedy() -> None:
    backbone = build(Config()).backbone
    with pytest.raises(ValueError, match="labels"):
        Supervised(Config(), backbone, facts(classes=None))
    with pytest.raises(ValueError, match="the view image, got online"):
        Supervised(Config(), backbone, facts(view="online"))
    with pytest.raises(ValueError, match="label_smoothing"):
        Config(label_smoothing=1.0)

"""The supervised method: a frozen backbone that really is, layer by layer, fine-tuning from a layer on, and errors."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods import backbones
from methods.backbones import Backbone
from methods.method import Clock, Facts
from methods.optim import Optimizer, set_learning_rate
from methods.optim import build as build_optimizer
from methods.parts import evaluating
from methods.supervised import METHOD, Config, Supervised, map_classifier, pooled

CLOCK = Clock(step=0, total_steps=10, steps_per_epoch=5, epoch=0, seed=0)


def facts(classes: int | None = 3) -> Facts:
    return Facts(samples=12, classes=classes, views={"image": ((3, 8, 8), 0)})


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
    assert method.training and method.classifiers.training
    assert not any(module.training for module in method.backbone.modules())
    losses = move(method.train(), 20)
    assert losses[-1] < losses[0]
    assert all(p.grad is None and not p.requires_grad for p in method.backbone.parameters())
    assert all(torch.equal(before[name], value) for name, value in method.backbone.state_dict().items())
    assert {id(p) for p in method.parameters_of("model")} == {id(p) for p in method.classifiers.parameters()}


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


def test_a_classifier_has_its_own_rate_beside_the_backbone() -> None:
    """Half way down a cosine from .02 the backbone has .01 and the classifier ten times that; of plain SGD the first
    step moves each by its rate times the gradient."""
    method = build(Config(freeze_backbone=False, classifier_rate=10.0)).train()
    spec = Optimizer(lr=0.02, scaling="none", momentum=0.0, weight_decay=0.0)
    optimizer = build_optimizer(spec, method.parameters_of("model"), 12)
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(moved) == len({id(p) for p in moved}) == len([*method.parameters()])
    set_learning_rate(optimizer, spec, 12, Clock(step=5, total_steps=10, steps_per_epoch=5, epoch=1, seed=0))
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    method(batch(), CLOCK, "model").loss.backward()
    optimizer.step()
    for name, p in method.named_parameters():
        rate = 0.1 if name.startswith("classifiers.") else 0.01
        assert p.grad is not None and ("bias" in name or p.grad.abs().max() > 0)
        torch.testing.assert_close(p.detach(), before[name] - rate * p.grad, atol=1e-7, rtol=1e-5)
    frozen = build(Config(classifier_rate=10.0)).train()
    [group] = frozen.parameters_of("model")
    assert isinstance(group, dict) and group["rate"] == 10.0 and len(group["params"]) == 2
    with pytest.raises(ValueError, match="classifier_rate is above 0"):
        Config(classifier_rate=0.0)


def test_the_loss_and_the_accuracy_by_hand() -> None:
    """A classifier of zeros with bias (0, 0, log 2): p = (1/4, 1/4, 1/2), all is called class 2. A third of the labels
    each: loss (log 4 + log 4 + log 2) / 3 = 5/3 log 2, accuracy 1/3. Smoothing .3: the target keeps .7 and gives .1
    to each class; the loss is the same, as the labels are balanced."""
    for smoothing in (0.0, 0.3):
        method = build(Config(label_smoothing=smoothing))
        classifier = method.get_submodule("classifiers.features")
        assert isinstance(classifier, nn.Linear)
        nn.init.zeros_(classifier.weight)
        classifier.bias.data = torch.tensor([0.0, 0.0, math.log(2)])
        step = method(batch(), CLOCK, "model")
        assert step.loss.item() == pytest.approx(5 / 3 * math.log(2), rel=1e-6)
        assert step.log["accuracy"].item() == pytest.approx(1 / 3)
        assert not step.log["accuracy"].requires_grad


def test_label_smoothing_spreads_the_target() -> None:
    method = build(Config(label_smoothing=0.3))
    logits = method.classifiers["features"](method.backbone(batch()["image"]))
    target = 0.7 * F.one_hot(batch()["label"], 3) + 0.1
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(method(batch(), CLOCK, "model").loss, expected)


def test_errors_name_the_remedy() -> None:
    backbone = build(Config()).backbone
    with pytest.raises(ValueError, match="labels"):
        Supervised(Config(), backbone, facts(classes=None))
    with pytest.raises(ValueError, match="the view image or another, one alone; got image, online"):
        Supervised(Config(), backbone, Facts(12, 3, {name: ((3, 8, 8), 0) for name in ("image", "online")}))
    with pytest.raises(ValueError, match=r"head: widths are at least 1, got \(8, 0\)"):
        Config(head=(8, 0))
    with pytest.raises(ValueError, match="label_smoothing"):
        Config(label_smoothing=1.0)
    with pytest.raises(ValueError, match="from_layer is for a backbone that learns"):
        Config(from_layer="conv2")
    with pytest.raises(ValueError, match="at one layer at most"):
        Config(freeze_backbone=False, layers=("conv1", "conv2"))
    with pytest.raises(ValueError, match="values is at least 1"):
        Config(layers=("conv1",), values=0)
    with pytest.raises(ValueError, match="names one twice"):
        Config(layers=("conv1", "conv1"))


# --------------------------------------------------------------------------------------------- layers


def conv(fan_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(fan_in, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())


def layered(seed: int = 0, **fields: Any) -> Supervised:
    """Maps of 4 x 8 x 8, 6 x 4 x 4 and 8 x 4 x 4."""
    torch.manual_seed(seed)
    parts = [conv(3, 4), nn.MaxPool2d(2), conv(4, 6), conv(6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    backbone = Backbone(nn.Sequential(*parts), 8, [0.5] * 3, [0.25] * 3, {"conv1": "0", "conv2": "2", "conv3": "3"})
    return METHOD(Config(**fields), backbone, facts())


ALL = ("conv1", "conv2", "conv3")


def test_each_layer_learns_from_its_own_loss_alone() -> None:
    """Trained together, each classifier goes to the bit where it goes alone, with batch norm of its own."""
    for norm in (False, True):
        together, before = layered(layers=ALL, norm=norm), copy.deepcopy(layered(layers=ALL, norm=norm).state_dict())
        move(together, 3)
        for name in ALL:
            alone = layered(layers=(name,), norm=norm)
            alone.load_state_dict({k: v for k, v in before.items() if "classifiers" not in k or f".{name}." in k})
            move(alone, 3)
            mine, theirs = (dict(m.classifiers[name].state_dict()) for m in (together, alone))
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
        left = {k: v for k, v in together.state_dict().items() if k.startswith("backbone.")}
        assert all(torch.equal(before[name], value) for name, value in left.items())


def test_the_loss_of_layers_is_the_sum_and_shares_of_a_batch_average() -> None:
    method, whole = layered(layers=ALL), batch()
    step = method(whole, CLOCK, "model")
    logits = method.logits(whole["image"])
    assert list(logits) == list(ALL)
    expected = sum(F.cross_entropy(found, whole["label"]) for found in logits.values())
    torch.testing.assert_close(step.loss, expected)
    assert step.log.keys() == {f"accuracy.{name}" for name in ALL}
    for name, found in logits.items():
        assert step.log[f"accuracy.{name}"] == (found.argmax(1) == whole["label"]).float().mean()
    halves = [{k: v[rows] for k, v in whole.items()} for rows in (slice(6), slice(6, 12))]
    torch.testing.assert_close(step.loss, torch.stack([method(half, CLOCK, "model").loss for half in halves]).mean())


def test_maps_are_pooled_to_at_most_so_many_values() -> None:
    """conv1 has 4 channels: of 100 values there is room for 5 x 5, of 3 for one cell all the same. conv2's 6 x 4 x 4
    are 96: they stay whole."""
    widths = {}
    for values in (100, 3, None):
        method = layered(layers=("conv1", "conv2"), values=values)
        widths[values] = [head[-1].in_features for head in method.classifiers.values()]  # type: ignore[index]
    assert widths == {100: [100, 96], 3: [4, 6], None: [256, 96]}
    method = layered(layers=("conv1",), values=16)
    method.classifiers["conv1"][-1].weight.data = torch.eye(16)[:3]  # type: ignore[index]
    method.classifiers["conv1"][-1].bias.data.zero_()  # type: ignore[index]
    quarter = method.backbone.maps(batch()["image"])["conv1"][:, 0, :4]  # 8 x 8 to 2 x 2: means of quarters
    means = [quarter[:, :, :4].mean((1, 2)), quarter[:, :, 4:].mean((1, 2))]
    torch.testing.assert_close(method.logits(batch()["image"])["conv1"][:, :2], torch.stack(means, 1))


def test_batch_norm_before_a_classifier_has_no_parameters() -> None:
    method = layered(layers=("conv2",), norm=True)
    assert [name for name, _ in method.classifiers.named_parameters()] == ["conv2.2.weight", "conv2.2.bias"]
    head = method.classifiers["conv2"]
    maps = method.backbone.maps(batch()["image"])["conv2"]
    seen = head[0](maps)  # type: ignore[index]
    spread = maps.var((0, 2, 3), correction=0)
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.var((0, 2, 3), correction=0), spread / (spread + 1e-3))


# ---------------------------------------------------------------------------------------- from a layer


def moved(method: Supervised) -> tuple[set[str], set[str]]:
    """Layers whose parameters, and whose running statistics, two steps move; "3" is conv3's place."""
    before = copy.deepcopy(method.backbone.network.state_dict())
    move(method.train(), 2)
    after = method.backbone.network.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(before[name], value)}
    statistics = {name for name in changed if "running" in name or "tracked" in name}
    return {name[0] for name in changed - statistics}, {name[0] for name in statistics}


def test_fine_tuning_from_a_layer_on() -> None:
    for first, places in (("", "023"), ("conv1", "023"), ("conv2", "23"), ("conv3", "3")):
        method = layered(freeze_backbone=False, from_layer=first)
        learning = {id(p) for p in method.parameters_of("model")}
        assert moved(method) == (set(places), set(places)), first
        for name, p in method.backbone.network.named_parameters():
            assert (p.grad is not None) == p.requires_grad == (name[0] in places) == (id(p) in learning)


def test_what_lies_behind_the_classified_layer_is_frozen() -> None:
    """DistributedDataParallel refuses parameters without a gradient."""
    method = layered(freeze_backbone=False, layers=("conv2",))
    assert moved(method) == ({"0", "2"}, {"0", "2"})
    assert all((p.grad is not None) == p.requires_grad for p in method.parameters())
    assert moved(layered(freeze_backbone=False, from_layer="conv2", layers=("conv2",))) == ({"2"}, {"2"})


def test_frozen_stays_frozen_where_batch_norm_is_replaced() -> None:
    """As SyncBatchNorm replaces it: the modules are other ones then."""
    method = layered(freeze_backbone=False, from_layer="conv3")
    network = method.backbone.network
    for place in ("0", "2", "3"):
        network.set_submodule(f"{place}.1", copy.deepcopy(network.get_submodule(f"{place}.1")))
    assert moved(method) == ({"3"}, {"3"})


def test_frozen_stays_frozen_after_the_backbone_was_looked_at() -> None:
    """As the loop's monitors do."""
    method = layered(freeze_backbone=False, from_layer="conv3").train()
    modes = [module.training for module in method.modules()]
    with evaluating(method.backbone):
        assert not any(module.training for module in method.backbone.modules())
    assert [module.training for module in method.modules()] == modes
    before = copy.deepcopy(method.backbone.network.state_dict())
    move(method, 1)
    after = method.backbone.network.state_dict()
    assert {name[0] for name in before if not torch.equal(before[name], after[name])} == {"3"}


def test_stem_of_a_resnet_counts_as_a_layer() -> None:
    backbone = backbones.build("resnet18", image=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3)
    config = Config(freeze_backbone=False, from_layer="stage1")
    method = METHOD(config, backbone, Facts(12, 3, {"image": ((3, 32, 32), 0)}))
    frozen = {name.split(".")[0] for name, p in backbone.network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1"}
    still = {name.split(".")[0] for name, m in backbone.network.named_modules() if name and not m.training}
    assert still == {"conv1", "bn1", "relu"} and method.training


def test_wrong_layers_are_told_which_there_are() -> None:
    for fields in ({"layers": ("conv9",)}, {"freeze_backbone": False, "from_layer": "conv9"}):
        with pytest.raises(ValueError, match=r"no layer conv9 \(it has conv1, conv2, conv3\)"):
            layered(**fields)
    with pytest.raises(ValueError, match=r"no layer conv1 \(this backbone names none\)"):
        build(Config(layers=("conv1",)))
    with pytest.raises(ValueError, match="from_layer conv3 lies behind conv1"):
        layered(freeze_backbone=False, from_layer="conv3", layers=("conv1",))


def test_a_state_dict_resumes_layers_to_the_bit() -> None:
    first, second = layered(layers=ALL, norm=True), layered(seed=1, layers=ALL, norm=True)
    move(first, 2)
    second.load_state_dict(first.state_dict())
    assert move(first, 2) == move(second, 2)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_the_score_is_the_highest_logit() -> None:
    method = layered(layers=ALL).eval()
    expected = method.logits(batch()["image"])["conv3"].max(1).values
    assert torch.equal(method.score(batch()["image"]), expected)


# ---------------------------------------------------------------------------------------------- head


def test_a_head_has_hidden_layers_with_batch_norm_and_relu() -> None:
    """Of the features, 4 wide, and of a layer, 6 x 4 x 4: the classifier is at the end, N(0, .01) with bias 0."""
    assert isinstance(build(Config()).classifiers["features"], nn.Linear)
    for method, name, width in (
        (build(Config(head=(7, 5))), "features", 4),
        (layered(layers=ALL, head=(7, 5)), "conv2", 96),
    ):
        modules = [m for m in method.classifiers[name].modules() if not isinstance(m, nn.Sequential | nn.Flatten)]
        kinds = [type(m) for m in modules]
        assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
        layers = [m for m in modules if isinstance(m, nn.Linear)]
        assert [(m.in_features, m.out_features) for m in layers] == [(width, 7), (7, 5), (5, 3)]
        norms = [m for m in modules if isinstance(m, nn.BatchNorm1d)]
        assert all((m.momentum, m.eps, m.affine) == (0.025, 1e-3, True) for m in norms)
        assert layers[0].bias is None and not layers[-1].bias.any() and 0 < layers[-1].weight.std() < 0.02


def test_a_head_learns_and_a_frozen_backbone_does_not_change() -> None:
    method = layered(layers=("conv2", "conv3"), head=(8,))
    before = copy.deepcopy(method.state_dict())
    losses = move(method.train(), 20)
    assert losses[-1] < losses[0] and method.classifiers.training
    changed = {name for name, value in method.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {name for name in before if name.startswith("classifiers.")}
    assert {id(p) for p in method.parameters_of("model")} == {id(p) for p in method.classifiers.parameters()}


# --------------------------------------------------------------------------------------------- clips

SIZE = (8, 3, 16, 16)


def of_clips(**fields: Any) -> Supervised:
    torch.manual_seed(0)
    backbone = backbones.build("c3d:small", image=SIZE, mean=[0.5] * 3, std=[0.25] * 3)
    return METHOD(Config(**fields), backbone, Facts(12, 3, {"speed": (SIZE, 4)}))


def clips() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (6, *SIZE), generator=generator, dtype=torch.uint8)
    return {"speed": pixels, "label": torch.arange(6) % 3, "index": torch.arange(6)}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"layers": ("conv5",), "head": (8, 8)},
        {"layers": ("pool5",), "values": None, "head": (8, 8)},
        {"layers": ("conv1", "conv4", "fc6", "fc7"), "norm": True},
    ],
    ids=str,
)
def test_classifiers_on_frozen_clips_learn(fields: dict[str, Any]) -> None:
    method = of_clips(**fields).train()
    before, column = copy.deepcopy(method.backbone.state_dict()), clips()
    optimizer = torch.optim.SGD(method.parameters_of("model"), lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        step = method(column, CLOCK, "model")
        step.loss.backward()
        optimizer.step()
        losses.append(step.loss.item())
    assert losses[-1] < losses[0]
    assert not any(module.training for module in method.backbone.modules())
    assert all(p.grad is None and not p.requires_grad for p in method.backbone.parameters())
    assert all(torch.equal(before[name], value) for name, value in method.backbone.state_dict().items())
    assert all(p.grad is not None for p in method.classifiers.parameters())
    method.eval()
    assert {name: tuple(found.shape) for name, found in method.logits(column["speed"]).items()} == {
        name: (6, 3) for name in fields.get("layers", ("features",))
    }
    assert method.score(column["speed"]).shape == (6,)


def test_fine_tuning_on_clips_moves_all_or_what_lies_from_a_layer_on() -> None:
    for first, moving in (("", {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"}), ("fc6", {"fc6", "fc7"})):
        method = of_clips(freeze_backbone=False, from_layer=first).train()
        before = copy.deepcopy(method.backbone.network.state_dict())
        method(clips(), CLOCK, "model").loss.backward()
        torch.optim.SGD(method.parameters_of("model"), lr=1.0).step()
        after = method.backbone.network.state_dict()
        assert {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])} == moving
        still = {name.split(".")[0] for name, p in method.backbone.network.named_parameters() if p.grad is None}
        assert still.isdisjoint(moving) and still | moving >= {"conv1", "fc7"}


def test_what_a_classifier_sees_of_a_clip() -> None:
    """256 x 2 x 7 x 7, conv5 of 16 frames of 112 px: of 9,216 values 36 cells, 2 steps of 4 x 4. Of 60 values and 6
    channels 10 cells: all 4 steps, and of the 2 x 2 pixels one; of 3 cells 3 steps. Always one cell at least."""
    assert pooled((256, 2, 7, 7), 9216) == (2, 4, 4)
    assert pooled((6, 4, 2, 2), 60) == (4, 1, 1)
    assert pooled((6, 4, 2, 2), 18) == (3, 1, 1)
    assert pooled((6, 4, 2, 2), 96) == (4, 2, 2)
    assert pooled((6, 4, 2, 2), 3) == (1, 1, 1)
    assert pooled((96, 16, 12), 9216) == (9, 9) and pooled((96, 4, 12), 9216) == (4, 9)
    assert pooled((2048,), 100) == ()


def test_maps_of_clips_are_averaged_and_normalized_a_channel_at_a_time() -> None:
    """Of 2 x 4 x 4 x 4 with 8 values: 4 cells are 4 steps of 1 x 1, the means of frames."""
    maps = 3.0 + torch.randn(5, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    network = map_classifier((2, 4, 4, 4), 8, 8, True, ())
    last = network[-1]
    assert isinstance(last, nn.Linear) and not list(network[:-1].parameters())
    last.weight.data = torch.eye(8)
    means = maps.mean((3, 4))  # (B, c, t)
    expected = (means - means.mean((0, 2), keepdim=True)) / (
        means.var((0, 2), correction=0, keepdim=True) + 1e-3
    ).sqrt()
    torch.testing.assert_close(network(maps), expected.flatten(1))
    flat = map_classifier((7,), 3, 2, True, ())
    assert [type(m) for m in flat] == [nn.BatchNorm1d, nn.Flatten, nn.Linear] and flat(
        maps[:, 0, 0, 0, :1].repeat(1, 7)
    ).shape == (5, 3)
    whole = map_classifier((2, 4, 4, 4), 3, None, False, ())
    assert [type(m) for m in whole] == [nn.Flatten, nn.Linear] and whole(maps).shape == (5, 3)

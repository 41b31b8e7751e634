"""Data-dependent rescaling: unit variance within, equal rates between, and a function that stays as it is."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods import backbones
from methods.parts import normal, set_batch_norm
from methods.rescaling import EQUAL, rescale

IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


def network(bias: bool = True, norm: bool = False, scales: tuple[float, ...] = (3.0, 0.2, 7.0)) -> nn.Sequential:
    """Three convolutions, a max pooling and a classifier; weights drawn at `scales`, biases at .1."""
    torch.manual_seed(1)

    def conv(fan_in: int, width: int) -> list[nn.Module]:
        norms = [nn.BatchNorm2d(width)] if norm else []
        return [nn.Conv2d(fan_in, width, 3, 1, 1, bias=bias), *norms, nn.ReLU()]

    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5, bias=bias)]
    net = nn.Sequential(*conv(3, 6), nn.MaxPool2d(2), *conv(6, 8), *conv(8, 8), *head).double()
    with torch.no_grad():
        convolutions = [m for m in net if isinstance(m, nn.Conv2d)]
        for convolution, scale in zip(convolutions, scales, strict=True):
            convolution.weight.mul_(scale)
            if convolution.bias is not None:
                convolution.bias.normal_(std=0.1)
    if norm:  # running statistics of these images
        for module in net:
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        net.train()(IMAGES)
    return net.eval()


def affine_outputs(net: nn.Module) -> list[Tensor]:
    """What each convolution and linear layer gives on the calibration images, in order."""
    found: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda module, inputs, output: found.append(output))
        for m in net.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    net(IMAGES)
    for hook in hooks:
        hook.remove()
    return found


def spread(rates: dict[str, float]) -> float:
    return max(rates.values()) / min(rates.values())


def naive_rates(net: nn.Module) -> list[float]:
    """The rates again, image by image: sqrt(sum over images of the squared gradient, over the squared weights), each
    image's gradient that of its own random linear function. In expectation over eta the cross terms vanish, so this
    is what the estimate is of; equal up to the sampling of one eta."""
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for weight in weights:
        weight.requires_grad_(True)
    squares = [torch.zeros(()).double() for _ in weights]
    for n in range(len(IMAGES)):
        outputs = net(IMAGES[n : n + 1])[0]
        for (
            output
        ) in outputs:  # E over eta of the squared gradient: the sum over the outputs of their squared gradients
            gradients = torch.autograd.grad(output, weights, retain_graph=True)
            for square, gradient in zip(squares, gradients, strict=True):
                square += gradient.square().sum()
    return [(square / w.detach().square().sum()).sqrt().item() for square, w in zip(squares, weights, strict=True)]


@pytest.mark.parametrize("norm", [False, True])
def test_rates_become_equal_and_the_function_stays(norm: bool) -> None:
    net = network(norm=norm)
    before = net(IMAGES)
    found = rescale(net, IMAGES)
    assert spread(found.before) > 5 > EQUAL > spread(found.after)
    after = found.network(IMAGES)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert found.change < 1e-9
    if norm:  # in training too, where the batch's own statistics count
        torch.testing.assert_close(found.network.train()(IMAGES), net.train()(IMAGES), rtol=1e-2, atol=1e-2)


def test_rates_are_those_of_a_naive_twin() -> None:
    found = rescale(network(), IMAGES, iterations=0)
    naive = naive_rates(network())
    ratios = [estimate / exact for estimate, exact in zip(found.before.values(), naive, strict=True)]
    assert found.before == found.after and found.change == 0
    assert all(0.7 < ratio < 1.4 for ratio in ratios), ratios
    net = network()
    outputs, eta = net(IMAGES), normal(0, 0, torch.arange(48), "rescaling", 5)
    weight = net.get_parameter("0.weight")
    (gradient,) = torch.autograd.grad((outputs * eta).sum(), [weight])
    rate = (gradient.square().sum() / weight.detach().square().sum()).sqrt()
    assert found.before["0"] == pytest.approx(rate.item(), rel=1e-9)


def test_two_layers_by_hand() -> None:
    """y = b relu(a x), a = 8, b = 1/2, x > 0: the gradients are b x and a x, the rates x b / a and x a / b up to one
    factor, 1/16 and 16. Their geometric mean is 1: a goes to 8 / 4 = 2, b to 1/2 * 4 = 2."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    net.get_parameter("0.weight").data.fill_(8.0)
    net.get_parameter("2.weight").data.fill_(0.5)
    found = rescale(net, torch.tensor([[1.0], [3.0]]).double())
    assert found.before["2"] / found.before["0"] == pytest.approx(256)
    assert [p.item() for p in found.network.parameters()] == pytest.approx([2.0, 2.0])


def test_within_every_layer_has_unit_variance() -> None:
    found = rescale(network(), IMAGES, within="", iterations=0)
    for output in affine_outputs(found.network):
        channels = output.movedim(1, 0).flatten(1)
        torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels)).double(), atol=1e-9, rtol=0)
        torch.testing.assert_close(channels.var(1, correction=0), torch.ones(len(channels)).double())


def test_within_layers_of_batch_norm_leaves_the_function() -> None:
    """Their scale is undone by the running statistics; the classifier alone changes the outputs, to unit variance."""
    net = network(norm=True)
    found = rescale(net, IMAGES, within="", iterations=0)
    for output in affine_outputs(found.network):
        torch.testing.assert_close(
            output.movedim(1, 0).flatten(1).var(1, correction=0), torch.ones(output.shape[1]).double()
        )
    features, expected = found.network[:-1](IMAGES), net[:-1](IMAGES)  # type: ignore[index]
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)


def test_without_a_bias_the_mean_stays() -> None:
    net = network(bias=False)
    found = rescale(net, IMAGES, within="", iterations=0)
    first = affine_outputs(net)[0], affine_outputs(found.network)[0]
    deviation = first[0].std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(first[1], first[0] / deviation)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("within", ["", "new"])
def test_the_last_layer_has_unit_variance_after_both(norm: bool, within: str) -> None:
    parts = network(norm=norm)
    net = nn.Sequential()
    net.add_module("old", parts[:-1])
    net.add_module("new", parts[-1:])
    found = rescale(net, IMAGES, within=within)
    outputs = found.network(IMAGES)
    torch.testing.assert_close(outputs.var(0, correction=0), torch.ones(5).double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(outputs.mean(0), torch.zeros(5).double(), rtol=0, atol=1e-9)
    assert spread(found.after) < EQUAL
    if within == "new" and not norm:  # what was learned is what it was, up to one factor
        old, now = net.get_submodule("old")(IMAGES), found.network.get_submodule("old")(IMAGES)
        factor = now.norm() / old.norm()
        torch.testing.assert_close(now, factor * old)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 3), st.booleans())
def test_any_scales_lead_to_the_same_network(exponents: tuple[float, float, float], bias: bool) -> None:
    """Rescaling undoes scales that cancel: of all networks with one function it takes the one with equal rates."""
    scales = tuple(10.0**exponent for exponent in exponents)
    net = network(bias=False)
    scaled = copy.deepcopy(net)
    with torch.no_grad():
        convolutions = [m for m in scaled if isinstance(m, nn.Conv2d)]
        for module, scale in zip(convolutions, scales, strict=True):
            module.weight.mul_(scale)
        scaled.get_parameter("9.weight").div_(scales[0] * scales[1] * scales[2])
    first, second = rescale(net, IMAGES, iterations=2), rescale(scaled, IMAGES, iterations=2)
    for name, rate in first.after.items():
        assert second.after[name] == pytest.approx(rate, rel=EQUAL**2 - 1)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0)


def test_it_is_a_pure_function() -> None:
    net = network(norm=True)
    before, flags = copy.deepcopy(net.state_dict()), [p.requires_grad for p in net.parameters()]
    state = torch.get_rng_state()
    first, second = (rescale(net, IMAGES, within="9") for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    for a, b in zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert first[1:] == second[1:]
    assert not any(module._forward_hooks for module in first.network.modules())


def test_frozen_layers_are_left_alone() -> None:
    net = network()
    net[0].requires_grad_(False)
    found = rescale(net, IMAGES, within="")
    assert list(found.after) == ["3", "5", "9"] and spread(found.after) < EQUAL
    assert torch.equal(found.network.get_parameter("0.weight"), net.get_parameter("0.weight"))
    assert torch.equal(found.network.get_parameter("0.bias"), net.get_parameter("0.bias"))
    assert [p.requires_grad for p in found.network.parameters()] == [False, False] + [True] * 6


def test_dead_channels_and_layers_without_influence() -> None:
    net = network()
    net.get_parameter("0.weight").data[2] = 0

    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.aside = net, nn.Conv2d(3, 4, 3).double()

        def forward(self, images: Tensor) -> Tensor:
            self.aside(images)
            return self.net(images)

    found = rescale(Aside(), IMAGES, within="")
    assert all(value.isfinite().all() for value in found.network.state_dict().values())
    assert "aside" not in found.after and spread(found.after) < EQUAL


@pytest.mark.parametrize("name", ["alexnet", "alexnet:lrn", "resnet20"])
def test_backbones(name: str) -> None:
    """With a classifier of N(0, .01): the two-stream networks with and without local response norm, and shortcuts of
    layers with batch norm. Outputs are kept; for local response norm nearly."""
    images = torch.randint(256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    backbone = backbones.build(name, image=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over batches
    backbone.train()(images)
    net = nn.Sequential(backbone, nn.Linear(backbone.dim, 4))
    nn.init.normal_(net.get_parameter("1.weight"), std=0.01)
    found = rescale(net, images, within="1")
    assert spread(found.before) > 3 and spread(found.after) < EQUAL
    assert found.change < 0.05
    variance = found.network(images).var(0, correction=0)
    torch.testing.assert_close(variance, torch.ones(4), rtol=0.1, atol=0)


def no_layer(net: nn.Sequential) -> nn.Module:
    return net.requires_grad_(False)


def silent(net: nn.Sequential) -> nn.Module:
    nn.init.zeros_(net.get_parameter("9.weight"))
    return net


def residual(net: nn.Sequential) -> nn.Module:
    return set_batch_norm(backbones.build("resnet20", image=(3, 8, 8), mean=[0.5] * 3, std=[0.25] * 3), "none").double()


@pytest.mark.parametrize(
    ("make", "message"),
    [(no_layer, "that learns"), (silent, "do not move the outputs"), (residual, r"change the outputs by \d+%")],
)
def test_what_cannot_be_rescaled(make: Callable[[nn.Sequential], nn.Module], message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        rescale(make(network()), IMAGES)

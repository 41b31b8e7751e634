"""Backbones: shapes, dtypes, stems, and what an unknown name says."""

import sys

import pytest
import torch
from torch import Tensor, nn

from methods.backbones import NAMES, Backbone, build
from methods.parts import set_batch_norm

DIMS = {
    "resnet20": 64,
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "efficientnet_b0": 1280,
    "efficientnet_b1": 1280,
    "mobilenet_v3_large": 960,
    "alexnet": 256,
    "alexnet:lrn": 256,
}


def make(name: str, channels: int = 3, side: int = 32) -> Backbone:
    torch.manual_seed(0)
    mean, std = [0.5, 0.4, 0.3, 0.2][:channels], [0.2, 0.25, 0.3, 0.35][:channels]
    return build(name, image=(channels, side, side), mean=mean, std=std)


def images(channels: int = 3, side: int = 32, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def test_every_name_is_here() -> None:
    assert set(NAMES) == DIMS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_uint8_and_float_images_give_the_same_finite_features(name: str) -> None:
    backbone = make(name).eval()
    with torch.no_grad():
        features = backbone(images())
        assert features.shape == (2, DIMS[name]) and backbone.dim == DIMS[name]
        assert features.dtype == torch.float32 and features.isfinite().all() and features.std() > 0
        assert torch.equal(features, backbone(images().float()))


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenet_v3_large"])
def test_autocast_trains_and_returns_float32(name: str) -> None:
    backbone = make(name)
    inner: list[torch.dtype] = []
    first = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: inner.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone(images(count=4))
    assert inner == [torch.bfloat16] and features.dtype == torch.float32
    features.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_a_double_backbone_computes_in_double() -> None:
    backbone = make("resnet20").eval()
    features, exact = backbone(images()), backbone.double()(images())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(features, exact.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "efficientnet_b0"])
def test_channels_last_gives_the_same_features(name: str) -> None:
    backbone = make(name).eval()
    with torch.no_grad():
        plain = backbone(images())
        backbone = backbone.to(memory_format=torch.channels_last)
        weight = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d)).weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(backbone(images()), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet18:large", "efficientnet_b0", "mobilenet_v3_large"])
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(name: str, channels: int) -> None:
    backbone = make(name, channels).eval()
    with torch.no_grad():
        assert backbone(images(channels)).shape == (2, backbone.dim)


def test_normalization_is_that_of_images_in_0_to_1() -> None:
    """A pixel of 204 is .8; (.8 - .5) / .2 = 1.5 and (.8 - .4) / .25 = 1.6."""
    backbone = Backbone(nn.Flatten(), 2, [0.5, 0.4], [0.2, 0.25])
    torch.testing.assert_close(backbone(torch.full((1, 2, 1, 1), 204, dtype=torch.uint8)), torch.tensor([[1.5, 1.6]]))


def test_resnet20_has_the_parameters_of_the_paper() -> None:
    """Table 6: .27M. Four groups of convolutions, then batch norm; the classifier's 650 are left out."""
    assert sum(p.numel() for p in make("resnet20").parameters()) == 432 + 13824 + 50688 + 202752 + 1376


def test_resnet20_halves_the_image_twice() -> None:
    network = make("resnet20").network
    assert isinstance(network, nn.Sequential)
    x, sides = torch.zeros(1, 3, 32, 32), []
    for module in network[:-2]:
        x = module(x)
        sides.append((x.shape[1], x.shape[2]))
    assert sides == [(16, 32)] * 6 + [(32, 16)] * 3 + [(64, 8)] * 3


def test_shortcut_of_resnet20_subsamples_and_pads_with_zeros() -> None:
    block = make("resnet20").network.get_submodule("6").eval()  # 16 -> 32 channels, stride 2
    nn.init.zeros_(block.get_parameter("conv2.weight"))
    x = images().float()[:, :1].repeat(1, 16, 1, 1)
    out = block(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2]) and not out[:, 16:].any()


@pytest.mark.parametrize(
    ("name", "side", "kernel", "pooled"),
    [
        ("resnet18", 32, 3, False),
        ("resnet18", 64, 3, False),
        ("resnet18", 65, 7, True),
        ("resnet50", 224, 7, True),
        ("resnet18:large", 32, 7, True),
        ("resnet34:small", 96, 3, False),
    ],
)
def test_the_stem_follows_the_image_unless_named(name: str, side: int, kernel: int, pooled: bool) -> None:
    network = make(name, side=side).network
    stem = network.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert stem.kernel_size == (kernel, kernel) and stem.stride == ((2, 2) if pooled else (1, 1))
    assert isinstance(network.get_submodule("maxpool"), nn.MaxPool2d) == pooled


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_large"])
def test_training_draws_nothing_from_the_process(name: str) -> None:
    backbone = make(name)
    state = torch.get_rng_state()
    first, second = backbone(images(count=4)), backbone(images(count=4))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())


# --------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_what_the_layers_give_on_the_way(name: str) -> None:
    """In order, with their gradients; the parameters before a layer's module are those that its map depends on."""
    backbone = make(name, side=64).eval()
    maps = backbone.maps(images(side=64))
    assert list(maps) == [*backbone.layers, "features"]
    torch.testing.assert_close(maps.pop("features"), backbone(images(side=64)))
    names = [n for n, _ in backbone.network.named_parameters()]
    reached = -1
    for layer, found in maps.items():
        assert found.dim() == 4 and found.isfinite().all()
        backbone.zero_grad()
        found.square().sum().backward(retain_graph=True)
        last = max(i for i, p in enumerate(backbone.network.parameters()) if p.grad is not None)
        assert last > reached, f"{layer} depends on {names[last]}"
        reached = last
    assert not any(module._forward_hooks for module in backbone.modules())


def test_alexnet_is_the_chapters() -> None:
    """Weights of the convolutions by hand: filters x channels of their stream x kernel; batch norm where it is."""
    weights = [96 * 3 * 121, 256 * 48 * 25, 384 * 256 * 9, 384 * 192 * 9, 256 * 192 * 9]
    norms, biases = [96, 256, 384, 384, 256], [96, 256, 384, 384, 0]
    for name, others in (("alexnet", 2 * sum(norms)), ("alexnet:lrn", sum(biases) + 2 * norms[-1])):
        network = make(name).network
        assert sum(p.numel() for p in network.parameters()) == sum(weights) + others
        responses = sum(isinstance(m, nn.LocalResponseNorm) for m in network.modules())
        assert responses == (2 if name == "alexnet:lrn" else 0)
    shapes = [tuple(found.shape[1:]) for found in make("alexnet").maps(images(side=64)).values()]
    assert shapes == [(96, 16, 16), (256, 8, 8), (384, 4, 4), (384, 4, 4), (256, 4, 4), (256,)]


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown backbone resnet81, did you mean resnet18\?.*efficientnet_b1.*timm:NAME"
    ):
        make("resnet81")
    with pytest.raises(ValueError, match=r"did you mean resnet18:small\?"):
        make("resnet18:smal")
    with pytest.raises(ValueError, match="unknown backbone resnet20:small"):
        make("resnet20:small")
    with pytest.raises(ValueError, match=r"unknown backbone zzz\. There are resnet20"):
        make("zzz")


def test_mean_and_std_are_checked() -> None:
    with pytest.raises(ValueError, match="images of 1 channels, but a mean of 3"):
        build("resnet20", image=(1, 32, 32), mean=[0.5] * 3, std=[0.2] * 3)
    with pytest.raises(ValueError, match="std above 0"):
        build("resnet20", image=(3, 32, 32), mean=[0.5] * 3, std=[0.2, 0.0, 0.2])


def test_timm_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'rayssl\[timm\]'"):
        make("timm:resnet10t")


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_timm(name: str) -> None:
    pytest.importorskip("timm")
    backbone = make(f"timm:{name}", channels=1, side=48).eval()
    with torch.no_grad():
        assert backbone(images(1, 48)).shape == (2, backbone.dim)


def test_timm_keeps_its_activations_where_norms_are_replaced() -> None:
    timm = pytest.importorskip("timm")
    backbone = make("timm:mobilenetv3_small_050").eval()
    torch.manual_seed(0)
    twin = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), twin((x - backbone.mean) / backbone.std))

    def nonlinear() -> int:
        return sum(isinstance(m, nn.ReLU | nn.Hardswish) for m in backbone.modules())

    before = nonlinear()
    set_batch_norm(backbone, "none")
    assert nonlinear() == before > 20


def test_timm_has_no_such_model() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"timm has no model resnet10x; near: .*timm:resnet10t"):
        make("timm:resnet10x")
    with pytest.raises(ValueError, match="timm has no model hf-hub:a/b"):  # would ask the network
        make("timm:hf-hub:a/b")

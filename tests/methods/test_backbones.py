"""Backbones: shapes, dtypes, stems, clips, and what an unknown name says."""

import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from methods.backbones import CLIPS, NAMES, Backbone, build, channels_last
from methods.parts import set_batch_norm
from methods.rescaling import EQUAL, rescale

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
    "cifarnet": 192,
    "inception": 336,
    "preact_resnet18": 512,
}
IMAGES = tuple(DIMS)
DIMS |= {"c3d": 2048, "c3d:small": 512, "resnet3d18": 512, "r2plus1d18": 512}


def make(name: str, channels: int = 3, side: int = 32) -> Backbone:
    torch.manual_seed(0)
    mean, std = [0.5, 0.4, 0.3, 0.2][:channels], [0.2, 0.25, 0.3, 0.35][:channels]
    return build(name, image=(channels, side, side), mean=mean, std=std)


def images(channels: int = 3, side: int = 32, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def test_every_name_is_here() -> None:
    assert set(NAMES) == DIMS.keys() and set(CLIPS) == DIMS.keys() - set(IMAGES)


@pytest.mark.parametrize("name", IMAGES)
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


@pytest.mark.parametrize("name", IMAGES)
def test_maps_are_what_the_layers_give_on_the_way(name: str) -> None:
    """In order, with their gradients; the parameters before a layer's module are those that its map depends on."""
    backbone = make(name, side=64).eval()
    maps = backbone.maps(images(side=64))
    assert list(maps) == [*backbone.layers, "features"]
    torch.testing.assert_close(maps.pop("features"), backbone(images(side=64)))
    names = [n for n, _ in backbone.network.named_parameters()]
    reached = -1
    for layer, found in maps.items():
        assert found.dim() == (2 if layer.startswith("fc") else 4) and found.isfinite().all()
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


# --------------------------------------------------------------------------------------------- clips


def make_clips(name: str, frames: int = 16, side: int = 32, channels: int = 3) -> Backbone:
    torch.manual_seed(0)
    mean, std = [0.5, 0.4, 0.3, 0.2][:channels], [0.2, 0.25, 0.3, 0.35][:channels]
    return build(name, image=(frames, channels, side, side), mean=mean, std=std)


def clips(frames: int = 16, side: int = 32, channels: int = 3, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, frames, channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", CLIPS)
def test_clips_of_uint8_and_float_give_the_same_features_each_time(name: str) -> None:
    backbone = make_clips(name).eval()
    with torch.no_grad():
        features = backbone(clips())
        assert features.shape == (2, DIMS[name]) and backbone.dim == DIMS[name]
        assert features.dtype == torch.float32 and features.isfinite().all() and features.std() > 0
        assert torch.equal(features, backbone(clips().float()))
        torch.testing.assert_close(backbone(clips()[1:]), features[1:])


@pytest.mark.parametrize("name", CLIPS[1:])
@pytest.mark.parametrize(("frames", "side", "channels"), [(16, 48, 3), (8, 32, 1), (5, 37, 4), (1, 8, 3)])
def test_clips_of_other_sizes(name: str, frames: int, side: int, channels: int) -> None:
    backbone = make_clips(name, frames, side, channels).eval()
    with torch.no_grad():
        assert backbone(clips(frames, side, channels)).shape == (2, DIMS[name])


def test_clips_of_the_thesis_size() -> None:
    """16 frames of 112 x 112: sides 112, 56, 28, 14, 7 and, behind the last pooling, 4; time 16, 16, 8, 4, 2 and 1.
    3D-ResNet-18 pools behind its stem, and halves time twice."""
    expected = {
        "c3d:small": [(16, 112), (16, 56), (8, 28), (4, 14), (2, 7), (1, 4)],
        "resnet3d18": [(16, 56), (16, 28), (16, 14), (8, 7), (4, 4)],
    }
    for name, wanted in expected.items():
        with torch.no_grad():
            maps = make_clips(name, side=112).eval().maps(clips(side=112, count=1))
        assert [(m.shape[2], m.shape[4]) for m in maps.values() if m.dim() == 5] == wanted
        assert all(m.shape[3] == m.shape[4] for m in maps.values() if m.dim() == 5)


@pytest.mark.parametrize("name", CLIPS)
def test_maps_of_clips_in_order_with_gradients(name: str) -> None:
    backbone = make_clips(name, 8, 16).eval()
    maps = backbone.maps(clips(8, 16))
    whole = ["conv1", "conv2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7"]
    assert list(backbone.layers) == (whole if "c3d" in name else ["stem", "stage1", "stage2", "stage3", "stage4"])
    assert list(maps) == [*backbone.layers, "features"]
    assert [m.dim() for m in maps.values()] == ([5] * 6 + [2] * 3 if "c3d" in name else [5] * 5 + [2])
    widths = [64, 128, 256, 256, 256, 256, 2048, 2048] if name == "c3d" else [64, 64, 128, 256, 512]
    if name != "c3d:small":
        assert [m.shape[1] for m in maps.values()] == [*widths, DIMS[name]]
    features = maps.pop("features")
    assert torch.equal(features, maps["fc7"] if "c3d" in name else maps["stage4"].mean((2, 3, 4)))
    parameters, reached = list(backbone.parameters()), -1
    for layer, found in maps.items():
        gradients = torch.autograd.grad(found.square().sum(), parameters, retain_graph=True, allow_unused=True)
        last = max(i for i, gradient in enumerate(gradients) if gradient is not None)
        assert last > reached or (layer == "pool5" and last == reached)
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients[: last + 1])
        reached = last
    assert reached == len(parameters) - 1


def test_clips_are_normalized_a_channel_at_a_time() -> None:
    """204 is .8; (.8 - .5) / .2 = 1.5 and (.8 - .4) / .25 = 1.6, in every frame; and by a naive twin."""
    plain = Backbone(nn.Identity(), 2, [0.5, 0.4], [0.2, 0.25])
    found = plain(torch.full((1, 3, 2, 1, 1), 204, dtype=torch.uint8))
    torch.testing.assert_close(found.flatten(), torch.tensor([1.5, 1.6] * 3))
    backbone, seen = make_clips("c3d:small").eval(), list[Tensor]()
    hook = backbone.network.get_submodule("conv1").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(clips())
    hook.remove()
    for b, t, c in ((0, 0, 0), (1, 7, 1), (0, 15, 2)):  # the network takes the channels before time
        value = (clips()[b, t, c].double() / 255 - [0.5, 0.4, 0.3][c]) / [0.2, 0.25, 0.3][c]
        torch.testing.assert_close(seen[0][b, c, t].double(), value, rtol=1e-5, atol=1e-5)


def test_c3d_has_the_parameters_of_the_thesis() -> None:
    """By hand, of 16 frames of 112 x 112 px: convolutions of 27 weights a pair of channels without bias, two values a
    channel of batch norm; conv5 leaves 1 x 4 x 4 cells of 256 channels, fc6 and fc7 have no bias either.

    The convolutions: 5,184 + 221,184 + 884,736 + 1,769,472 + 1,769,472 = 4,650,048; fc6
    4,096 * 2,048 = 8,388,608; fc7 2,048^2 = 4,194,304; batch norm 2 * (64 + 128 + 3 * 256 + 2 * 2,048) = 10,112.
    """
    convs = [27 * a * b for a, b in ((3, 64), (64, 128), (128, 256), (256, 256), (256, 256))]
    assert sum(convs) == 4_650_048
    network = make_clips("c3d", side=112).network
    assert sum(p.numel() for p in network.parameters()) == 4_650_048 + 8_388_608 + 4_194_304 + 10_112
    small = make_clips("c3d:small", side=48).network
    cells = 2 * 2 * 64
    convs = [27 * a * b for a, b in ((3, 16), (16, 32), (32, 64), (64, 64), (64, 64))]
    norms = 2 * (16 + 32 + 3 * 64 + 2 * 512)
    assert sum(p.numel() for p in small.parameters()) == sum(convs) + cells * 512 + 512 * 512 + norms


@pytest.mark.parametrize("name", ["c3d", "c3d:small"])
def test_every_layer_of_c3d_has_batch_norm_and_relu(name: str) -> None:
    network = make_clips(name).network
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"):
        first, norm, last = network.get_submodule(layer).children()
        assert isinstance(first, nn.Linear if layer.startswith("fc") else nn.Conv3d) and first.bias is None
        assert isinstance(norm, nn.BatchNorm1d if layer.startswith("fc") else nn.BatchNorm3d)
        assert (norm.momentum, norm.eps, norm.affine) == (0.025, 1e-3, True) and isinstance(last, nn.ReLU)
    assert not any(isinstance(m, nn.Dropout) for m in network.modules())


def test_c3d_is_a_naive_twin_in_float64() -> None:
    """Of 7 frames of 37 px: sides 19, 10, 5, 3 and 2, time 7, 4, 2 and 1, each half rounded up."""
    backbone = make_clips("c3d:small", 7, 37).double().train()
    x = ((clips(7, 37) - backbone.mean) / backbone.std).transpose(1, 2)
    state = backbone.network.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        axes = [0, *range(2, x.dim())]
        scaled = (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + 1e-3).sqrt()
        shape = [1, -1] + [1] * (x.dim() - 2)
        return (scaled * state[f"{name}.1.weight"].view(shape) + state[f"{name}.1.bias"].view(shape)).clamp(min=0)

    for n in range(1, 6):
        x = norm(F.conv3d(x, state[f"conv{n}.0.weight"], padding=1), f"conv{n}")
        odd = [side % 2 for side in x.shape[2:]]
        x = F.pad(x, (0, odd[2], 0, odd[1], 0, odd[0] if n > 1 else 0), value=-torch.inf)
        x = x.unfold(3, 2, 2).unfold(4, 2, 2).amax((-1, -2))
        x = x.unfold(2, 2, 2).amax(-1) if n > 1 else x
    assert x.shape[2:] == (1, 2, 2)
    for name in ("fc6", "fc7"):
        x = norm(x.flatten(1) @ state[f"{name}.0.weight"].T, name)
    torch.testing.assert_close(backbone(clips(7, 37)), x)


def test_r2plus1d18_is_torchvisions() -> None:
    torch.manual_seed(0)
    twin = models.video.r2plus1d_18(weights=None).eval()
    twin.fc = nn.Identity()
    backbone = make_clips("r2plus1d18", 8, 32).eval()
    own = {f"stage{n}": f"layer{n}" for n in range(1, 5)}
    state = twin.state_dict()
    backbone.network.load_state_dict(
        {
            name: state[name.replace(part := name.split(".")[0], own.get(part, part))]
            for name in backbone.network.state_dict()
        }
    )
    assert len(state) == len(backbone.network.state_dict())
    x = (clips(8) - backbone.mean) / backbone.std
    with torch.no_grad():
        torch.testing.assert_close(backbone(clips(8)), twin(x.transpose(1, 2)), rtol=1e-4, atol=1e-4)


def test_resnet3d18_sees_time_from_its_third_stage_on() -> None:
    """Before, each frame is on its own: with the frames in another order the maps are in that order. Convolutions of
    3 x 3 x 3 are those of the last two stages, 4 each; three projections where the shape changes."""
    backbone, order = make_clips("resnet3d18", 8).eval(), torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    with torch.no_grad():
        maps, moved = backbone.maps(clips(8)), backbone.maps(clips(8)[:, order])
    for name in ("stem", "stage1", "stage2"):
        torch.testing.assert_close(maps[name][:, :, order], moved[name])
    assert not torch.allclose(maps["stage3"].mean(2), moved["stage3"].mean(2), atol=1e-3)
    kernels = [
        (name.split(".")[0], m.kernel_size) for name, m in backbone.network.named_modules() if isinstance(m, nn.Conv3d)
    ]
    assert [name for name, kernel in kernels if kernel == (3, 3, 3)] == ["stage3"] * 4 + ["stage4"] * 4
    assert [name for name, kernel in kernels if kernel == (1, 3, 3)] == ["stage1"] * 4 + ["stage2"] * 4
    assert [name for name, kernel in kernels if kernel == (1, 1, 1)] == ["stage2", "stage3", "stage4"]


@pytest.mark.parametrize("name", ["c3d:small", "resnet3d18"])
def test_autocast_trains_on_clips(name: str) -> None:
    backbone = make_clips(name, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone(clips(8, count=4))
    assert features.dtype == torch.float32
    features.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_channels_last_of_four_and_five_dimensions() -> None:
    """torch's own `to` refuses weights of 5 dimensions. Values, names, buffers and other parameters stay."""
    both = nn.ModuleDict({"images": make("resnet20"), "clips": make_clips("c3d:small")}).eval()
    before = {name: value.clone() for name, value in both.state_dict().items()}
    with torch.no_grad():
        plain = both["images"](images()), both["clips"](clips())
        with pytest.raises(RuntimeError, match="rank 4"):
            both["clips"].to(memory_format=torch.channels_last)
        assert channels_last(both) is both
        after = both["images"](images()), both["clips"](clips())
    torch.testing.assert_close(after, plain, rtol=1e-4, atol=1e-5)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    assert {p.dim() for p in both.parameters()} == {1, 2, 4, 5}
    for parameter in both.parameters():
        assert parameter.is_contiguous(memory_format=formats.get(parameter.dim(), torch.contiguous_format))
        assert parameter.requires_grad and parameter.is_leaf
    assert all(torch.equal(before[name], value) for name, value in both.state_dict().items())


def test_c3d_is_traced() -> None:
    backbone = make_clips("c3d:small", 8).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(backbone, clips(8))
        assert torch.equal(traced(clips(8, count=3)), backbone(clips(8, count=3)))


def test_convolutions_over_time_are_rescaled_too() -> None:
    """With a classifier of N(0, .01): all seven layers and it learn at one rate, and the outputs stay."""
    backbone = make_clips("c3d:small", 8)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d):
            module.momentum = None  # the mean over batches
    x = clips(8, count=12)
    backbone.train()(x)
    network = nn.Sequential(backbone, nn.Linear(backbone.dim, 4))
    nn.init.normal_(network.get_parameter("1.weight"), std=0.01)
    found = rescale(network, x, within="1")
    assert len(found.after) == 8 and max(found.after.values()) < EQUAL * min(found.after.values())
    assert found.change < 0.05


def test_clips_and_images_are_told_apart() -> None:
    with pytest.raises(
        ValueError, match=r"resnet18 takes images .*\(16, 3, 48, 48\): choose c3d, c3d:small, resnet3d18"
    ):
        build("resnet18", image=(16, 3, 48, 48), mean=[0.5] * 3, std=[0.25] * 3)
    with pytest.raises(ValueError, match=r"timm:resnet10t takes images"):
        build("timm:resnet10t", image=(16, 3, 48, 48), mean=[0.5] * 3, std=[0.25] * 3)
    for name in CLIPS:
        with pytest.raises(ValueError, match=rf"{name} takes clips .*\(3, 48, 48\): choose resnet18"):
            build(name, image=(3, 48, 48), mean=[0.5] * 3, std=[0.25] * 3)
    with pytest.raises(ValueError, match="images of 1 channels, but a mean of 3"):
        build("c3d", image=(16, 1, 48, 48), mean=[0.5] * 3, std=[0.25] * 3)
    with pytest.raises(ValueError, match=r"did you mean c3d:small\?"):
        build("c3d:smal", image=(16, 3, 48, 48), mean=[0.5] * 3, std=[0.25] * 3)
    for name in ("c3d:small", "resnet3d18"):
        with pytest.raises(ValueError, match=r"takes clips \(B, T, C, H, W\), got the shape \(2, 3, 32, 32\)"):
            make_clips(name)(images())
    with pytest.raises(ValueError, match=r"clips of 16 frames of 32 x 32 .* got 8 frames of 48 x 48"):
        make_clips("c3d:small")(clips(8, 48))


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

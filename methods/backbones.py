"""Backbones: uint8 images in, pooled features out.

`resnet20` is the residual net for CIFAR of He et al. 2016 (arXiv 1512.03385, section 4.2). The others are torchvision's
and timm's, without their classifiers and with their own initialization (no zero-initialized residuals, which
MoCo, ReSSL and SCE do not use). Weights are never downloaded.

Stem of resnet18, 34 and 50: ReSSL (journal version, section 4) replaces "the first 7x7 Conv of stride 2 with 3x3 Conv
of stride 1" and removes the first max-pooling "for a small dataset"; SCE's CIFAR code does the same. That this
holds for the medium datasets at 64 px too (STL-10, Tiny ImageNet) is our reading. `:small` and `:large` decide it.

Deviation: dropout and stochastic depth of the EfficientNets and of MobileNetV3 are off, since no method draws from the
process's generator. Of timm's models, batch norms with an activation inside become a norm and an activation, so their
keys in `state_dict` gain a `.0`.

`alexnet` is the two-stream AlexNet of S. Jenni's thesis on self-supervised learning, section 4.4: no local response
normalization, batch norm after every convolution, SAME padding and no last pooling, for images below 224 px.
`alexnet:lrn` is that of its section 3.3.4: the original layers (Krizhevsky et al., 2012) with local response
normalization, batch norm after conv5 alone. Both batch norms have the released code's decay (.975, here momentum
.025) and epsilon (1e-3). `own`: the method brings its own network (dfgan's discriminator, autoencoder's encoder).

Shapes: B images, C channels, H x W pixels.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

RESNETS = {"resnet18": models.resnet18, "resnet34": models.resnet34, "resnet50": models.resnet50}
EFFICIENTNETS = {"efficientnet_b0": models.efficientnet_b0, "efficientnet_b1": models.efficientnet_b1}
NAMES = ("resnet20", *RESNETS, *EFFICIENTNETS, "mobilenet_v3_large", "alexnet", "alexnet:lrn")
"""What `build` makes, beside `timm:NAME` and the ResNets' `:small` and `:large`."""
OWN = "own"
"""Stands for a backbone where the method has its own network."""
SMALL = 64
"""Pixels: images up to this size get the small stem."""


class Backbone(nn.Module):
    """Normalizes images and maps them to features; whole in itself, so that an export needs nothing else.

    Args:
        network: normalized float (B, C, H, W) -> (B, dim).
        dim: width of the features.
        mean, std: of each channel, of images scaled to [0, 1].
        layers: what `maps` and `layerwise` name, from the first to the last -> the module in `network` whose output
            (B, c, h, w) it is. Parameters are registered in the order of the layers.

    Raises:
        ValueError: `mean` and `std` of different lengths, or a `std` that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        dim: int,
        mean: Sequence[float],
        std: Sequence[float],
        layers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.layers = dict(layers or {})
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(f"mean and std: one value a channel, std above 0; got {tuple(mean)} and {tuple(std)}")
        self.network = network
        self.dim = dim
        self.register_buffer("mean", 255.0 * torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W), or float in the same range 0 to 255 -> (B, dim).

        The features have the dtype of the buffers, which is float32 under autocast too.
        """
        return self.network((images - self.mean) / self.std).to(self.mean.dtype)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Images as of `forward` -> the output (B, c, h, w) of each of `layers`, with its gradient; and the features
        as `features` (B, dim)."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, inputs, output: found.__setitem__(name, output)

        hooks = [self.network.get_submodule(path).register_forward_hook(keep(n)) for n, path in self.layers.items()]
        try:
            features = self(images)
        finally:
            for hook in hooks:
                hook.remove()
        return {**found, "features": features}


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters: subsampled, new channels zero (option A)."""

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.growth = stride, width - fan_in
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        if self.growth:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.growth))
        return F.relu(out + x, inplace=True)


def resnet20(channels: int = 3) -> nn.Sequential:
    """float (B, C, H, W) -> (B, 64): three stages of three blocks, 16, 32 and 64 wide (He et al. 2016, 4.2)."""
    stem = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [_Block(a, b, stride=1 if a == b else 2) for a, b in pairwise(widths)]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def alexnet(channels: int = 3, *, lrn: bool = False) -> nn.Sequential:
    """Normalized float (B, channels, H, W) -> (B, 256), the mean of conv5; H and W above 16 pixels.

    Convolutions start at He's normal values with the fan of their output; the chapters do not say. torch divides the
    response norm's alpha, 1e-4 in the paper, by its size 5.
    """

    def conv(
        fan_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1, norm: bool = not lrn
    ) -> nn.Sequential:
        layer = nn.Conv2d(fan_in, width, kernel, stride, kernel // 2, groups=groups, bias=not norm)
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        norms = [nn.BatchNorm2d(width, eps=1e-3, momentum=0.025)] if norm else []
        return nn.Sequential(layer, *norms, nn.ReLU())

    def pool() -> nn.Sequential:
        response = [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)] if lrn else []
        return nn.Sequential(*response, nn.MaxPool2d(3, 2, 1))

    return nn.Sequential(
        OrderedDict(
            conv1=conv(channels, 96, 11, 4),
            pool1=pool(),
            conv2=conv(96, 256, 5, groups=2),
            pool2=pool(),
            conv3=conv(256, 384, 3),
            conv4=conv(384, 384, 3, groups=2),
            conv5=conv(384, 256, 3, groups=2, norm=True),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )


def _replace_first_conv(
    network: nn.Module, channels: int, kernel: int | None = None, stride: int | None = None
) -> None:
    """For other `channels`, or another geometry; drawn as torchvision draws its convolutions."""
    name, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    side, step = kernel or old.kernel_size[0], stride or old.stride[0]
    new = nn.Conv2d(channels, old.out_channels, side, step, side // 2, bias=False)  # no network here has a bias there
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, new)


def _timm(name: str, image: tuple[int, int, int]) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"backbone timm:{name} needs timm: pip install 'rayssl[timm]'") from error
    if not timm.is_model(name):
        near = ", ".join(f"timm:{n}" for n in get_close_matches(name, timm.list_models()))
        raise ValueError(f"timm has no model {name}" + (f"; near: {near}" if near else ""))
    settings = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": 0, "in_chans": image[0]}
    if settings is not None and settings.fixed_input_size:  # transformers
        options["img_size"] = image[1:]
    network: Any = timm.create_model(name, pretrained=False, **options)
    for parent in list(network.modules()):  # an activation inside a norm would be lost where the norm is replaced
        for child, norm in list(parent.named_children()):
            if isinstance(norm, timm.layers.BatchNormAct2d):
                plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
                plain.load_state_dict(norm.state_dict())
                setattr(parent, child, nn.Sequential(plain, norm.drop, norm.act))
    return network, getattr(network, "head_hidden_size", network.num_features)


def build(name: str, *, image: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]) -> Backbone:
    """A backbone with random weights, which takes them from torch's generator.

    Args:
        name: one of `NAMES`; a ResNet of torchvision with `:small` or `:large` for its stem, which is else small
            up to 64 px; or `timm:NAME`, any model of timm.
        image: (C, H, W) of the images. H and W choose the stem, and the patches of timm's transformers.
        mean, std: of each channel, of images scaled to [0, 1].

    Raises:
        ValueError: an unknown name (the message has the nearest), timm not installed, or `mean` not of C channels.
    """
    channels = image[0]
    layers: Mapping[str, str] = {}
    if len(mean) != channels:
        raise ValueError(f"images of {channels} channels, but a mean of {len(mean)}: {tuple(mean)}")
    kind, _, variant = name.partition(":")
    if kind == "timm":
        network, dim = _timm(variant, image)
    elif kind in RESNETS and variant in ("", "small", "large"):
        network = RESNETS[kind](weights=None)
        dim, network.fc = network.fc.in_features, nn.Identity()
        layers = {"stem": "relu", **{f"stage{n}": f"layer{n}" for n in range(1, 5)}}
        if variant == "small" or (not variant and max(image[1:]) <= SMALL):
            _replace_first_conv(network, channels, kernel=3, stride=1)
            network.maxpool = nn.Identity()
        elif channels != 3:
            _replace_first_conv(network, channels)
    elif name == "resnet20":
        network, dim = resnet20(channels), 64
        layers = {"stem": "2", "stage1": "5", "stage2": "8", "stage3": "11"}
    elif name in ("alexnet", "alexnet:lrn"):
        network, dim = alexnet(channels, lrn=variant == "lrn"), 256
        layers = {f"conv{n}": f"conv{n}" for n in range(1, 6)}
    elif name in EFFICIENTNETS or name == "mobilenet_v3_large":
        if name in EFFICIENTNETS:
            network = EFFICIENTNETS[name](weights=None, dropout=0.0, stochastic_depth_prob=0.0)
        else:
            network = models.mobilenet_v3_large(weights=None, dropout=0.0)
        dim = next(m.in_features for m in network.classifier if isinstance(m, nn.Linear))
        network.classifier = nn.Identity()
        layers = {f"stage{n}": f"features.{n}" for n in range(len(network.features))}
        if channels != 3:
            _replace_first_conv(network, channels)
    else:
        known = [*NAMES, *(f"{r}:{stem}" for r in RESNETS for stem in ("small", "large"))]
        near = get_close_matches(name, known, n=1)
        hint = f", did you mean {near[0]}?" if near else "."
        raise ValueError(f"unknown backbone {name}{hint} There are {', '.join(known)} and timm:NAME")
    return Backbone(network, dim, mean, std, layers)

"""Backbones: uint8 images or clips in, pooled features out.

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

For small images, of chapter 8 of that thesis (section 8.4), which refers to Zhang et al., "Understanding deep learning
requires rethinking generalization" (ICLR 2017, arXiv 1611.03530, appendix A), who crop CIFAR-10 to 28 x 28:
- `cifarnet`, their "small Alexnet": twice a convolution of 5 x 5, a max-pooling of 3 x 3 and local response
  normalization, then fully connected layers of 384 and 192, whose last output are the features. The text has neither
  the convolutions' width nor the padding: with 64 and SAME, as TensorFlow's tutorial on CIFAR-10 has them, it has the
  1,387,786 parameters of their Table 1. Of the tutorial are also the strides of 2 and the response norm's values (4
  neighbours a side, bias 1, alpha .001 / 9, beta .75). It takes images of the one size that it was made for.
- `inception`, their small Inception (Figure 3): modules of a 1 x 1 beside a 3 x 3 convolution, downsampling by a
  convolution beside a max-pooling, the mean of the last map. With each convolution's shift, and no scale in batch norm
  (as TF-Slim's default), it has the 1,649,402 parameters of Table 1, with and without batch norm (decay .975, here
  momentum .025, epsilon 1e-3, as the thesis's released code, sjenni/DeepBilevel). Deviation from that code: its first
  convolution has no padding, for crops of 29. The dropout before its last layer is the method's (`bilevel`).
- `preact_resnet18`, of mixup's CIFAR experiments (Zhang et al., ICLR 2018, arXiv 1710.09412, section 3.2), with which
  Table 8.3 compares: blocks of He et al. 2016 (arXiv 1603.05027), 64, 128, 256 and 512 wide, a stem of 3 x 3, torch's
  initial weights. As in mixup's code a projecting shortcut takes the block's activated input, and no batch norm
  follows the last block, where He et al. have one.
In all of them torch pads a stride of 2 on both sides, TensorFlow's SAME on the far one. cifarnet and inception start
at He's normal values with the fan of their input, as the released code's convolutions; biases start at 0.

For clips, of chapter 5 of that thesis (section 5.2.3), where its released code (sjenni/temporal-ssl) fills in:
- `c3d`, "the smaller variant of the C3D architecture": five convolutions of 3 x 3 x 3, 64, 128, 256, 256 and 256 wide,
  a pooling behind each, of space alone behind the first; two fully connected layers of 2048, whose last output are the
  features, as transfer drops the last layer alone. Batch norm (decay .975, here momentum .025; epsilon 1e-3) and ReLU
  follow each of the seven; no dropout, and the initial weights are Glorot's uniform ones (all as the code). Poolings
  keep what an odd side leaves over (its SAME padding): fc6 sees 1 x 4 x 4 cells of 16 frames of 112 px, 1 x 2 x 2 of
  48 px, and no clip is so small that nothing is left. Its layers have pool5 too, the default
  features in the code, where section 5.3 says conv5. `c3d:small` is ours, for experiments on CPUs: each width a
  quarter, 16, 32, 64, 64 and 64, fc6 and fc7 512.
- `resnet3d18`, the 3D-ResNet-18: a stem of 7 x 7 without time and a pooling, two stages of blocks without time, two
  with; time is halved in stages 3 and 4. Made of torchvision's blocks. Deviations: the code projects every shortcut,
  by a slip (its test reads the axis of time), here those do that change the shape; its batch norm's decay is .997, here
  torchvision's, .9; torch pads the stem's pooling on both sides, SAME on one.
- `r2plus1d18` is torchvision's R(2+1)D-18 (Tran et al., 2018). Deviations: the code's convolutions over time keep
  the width of what they get and start at the identity, have no batch norm before them, and a last batch norm follows
  the pooling; torchvision's are wider, so that a pair has the parameters of one 3D convolution, and have one.

Shapes: B images or clips, T frames, C channels, H x W pixels.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.video import resnet as video

RESNETS = {"resnet18": models.resnet18, "resnet34": models.resnet34, "resnet50": models.resnet50}
EFFICIENTNETS = {"efficientnet_b0": models.efficientnet_b0, "efficientnet_b1": models.efficientnet_b1}
CLIPS = ("c3d", "c3d:small", "resnet3d18", "r2plus1d18")
"""Those that take clips."""
SMALL_IMAGES = ("cifarnet", "inception", "preact_resnet18")
"""Chapter 8's."""
NAMES = ("resnet20", *RESNETS, *EFFICIENTNETS, "mobilenet_v3_large", "alexnet", "alexnet:lrn", *SMALL_IMAGES, *CLIPS)
"""What `build` makes, beside `timm:NAME` and the ResNets' `:small` and `:large`."""
OWN = "own"
"""Stands for a backbone where the method has its own network."""
SMALL = 64
"""Pixels: images up to this size get the small stem."""


class Backbone(nn.Module):
    """Normalizes images or clips and maps them to features; whole in itself, so that an export needs nothing else.

    Args:
        network: normalized float (B, C, H, W), or of clips (B, T, C, H, W) -> (B, dim).
        dim: width of the features.
        mean, std: of each channel, of images scaled to [0, 1].
        layers: what `maps` and `layerwise` name, from the first to the last -> the module in `network` whose output
            it is: (B, c, h, w), of clips (B, c, t, h, w), of a fully connected layer (B, c). Parameters are registered
            in the order of the layers.

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
        """uint8 (B, C, H, W), of clips (B, T, C, H, W), or float in the same range 0 to 255 -> (B, dim).

        The features have the dtype of the buffers, which is float32 under autocast too.
        """
        return self.network((images - self.mean) / self.std).to(self.mean.dtype)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Images or clips as of `forward` -> the output of each of `layers`, with its gradient; and the features as
        `features` (B, dim)."""
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


M = TypeVar("M", bound=nn.Module)


def channels_last(module: M) -> M:
    """Lays out parameters of 4 dimensions as channels_last and those of 5 as channels_last_3d; returns the module."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.to(memory_format=formats[parameter.dim()])
    return module


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


class _Sized(nn.Module):
    """Images of one size alone, (B, C, H, W), as the fully connected layers behind need it.

    Raises:
        ValueError: images of another size.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != self.size:
            (h, w), (height, width) = self.size, images.shape[2:]
            raise ValueError(
                f"cifarnet was made for images of {h} x {w} pixels, as its fc1 needs, and got {height} x {width}: "
                "give images of that size"
            )
        return images


def cifarnet(image: tuple[int, ...]) -> nn.Sequential:
    """Normalized float (B, C, H, W) -> (B, 192), the output of fc2.

    Args:
        image: (C, H, W).
    """

    def layer(module: nn.Conv2d | nn.Linear) -> nn.Sequential:
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        return nn.Sequential(module, nn.ReLU())

    def pool() -> nn.Sequential:  # torch divides alpha by the number of neighbours, 9
        return nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.LocalResponseNorm(9, alpha=1e-3, beta=0.75, k=1.0))

    channels, height, width = image
    return nn.Sequential(
        OrderedDict(
            size=_Sized(height, width),
            conv1=layer(nn.Conv2d(channels, 64, 5, padding=2)),
            pool1=pool(),
            conv2=layer(nn.Conv2d(64, 64, 5, padding=2)),
            pool2=pool(),
            flatten=nn.Flatten(),
            fc1=layer(nn.Linear(-(-height // 4) * -(-width // 4) * 64, 384)),
            fc2=layer(nn.Linear(384, 192)),
        )
    )


class _Shift(nn.Module):
    """Adds a learned value a channel, from 0: (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias[:, None, None]


def _normed_conv(fan_in: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(fan_in, width, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    norm = nn.BatchNorm2d(width, eps=1e-3, momentum=0.025, affine=False)
    return nn.Sequential(conv, norm, _Shift(width), nn.ReLU())


class _Beside(nn.Module):
    """Modules on the same input, their outputs one behind the other along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception(channels: int = 3) -> nn.Sequential:
    """Normalized float (B, channels, H, W) -> (B, 336)."""
    stages: list[list[int | tuple[int, int]]] = [
        [(32, 32), (32, 48), 80],
        [(112, 48), (96, 64), (80, 80), (48, 96), 96],
        [(176, 160), (176, 160)],
    ]
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=_normed_conv(channels, 96, 3))
    width, modules = 96, 0
    for n, stage in enumerate(stages, 1):
        for step in stage:
            if isinstance(step, int):
                layers[f"downsample{n}"] = _Beside(_normed_conv(width, step, 3, 2), nn.MaxPool2d(3, 2, 1))
                width += step
            else:
                modules += 1
                layers[f"inception{modules}"] = _Beside(
                    _normed_conv(width, step[0], 1), _normed_conv(width, step[1], 3)
                )
                width = sum(step)
    return nn.Sequential(layers | OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))


class _PreActivation(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; where the shape changes, a 1x1 one as shortcut."""

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(fan_in)
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        changes = stride != 1 or fan_in != width
        self.shortcut = nn.Conv2d(fan_in, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(F.relu(self.norm2(self.conv1(active)))) + kept


def preact_resnet18(channels: int = 3) -> nn.Sequential:
    """Normalized float (B, channels, H, W) -> (B, 512)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Conv2d(channels, 64, 3, 1, 1, bias=False))
    for n, (fan_in, width) in enumerate(pairwise([64, 64, 128, 256, 512]), 1):
        blocks = [_PreActivation(fan_in, width, 1 if n == 1 else 2), _PreActivation(width, width, 1)]
        layers[f"stage{n}"] = nn.Sequential(*blocks)
    return nn.Sequential(layers | OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))


class _Clips(nn.Module):
    """(B, T, C, H, W) -> (B, C, T, H, W), of which convolutions over time see the channels last: so they are faster.

    Args:
        size: (T, H, W), where the network takes no other.

    Raises:
        ValueError: no clips, or clips of another size.
    """

    def __init__(self, size: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.size = size

    def forward(self, clips: Tensor) -> Tensor:
        if clips.dim() != 5:
            raise ValueError(f"this backbone takes clips (B, T, C, H, W), got the shape {tuple(clips.shape)}")
        x = clips.transpose(1, 2)
        if self.size and x.shape[2:] != self.size:
            (t, h, w), (frames, height, width) = self.size, x.shape[2:]
            raise ValueError(
                f"c3d was made for clips of {t} frames of {h} x {w} pixels, as its fc6 needs, and got {frames} frames "
                f"of {height} x {width}: give clips of that size"
            )
        return x.contiguous(memory_format=torch.channels_last_3d)


def c3d(clip: tuple[int, ...], widths: Sequence[int], hidden: int) -> nn.Sequential:
    """Normalized float (B, T, C, H, W) -> (B, hidden), the output of fc7.

    Args:
        clip: (T, C, H, W), each at least 1.
        widths: of conv1 to conv5.
        hidden: width of fc6 and of fc7.
    """

    def layer(module: nn.Conv3d | nn.Linear, norm: nn.Module) -> nn.Sequential:
        nn.init.xavier_uniform_(module.weight)
        return nn.Sequential(module, norm, nn.ReLU())

    def full(fan_in: int) -> nn.Sequential:
        return layer(nn.Linear(fan_in, hidden, bias=False), nn.BatchNorm1d(hidden, eps=1e-3, momentum=0.025))

    frames, channels, height, width = clip
    layers: OrderedDict[str, nn.Module] = OrderedDict(clips=_Clips((frames, height, width)))
    for n, (fan_in, fan_out) in enumerate(pairwise([channels, *widths]), 1):
        conv = nn.Conv3d(fan_in, fan_out, 3, padding=1, bias=False)
        layers[f"conv{n}"] = layer(conv, nn.BatchNorm3d(fan_out, eps=1e-3, momentum=0.025))
        layers[f"pool{n}"] = nn.MaxPool3d((1 if n == 1 else 2, 2, 2), ceil_mode=True)
    cells = -(-frames // 16) * -(-height // 32) * -(-width // 32)  # four poolings of time, five of space, rounded up
    return nn.Sequential(layers | OrderedDict(flatten=nn.Flatten(), fc6=full(cells * widths[-1]), fc7=full(hidden)))


def resnet3d(channels: int = 3, *, split: bool = False) -> nn.Sequential:
    """Normalized float (B, T, channels, H, W) -> (B, 512): resnet3d18, or with `split` r2plus1d18."""
    width = 45 if split else 64
    stem: list[nn.Module] = [nn.Conv3d(channels, width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)]
    if split:
        over_time = nn.Conv3d(width, 64, (3, 1, 1), padding=(1, 0, 0), bias=False)
        stem += [nn.BatchNorm3d(width), nn.ReLU(inplace=True), over_time]
    stem += [nn.BatchNorm3d(64), nn.ReLU(inplace=True)]
    flat, deep = video.Conv3DNoTemporal, video.Conv3DSimple
    convs = [video.Conv2Plus1D] * 4 if split else [flat, flat, deep, deep]
    made = video.VideoResNet(video.BasicBlock, convs, [2, 2, 2, 2], lambda: nn.Sequential(*stem))
    pool = OrderedDict() if split else OrderedDict(pool=nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
    stages = OrderedDict(stage1=made.layer1, stage2=made.layer2, stage3=made.layer3, stage4=made.layer4)
    ends = OrderedDict(mean=nn.AdaptiveAvgPool3d(1), flatten=nn.Flatten())
    return nn.Sequential(OrderedDict(clips=_Clips(), stem=made.stem) | pool | stages | ends)


def _replace_first_conv(
    network: nn.Module, channels: int, kernel: int | None = None, stride: int | None = None
) -> None:
    """For other `channels`, or another geometry; drawn as torchvision draws its convolutions."""
    name, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    side, step = kernel or old.kernel_size[0], stride or old.stride[0]
    new = nn.Conv2d(channels, old.out_channels, side, step, side // 2, bias=False)  # no network here has a bias there
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, new)


def _timm(name: str, image: tuple[int, ...]) -> tuple[nn.Module, int]:
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


def build(name: str, *, image: tuple[int, ...], mean: Sequence[float], std: Sequence[float]) -> Backbone:
    """A backbone with random weights, which takes them from torch's generator.

    Args:
        name: one of `NAMES`; a ResNet of torchvision with `:small` or `:large` for its stem, which is else small
            up to 64 px; or `timm:NAME`, any model of timm.
        image: (C, H, W) of the images; H and W choose the stem, and the patches of timm's transformers. For a name of
            `CLIPS` (T, C, H, W) of the clips, which c3d then takes in this size alone.
        mean, std: of each channel, of images scaled to [0, 1].

    Raises:
        ValueError: an unknown name (the message has the nearest), a backbone for images where there are clips or the
            other way round, timm not installed, or `mean` not of C channels.
    """
    kind, _, variant = name.partition(":")
    known = [*NAMES, *(f"{r}:{stem}" for r in RESNETS for stem in ("small", "large"))]
    if kind != "timm" and name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f", did you mean {near[0]}?" if near else "."
        raise ValueError(f"unknown backbone {name}{hint} There are {', '.join(known)} and timm:NAME")
    if len(image) != (4 if name in CLIPS else 3):
        takes, other = ("clips (T, C, H, W)", "resnet18") if name in CLIPS else ("images (C, H, W)", ", ".join(CLIPS))
        raise ValueError(f"backbone {name} takes {takes}, and the view has the shape {image}: choose {other}")
    channels = image[-3]
    layers: Mapping[str, str] = {}
    if len(mean) != channels:
        raise ValueError(f"images of {channels} channels, but a mean of {len(mean)}: {tuple(mean)}")
    if kind == "timm":
        network, dim = _timm(variant, image)
    elif kind in RESNETS:
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
    elif name == "cifarnet":
        network, dim = cifarnet(image), 192
        layers = {name: name for name in ("conv1", "conv2", "fc1", "fc2")}
    elif name == "inception":
        network, dim = inception(channels), 336
        layers = {name: name for name, _ in network.named_children() if name not in ("pool", "flatten")}
    elif name == "preact_resnet18":
        network, dim = preact_resnet18(channels), 512
        layers = {name: name for name in ("stem", *(f"stage{n}" for n in range(1, 5)))}
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
    elif kind == "c3d":
        dim, widths = (512, (16, 32, 64, 64, 64)) if variant else (2048, (64, 128, 256, 256, 256))
        network = c3d(image, widths, dim)
        layers = {name: name for name in (*(f"conv{n}" for n in range(1, 6)), "pool5", "fc6", "fc7")}
    else:
        network, dim = resnet3d(channels, split=name == "r2plus1d18"), 512
        layers = {name: name for name in ("stem", *(f"stage{n}" for n in range(1, 5)))}
    return Backbone(network, dim, mean, std, layers)

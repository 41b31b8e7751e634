"""The autoencoder of learning to spot artifacts (S. Jenni's thesis on self-supervised learning, chapter 3; Jenni and
Favaro, CVPR 2018).

The encoder is local: layers of 2x2 filters and stride 2 overlap nowhere, so that an entry of the code sees a patch of
18 x 18 pixels, which shares one pixel a side with its neighbours' (Figure 3.4). `artifacts` damages that code, and
takes what the decoder makes of the whole one as its real images.

View: `image`. The backbone is the encoder with a global average pooling behind it; the code is its last map.
Original code: sjenni/LearningToSpotArtifacts.

Not in the thesis, or lost in its extraction, but in the code: the leaky ReLU's slope .1; batch norm at every layer but
the last, with a decay of .975 (torch's momentum .025) and epsilon 1e-3; the last layer's tanh; weights that start
at normal values of variance 2 / mean of fan-in and fan-out, biases at 0.

Legend: B batch, C channels, H x W pixels, L x M x N the code, n layers of the encoder.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.parts import centred, evaluating, to_uint8

SHOWN = 8  # images in a picture


@dataclass(frozen=True)
class Config:
    """Defaults: section 3.3.4."""

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Filters of the encoder's layers: the first is 3x3 with stride 1, each further one halves the image. The decoder
    has the same widths in reverse. Fewer for small images: (32, 64, 128) makes a code of 8 x 8 from 32 pixels."""
    kernel: int = 2
    """Of the layers with stride 2: 2, or 3, whose patches of 33 x 33 pixels overlap (Table 3.1 d)."""
    slope: float = 0.1
    """Of the leaky ReLU, in [0, 1)."""
    weight: float = 1.0
    """Of the loss, which is a mean over pixels where Eq. 3.3 sums. To Adam only a scale, but beside its L2 decay; the
    code has 30."""

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"method.widths is at least two numbers of filters above 0, got {self.widths}")
        if self.kernel not in (2, 3):
            raise ValueError(f"method.kernel is 2 or 3, got {self.kernel}")
        if not 0 <= self.slope < 1:
            raise ValueError(f"method.slope lies in [0, 1), got {self.slope}")
        if self.weight <= 0:
            raise ValueError(f"method.weight is above 0, got {self.weight}")


def conv(fan_in: int, width: int, kernel: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    """A convolution of this chapter: the image's size, divided by `stride`; weights start as in the code."""
    layer = nn.Conv2d(fan_in, width, kernel, stride, padding=(kernel - 1) // 2, bias=bias)
    nn.init.xavier_normal_(layer.weight, gain=2**0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def norm(width: int) -> nn.BatchNorm2d:
    """Batch norm with the code's decay and epsilon."""
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.025)


class Autoencoder(Method):
    """Its own backbone: built with None in that place.

    Raises:
        ValueError: another view than `image`, or an image whose size the encoder can't halve n - 1 times.
    """

    owns_backbone = True

    def __init__(self, config: Config, backbone: None, facts: Facts) -> None:
        super().__init__()
        if facts.views.keys() != {"image"}:
            raise ValueError(f"autoencoder takes the view image, got {', '.join(facts.views)}")
        channels, height, width = facts.views["image"][0]
        halvings = len(config.widths) - 1
        if height % 2**halvings or width % 2**halvings:
            raise ValueError(
                f"the autoencoder halves an image {halvings} times, and {height} x {width} pixels are no multiple of "
                f"{2**halvings}: change views.image.size, or give fewer method.widths"
            )
        self.config = config
        self.code_shape = (config.widths[-1], height // 2**halvings, width // 2**halvings)
        """(L, M, N)."""
        self.backbone = encoder(config, channels)
        self.decoder = decoder(config, channels)

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        mse = reconstruction_error(self.decode(self.encode(batch["image"])), batch["image"])
        return Step(self.config.weight * mse, {"mse": mse.detach()})

    def encode(self, images: Tensor) -> Tensor:
        """phi: uint8 (B, C, H, W), or float from 0 to 255 -> (B, L, M, N)."""
        return self.backbone.maps(images)[f"conv{len(self.config.widths)}"]

    def decode(self, code: Tensor, before: Callable[[int, Tensor], Tensor] = lambda layer, x: x) -> Tensor:
        """D: (B, L, M, N) -> (B, C, H, W) in [-1, 1]. `before` is applied to the input of each of the n layers, which
        it gets with the layer's number, from 0."""
        for number, layer in enumerate(self.decoder):
            code = layer(before(number, code))
        return code

    @torch.no_grad()
    def task(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        with evaluating(self):
            return {"mse": reconstruction_error(self.decode(self.encode(batch["image"])), batch["image"])}

    @torch.no_grad()
    def pictures(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        images = batch["image"][:SHOWN]
        with evaluating(self):
            return {"original": images, "reconstruction": to_uint8(self.decode(self.encode(images)).float())}


def encoder(config: Config, channels: int) -> Backbone:
    """E_1 to E_n as `conv1` to `convn`, pooled to (B, L); images enter between -1 and 1."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (fan_in, width) in enumerate(pairwise((channels, *config.widths)), start=1):
        kernel, stride = (3, 1) if number == 1 else (config.kernel, 2)
        layers[f"conv{number}"] = nn.Sequential(
            conv(fan_in, width, kernel, stride), norm(width), nn.LeakyReLU(config.slope)
        )
    named = {name: name for name in layers}
    network = nn.Sequential(OrderedDict(**layers, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    return Backbone(network, config.widths[-1], [0.5] * channels, [0.5] * channels, named)


def decoder(config: Config, channels: int) -> nn.ModuleList:
    """D_1 to D_n: bilinear resizing to twice the size and a 3x3 convolution each; the last, a convolution and tanh."""
    layers = [
        nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv(fan_in, width, 3),
            norm(width),
            nn.LeakyReLU(config.slope),
        )
        for fan_in, width in pairwise(reversed(config.widths))
    ]
    last = nn.Sequential(conv(config.widths[0], channels, 3, bias=True), nn.Tanh())
    return nn.ModuleList([*layers, last])


def reconstruction_error(made: Tensor, images: Tensor) -> Tensor:
    """Eq. 3.3: |D(E(x)) - x|^2, the mean over pixels, channels and batch.

    Args:
        made: float (B, C, H, W) in [-1, 1].
        images: uint8 (B, C, H, W).
    """
    with torch.autocast(made.device.type, enabled=False):
        return F.mse_loss(made.float(), centred(images))


METHOD = Autoencoder

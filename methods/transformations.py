"""Learning by recognizing image transformations: rotation, warp, limited-context inpainting (LCI).

S. Jenni, thesis on self-supervised learning, chapter 4, and: Jenni, Jin, Favaro, "Steering Self-Supervised Feature
Learning Beyond Local Pixel Statistics", CVPR 2020. Released code: sjenni/LCI. The subset {rotation} is RotNet
(Gidaris, Singh, Komodakis, ICLR 2018).

A classifier C tells which transformation an image went through (Eq. 4.1). For LCI an inpainter F fills a patch whose
centre was erased, from its border alone (Eq. 4.3); a critic D sees patches and knows nothing of the image. F learns to
fool D and C and to keep patches that are whole (L_inp,AE, section 4.2.4). Turns: `critic` D, `inpainter` F, `model` C.

View: `image`. Classes: 0 untransformed, then those of the subset in the thesis' order: rotated by 90, 180 and 270
degrees, counterclockwise (T_1 to T_3), warped (T_4), inpainted (T_5). Half of the untransformed images, by a draw
for each, carry an autoencoded patch, and the rotated ones are turns of these very crops.

The thesis is the default. Where it is silent and the released code is not, the code: everything happens on the whole
view, of which C then sees a random crop (one for all copies of an image), that quarter turns are made of; F and D
(below); the whole output of F is pasted, border included; D's real patches are plain ones.
Options for what the code does otherwise: `border` 3, `noise` .1, `packing` 2, `small_rotation` 12.6, `warp_points`
random with `warp_range` 1/16. Two readings:
- |.|^2 in the border and the autoencoding term is the MEAN over elements, as in the code: with a sum, weights of 50
  would leave nothing of the adversarial terms. `reduction` sum is the printed formula.
- "Pre-trained and frozen F" (Table 4.1 d, no feedback of D and C): `inpainter_epochs` train F and D first, without C's
  term; then both stand still, F with the statistics of each batch. C's learning rate is where the schedule of all
  epochs is by then.
In neither text, so chosen: the warp's side of the grid, order and padding; the erased and the whole patch of an image
are the same one and pass through F in one batch, whose batch norm they share; what F makes is not rounded to whole grey
levels; initial weights are torch's. As in the code, C has no dropout, which the thesis does not speak of and the
original AlexNet has.

Legend: B batch, C channels, V the view's side, S the crop's, P the patch's; N copies of each image, one a class.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Literal, NamedTuple, get_args, get_origin

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.parts import centred, draw, evaluating, mlp, normal, still, to_uint8
from methods.warp import Padding, Warp, cut, paste, turned_cut

Transformation = Literal["rotation", "warp", "inpainting"]
CLASSES: Mapping[Transformation, tuple[str, ...]] = {
    "rotation": ("rotated_90", "rotated_180", "rotated_270"),
    "warp": ("warped",),
    "inpainting": ("inpainted",),
}


@dataclass(frozen=True)
class Config:
    """Defaults: the thesis' STL-10 setting, sections 4.2 and 4.4."""

    transformations: tuple[Transformation, ...] = ("rotation", "warp", "inpainting")
    """Any of them, beside the untransformed images (Table 4.2)."""
    crop: int = 64
    """S, pixels that the classifier sees: a random crop of the view, after the transformation (4.4.1)."""
    small_rotation: float = 0.0
    """Degrees: half of the images, all copies alike, are turned by up to this before the crop. Code: 12.6."""
    head: tuple[int, ...] = (4096, 4096)
    """Widths of the classifier's hidden layers (batch norm, ReLU) on the backbone's last map (4.4: AlexNet's), or on
    its features where it names no maps. Empty: one linear layer on the features (ResNets)."""
    warp_range: float = 0.1
    """d, a control point's greatest shift in x and in y, as a fraction of the view (4.2.2). Code: 1/16."""
    warp_side: int = 4
    """The control points are a grid of side x side, or as many random ones; the thesis does not say how many. Code: 16
    points."""
    warp_points: Literal["grid", "random"] = "grid"
    """Uniform grid (4.2.2), or drawn anew for each image (code)."""
    warp_order: int = 2
    """Of the polyharmonic spline: 1, 2 (thin plate) or 3."""
    warp_padding: Padding = "reflection"
    """What a warp or a small rotation finds beyond the view's edges."""
    patch: int = 48
    """P, side of the inpainted patch W in pixels (Table 4.1 a to c)."""
    border: int = 2
    """Pixels at each side of the patch that are not erased: where m = 0 (4.4: 4 on ImageNet). Code: 3."""
    noise: float = 1.0
    """Deviation of the noise z in the erased centre (Eq. 4.3: N(0, I), of patches in [-1, 1]). Code: .1."""
    inpainter_width: int = 48
    """Channels of F's first layer; twice as many at each halving, at most 512 (code)."""
    inpainter_layers: int = 4
    """Layers of F's encoder, all but the first of stride 2; its decoder mirrors them (code)."""
    critic_width: int = 64
    """Channels of D's first level; twice as many at each further (code)."""
    critic_layers: int = 3
    """Levels of D, all but the last of which halve the map (code)."""
    packing: int = 1
    """Different patches that D judges together, stacked as channels. Code: 2."""
    border_weight: float = 50.0
    """lambda_border, of |(r - e)(1 - m)|^2 (4.2.1)."""
    autoencoding_weight: float = 50.0
    """lambda_AE, of |F(e) - e|^2 (4.2.4)."""
    reduction: Literal["mean", "sum"] = "mean"
    """Of |.|^2 over the elements of a patch, where the mask leaves any (see the module)."""
    adversarial: bool = True
    """The term -L_SSL of F: it works against the classifier (Table 4.1 e is without)."""
    autoencoded_patches: bool = True
    """F's autoencoding term, and autoencoded patches in untransformed images (Table 4.1 f is without both)."""
    inpainter_epochs: int = 0
    """First epochs in which F and D alone learn, without -L_SSL; then the classifier alone does (Table 4.1 d). 0: all
    learn at all times."""

    def __post_init__(self) -> None:
        if not self.transformations or not set(self.transformations) <= set(get_args(Transformation)):
            raise ValueError(f"method.transformations are any of {', '.join(CLASSES)}, got {self.transformations}")
        if len(set(self.transformations)) < len(self.transformations):
            raise ValueError(f"method.transformations holds each once, got {self.transformations}")
        inpainting, halvings = "inpainting" in self.transformations, max(self.inpainter_layers - 1, 0)
        counts = ("crop", "inpainter_width", "inpainter_layers", "critic_width", "critic_layers", "packing")
        weights = ("noise", "border_weight", "autoencoding_weight", "inpainter_epochs")
        rules = [(field, getattr(self, field) >= 1, "at least 1") for field in counts]
        rules += [(field, getattr(self, field) >= 0, "0 or more") for field in weights]
        rules += [
            ("small_rotation", 0 <= self.small_rotation <= 45, "an angle from 0 to 45 degrees"),
            ("head", all(width >= 1 for width in self.head), "widths of at least 1"),
            ("warp_range", 0 < self.warp_range < 1, "a fraction of the view in (0, 1)"),
            ("warp_side", self.warp_side >= 2, "at least 2 control points each way"),
            ("warp_order", self.warp_order in (1, 2, 3), "1, 2 or 3"),
            ("border", 0 < 2 * self.border < self.patch, "at least 1, and below half of method.patch"),
            ("inpainter_epochs", inpainting or not self.inpainter_epochs, "0 where nothing is inpainted"),
        ]
        for each in fields(self):
            if get_origin(each.type) is Literal:
                known = get_args(each.type)
                rules.append((each.name, getattr(self, each.name) in known, f"one of {', '.join(known)}"))
        if inpainting:
            large = f"so small that it halves a patch of {self.patch} pixels {self.critic_layers - 1} times"
            rules.append(("critic_layers", 2 ** (self.critic_layers - 1) <= self.patch, large))
            larger = f"at most method.crop, {self.crop}: give a smaller patch, or a larger crop and view"
            uneven = f"a multiple of {2**halvings}, as F halves it {halvings} times: see method.inpainter_layers"
            rules += [("patch", self.patch <= self.crop, larger), ("patch", self.patch % 2**halvings == 0, uneven)]
        for field, holds, rule in rules:
            if not holds:
                raise ValueError(f"method.{field} is {rule}; got {getattr(self, field)}")


# ------------------------------------------------------------------------------------------ networks


EPSILON, MOMENTUM = 1e-3, 0.025  # of batch norm: the code's, whose decay .975 is torch's momentum .025


def normed(layer: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(layer.out_channels, EPSILON, MOMENTUM), nn.LeakyReLU(0.1)]


def inpainter(channels: int, width: int, layers: int) -> nn.Sequential:
    """F: patches in [-1, 1], (B, channels, P, P) -> the same shape and range; P a multiple of 2^(layers - 1)."""
    widths = [width, *(min(width * 2**level, 512) for level in range(1, layers))]
    network: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1), nn.LeakyReLU(0.1)]
    for fan_in, fan_out in pairwise(widths):
        network += normed(nn.Conv2d(fan_in, fan_out, 4, 2, 1, bias=False))
    for fan_in, fan_out in pairwise(widths[::-1]):
        network += normed(nn.ConvTranspose2d(fan_in, fan_out, 4, 2, 1, bias=False))
    return nn.Sequential(*network, nn.Conv2d(width, channels, 3, 1, 1), nn.Tanh())


class Critic(nn.Module):
    """D: patches in [-1, 1], (B, channels, P, P) -> (B / packing,), with spectral norm in every layer.

    `packing` neighbours in the batch are judged together (Lin et al., 2018). In float32 under autocast too, as the
    largest singular values need it.
    """

    def __init__(self, channels: int, width: int, layers: int, packing: int = 1) -> None:
        super().__init__()
        self.packing = packing
        widths = [width * 2**level for level in range(layers)]
        network: list[nn.Module] = []
        for level, (fan_in, fan_out) in enumerate(pairwise([packing * channels, *widths]), start=1):
            network += [spectral_norm(nn.Conv2d(fan_in, fan_out, 3, 1, 1)), nn.LeakyReLU(0.1)]
            if level < layers:
                network += [spectral_norm(nn.Conv2d(fan_out, fan_out, 4, 2, 1)), nn.LeakyReLU(0.1)]
        self.features = nn.Sequential(*network)
        self.linear = spectral_norm(nn.Linear(widths[-1], 1))

    def forward(self, patches: Tensor) -> Tensor:
        with torch.autocast(patches.device.type, enabled=False):
            packs = patches.float().reshape(-1, self.packing * patches.shape[1], *patches.shape[2:])
            return self.linear(self.features(packs).sum((2, 3)))[:, 0]


# -------------------------------------------------------------------------------------------- losses


def critic_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """What D minimizes of the hinge loss, from its outputs of any shape: mean (1 - real)_+ + mean (1 + fake)_+."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def inpainter_hinge(fake: Tensor) -> Tensor:
    """l_GAN, what F minimizes of the hinge loss: -mean fake."""
    return -fake.mean()


def squared_error(patches: Tensor, target: Tensor, kept: Tensor, reduction: str = "mean") -> Tensor:
    """|(patches - target) * kept|^2, mean over the batch.

    Args:
        patches, target: (B, C, P, P).
        kept: 1 where it counts, else 0, (P, P).
        reduction: `sum` over a patch's elements, or `mean` over those that count.
    """
    error = ((patches - target).square() * kept).sum((1, 2, 3)).mean()
    return error if reduction == "sum" else error / (kept.sum() * patches.shape[1])


# -------------------------------------------------------------------------------------------- method


class Patches(NamedTuple):
    """One patch of each image, in [-1, 1]."""

    corner: Tensor
    """int64 (B, 2): x and y of its upper left pixel in the view."""
    original: Tensor
    """e of Eq. 4.2, (B, C, P, P), as are the others."""
    erased: Tensor
    """e (1 - m) + z m."""
    inpainted: Tensor
    """r of Eq. 4.3."""
    autoencoded: Tensor | None
    """F(e); None without `autoencoded_patches`."""


class Transformations(Method):
    mask: Tensor

    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if facts.views.keys() != {"image"}:
            raise ValueError(f"transformations takes the view image, got {', '.join(facts.views)}")
        channels, side, _ = facts.views["image"][0]
        if side < config.crop:
            raise ValueError(
                f"method.crop {config.crop} is larger than the view of {side} pixels: give a smaller one, or a larger "
                "views.image.size"
            )
        self.config = config
        self.inpaints = "inpainting" in config.transformations
        self.classes = ("untransformed", *(name for t in CLASSES if t in config.transformations for name in CLASSES[t]))
        self.turns = ("critic", "inpainter", "model") if self.inpaints else ("model",)
        self.backbone = backbone
        self.layer = next(reversed(backbone.layers), None) if config.head else None
        width = last_map_width(backbone, self.layer, (channels, config.crop)) if self.layer else backbone.dim
        self.head = mlp([width, *config.head, len(self.classes)])
        for norm in self.head:
            if isinstance(norm, nn.BatchNorm1d):
                norm.eps, norm.momentum = EPSILON, MOMENTUM
        if self.inpaints:
            self.inpainter = inpainter(channels, config.inpainter_width, config.inpainter_layers)
            self.critic = Critic(channels, config.critic_width, config.critic_layers, config.packing)
            erased = torch.ones([config.patch - 2 * config.border] * 2)
            self.register_buffer("mask", F.pad(erased, [config.border] * 4), persistent=False)  # m
        if "warp" in config.transformations:
            self.warp = Warp(side, config.warp_side, config.warp_order, config.warp_padding)

    def turns_at(self, clock: Clock) -> tuple[str, ...]:
        first = self.config.inpainter_epochs
        if not first:
            return self.turns
        if first * clock.steps_per_epoch >= clock.total_steps:
            raise ValueError(f"method.inpainter_epochs {first} leave none to the classifier: give more --epochs")
        return ("critic", "inpainter") if clock.epoch < first else ("model",)

    def parameters_of(self, turn: str) -> list[nn.Parameter]:
        if turn == "critic":
            return list(self.critic.parameters())
        if turn == "inpainter":
            return list(self.inpainter.parameters())
        return [*self.backbone.parameters(), *self.head.parameters()]

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        images, index = batch["image"], batch["index"]
        if self.inpaints and len(images) % self.config.packing:
            raise ValueError(f"method.packing {self.config.packing} does not divide a worker's batch of {len(images)}")
        if turn == "critic":
            return self.judge(images, clock, index)
        if turn == "inpainter":
            return self.inpaint(images, clock, index)
        copies, labels = self.transformed(images, clock, index)
        logits = self.classify(copies)
        right = (logits.detach().argmax(1) == labels).float().view(len(self.classes), -1).mean(1)
        accuracies = {f"accuracy.{name}": share for name, share in zip(self.classes, right.unbind(), strict=True)}
        return Step(F.cross_entropy(logits, labels), {"accuracy": right.mean(), **accuracies})  # Eq. 4.1

    def judge(self, images: Tensor, clock: Clock, index: Tensor) -> Step:
        """D's turn: the maximization within l_GAN."""
        with torch.no_grad(), still(self.inpainter):
            patches = self.patches(images, clock, index)
        real, fake = self.critic(torch.cat([patches.original, patches.inpainted])).chunk(2)
        return Step(
            critic_hinge(real, fake), {"critic_real": real.detach().mean(), "critic_fake": fake.detach().mean()}
        )

    def inpaint(self, images: Tensor, clock: Clock, index: Tensor) -> Step:
        """F's turn: L_inp,AE."""
        c = self.config
        patches = self.patches(images, clock, index)
        with still(self.critic):
            terms = {"gan": inpainter_hinge(self.critic(patches.inpainted))}
        terms["border"] = squared_error(patches.inpainted, patches.original, 1 - self.mask, c.reduction)
        loss = terms["gan"] + c.border_weight * terms["border"]
        if patches.autoencoded is not None:
            whole = torch.ones_like(self.mask)
            terms["autoencoding"] = squared_error(patches.autoencoded, patches.original, whole, c.reduction)
            loss = loss + c.autoencoding_weight * terms["autoencoding"]
        if c.adversarial and not c.inpainter_epochs:
            copies, labels = self.copies(images, clock, index, patches)
            with still(self.backbone, self.head):
                terms["classifier"] = F.cross_entropy(self.classify(copies), labels)
            loss = loss - terms["classifier"]
        return Step(loss, {name: term.detach() for name, term in terms.items()})

    def classify(self, images: Tensor) -> Tensor:
        """Float images from 0 to 255 -> logits (B, classes) in float32."""
        if self.layer is None:
            return self.head(self.backbone(images)).float()
        return self.head(self.backbone.maps(images)[self.layer].flatten(1)).float()

    @torch.no_grad()
    def transformed(self, images: Tensor, clock: Clock, index: Tensor) -> tuple[Tensor, Tensor]:
        """Every transformation of each image, as the classifier gets them; a function of the arguments and weights.

        Args:
            images: uint8 (B, C, V, V), of the view.
            clock: its seed and step are those of the draws.
            index: int64 (B,).

        Returns:
            float32 (N * B, C, S, S) from 0 to 255, class by class, and the class of each, int64 (N * B,).
        """
        patches = None
        if self.inpaints:
            with still(self.inpainter):
                patches = self.patches(images, clock, index)
        return self.copies(images, clock, index, patches)

    def copies(self, images: Tensor, clock: Clock, index: Tensor, patches: Patches | None) -> tuple[Tensor, Tensor]:
        """`transformed`, of patches that F has made, whose gradients they pass on."""
        views = images.float()
        by_class = {"untransformed": views}
        if "warp" in self.config.transformations:
            by_class["warped"] = self.warped(views, clock, index)
        if patches is not None:
            by_class["inpainted"] = paste(views, levels(patches.inpainted), patches.corner)  # Eq. 4.4
            if patches.autoencoded is not None:
                pasted = paste(views, levels(patches.autoencoded), patches.corner)
                carries = self.carries_autoencoded(clock, index)[:, None, None, None]
                by_class["untransformed"] = torch.where(carries, pasted, views)
        crops = self.cropped(torch.stack([*by_class.values()]), clock, index)
        by_class = dict(zip(by_class, crops.unbind(), strict=True))
        for k, name in enumerate(CLASSES["rotation"] if "rotation" in self.config.transformations else (), start=1):
            by_class[name] = by_class["untransformed"].rot90(k, (2, 3))
        labels = torch.arange(len(self.classes), device=images.device).repeat_interleave(len(images))
        return torch.cat([by_class[name] for name in self.classes]), labels

    def patches(self, images: Tensor, clock: Clock, index: Tensor) -> Patches:
        """A patch at a random place of each view, erased and filled by F (section 4.2.1)."""
        c, channels = self.config, images.shape[1]
        corner = self.corner(clock, index, "patch", images.shape[3] - c.patch)
        original = centred(cut(images, corner, c.patch))
        inner = c.patch - 2 * c.border
        z = normal(clock.seed, clock.step, index, "noise", channels * inner**2).view(-1, channels, inner, inner)
        erased = original * (1 - self.mask) + F.pad(c.noise * z, [c.border] * 4)
        if not c.autoencoded_patches:
            return Patches(corner, original, erased, self.inpainter(erased).float(), None)
        inpainted, autoencoded = self.inpainter(torch.cat([erased, original])).float().chunk(2)
        return Patches(corner, original, erased, inpainted, autoencoded)

    def carries_autoencoded(self, clock: Clock, index: Tensor) -> Tensor:
        """bool (B,): whose untransformed and rotated copies carry an autoencoded patch, about half."""
        return draw(clock.seed, clock.step, index, "autoencoded", 1)[:, 0] < 0.5

    def corner(self, clock: Clock, index: Tensor, name: str, room: int) -> Tensor:
        """int64 (B, 2), x and y uniform in 0 ... room."""
        return (draw(clock.seed, clock.step, index, name, 2) * (room + 1)).long()

    def warped(self, images: Tensor, clock: Clock, index: Tensor) -> Tensor:
        """Float (B, C, V, V) -> the same, each along its own spline (section 4.2.2)."""
        c, count = self.config, self.config.warp_side**2
        shifts = c.warp_range * (2 * draw(clock.seed, clock.step, index, "shift", 2 * count) - 1)
        points = draw(clock.seed, clock.step, index, "point", 2 * count) if c.warp_points == "random" else None
        return self.warp(images, shifts.view(-1, count, 2), None if points is None else points.view(-1, count, 2))

    def cropped(self, images: Tensor, clock: Clock, index: Tensor) -> Tensor:
        """Float (n, B, C, V, V) -> (n, B, C, S, S): one place, and one small rotation, for all n copies of an image."""
        c, (n, _, _, _, side) = self.config, images.shape
        corner = self.corner(clock, index, "crop", side - c.crop).repeat(n, 1)  # (n * B, 2)
        if not c.small_rotation:
            return cut(images.flatten(0, 1), corner, c.crop).unflatten(0, (n, -1))
        chosen, u = draw(clock.seed, clock.step, index, "small rotation", 2).repeat(n, 1).unbind(1)
        angle = torch.where(chosen < 0.5, torch.deg2rad(c.small_rotation * (2 * u - 1)), 0.0)
        return turned_cut(images.flatten(0, 1), corner, c.crop, angle, c.warp_padding).unflatten(0, (n, -1))

    # ---------------------------------------------------------------------------- for evaluation

    def pixels(self, view: int) -> int:
        return self.config.crop

    def score(self, images: Tensor) -> Tensor:
        """The log-odds of being untransformed, of images of `crop` pixels."""
        logits = self.classify(images)
        return logits[:, 0] - logits[:, 1:].logsumexp(1)

    @torch.no_grad()
    def task(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """Accuracies, and `confusion` (N, N): which share of each class (rows) is said to be what.

        `inpainted_original` and `inpainted_autoencoded` are shares that are said to be inpainted, of originals and of
        the same with nothing but an autoencoded patch; `told_apart` is the accuracy of telling these two by it, of
        which .5 says that the patch alone gives nothing away (section 4.2.4).
        """
        images, index, n = batch["image"], batch["index"], len(self.classes)
        with evaluating(self):
            patches = self.patches(images, clock, index) if self.inpaints else None
            copies, _ = self.copies(images, clock, index, patches)
            confusion = F.one_hot(self.classify(copies).argmax(1), n).float().view(n, -1, n).mean(1)
            right = confusion.diagonal()
            figures = {"accuracy": right.mean(), "confusion": confusion}
            figures |= {f"accuracy.{name}": share for name, share in zip(self.classes, right.unbind(), strict=True)}
            if patches is None or patches.autoencoded is None:
                return figures
            views = images.float()
            pairs = torch.stack([views, paste(views, levels(patches.autoencoded), patches.corner)])
            said = self.classify(self.cropped(pairs, clock, index).flatten(0, 1)).argmax(1).view(2, -1)
        original, autoencoded = (said == self.classes.index("inpainted")).float().mean(1).unbind()
        apart = {"inpainted_original": original, "inpainted_autoencoded": autoencoded}
        return {**figures, **apart, "told_apart": (1 + autoencoded - original) / 2}

    @torch.no_grad()
    def pictures(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """Of up to 8 images: `transformed`, class by class; `patches`: original, erased, inpainted, autoencoded."""
        images, index = batch["image"][:8], batch["index"][:8]
        with evaluating(self):
            pictures = {"transformed": to_uint8(centred(self.transformed(images, clock, index)[0]))}
            if self.inpaints:
                _, *patches = self.patches(images, clock, index)
                pictures["patches"] = torch.cat([to_uint8(patch) for patch in patches if patch is not None])
        return pictures


def levels(patches: Tensor) -> Tensor:
    """[-1, 1] -> 0 to 255: what `centred` takes back."""
    return (patches + 1.0) * 127.5


def last_map_width(backbone: Backbone, layer: str, image: tuple[int, int]) -> int:
    """Values of a layer's output for one image of (channels, side), found on torch's meta device without computing."""
    channels, side = image
    ghost = deepcopy(backbone).to("meta").eval()
    return ghost.maps(torch.empty(1, channels, side, side, device="meta"))[layer].numel()


METHOD = Transformations

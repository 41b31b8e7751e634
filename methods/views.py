"""Views: random augmentation of a whole batch, with a draw for each sample and no hidden state.

A view is two pure functions: `draw` turns (seed, epoch, index) into physical parameters, `apply` turns uint8
images and those parameters into uint8 images. The draw depends on nothing else, so the same image gets the
same crop in any process, batch or order, on CPU and GPU.

Order: crop and resize, flip, brightness, contrast, saturation, hue, grayscale, blur, solarize, and the operations of
a stronger augmentation, if any (methods.operations). Distributions are torchvision's (RandomResizedCrop,
RandomHorizontalFlip, ColorJitter, RandomGrayscale, GaussianBlur, RandomSolarize). Resizing is bilinear with
antialiasing, as torchvision's `resized_crop(antialias=True)`: along each axis a view's pixel is a weighted sum of a few
neighbours, its taps, which differ by sample; blur is such a sum too. The colour operations are one affine map of RGB.
Known deviations, each bounded in a test:
- the colour operations have a fixed order (torchvision draws one), and nothing is clamped or rounded between
  resize and solarize but once, after blur;
- hue is a rotation of RGB around the gray axis, which is linear, in place of a shift of HSV's hue (a rotation of
  YIQ's chroma is about twice as far from it);
- contrast mixes with the mean luma of the blurred view, which differs a little at the edges;
- blur is a true Gaussian, cut off at `blur_kernel`; the papers' small-image code blurs with PIL, whose
  "Gaussian" is three box filters of about the same sigma.

Images of one channel: saturation, hue and grayscale leave them as they are, as in torchvision.

Legend: B batch, C channels, H x W the images' pixels, S the view's size, P parameters.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from methods import operations, parts

PARAMETERS = (
    "centre_x",  # of the crop, fraction of the image's width from its left edge
    "centre_y",  # of the crop, fraction of the image's height from its top edge
    "scale",  # the crop's area, fraction of the image's; (0, 1]
    "ratio",  # the crop's width / height, relative to the image's own: 1 has the image's shape
    "flip",  # 1 mirrored left to right, else 0
    "jitter",  # 1 colour jitter, else 0
    "brightness",  # factor >= 0; 1 without jitter
    "contrast",  # factor >= 0; 1 without jitter
    "saturation",  # factor >= 0; 1 without jitter
    "hue",  # turns of the colour circle in [-.5, .5]; 0 without jitter
    "grayscale",  # 1 without colour, else 0
    "blur",  # 1 blurred, else 0
    "sigma",  # of the blur, pixels of the view; 0 without blur
    "solarize",  # 1 inverted above the threshold, else 0
)
"""A view's parameters in the order of their columns; float32, what was really done. `apply` reads the factors and
sigma, not the flags `jitter` and `blur`, which are there for those who predict them."""

TRIES = 10  # crops that RandomResizedCrop tries before it falls back to a central one
CHUNK = 2**21  # values (source and view, all channels) worked on at once on a CPU, near the size of its cache


@dataclass(frozen=True)
class View:
    """One augmentation distribution. Defaults: SCE's `weak` (Table 2).

    Raises:
        ValueError: a field out of range; the message names it as `views.<name>.<field>`.
    """

    name: str
    """The batch column, and part of the draw: views of other names are independent."""
    size: int = 32
    """S: the view is S x S pixels."""
    crop: float = 1.0
    """Probability of a random resized crop; otherwise the whole image is resized."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and greatest area, fractions of the image's; uniform."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width / height; log-uniform."""
    flip: float = 0.5
    """Probability of mirroring left to right."""
    jitter: float = 0.0
    """Probability of colour jitter: the next four."""
    brightness: float = 0.4
    """Factor uniform in [max(0, 1 - x), 1 + x]; contrast and saturation alike."""
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    """Turns of the colour circle, uniform in [-x, x], at most .5."""
    grayscale: float = 0.0
    """Probability of dropping the colours."""
    blur: float = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Least and greatest sigma in pixels of the view; uniform."""
    blur_kernel: int | None = None
    """Odd width of the kernel in pixels. None: the least odd number that is both a tenth of the size (23 at 224,
    as BYOL and SCE) and 6 sigma + 1 of the greatest sigma (13, so that small views are not cut off)."""
    solarize: float = 0.0
    """Probability of inverting the pixels at or above the threshold."""
    solarize_threshold: float = 0.5
    """Fraction of 255."""
    operations: int = 0
    """n: operations of CLSA's stronger augmentation that are drawn for each sample, after all else; CLSA has 5."""

    def __post_init__(self) -> None:
        def check(field: str, holds: bool, rule: str) -> None:
            if not holds:
                raise ValueError(f"views.{self.name}.{field} is {rule}, got {getattr(self, field)!r}")

        check("name", self.name.isidentifier() and self.name not in ("index", "label"), "a word, not index or label")
        check("size", self.size >= 1, "at least one pixel")
        for field in ("crop", "flip", "jitter", "grayscale", "blur", "solarize", "solarize_threshold"):
            check(field, 0 <= getattr(self, field) <= 1, "in [0, 1]")
        for field in ("brightness", "contrast", "saturation"):
            check(field, 0 <= getattr(self, field) < math.inf, "0 or more")
        check("hue", 0 <= self.hue <= 0.5, "in [0, .5] turns")
        check("crop_scale", 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1, "least and greatest area in (0, 1]")
        for field in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, field)
            check(field, 0 < low <= high < math.inf, "least and greatest, above 0")
        check("operations", self.operations >= 0, "0 or more")
        odd = self.blur_kernel is None or (self.blur_kernel > 0 and self.blur_kernel % 2 == 1)
        check("blur_kernel", odd, "an odd number of pixels, or None")

    @property
    def width(self) -> int:
        """P, columns of the parameters: `PARAMETERS`, then two of each operation (methods.operations.WIDTH)."""
        return len(PARAMETERS) + operations.WIDTH * self.operations

    def shape(self, channels: int) -> tuple[int, int, int]:
        """One sample's shape (C, S, S)."""
        return channels, self.size, self.size

    @property
    def blur_radius(self) -> int:
        """Pixels that the blur reaches to each side; below the size, as reflection at the edges demands."""
        kernel = self.blur_kernel or max(self.size / 10, 6 * self.blur_sigma[1] + 1)
        return min(math.ceil((kernel - 1) / 2), self.size - 1)

    def draw(self, seed: int, epoch: int, index: Tensor, aspect: float | Tensor = 1.0) -> Tensor:
        """Draws each sample's parameters, a pure function of the arguments and of the view's name.

        Args:
            seed: the recipe's seed.
            epoch: epochs done before this one.
            index: int64 (B,), each sample's position in the dataset.
            aspect: width / height of the images, or of each sample's original photo (B,), where `crop_ratio` is
                to hold for photos that are not square. With 1 it is relative to the image's own shape.

        Returns:
            float32 (B, P), columns as in `PARAMETERS`, and those of the operations.
        """
        u = parts.draw(seed, epoch, index, f"view/{self.name}", 2 * TRIES + 13).double()  # (B, ...)
        scales, ratios, u = u[:, :TRIES], u[:, TRIES : 2 * TRIES], u[:, 2 * TRIES :]
        centre_x, centre_y, scale, ratio = self._boxes(scales, ratios, u[:, :3], aspect)
        rates = (self.flip, self.jitter, self.grayscale, self.blur, self.solarize)
        flip, jitter, grayscale, blur, solarize = (u[:, 3 + k] < rate for k, rate in enumerate(rates))
        brightness, contrast, saturation, hue, sigma = u[:, 8:].unbind(1)

        def factor(strength: float, u: Tensor) -> Tensor:
            return torch.where(jitter, _between(max(0.0, 1 - strength), 1 + strength, u), 1.0)

        columns = {
            "centre_x": centre_x,
            "centre_y": centre_y,
            "scale": scale,
            "ratio": ratio,
            "flip": flip,
            "jitter": jitter,
            "brightness": factor(self.brightness, brightness),
            "contrast": factor(self.contrast, contrast),
            "saturation": factor(self.saturation, saturation),
            "hue": torch.where(jitter, _between(-self.hue, self.hue, hue), 0.0),
            "grayscale": grayscale,
            "blur": blur,
            "sigma": torch.where(blur, _between(*self.blur_sigma, sigma), 0.0),
            "solarize": solarize,
        }
        drawn = torch.stack([columns[name].float() for name in PARAMETERS], 1)
        if not self.operations:
            return drawn
        u = parts.draw(seed, epoch, index, f"view/{self.name}/operations", operations.DRAWS * self.operations).double()
        return torch.cat([drawn, operations.draw(u.unflatten(1, (self.operations, -1))).flatten(1)], 1)

    def _boxes(self, scales: Tensor, ratios: Tensor, u: Tensor, aspect: float | Tensor) -> tuple[Tensor, ...]:
        """RandomResizedCrop: the first of the crops that fits into the image, else the greatest central one."""
        low, high = self.crop_ratio
        shape = (aspect.to(u) if isinstance(aspect, Tensor) else torch.full_like(u[:, 0], aspect))[:, None]  # (B, 1)
        scales = _between(*self.crop_scale, scales)  # (B, TRIES)
        ratios = _between(math.log(low), math.log(high), ratios).exp() / shape
        fits = (scales * ratios <= 1) & (scales <= ratios)  # width and height at most the image's
        first = fits.byte().argmax(1, keepdim=True)
        central = (shape.clamp(low, high) / shape)[:, 0]
        found = fits.any(1)
        scale = torch.where(found, scales.gather(1, first)[:, 0], torch.minimum(central, 1 / central))
        ratio = torch.where(found, ratios.gather(1, first)[:, 0], central)
        whole = u[:, 2] >= self.crop
        scale, ratio = torch.where(whole, 1.0, scale), torch.where(whole, 1.0, ratio)
        slack = 1 - torch.stack([scale * ratio, scale / ratio], 1).sqrt()  # (B, 2)
        centre = 0.5 + (torch.where(found[:, None], u[:, :2], 0.5) - 0.5) * slack
        return centre[:, 0], centre[:, 1], scale, ratio

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Augments images by parameters, each by its own.

        The crop is moved to whole pixels, at least one each way. An operation whose probability is 0 in this
        view is skipped, whatever its parameters. The result does not depend on the batch that a sample is in; on a
        GPU that may use TF32 some pixels differ by a level.

        Args:
            images: uint8 (B, C, H, W), any H and W.
            parameters: float32 (B, P) of `draw`.

        Returns:
            uint8 (B, C, S, S), rounded to the nearest level.

        Raises:
            ValueError: images of another type or shape; colours to change in images of neither 1 nor 3 channels.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or parameters.shape != (len(images), self.width):
            raise ValueError(
                f"view {self.name} takes uint8 images (B, C, H, W) and parameters (B, {self.width}), "
                f"got {images.dtype} {tuple(images.shape)} and {tuple(parameters.shape)}"
            )
        channels = images.shape[1]
        if (self.jitter or self.grayscale or self.operations) and channels not in (1, 3):
            raise ValueError(
                f"views.{self.name}: jitter, grayscale and operations take 1 or 3 channels, got {channels}"
            )
        with torch.autocast(images.device.type, enabled=False):
            if images.is_cuda:
                return self._apply(images, parameters)
            rows = max(1, CHUNK // (images[0].numel() + channels * self.size**2)) if len(images) else 1
            chunks = zip(images.split(rows), parameters.split(rows), strict=True)
            return torch.cat([self._apply(*chunk) for chunk in chunks])

    def _apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        p = dict(zip(PARAMETERS, parameters[:, : len(PARAMETERS)].float().unbind(1), strict=True))
        extent_x, extent_y = (p["scale"] * p["ratio"]).sqrt(), (p["scale"] / p["ratio"]).sqrt()
        blur = _blurring(p["sigma"], self.size, self.blur_radius) if self.blur else None
        x = _weighted(images.float(), _resampling(p["centre_y"], extent_y, height, self.size))  # (B, C, S, W)
        x = x if blur is None else _weighted(x, blur)
        x = x.transpose(2, 3).contiguous()  # (B, C, W, S)
        x = _weighted(x, _resampling(p["centre_x"], extent_x, width, self.size, p["flip"]))
        x = x if blur is None else _weighted(x, blur)  # (B, C, S, S), columns before rows
        if self.jitter or self.grayscale:
            x = x.view(batch, channels, self.size**2)
            colour, offset = _colours(p, x.mean(2, keepdim=True))
            x = torch.baddbmm(offset, colour, x).clamp_(0, 255)
        x = x.add_(0.5).short().byte()  # straight to bytes takes twice as long
        out = x.view(batch, channels, self.size, self.size).transpose(2, 3).contiguous()
        if self.solarize:
            bright = (out >= math.ceil(255 * self.solarize_threshold)) & (p["solarize"] > 0)[:, None, None, None]
            out = out ^ (bright.byte() * 255)
        if self.operations:
            drawn = parameters[:, len(PARAMETERS) :].float()
            out = operations.apply(out, drawn.unflatten(1, (self.operations, operations.WIDTH)))
        return out


def _between(low: float, high: float, u: Tensor) -> Tensor:
    return low + (high - low) * u


Taps = tuple[Tensor, Tensor]
"""Pixel (B, S, T) and weight (B, S, T) of the T neighbours along an axis whose sum each of S pixels is."""


def _weighted(x: Tensor, taps: Taps) -> Tensor:
    """Sums along the rows' axis, the last but one: (B, C, H, W) -> (B, C, S, W)."""
    batch, channels, height, width = x.shape
    pixel, weight = taps
    first = torch.arange(batch * channels, dtype=torch.int32, device=x.device).view(batch, channels, 1, 1) * height
    rows = (first + pixel[:, None]).flatten(0, 2)  # (B * C * S, T)
    weights = weight[:, None].expand(-1, channels, -1, -1).flatten(0, 2)
    out = F.embedding_bag(rows, x.flatten(0, 2), per_sample_weights=weights, mode="sum")
    return out.view(batch, channels, pixel.shape[1], width)


def _resampling(centre: Tensor, extent: Tensor, pixels: int, size: int, flip: Tensor | None = None) -> Taps:
    """Crops and resizes along one axis: bilinear, antialiased, edges as if the crop were the image.

    Args:
        centre: (B,), fraction of the axis.
        extent: (B,), fraction of the axis.
        pixels: of the axis, H or W.
        size: S.
        flip: (B,), 1 reverses the axis.
    """
    length = (extent * pixels).round().clamp(1, pixels)
    # where the crop lies in what room it has, then as evenly over whole pixels: torchvision's randint
    place = ((centre - extent / 2) / (1 - extent).clamp(min=1e-6)).clamp(0, 1)
    start = torch.minimum((place * (pixels - length + 1)).floor(), pixels - length)
    start, length = start[:, None, None], length[:, None, None]
    step = length / size
    reach = step.clamp(min=1)  # the triangle's half width
    out = (torch.arange(size, device=centre.device) + 0.5).expand(len(centre), size)
    if flip is not None:
        out = torch.where(flip[:, None] > 0, size - out, out)
    middle = start + out[:, :, None] * step  # (B, S, 1)
    neighbours = torch.arange(math.ceil(2 * max(1, pixels / size)), device=centre.device)
    pixel = (middle - reach + 0.5).floor() + neighbours  # (B, S, T)
    weight = 1 - (pixel + 0.5 - middle).abs_() / reach
    weight = weight.where((pixel >= start) & (pixel < start + length), 0.0).clamp_(min=0)
    return pixel.clamp_(0, pixels - 1).int(), weight.div_(weight.sum(2, keepdim=True))


def _blurring(sigma: Tensor, size: int, radius: int) -> Taps:
    """Blurs along one axis of `size` pixels, which are reflected at the edges; nothing changes where sigma is 0."""
    distance = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = (-0.5 * (distance / sigma.clamp(min=1e-6)[:, None]).square()).exp()  # (B, T)
    kernel = kernel.where(kernel > 1e-9, 0.0)  # products with denormal numbers are slow
    weight = (kernel / kernel.sum(1, keepdim=True))[:, None].expand(-1, size, -1)
    pixel = (torch.arange(size, device=sigma.device)[:, None] + distance).abs()  # (S, T)
    pixel = torch.minimum(pixel, 2 * (size - 1) - pixel)
    return pixel.int().expand(weight.shape), weight


@cache
def _colour_basis(device: torch.device) -> Tensor:
    """(4, 3, 3), maps of RGB: luma onto gray; mean onto gray; what is left; that a quarter turn around gray."""
    luma = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    mean = torch.full((3, 3), 1 / 3)
    turn = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
    return torch.stack([luma, mean, torch.eye(3) - mean, turn]).to(device)


def _colours(p: dict[str, Tensor], mean: Tensor) -> tuple[Tensor, Tensor]:
    """Brightness, contrast, saturation, hue and grayscale as one affine map: x -> colour @ x + offset.

    Args:
        p: parameters by name, each (B,).
        mean: the images' mean colour (B, C, 1) before all of them.

    Returns:
        colour (B, C, C) and offset (B, C, 1). The offset is gray, which saturation, hue and grayscale don't change.
    """
    gain = p["brightness"] * p["contrast"]
    lift = ((1 - p["contrast"]) * p["brightness"])[:, None, None]
    if mean.shape[1] == 1:
        return gain[:, None, None], lift * mean
    basis = _colour_basis(mean.device)
    angle = 2 * math.pi * p["hue"]
    kept = gain * p["saturation"]
    terms = torch.stack([gain - kept, kept, kept * angle.cos(), kept * angle.sin()], 1)  # (B, 4)
    colour = (terms @ basis.flatten(1)).unflatten(1, (3, 3))
    colour = torch.where(p["grayscale"][:, None, None] > 0, basis[0] @ colour, colour)
    return colour, lift * (basis[0] @ mean)


# ---------------------------------------------------------------------------------------- named sets


def weak(name: str, size: int = 32) -> View:
    """Crop and flip: SCE Table 2 and ReSSL's teacher (area .2 to 1, SCE's CIFAR code and ReSSL 4.4)."""
    return View(name, size)


def strong(name: str, size: int = 32) -> View:
    """The standard contrastive set: SCE Table 2; MoCo v2; ReSSL's student on small images (strength .5)."""
    return View(name, size, jitter=0.8, grayscale=0.2, blur=0.5)


def strong_alpha(name: str, size: int = 224) -> View:
    """SCE Table 2: BYOL's first distribution. SCE's paper gives no crop area: .2 to 1, as in `strong`."""
    return replace(strong(name, size), saturation=0.2, blur=1.0)


def strong_beta(name: str, size: int = 224) -> View:
    """SCE Table 2: BYOL's second. SCE's released two-crop configuration has no flip here; the table has one."""
    return replace(strong_alpha(name, size), blur=0.1, solarize=0.2)


def strong_gamma(name: str, size: int = 224) -> View:
    """SCE Table 2: between alpha and beta, for local crops."""
    return replace(strong_alpha(name, size), blur=0.5, solarize=0.2)


def byol_online(name: str, size: int = 224) -> View:
    """T of BYOL (Grill et al., 2020, Table 6): `strong_alpha` with crops of area .08 to 1."""
    return replace(strong_alpha(name, size), crop_scale=(0.08, 1.0))


def byol_target(name: str, size: int = 224) -> View:
    """T' of BYOL (Table 6): `strong_beta` with crops of area .08 to 1."""
    return replace(strong_beta(name, size), crop_scale=(0.08, 1.0))


def simsiam(name: str, size: int = 32) -> View:
    """SimSiam on CIFAR (Chen and He, 2021, appendix D): `strong` without blur. On ImageNet it is `strong`."""
    return replace(strong(name, size), blur=0.0)


def ressl_strong(name: str, size: int = 32) -> View:
    """ReSSL's student on small and medium images (journal, section 4): jitter of strength .5 with p .8, blur .5.

    Grayscale .2 is not in the paper; it is in the authors' ImageNet code.
    """
    return strong(name, size)


def ressl_imagenet(name: str, size: int = 224) -> View:
    """ReSSL's student on ImageNet (journal): BYOL's with blur .5, solarize .1, least area .14."""
    return replace(strong_alpha(name, size), crop_scale=(0.14, 1.0), blur=0.5, solarize=0.1)


def sce_local(size: int = 224) -> dict[str, View]:
    """SCE's local crops beside two global views (section 4, multi-crop setting): `strong_gamma`.

    192, 160, 128, 96 pixels at 224, in proportion to `size`, that of the global views.
    """
    scales = ((0.172, 0.86), (0.143, 0.715), (0.114, 0.571), (0.086, 0.429))
    return {
        view.name: view
        for k, scale in enumerate(scales)
        for view in [replace(strong_gamma(f"local_{k + 1}", round(size * (6 - k) / 7)), crop_scale=scale)]
    }


def ressl_local(size: int = 224) -> dict[str, View]:
    """ReSSL's smaller student crops beside `ressl_imagenet` and the weak teacher (journal, multi-crop).

    192, 160, 128, 96 pixels at 224, in proportion to `size`. The released code of 2021 has the areas of
    `sce_local` and `strong` instead.
    """
    scales = ((0.117, 0.86), (0.095, 0.715), (0.073, 0.571), (0.05, 0.429))
    return {
        view.name: view
        for k, scale in enumerate(scales)
        for view in [replace(ressl_imagenet(f"local_{k + 1}", round(size * (6 - k) / 7)), crop_scale=scale)]
    }

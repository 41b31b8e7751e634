"""CLSA's stronger augmentation on whole batches: operations on images that are cropped, mirrored and coloured already.

Contrastive Learning with Stronger Augmentations (X. Wang, G. Qi, arXiv 2104.07713), whose augmentation ReSSL's Table 8
takes over; as its released code (maple-research-lab/CLSA) has it: of 14 operations, which are FixMatch's, one is drawn
several times (five in CLSA) with a level of 1 to 9, and each is carried out with probability .5. They are Pillow's:
nearest neighbour and black beyond the edges, levels cut down to whole ones. By level L:

    autocontrast, equalize     none
    brightness, color, contrast, sharpness    a factor of .05 + .09 L, so that they only ever weaken
    posterize                  4 + .4 L bits, cut down
    rotate                     3 L degrees to either side
    shear_x, shear_y           .03 L to either side
    solarize                   inverts levels from 256 - 25.6 L on, rounded up
    translate_x, translate_y   .03 L of the side to either side, cut down to whole pixels
    identity                   none

Legend: B images, C channels, H x W pixels, n operations.
"""

import math
from functools import cache

import torch
from torch import Tensor

OPERATIONS = (
    "identity",
    "autocontrast",
    "brightness",
    "color",
    "contrast",
    "equalize",
    "posterize",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarize",
    "translate_x",
    "translate_y",
)
DRAWS = 4
"""Random numbers for each operation."""
WIDTH = 2
"""Parameters of each operation: its number in `OPERATIONS`, 0 where it is not carried out; and its value as above."""
LEVELS = 9

FACTOR = (0.05, 0.09)
VALUES = {  # at level 0, and what each level adds
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), FACTOR),
    "posterize": (4.0, 0.4),
    "rotate": (0.0, 3.0),
    "solarize": (256.0, -25.6),
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (0.0, 0.03)),
}
SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


@cache
def _values(device: torch.device) -> Tensor:
    """(14, 3) by operation: value at level 0, what a level adds, 1 where half of the values are negative."""
    rows = [(*VALUES.get(name, (0.0, 0.0)), float(name in SIGNED)) for name in OPERATIONS]
    return torch.tensor(rows, dtype=torch.float64).to(device)


def draw(u: Tensor) -> Tensor:
    """Operations and their values.

    Args:
        u: (B, n, 4), uniform in [0, 1).

    Returns:
        float32 (B, n, 2), as `WIDTH` says.
    """
    kind = (u[..., 0] * len(OPERATIONS)).long()
    start, slope, signed = _values(u.device)[kind].unbind(-1)
    value = start + slope * (1 + (u[..., 1] * LEVELS).floor())
    value = torch.where(_is(kind, "posterize"), value.floor(), value)
    value = torch.where(_is(kind, "solarize"), value.ceil(), value)
    value = torch.where((signed > 0) & (u[..., 2] < 0.5), -value, value)
    on = u[..., 3] < 0.5
    return torch.stack([torch.where(on, kind, 0).float(), torch.where(on, value, 0.0).float()], -1)


def apply(images: Tensor, drawn: Tensor) -> Tensor:
    """Carries out the operations of each image, one after another.

    Args:
        images: uint8 (B, C, H, W), of 1 or 3 channels.
        drawn: (B, n, 2) of `draw`.

    Returns:
        uint8 (B, C, H, W).
    """
    for one in drawn.unbind(1):
        kind, value = one[:, 0].long(), one[:, 1]
        images = _blended(_toned(_moved(images, kind, value), kind, value), kind, value)
    return images


def _is(kind: Tensor, *names: str) -> Tensor:
    """Bool, as `kind`: whether it is one of these operations."""
    found = kind == OPERATIONS.index(names[0])
    for name in names[1:]:
        found = found | (kind == OPERATIONS.index(name))
    return found


def _moved(x: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    """Rotated around the centre, sheared from the upper left corner, or shifted."""
    height, width = x.shape[2:]

    def of(name: str) -> Tensor:
        return torch.where(_is(kind, name), value, 0.0)[:, None, None]

    angle = of("rotate") * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    column = torch.arange(width, device=x.device) + 0.5
    row = (torch.arange(height, device=x.device) + 0.5)[:, None]
    shift_x = width / 2 * (1 - cos) + height / 2 * sin + (of("translate_x") * width).trunc()
    shift_y = height / 2 * (1 - cos) - width / 2 * sin + (of("translate_y") * height).trunc()
    from_x = (cos * column + (of("shear_x") - sin) * row + shift_x).floor().long()  # (B, H, W)
    from_y = (cos * row + (of("shear_y") + sin) * column + shift_y).floor().long()
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    pixel = from_y.clamp(0, height - 1) * width + from_x.clamp(0, width - 1)
    found = x.flatten(2).gather(2, pixel.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)
    return found * inside[:, None]


def _gray(x: Tensor) -> Tensor:
    """Pillow's luma, whole levels: int64 (B, 1, H, W)."""
    if x.shape[1] == 1:
        return x.long()
    red, green, blue = x.long().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _toned(x: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    """Those that map a channel's levels: autocontrast, brightness, contrast, equalize, posterize, solarize."""
    level = torch.arange(256, device=x.device)
    flat = x.flatten(2).long()  # (B, C, N)
    count = torch.zeros(*flat.shape[:2], 256, dtype=torch.long, device=x.device)
    count.scatter_add_(2, flat, flat.new_ones(1).expand_as(flat))
    there = (count > 0).byte()
    low, high = there.argmax(2, keepdim=True), 255 - there.flip(2).argmax(2, keepdim=True)  # (B, C, 1)
    scale = 255.0 / (high - low).clamp(min=1).double()
    stretched = torch.where(high > low, (level * scale - low * scale).trunc(), level)
    step = (flat.shape[2] - count.gather(2, high)) // 255
    before = count.cumsum(2) - count
    evened = torch.where(step > 0, (step // 2 + before) // step.clamp(min=1), level)
    value = value[:, None, None]
    unit = torch.where(_is(kind, "posterize")[:, None, None], 8 - value, 0.0).exp2()
    mean = (_gray(x).flatten(1).double().mean(1) + 0.5).floor().float()[:, None, None]
    tables = {
        "autocontrast": stretched,
        "equalize": evened,
        "posterize": (level / unit).floor() * unit,
        "solarize": torch.where(level < value, level, 255 - level),
        "brightness": (value * level).trunc(),
        "contrast": (mean + value * (level - mean)).trunc(),
    }
    table = level.expand_as(count).double()
    for name, found in tables.items():
        table = torch.where(_is(kind, name)[:, None, None], found.double(), table)
    return table.clamp(0, 255).byte().gather(2, flat).view_as(x)


def _blended(x: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    """Mixed with its gray (color) or with its smoothed self (sharpness)."""
    color, sharpness = (_is(kind, name)[:, None, None, None] for name in ("color", "sharpness"))
    image = x.float()
    smooth = image.clone()  # the edges stay
    tall = image[..., :-2, :] + image[..., 1:-1, :] + image[..., 2:, :]
    nine = tall[..., :-2] + tall[..., 1:-1] + tall[..., 2:]
    smooth[..., 1:-1, 1:-1] = ((nine + 4 * image[..., 1:-1, 1:-1]) / 13 + 0.5).floor()
    weak = torch.where(color, _gray(x).float(), smooth)
    mixed = (weak + value[:, None, None, None] * (image - weak)).trunc().clamp(0, 255)
    return torch.where(color | sharpness, mixed.byte(), x)

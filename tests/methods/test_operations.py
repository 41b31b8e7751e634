"""CLSA's operations: each beside Pillow's, their levels and rates, and views that end with them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torch import Tensor

from methods import operations, views
from methods.operations import OPERATIONS
from methods.views import PARAMETERS, View

AFFINE = Image.Transform.AFFINE
PILLOW: dict[str, tuple[list[float], Callable[[Image.Image, float], Image.Image]]] = {
    "identity": ([0.0], lambda image, v: image),
    "autocontrast": ([0.0], lambda image, v: ImageOps.autocontrast(image)),
    "brightness": ([0.14, 0.5, 0.86], lambda image, v: ImageEnhance.Brightness(image).enhance(v)),
    "color": ([0.14, 0.5, 0.86], lambda image, v: ImageEnhance.Color(image).enhance(v)),
    "contrast": ([0.14, 0.5, 0.86], lambda image, v: ImageEnhance.Contrast(image).enhance(v)),
    "equalize": ([0.0], lambda image, v: ImageOps.equalize(image)),
    "posterize": ([4.0, 5.0, 6.0, 7.0], lambda image, v: ImageOps.posterize(image, int(v))),
    "rotate": ([3.0, -12.0, 27.0], lambda image, v: image.rotate(v)),
    "sharpness": ([0.14, 0.5, 0.86], lambda image, v: ImageEnhance.Sharpness(image).enhance(v)),
    "shear_x": ([0.03, -0.27], lambda image, v: image.transform(image.size, AFFINE, (1, v, 0, 0, 1, 0))),
    "shear_y": ([0.03, -0.27], lambda image, v: image.transform(image.size, AFFINE, (1, 0, 0, v, 1, 0))),
    "solarize": ([26.0, 128.0, 231.0], lambda image, v: ImageOps.solarize(image, int(v))),
    "translate_x": (
        [0.15, -0.27],
        lambda image, v: image.transform(image.size, AFFINE, (1, 0, int(v * image.size[0]), 0, 1, 0)),
    ),
    "translate_y": (
        [0.15, -0.27],
        lambda image, v: image.transform(image.size, AFFINE, (1, 0, 0, 0, 1, int(v * image.size[1]))),
    ),
}


def photos(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Smooth colours with noise, not of all levels."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=random) * 180 + 30
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (image + 4 * torch.randn(image.shape, generator=random)).clamp(0, 255).round().byte()


def carried_out(images: Tensor, *steps: tuple[str, float]) -> Tensor:
    drawn = torch.tensor([[float(OPERATIONS.index(name)), value] for name, value in steps])
    return operations.apply(images, drawn.expand(len(images), -1, -1))


def pillow(images: Tensor, name: str, value: float) -> Tensor:
    made = [PILLOW[name][1](Image.fromarray(image.permute(1, 2, 0).numpy()), value) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in made])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_pillows(name: str) -> None:
    """But for pixels whose source lies on an edge between two, by rounding, and a level where a product is whole."""
    assert PILLOW.keys() == set(OPERATIONS)
    for images in (photos(4, 40, 30), photos(1, 224, 224)):
        changed = []
        for value in PILLOW[name][0]:
            ours, theirs = carried_out(images, (name, value)).int(), pillow(images, name, value).int()
            moves = name in ("rotate", "shear_x", "shear_y")
            assert ((ours - theirs).abs() > (0 if moves else 1)).double().mean() <= (2e-3 if moves else 0), value
            assert (ours != theirs).double().mean() < 5e-3, value
            changed.append((ours != images.int()).double().mean().item())
        assert max(changed) > 0.05 or name == "identity"


def test_constant_images_and_single_levels_stay() -> None:
    constant = torch.full((2, 3, 9, 7), 77, dtype=torch.uint8)
    for name in ("autocontrast", "equalize", "contrast", "sharpness", "color"):
        assert torch.equal(carried_out(constant, (name, 0.5)), constant), name
    tiny = photos(2, 1, 2)
    for name in OPERATIONS:
        assert carried_out(tiny, (name, PILLOW[name][0][0])).shape == tiny.shape


def test_operations_follow_one_another() -> None:
    images = photos(3, 24, 24)
    both = carried_out(images, ("posterize", 4.0), ("solarize", 128.0))
    assert torch.equal(both, carried_out(carried_out(images, ("posterize", 4.0)), ("solarize", 128.0)))
    assert not torch.equal(both, carried_out(images, ("solarize", 128.0), ("posterize", 4.0)))


def test_levels_and_rates_are_clsas() -> None:
    count = 8000
    drawn = View("a", operations=5).draw(3, 1, torch.arange(count))[:, len(PARAMETERS) :].unflatten(1, (5, 2))
    kind, value = drawn[..., 0].long().flatten(), drawn[..., 1].flatten()
    others = (kind > 0).sum().item()  # identity and what is not carried out are both 0
    assert stats.binomtest(others, 5 * count, 13 / 28).pvalue > 1e-3
    shares = torch.bincount(kind, minlength=14)[1:]
    assert stats.chisquare(shares.numpy()).pvalue > 1e-3
    weak = [0.14, 0.23, 0.32, 0.41, 0.50, 0.59, 0.68, 0.77, 0.86]
    shear = [sign * 0.03 * level for level in range(1, 10) for sign in (1, -1)]
    expected: dict[str, list[float]] = {
        "brightness": weak,
        "color": weak,
        "contrast": weak,
        "sharpness": weak,
        "posterize": [4, 5, 6, 7],
        "rotate": [sign * 3 * level for level in range(1, 10) for sign in (1, -1)],
        "shear_x": shear,
        "translate_y": shear,
        "solarize": [256 - v for v in (25, 51, 76, 102, 128, 153, 179, 204, 230)],
        "equalize": [0],
    }
    for name, values in expected.items():
        found = value[kind == OPERATIONS.index(name)].unique()
        torch.testing.assert_close(found, torch.tensor(sorted(values)).float(), msg=name)


def test_a_view_ends_with_them_and_is_otherwise_the_same() -> None:
    images, index = photos(6, 40, 40), torch.arange(6)
    plain, stronger = views.ressl_imagenet("online", 32), View("online", 32, operations=3)
    assert (plain.width, stronger.width) == (len(PARAMETERS), len(PARAMETERS) + 6)
    drawn = stronger.draw(0, 2, index)
    assert drawn.shape == (6, stronger.width)
    without = View("online", 32)
    assert torch.equal(drawn[:, : len(PARAMETERS)], without.draw(0, 2, index))
    first = without.apply(images, drawn[:, : len(PARAMETERS)])
    out = stronger.apply(images, drawn)
    assert torch.equal(out, operations.apply(first, drawn[:, len(PARAMETERS) :].unflatten(1, (3, 2))))
    assert not torch.equal(out, first)
    alone = torch.cat([stronger.apply(x[None], p[None]) for x, p in zip(images, drawn, strict=True)])
    assert torch.equal(out, alone)
    assert stronger.apply(images[:0], drawn[:0]).shape == (0, 3, 32, 32)


def test_images_of_one_channel_and_of_others() -> None:
    view = View("online", 24, operations=5)
    drawn = view.draw(0, 0, torch.arange(8))
    gray = photos(8, 30, 30, 1)
    out = view.apply(gray, drawn)
    assert torch.equal(view.apply(gray.expand(-1, 3, -1, -1), drawn), out.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match=r"views\.online: .*1 or 3 channels, got 4"):
        view.apply(photos(8, 30, 30, 4), drawn)
    with pytest.raises(ValueError, match=r"views\.online\.operations is 0 or more, got -1"):
        View("online", operations=-1)

"""Views against torchvision: the distributions of the draws, and the pixels of the same parameters."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch
import torchvision.transforms.v2.functional as tv
import tyro
from pydantic import TypeAdapter
from scipy import stats
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torchvision.transforms import ColorJitter, RandomResizedCrop

from methods import views
from methods.views import PARAMETERS, View

N = 4000
IDENTITY = dict.fromkeys(PARAMETERS, 0.0) | dict.fromkeys(("scale", "ratio", "brightness", "contrast", "saturation"), 1)
IDENTITY |= {"centre_x": 0.5, "centre_y": 0.5}
PLAIN = View("a", crop=0.0, flip=0.0)


def photos(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Smooth noise of several scales, mostly gray as photos are, with fine noise on it."""
    random = torch.Generator().manual_seed(0)
    image = torch.zeros(count, channels, height, width)
    for cells, strength in ((2, 50.0), (5, 30.0), (9, 20.0)):
        gray = torch.randn(count, 1, cells, cells, generator=random)
        colour = torch.randn(count, channels, cells, cells, generator=random)
        noise = strength * (gray + 0.4 * colour)
        image += torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")
    image += 3 * torch.randn(image.shape, generator=random)
    return (image + 120).clamp(0, 255).round().byte()


def columns(view: View, count: int = N, aspect: float = 1.0) -> dict[str, Tensor]:
    drawn = view.draw(3, 1, torch.arange(count), aspect)
    assert drawn.shape == (count, view.width) and drawn.dtype == torch.float32
    return dict(zip(PARAMETERS, drawn.double().unbind(1), strict=True))


def parameters(count: int, **values: float | list[float]) -> Tensor:
    """Those that change nothing, but for the given ones."""
    rows = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in {**IDENTITY, **values}.items()}
    return torch.stack([rows[name].expand(count) for name in PARAMETERS], 1)


def box_parameters(box: tuple[int, int, int, int], image: Tensor) -> dict[str, float | list[float]]:
    """The parameters of torchvision's box in pixels."""
    (top, left, height, width), (h, w) = box, image.shape[-2:]
    return {
        "centre_x": (left + width / 2) / w,
        "centre_y": (top + height / 2) / h,
        "scale": height * width / (h * w),
        "ratio": width / w / (height / h),
    }


# --------------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((30000, 30000), (0.2, 1.0), (3 / 4, 4 / 3)),
        ((30000, 30000), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((20000, 50000), (0.3, 1.0), (3 / 4, 4 / 3)),  # many crops don't fit
        ((50000, 20000), (0.5, 0.9), (0.5, 2.0)),
        ((30000, 30000), (0.8, 1.0), (1.1, 1.4)),  # the fallback is common
        ((10000, 40000), (0.9, 1.0), (3 / 4, 4 / 3)),  # the fallback always
        ((40000, 10000), (0.9, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_crops_are_distributed_as_torchvisions(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    """Kolmogorov-Smirnov on centre, height, width and area; images so large that whole pixels play no part."""
    torch.manual_seed(0)
    height, width = size
    image = torch.empty(1, 1).expand(3, height, width)
    boxes = torch.tensor(
        [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(N // 2)]
    ).double()
    top, left, h, w = boxes.unbind(1)
    ours = columns(View("a", crop_scale=scale, crop_ratio=ratio), aspect=width / height)
    w_ours, h_ours = (ours["scale"] * ours["ratio"]).sqrt() * width, (ours["scale"] / ours["ratio"]).sqrt() * height
    assert (w_ours <= width * (1 + 1e-6)).all() and (h_ours <= height * (1 + 1e-6)).all()
    pairs = {
        "width": (w_ours, w),
        "height": (h_ours, h),
        "left": (ours["centre_x"] * width - w_ours / 2, left),
        "top": (ours["centre_y"] * height - h_ours / 2, top),
        "area": (ours["scale"], h * w / (height * width)),
    }
    for name, (a, b) in pairs.items():
        if b.std() < 1e-6:  # the fallback alone
            assert (a - b[0]).abs().max() <= 1, name
        else:
            assert stats.ks_2samp(a.round(decimals=-1), b.round(decimals=-1)).pvalue > 1e-3, name


def test_whole_pixels_are_distributed_as_torchvisions() -> None:
    """At 32 pixels: first pixel and length of the crop, read off the pixels that it takes."""
    torch.manual_seed(0)
    image = torch.empty(3, 32, 32)
    boxes = torch.tensor([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(N)])
    ours = columns(View("a"))
    extent = (ours["scale"] * ours["ratio"]).sqrt()
    pixel, weight = (taps.flatten(1) for taps in views._resampling(ours["centre_x"].float(), extent.float(), 32, 64))
    used = torch.zeros(N, 32).scatter_add_(1, pixel.long(), weight) > 0
    left, width = used.byte().argmax(1), used.sum(1)
    # torchvision rejects a little later, at 32.5 pixels: the widths differ by that
    assert stats.ks_2samp(width, boxes[:, 3]).statistic < 0.05
    for length in (20, 24, 28):
        a, b = left[width == length], boxes[boxes[:, 3] == length][:, 1]
        assert set(a.tolist()) == set(range(32 - length + 1))
        assert stats.ks_2samp(a, b).pvalue > 1e-3


def test_colours_are_distributed_as_torchvisions() -> None:
    view = View("a", jitter=0.8, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    reference = ColorJitter(0.4, 1.5, 0.2, 0.1)
    ours = columns(view)
    on = ours["jitter"] == 1
    for name, identity in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0)):
        low, high = getattr(reference, name)
        values = ours[name][on]
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
        assert low <= values.min() and values.max() <= high
        assert (ours[name][~on] == identity).all()


def test_rates_and_independence() -> None:
    rates = {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 0.3, "solarize": 0.1}
    ours = columns(View("a", flip=0.5, jitter=0.8, grayscale=0.2, blur=0.3, solarize=0.1))
    for name, rate in rates.items():
        assert set(ours[name].tolist()) == {0.0, 1.0}
        assert stats.binomtest(int(ours[name].sum()), N, rate).pvalue > 1e-3, name
    sigma = ours["sigma"][ours["blur"] == 1]
    assert stats.kstest(sigma, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    assert (ours["sigma"][ours["blur"] == 0] == 0).all()
    table = torch.stack([ours[name] for name in (*rates, "centre_x", "centre_y", "scale", "ratio")])
    correlation = torch.corrcoef(table) - torch.eye(len(table))
    assert correlation.abs().max() < 4.5 / math.sqrt(N)


def test_probabilities_of_0_and_1_and_of_the_crop() -> None:
    never, always = columns(PLAIN), columns(View("a", flip=1.0, jitter=1.0, grayscale=1.0, blur=1.0, solarize=1.0))
    for name, value in IDENTITY.items():
        assert (never[name] == value).all(), name
    for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
        assert (always[name] == 1).all(), name
    whole = (columns(View("a", crop=0.3, crop_scale=(0.2, 0.9)))["scale"] == 1).sum()
    assert stats.binomtest(int(whole), N, 0.7).pvalue > 1e-3


def test_a_draw_depends_on_seed_epoch_index_and_name_alone() -> None:
    view = views.strong_gamma("a")
    index = torch.arange(1000) * 7
    drawn = view.draw(1, 2, index)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(view.draw(1, 2, index[order]), drawn[order])
    assert torch.equal(torch.cat([view.draw(1, 2, part) for part in index.split([1, 3, 17, 979])]), drawn)
    assert torch.equal(replace(view, size=96).draw(1, 2, index), drawn)
    for other in (view.draw(2, 2, index), view.draw(1, 3, index), replace(view, name="b").draw(1, 2, index)):
        assert not (other[:, 0] == drawn[:, 0]).any()
        assert abs(torch.corrcoef(torch.stack([other[:, 2], drawn[:, 2]]))[0, 1]) < 0.15


def test_another_probability_leaves_the_other_draws_as_they_are() -> None:
    a, b = columns(views.strong("a")), columns(replace(views.strong("a"), flip=0.1, blur=1.0))
    for name in set(PARAMETERS) - {"flip", "blur", "sigma"}:
        assert torch.equal(a[name], b[name]), name


def test_an_aspect_for_each_sample() -> None:
    view, index = View("a"), torch.arange(6)
    aspects = torch.tensor([0.5, 1.0, 2.0, 0.5, 1.0, 2.0])
    each = torch.cat([view.draw(0, 0, index[i : i + 1], aspect=float(aspects[i])) for i in range(6)])
    assert torch.equal(view.draw(0, 0, index, aspect=aspects), each)


# ---------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(("height", "width"), [(32, 32), (80, 50), (160, 200), (17, 40)])
@pytest.mark.parametrize("size", [32, 45])
def test_crop_resize_and_flip_are_torchvisions_within_one_level(height: int, width: int, size: int) -> None:
    torch.manual_seed(0)
    images = photos(12, height, width)
    boxes = [RandomResizedCrop.get_params(images, [0.1, 1.0], [3 / 4, 4 / 3]) for _ in images]
    expected = torch.stack(
        [tv.resized_crop(x, *box, [size, size], antialias=True) for x, box in zip(images, boxes, strict=True)]
    )
    expected[::2] = expected[::2].flip(-1)
    rows = [parameters(1, flip=float(k % 2 == 0), **box_parameters(box, images)) for k, box in enumerate(boxes)]
    out = View("a", size).apply(images, torch.cat(rows))
    assert (out.int() - expected.int()).abs().max() <= 1


def rodrigues(image: Tensor, turns: float) -> Tensor:
    """Rotation of colours around the gray axis, by the cross product."""
    axis = torch.ones(3).double() / math.sqrt(3)
    x, angle = image.movedim(0, -1), 2 * math.pi * turns
    along = (x @ axis)[..., None] * axis
    turned = torch.linalg.cross(axis.expand_as(x), x)
    return (along + math.cos(angle) * (x - along) + math.sin(angle) * turned).movedim(-1, 0)


COLOURS: dict[str, tuple[str, list[float], Callable[[Tensor, float], Tensor], float, float]] = {
    # field that turns it on, values, torchvision, bound of the mean and of the greatest difference in levels
    "brightness": ("jitter", [0.6, 1.0, 1.4], tv.adjust_brightness, 0.6, 1),
    "contrast": ("jitter", [0.6, 1.0, 1.4], tv.adjust_contrast, 0.7, 1),
    "saturation": ("jitter", [0.6, 1.0, 1.4], tv.adjust_saturation, 0.7, 1),
    "hue": ("jitter", [-0.1, 0.0, 0.1], tv.adjust_hue, 5.5, 40),
    "grayscale": ("grayscale", [0.0, 1.0], lambda x, on: tv.rgb_to_grayscale(x, 3) if on else x, 0.6, 1),
    "sigma": ("blur", [0.1, 0.5, 1.0, 2.0], lambda x, sigma: tv.gaussian_blur(x, [13, 13], [sigma, sigma]), 0.01, 1),
    "solarize": ("solarize", [0.0, 1.0], lambda x, on: tv.solarize(x, 128) if on else x, 0.0, 0),
}


@pytest.mark.parametrize("name", COLOURS)
def test_each_operation_alone_is_torchvisions_within_a_bound(name: str) -> None:
    """torchvision truncates to whole levels (.5 on average), and shifts hue in HSV: the bounds allow for that."""
    field, values, reference, mean, greatest = COLOURS[name]
    images = photos(8, 32, 32)
    view = replace(PLAIN, **{field: 1.0})  # type: ignore[arg-type]
    for value in values:
        out = view.apply(images, parameters(8, **{name: value})).float()
        difference = (out - torch.stack([reference(x, value) for x in images]).float()).abs()
        assert difference.mean() <= mean and difference.max() <= greatest, value


def test_hue_turns_the_way_that_torchvision_does() -> None:
    images = photos(8, 32, 32)
    view = replace(PLAIN, jitter=1.0)
    towards, away = (view.apply(images, parameters(8, jitter=1, hue=hue)).float() for hue in (0.1, -0.1))
    expected = tv.adjust_hue(images, 0.1).float()
    assert 2 * (towards - expected).abs().mean() < (away - expected).abs().mean()
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    third = view.apply(red, parameters(1, jitter=1, hue=1 / 3))[0, :, 0, 0]
    assert third.tolist() == [0, 255, 0]  # a third of the circle exchanges the channels


def test_all_colours_are_the_operations_one_after_the_other() -> None:
    """A float64 twin: brightness, contrast, saturation, hue, grayscale, with no clamp between them."""
    images = photos(6, 32, 32)
    view = replace(PLAIN, jitter=1.0, grayscale=1.0)
    drawn = columns(view, 6)
    drawn["grayscale"] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).double()
    out = view.apply(images, torch.stack([drawn[name] for name in PARAMETERS], 1).float())

    def luma(x: Tensor) -> Tensor:
        return (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]).expand(3, -1, -1)

    for k, image in enumerate(images.double()):
        q = {name: float(values[k]) for name, values in drawn.items()}
        x = image * q["brightness"]
        x = q["contrast"] * x + (1 - q["contrast"]) * luma(x).mean()
        x = q["saturation"] * x + (1 - q["saturation"]) * luma(x)
        x = rodrigues(x, q["hue"])
        x = luma(x) if q["grayscale"] else x
        x = (x.clamp(0, 255) + 0.5).floor()
        difference = (out[k].double() - x).abs()
        assert difference.max() <= 1 and (difference > 0).double().mean() < 1e-3


@pytest.mark.parametrize(("height", "size"), [(32, 32), (160, 96)])
def test_a_strong_view_is_close_to_torchvisions_chain(height: int, size: int) -> None:
    """All operations in our order: hue, and the clamps that we leave out, make the difference."""
    images = photos(40, height, height)
    view = views.strong_gamma("a", size)
    drawn = view.draw(0, 0, torch.arange(40))
    out = view.apply(images, drawn)
    kernel = [2 * view.blur_radius + 1] * 2
    total = 0.0
    for image, ours, row in zip(images, out, drawn.tolist(), strict=True):
        q = dict(zip(PARAMETERS, row, strict=True))
        crop = replace(PLAIN, size=size).apply(image[None], torch.tensor([row[:4] + parameters(1)[0, 4:].tolist()]))[0]
        x = tv.horizontal_flip(crop) if q["flip"] else crop
        x = tv.adjust_contrast(tv.adjust_brightness(x, q["brightness"]), q["contrast"])
        x = tv.adjust_hue(tv.adjust_saturation(x, q["saturation"]), q["hue"])
        x = tv.rgb_to_grayscale(x, 3) if q["grayscale"] else x
        x = tv.gaussian_blur(x, kernel, [q["sigma"], q["sigma"]]) if q["blur"] else x
        x = tv.solarize(x, 128) if q["solarize"] else x
        total += (ours.float() - x.float()).abs().mean().item()
    assert total / len(images) < 3.5


@pytest.mark.parametrize("size", [32, 50])
def test_identity_returns_the_image(size: int) -> None:
    everything = View("a", size, jitter=1.0, grayscale=1.0, blur=1.0, solarize=1.0)
    images = photos(5, size, size)
    assert torch.equal(everything.apply(images, parameters(5)), images)
    assert torch.equal(everything.apply(images, parameters(5, flip=1)), images.flip(-1))
    assert torch.equal(
        everything.apply(images, parameters(5, solarize=1)), torch.where(images < 128, images, 255 - images)
    )


def test_rounds_to_the_nearest_level() -> None:
    view = replace(PLAIN, size=2, jitter=1.0)
    images = torch.tensor([100, 101], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    out = view.apply(images, parameters(1, jitter=1, brightness=1.016))  # 101.6 and 102.616
    assert out[0, 0].tolist() == [[102, 103], [102, 103]]


def test_a_sample_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for view, images in ((views.strong_gamma("a", 32), photos(70, 32, 32)), (views.strong("a", 48), photos(9, 60, 80))):
        drawn = view.draw(0, 0, torch.arange(len(images)))
        out = view.apply(images, drawn)
        alone = torch.cat([view.apply(x[None], p[None]) for x, p in zip(images, drawn, strict=True)])
        assert torch.equal(out, alone)
        assert torch.equal(view.apply(images.flip(0), drawn.flip(0)), out.flip(0))
        assert torch.equal(view.apply(images.contiguous(memory_format=torch.channels_last), drawn), out)
        monkeypatch.setattr(views, "CHUNK", 2**14)
        assert torch.equal(view.apply(images, drawn), out)
        monkeypatch.undo()


def test_autocast_changes_nothing() -> None:
    view, images = views.strong("a"), photos(4, 40, 40)
    drawn = view.draw(0, 0, torch.arange(4))
    with torch.autocast("cpu", torch.bfloat16):
        inside = view.apply(images, drawn)
    assert torch.equal(inside, view.apply(images, drawn))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 3), (64, 24), (200, 333)])
@pytest.mark.parametrize("size", [1, 2, 9, 32])
def test_images_of_any_shape(height: int, width: int, channels: int, size: int) -> None:
    images = photos(6, height, width, channels)
    view = views.strong_gamma("a", size)
    out = view.apply(images, view.draw(0, 0, torch.arange(6), aspect=width / height))
    assert out.dtype == torch.uint8 and out.shape == (6, *view.shape(channels)) and out.is_contiguous()
    flat = replace(View("a", size), blur=1.0)  # of a constant image every crop and blur is the same constant
    constant = torch.full_like(images, 77)
    assert (flat.apply(constant, flat.draw(0, 0, torch.arange(6))) == 77).all()


def test_an_empty_batch() -> None:
    view = views.strong("a")
    assert view.apply(photos(1, 8, 8)[:0], view.draw(0, 0, torch.arange(0))).shape == (0, 3, 32, 32)


def test_one_channel_has_brightness_and_contrast_alone() -> None:
    view = replace(PLAIN, jitter=1.0, grayscale=1.0)
    images = photos(4, 32, 32, 1)
    colours = parameters(4, jitter=1, saturation=0.3, hue=0.4, grayscale=1)
    assert torch.equal(view.apply(images, colours), images)
    both = view.apply(images, parameters(4, jitter=1, brightness=0.8, contrast=0.7))
    expected = torch.stack([tv.adjust_contrast(tv.adjust_brightness(x, 0.8), 0.7) for x in images])
    assert (both.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("view", [views.strong_gamma("a", 96), replace(views.strong("a", 96), operations=5)])
def test_no_value_is_read_back(view: View) -> None:
    """On a GPU each reading of a tensor's value waits for it. Fake tensors have none, so that reading one raises."""
    images, index = photos(8, 128, 100), torch.arange(8)
    view.apply(images, view.draw(0, 0, index))  # fills the caches, with real tensors
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(images)
        made = view._apply(fake, view.draw(0, 0, mode.from_tensor(index)))
        assert made.shape == (8, 3, 96, 96)
        with pytest.raises(DataDependentOutputException):
            bool((fake > 0).any())


# -------------------------------------------------------------------------------- fields and named sets


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "two words"),
        ("name", "index"),
        ("size", 0),
        ("crop", 1.1),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 0.2)),
        ("crop_scale", (0.5, 1.2)),
        ("crop_ratio", (1.5, 1.0)),
        ("flip", -0.1),
        ("jitter", math.nan),
        ("brightness", -1.0),
        ("saturation", math.inf),
        ("hue", 0.6),
        ("blur", 2.0),
        ("blur_sigma", (0.0, 2.0)),
        ("blur_kernel", 4),
        ("blur_kernel", -1),
        ("solarize", 1.5),
        ("solarize_threshold", 2.0),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    name = value if field == "name" else "online"
    with pytest.raises(ValueError, match=rf"views\.{name}\.{field} is "):
        replace(View("online"), **{field: value})  # type: ignore[arg-type]


def test_wrong_images_are_refused() -> None:
    view = views.strong("a")
    with pytest.raises(ValueError, match="takes uint8 images"):
        view.apply(torch.rand(2, 3, 32, 32), parameters(2))
    with pytest.raises(ValueError, match="takes uint8 images"):
        view.apply(photos(2, 32, 32), parameters(3))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        view.apply(photos(2, 32, 32, 4), parameters(2))
    assert views.weak("a").apply(photos(2, 32, 32, 4), parameters(2)).shape == (2, 4, 32, 32)


def test_command_line_and_json() -> None:
    view = tyro.cli(View, args=["--name", "a", "--crop-scale", "0.1", "0.9", "--blur-kernel", "5"])
    assert view == View("a", crop_scale=(0.1, 0.9), blur_kernel=5) and view.blur_radius == 2
    reader = TypeAdapter(View)
    assert reader.validate_json(reader.dump_json(view)) == view
    assert reader.validate_python(asdict(view)) == view


@pytest.mark.parametrize(("size", "radius"), [(224, 11), (128, 6), (96, 6), (32, 6), (4, 3), (1, 0)])
def test_kernels_of_the_papers(size: int, radius: int) -> None:
    """23 pixels at 224, a tenth; 13 where that would cut off sigma 2; reflection needs less than the size."""
    assert View("a", size).blur_radius == radius


@pytest.mark.parametrize(
    ("make", "expected"),
    [  # SCE Table 2: jitter, brightness, contrast, saturation, hue, grayscale, blur, solarize; then the least area
        (views.weak, (0.0, None, None, None, None, 0.0, 0.0, 0.0, 0.2)),
        (views.strong, (0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.5, 0.0, 0.2)),
        (views.strong_alpha, (0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 1.0, 0.0, 0.2)),
        (views.strong_beta, (0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.1, 0.2, 0.2)),
        (views.strong_gamma, (0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.5, 0.2, 0.2)),
        (views.byol_online, (0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 1.0, 0.0, 0.08)),
        (views.byol_target, (0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.1, 0.2, 0.08)),
        (views.simsiam, (0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.0, 0.0, 0.2)),
        (views.ressl_strong, (0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.5, 0.0, 0.2)),
        (views.ressl_imagenet, (0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.5, 0.1, 0.14)),
    ],
)
def test_named_sets(make: Callable[[str, int], View], expected: tuple[float | None, ...]) -> None:
    view = make("online", 48)
    fields = ("jitter", "brightness", "contrast", "saturation", "hue", "grayscale", "blur", "solarize")
    values = (*(getattr(view, field) for field in fields), view.crop_scale[0])
    assert all(ours == paper for ours, paper in zip(values, expected, strict=True) if paper is not None)
    assert (view.name, view.size, view.crop, view.flip, view.crop_scale[1]) == ("online", 48, 1.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("make", "like", "scales"),
    [
        (views.sce_local, views.strong_gamma, [(0.172, 0.86), (0.143, 0.715), (0.114, 0.571), (0.086, 0.429)]),
        (views.ressl_local, views.ressl_imagenet, [(0.117, 0.86), (0.095, 0.715), (0.073, 0.571), (0.05, 0.429)]),
    ],
)
def test_local_crops(
    make: Callable[[int], dict[str, View]], like: Callable[[str, int], View], scales: list[tuple[float, float]]
) -> None:
    crops = make(224)
    assert [view.size for view in crops.values()] == [192, 160, 128, 96]
    for (name, view), scale in zip(crops.items(), scales, strict=True):
        assert view == replace(like(name, view.size), crop_scale=scale)
    assert [view.size for view in make(32).values()] == [27, 23, 18, 14]

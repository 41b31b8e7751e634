"""Views of moments: which frames are drawn, what they share, and the pixels that are made of them, by hand."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import pytest
import torch
import torchvision.transforms.v2.functional as tv
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats
from torch import Tensor

from methods.takes import (
    KEPT,
    PARAMETERS,
    REMOVED,
    SUBSTITUTED,
    Background,
    Role,
    TakeView,
    background_frames,
    backgrounds,
    other_time,
)

N = 6000
IDENTITY = dict.fromkeys(PARAMETERS, 0.0) | {"scale": 1.0}
KEEP = TakeView("a", 4, background="keep")


def columns(view: TakeView, frame: int = 500, frames: int = 1000, cameras: int = 4, n: int = N) -> dict[str, Tensor]:
    whole = {"frame": frame, "frames": frames, "cameras": cameras}
    drawn = view.draw(3, 1, torch.arange(n), **{name: torch.full((n,), value) for name, value in whole.items()})
    assert drawn.shape == (n, view.width) and drawn.dtype == torch.float32
    return dict(zip(PARAMETERS, drawn.double().unbind(1), strict=True))


def three(**fields: Any) -> list[TakeView]:
    return [TakeView(role, role=role, **fields) for role in get_args(Role)]


def parameters(count: int, **values: float | Sequence[float]) -> Tensor:
    """Those that change nothing, but for the given ones."""
    rows = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in {**IDENTITY, **values}.items()}
    return torch.stack([rows[name].expand(count) for name in PARAMETERS], 1)


def noise(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def is_uniform(values: Tensor, over: Sequence[float]) -> bool:
    counts = torch.stack([(values == value).sum() for value in over])
    assert counts.sum() == len(values), "a value that may not be"
    return len(counts) == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-4


def is_spread(values: Tensor, low: float, high: float) -> bool:
    return stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-4


# ------------------------------------------------------------------------------------ which frames


def test_cameras_are_ordered_pairs() -> None:
    """Of 3 cameras 6 ordered pairs, each as likely; the unsynchronized view has the synchronized one's camera."""
    anchor, synchronized, unsynchronized = (columns(view, cameras=3)["camera"] for view in three())
    pairs = [10 * a + b for a in range(3) for b in range(3) if a != b]
    assert is_uniform(10 * anchor + synchronized, pairs)
    assert torch.equal(synchronized, unsynchronized)


def test_one_camera_for_both() -> None:
    views = three(cameras="one")
    cameras = [columns(view)["camera"] for view in views]
    assert is_uniform(cameras[0], range(4))
    assert all(torch.equal(cameras[0], other) for other in cameras)
    assert all((columns(view, cameras=1)["camera"] == 0).all() for view in views)


def test_times() -> None:
    anchor, synchronized, unsynchronized = (columns(view)["frame"] for view in three())
    assert (anchor == 500).all() and (synchronized == 500).all()
    gaps = [*range(-127, -4), *range(5, 128)]
    assert is_uniform(unsynchronized - 500, gaps)


@pytest.mark.parametrize(
    ("frame", "frames", "allowed"),
    [
        (0, 1000, range(5, 128)),
        (999, 1000, range(872, 995)),
        (3, 12, range(8, 12)),
        (6, 12, [0, 1, 11]),
        (6, 11, [0, 1]),
        (5, 10, [0]),
        (4, 9, [0, 8]),  # nothing is farther than d_min: the farthest, on either side
        (1, 5, [4]),
        (3, 5, [0]),
        (1, 2, [0]),
    ],
)
def test_times_at_the_edges_and_in_short_takes(frame: int, frames: int, allowed: Sequence[int]) -> None:
    found = columns(TakeView("u", role="unsynchronized"), frame, frames)["frame"]
    assert is_uniform(found, allowed)


@settings(deadline=None)
@given(st.integers(2, 400), st.data())
def test_other_time_is_a_choice_among_what_is_allowed(frames: int, data: st.DataObject) -> None:
    """All evenly spaced u find all allowed t2, by a naive list of them, equally often."""
    frame = data.draw(st.integers(0, frames - 1))
    least = data.draw(st.integers(0, 20))
    greatest = data.draw(st.integers(least + 2, 60))
    allowed = [t for t in range(frames) if least < abs(t - frame) < greatest]
    if not allowed:
        far = max(frame, frames - 1 - frame)
        allowed = [t for t in range(frames) if abs(t - frame) == far]
    u = (torch.arange(6 * len(allowed)) + 0.5) / (6 * len(allowed))
    t, length = (torch.full((len(u),), value) for value in (frame, frames))
    found = other_time(u.double(), t, length, least, greatest)
    assert torch.equal(found.bincount(minlength=frames).nonzero()[:, 0], torch.tensor(allowed))
    assert (found.bincount()[allowed] == 6).all()


def test_a_batch_of_unequal_takes() -> None:
    """Each row alone is what it is in the batch, and keeps to its own take."""
    index = torch.arange(N)
    frames, cameras = 2 + index * 7 % 300, 2 + index % 3
    takes = {"frame": index * 11 % frames, "frames": frames, "cameras": cameras}
    view = TakeView("u", role="unsynchronized", background="substitute")
    drawn = view.draw(0, 0, index, **takes)
    rows = torch.arange(5, N, 61)
    assert torch.equal(view.draw(0, 0, index[rows], **{k: v[rows] for k, v in takes.items()}), drawn[rows])
    camera, frame, other = view.sources(drawn).unbind(1)
    assert ((frame >= 0) & (frame < frames)).all()
    assert ((camera < cameras) & (other < cameras) & (camera >= 0) & (other >= 0)).all()
    assert (camera != other).all()
    gap = (frame - takes["frame"]).abs()
    reach = torch.maximum(takes["frame"], frames - 1 - takes["frame"])
    assert ((gap > 4) == (reach > 4)).all() and (gap < 128).all()
    assert (gap[reach <= 4] == reach[reach <= 4]).all()


# ------------------------------------------------------------------------------------------- shared


def test_a_moment_shares_flip_and_no_jitter() -> None:
    views = three(shift=0.1, scale=(0.8, 1.25), rotation=30.0, flip=0.3)
    drawn = [columns(view) for view in views]
    assert abs(drawn[0]["flip"].mean() - 0.3) < 0.03
    assert all(torch.equal(drawn[0]["flip"], other["flip"]) for other in drawn)
    for name, low, high in (
        ("shift_x", -0.1, 0.1),
        ("shift_y", -0.1, 0.1),
        ("scale", 0.8, 1.25),
        ("rotation", -30, 30),
    ):
        for each in drawn:
            assert is_spread(each[name], low, high), name
        assert abs(torch.corrcoef(torch.stack([drawn[0][name], drawn[1][name]]))[0, 1]) < 0.05, name


def test_what_is_shared_is_independent() -> None:
    drawn = columns(TakeView("u", role="unsynchronized"))
    table = torch.stack([drawn[name] for name in ("camera", "frame", "flip")])
    assert (torch.corrcoef(table) - torch.eye(3)).abs().max() < 0.05


def test_draws_differ_by_seed_epoch_and_index() -> None:
    view, n = TakeView("u", role="unsynchronized"), torch.arange(64)
    takes = {"frame": torch.full((64,), 50), "frames": torch.full((64,), 100), "cameras": torch.full((64,), 4)}
    first = view.draw(0, 0, n, **takes)
    assert torch.equal(first, view.draw(0, 0, n, **takes))
    for other in (view.draw(1, 0, n, **takes), view.draw(0, 1, n, **takes), view.draw(0, 0, n + 64, **takes)):
        assert not torch.equal(first, other)


@pytest.mark.parametrize("background", get_args(Background))
def test_backgrounds_are_drawn(background: Background) -> None:
    """Mixed: half and half, for each view anew; another camera only where it is substituted, all of them alike."""
    drawn = [columns(view) for view in three(background=background)]
    kinds = {"keep": [KEPT], "remove": [REMOVED], "substitute": [SUBSTITUTED], "mixed": [REMOVED, SUBSTITUTED]}
    for each in drawn:
        assert is_uniform(each["background"], kinds[background])
        substituted = each["background"] == SUBSTITUTED
        assert torch.equal(each["substitute"] != each["camera"], substituted)
        if substituted.any():
            assert is_uniform((each["substitute"] - each["camera"])[substituted] % 4, [1, 2, 3])
    if background == "mixed":
        assert 0.4 < (drawn[0]["background"] == drawn[1]["background"]).double().mean() < 0.6


def test_plain_keeps_what_is_shown_and_drops_the_jitter() -> None:
    view = TakeView("u", role="unsynchronized", shift=0.1, scale=(0.5, 2.0), rotation=20.0)
    plain, drawn = columns(view.plain()), columns(view)
    for name in ("camera", "frame", "background", "substitute"):
        assert torch.equal(plain[name], drawn[name])
    for name, value in {"flip": 0.0, "shift_x": 0.0, "shift_y": 0.0, "scale": 1.0, "rotation": 0.0}.items():
        assert (plain[name] == value).all(), name


# -------------------------------------------------------------------------------------- backgrounds


def test_the_background_is_removed_by_hand() -> None:
    """Threshold 10, median 100 everywhere. Levels 100, 110, 111 and 90, 89: only 111 and 89 are foreground. A pixel
    is foreground as a whole where one channel is."""
    view = replace(KEEP, size=3, background="remove", threshold=10.0)
    levels = torch.tensor([[[100, 110, 111], [90, 89, 100], [100, 100, 100]]], dtype=torch.uint8)
    image = levels.repeat(3, 1, 1)
    image[2, 2, 2] = 200
    expected = torch.zeros_like(image)
    expected[:, 0, 2], expected[:, 1, 1] = 111, 89
    expected[:, 2, 2] = torch.tensor([100, 100, 200])
    median = torch.full((1, 3, 3, 3), 100, dtype=torch.uint8)
    made = view.apply(image[None], parameters(1, background=REMOVED), background=median)
    assert torch.equal(made[0], expected)
    finer = replace(view, threshold=10.9).apply(image[None], parameters(1, background=REMOVED), background=median)
    assert torch.equal(finer, made)


def test_the_background_is_substituted_by_hand() -> None:
    """A subject of 200 before grey levels of 60: another camera's 90 behind it, or black, as the row says."""
    image = torch.full((2, 3, 4, 4), 60, dtype=torch.uint8)
    image[:, :, 1:3, 1:3] = 200
    median, other = torch.full_like(image, 61), torch.full_like(image, 90)
    view = replace(KEEP, background="mixed")
    made = view.apply(image, parameters(2, background=[SUBSTITUTED, REMOVED]), background=median, other=other)
    for row, behind in zip(made, (90, 0), strict=True):
        expected = torch.full((3, 4, 4), behind, dtype=torch.uint8)
        expected[:, 1:3, 1:3] = 200
        assert torch.equal(row, expected)


def test_the_background_is_handled_before_the_crop() -> None:
    """A view at half the size of a checkerboard of subject and background: thresholds see the whole frame's pixels."""
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[..., ::2, ::2] = 40
    median = torch.zeros_like(image)
    view = replace(KEEP, size=4, background="remove")
    p = parameters(1, background=REMOVED)
    assert torch.equal(view.apply(image, p, background=median), KEEP.apply(image, p))
    assert view.apply(image, p, background=median).amax() < 30


def test_medians() -> None:
    """Of 5 frames the third by size, a channel at a time; a subject that stays nowhere long is not in it."""
    frames = torch.tensor([9, 1, 5, 7, 3], dtype=torch.uint8)[:, None, None, None].repeat(1, 2, 3, 4)
    frames[:, 1] += 10
    found = backgrounds(frames)
    assert found.shape == (2, 3, 4) and (found[0] == 5).all() and (found[1] == 15).all()
    scene = noise(1, 6, 9)[0]
    video = scene.repeat(9, 1, 1, 1)
    for t in range(9):
        video[t, :, :, t] = 255 - scene[:, :, t]
    assert torch.equal(backgrounds(video), scene)
    assert torch.equal(backgrounds(noise(4, 3, 3)), noise(4, 3, 3).sort(0).values[1])


@pytest.mark.parametrize(("length", "expected"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (12, [1, 4, 7, 10])])
def test_frames_of_the_median(length: int, expected: list[int]) -> None:
    assert background_frames(length, most=4) == expected
    frames = noise(length, 2, 2)
    assert torch.equal(backgrounds(frames, most=4), backgrounds(frames[expected]))


# -------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("flip", [0, 1])
def test_boxes_are_cut_out_exactly(flip: int) -> None:
    """Whole pixels, as many as the view has: nothing is resampled. Beyond the frame's edges it is black."""
    images, view = noise(4, 12, 20), replace(KEEP, size=6)
    corners = [(0, 0), (14, 6), (-2, 3), (17, -4)]  # left, top
    box = torch.tensor([[left + 3, top + 3, 6] for left, top in corners], dtype=torch.float32)
    made = view.apply(images, parameters(4, flip=flip), box=box)
    for image, (left, top), found in zip(images, corners, made, strict=True):
        expected = tv.crop(image, top, left, 6, 6)
        assert torch.equal(found, expected.flip(2) if flip else expected)


def test_no_box_is_the_central_square() -> None:
    images = noise(3, 10, 16)
    made = replace(KEEP, size=10).apply(images, parameters(3))
    assert torch.equal(made, images[..., 3:13])
    square = noise(3, 30, 30)
    resized = tv.resize(square, [8, 8], antialias=True)
    assert (replace(KEEP, size=8).apply(square, parameters(3)).int() - resized.int()).abs().max() <= 1
    larger = tv.resize(square, [45, 45], antialias=True)
    assert (replace(KEEP, size=45).apply(square, parameters(3)).int() - larger.int()).abs().max() <= 1


def test_shift_and_scale_move_the_crop() -> None:
    """A box of 8 at (20, 12), by (.25, -.5) and 1.5 times as large: a square of 12 at (22, 8)."""
    images, view = noise(1, 32, 40), replace(KEEP, size=12)
    box = torch.tensor([[20.0, 12.0, 8.0]])
    made = view.apply(images, parameters(1, shift_x=0.25, shift_y=-0.5, scale=1.5), box=box)
    assert torch.equal(made, images[..., 2:14, 16:28])


def test_resizing_is_the_mean_of_what_it_covers_at_a_third() -> None:
    """At a third of the size the triangle's weights are 1, 2, 3, 2, 1 ninths along either axis."""
    images, view = noise(1, 20, 20, 1), replace(KEEP, size=2)
    made = view.apply(images, parameters(1), box=torch.tensor([[10.0, 10.0, 6.0]]))
    ninths = torch.tensor([1.0, 2, 3, 2, 1], dtype=torch.float64) / 9
    for row in range(2):
        for column in range(2):
            window = images[0, 0, 6 + 3 * row : 11 + 3 * row, 6 + 3 * column : 11 + 3 * column].double()
            assert abs(made[0, 0, row, column].item() - (ninths @ window @ ninths).item()) <= 0.5 + 1e-3


def test_rotation_by_hand() -> None:
    """A crop that is turned clockwise by a quarter shows the frame turned counterclockwise by one. Half a turn is both
    mirrors. No turn changes nothing, though it is sampled."""
    images, view = noise(3, 16, 24), replace(KEEP, size=6, rotation=180.0)
    box = torch.tensor([[9.0, 7.0, 6.0]]).expand(3, 3)
    cut = images[..., 4:10, 6:12]
    made = view.apply(images, parameters(3, rotation=[0.0, 90.0, 180.0]), box=box)
    for found, expected in zip(made, (cut[0], cut[1].rot90(1, (1, 2)), cut[2].flip(1, 2)), strict=True):
        assert (found.int() - expected.int()).abs().max() <= 1
    mirrored = view.apply(images, parameters(3, rotation=[0.0, 90.0, 180.0], flip=1), box=box)
    assert torch.equal(mirrored, made.flip(3))


def test_a_rotated_crop_sees_its_corners() -> None:
    """White everywhere in reach: no black corner at 45 degrees, where the turned square reaches farthest."""
    images = torch.full((3, 1, 40, 40), 255, dtype=torch.uint8)
    view = replace(KEEP, size=9, rotation=60.0)
    box = torch.tensor([[20.0, 20.0, 18.0]]).expand(3, 3)
    assert (view.apply(images, parameters(3, rotation=[-45.0, 45.0, 60.0]), box=box) == 255).all()
    beyond = view.apply(images, parameters(3, rotation=45.0), box=box + torch.tensor([0.0, 0.0, 42.0]))
    assert (beyond[..., [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all() and (beyond[..., 4, 4] == 255).all()


@pytest.mark.parametrize("rotation", [0.0, 25.0])
def test_the_batch_does_not_matter(rotation: float) -> None:
    """Each sample alone gives the same bytes, beside boxes of very different sides, in frames of many chunks."""
    n = 12
    images, median, other = noise(n, 300, 400), noise(n, 300, 400, seed=1), noise(n, 300, 400, seed=2)
    view = TakeView("a", 16, background="mixed", threshold=80, shift=0.2, scale=(0.5, 2.0), rotation=rotation)
    takes = {"frame": torch.zeros(n, dtype=torch.long), "frames": torch.full((n,), 9), "cameras": torch.full((n,), 3)}
    p = view.draw(0, 0, torch.arange(n), **takes)
    box = torch.stack([torch.linspace(0, 400, n), torch.linspace(300, 0, n), torch.logspace(0, 3, n)], 1)
    whole = view.apply(images, p, box=box, background=median, other=other)
    assert whole.shape == (n, *view.shape(3)) and whole.dtype == torch.uint8
    for i in range(n):
        one = slice(i, i + 1)
        alone = view.apply(images[one], p[one], box=box[one], background=median[one], other=other[one])
        assert torch.equal(alone, whole[one])


def test_empty_batches() -> None:
    none = torch.zeros(0, dtype=torch.long)
    drawn = KEEP.draw(0, 0, none, frame=none, frames=none, cameras=none)
    assert drawn.shape == (0, len(PARAMETERS))
    assert KEEP.apply(noise(0, 5, 5), drawn).shape == (0, 3, 4, 4)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "pose"}, "name"),
        ({"size": 0}, "size"),
        ({"role": "third"}, "role"),
        ({"cameras": "three"}, "cameras"),
        ({"least_gap": -1}, "least_gap"),
        ({"greatest_gap": 5}, "greatest_gap"),
        ({"flip": 1.5}, "flip"),
        ({"background": "blur"}, "background"),
        ({"threshold": 255.0}, "threshold"),
        ({"shift": -0.1}, "shift"),
        ({"scale": (1.2, 1.0)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"rotation": 181.0}, "rotation"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"views\.\w+\.{named} is "):
        TakeView(**{"name": "a", **fields})


@pytest.mark.parametrize(
    ("view", "take", "words"),
    [
        (TakeView("s", role="synchronized"), (0, 9, 1), "needs takes of 2 cameras"),
        (TakeView("a", background="substitute"), (0, 9, 1), "needs takes of 2 cameras"),
        (TakeView("s", role="synchronized", cameras="one"), (0, 9, 0), "needs takes of 1 cameras"),
        (TakeView("u", role="unsynchronized"), (0, 1, 4), "needs takes of 2 frames"),
        (TakeView("a"), (9, 9, 4), "outside its take"),
        (TakeView("a"), (-1, 9, 4), "outside its take"),
    ],
)
def test_takes_that_cannot_be_drawn_from(view: TakeView, take: tuple[int, int, int], words: str) -> None:
    good = torch.tensor([[3, 9, 4]])
    frame, frames, cameras = torch.cat([good, torch.tensor([take])]).unbind(1)
    with pytest.raises(ValueError, match=words):
        view.draw(0, 0, torch.arange(2), frame=frame, frames=frames, cameras=cameras)


def test_an_anchor_needs_no_second_camera() -> None:
    """Nor does what is kept: evaluation of poses reads single cameras."""
    assert (columns(TakeView("image"), frame=0, frames=1, cameras=1, n=5)["camera"] == 0).all()
    assert columns(TakeView("s", role="synchronized", cameras="one"), cameras=1, n=5)


def test_wrong_tensors() -> None:
    images, p = noise(2, 5, 5), parameters(2)
    removing, mixed = replace(KEEP, background="remove"), replace(KEEP, background="mixed")
    with pytest.raises(ValueError, match="uint8 images"):
        KEEP.apply(images.float(), p)
    with pytest.raises(ValueError, match="uint8 images"):
        KEEP.apply(images[0], p)
    with pytest.raises(ValueError, match="parameters"):
        KEEP.apply(images, p[:, :-1])
    with pytest.raises(ValueError, match="needs `background`"):
        removing.apply(images, p)
    with pytest.raises(ValueError, match="needs `background`"):
        removing.apply(images, p, background=images[:1])
    with pytest.raises(ValueError, match="needs `other`"):
        mixed.apply(images, p, background=images)
    for box in (torch.zeros(2, 3), torch.ones(2, 2), torch.full((2, 3), torch.nan)):
        with pytest.raises(ValueError, match="boxes are finite"):
            KEEP.apply(images, p, box=box)
    for frames in (images.float(), images[:0], images[0]):
        with pytest.raises(ValueError, match="backgrounds takes"):
            backgrounds(frames)


def test_views_are_read_from_the_command_line_and_from_json() -> None:
    view = tyro.cli(TakeView, args=["--name", "a", "--scale", "0.9", "1.1", "--cameras", "one"])
    assert view == TakeView("a", scale=(0.9, 1.1), cameras="one")
    reader = TypeAdapter(TakeView)
    assert reader.validate_json(reader.dump_json(view)) == view
    assert reader.validate_python(asdict(view)) == view

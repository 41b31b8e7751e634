"""Views of videos: what clips share, which frames they name, and crops that are those of `View`, to the bit."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.clips import FLIP, ClipView, uniform_clips
from methods.temporal import KINDS, Kind
from methods.views import PARAMETERS

SHAPE = (12, 16)
VIEWS = {kind: ClipView(kind, kind, size=8, frames=16) for kind in KINDS}


def drawn(view: ClipView, count: int = 200, *, epoch: int = 0, first: int = 0) -> tuple[Tensor, Tensor]:
    index = torch.arange(first, first + count)
    length = 20 + (index * 37) % 150
    return view.draw(0, epoch, index, length=length, shape=SHAPE), length


def test_clips_of_a_video_share_speed_and_flip_and_nothing_else() -> None:
    parameters = {kind: drawn(view)[0] for kind, view in VIEWS.items()}
    speed, flip = parameters["speed"][:, 0], parameters["speed"][:, 17 + FLIP]
    assert set(speed.tolist()) == {0.0, 1.0, 2.0, 3.0} and 60 < flip.sum() < 140
    for kind, own in parameters.items():
        assert torch.equal(own[:, 0], speed) and torch.equal(own[:, 17 + FLIP], flip), kind
    assert not torch.equal(parameters["speed"][:, 17:19], parameters["periodic"][:, 17:19])  # the crop's centre


@pytest.mark.parametrize("kind", KINDS)
def test_frames_lie_in_the_video_and_depend_on_nothing_but_the_sample(kind: Kind) -> None:
    view = VIEWS[kind]
    parameters, length = drawn(view)
    frames = view.frames_of(parameters)
    assert frames.shape == (200, 16) and int(frames.min()) >= 0 and (frames < length[:, None]).all()
    part, _ = drawn(view, 50, first=100)
    assert torch.equal(part, parameters[100:150])
    assert not torch.equal(parameters, drawn(view, epoch=1)[0])


@pytest.mark.parametrize(("length", "kinds"), [(16, 1), (31, 2), (60, 2), (61, 3), (120, 3), (121, 4), (900, 4)])
def test_kappa_is_uniform_over_what_the_length_allows(length: int, kinds: int) -> None:
    """T = 16: kappa needs 15 2^kappa + 1 frames: 16, 31, 61, 121. The share of one in n of 6,000 draws deviates by up
    to .0065 (one in two): five of these."""
    index = torch.arange(6000)
    drawn = VIEWS["speed"].draw(0, 0, index, length=torch.full_like(index, length), shape=(12, 16))[:, 0].long()
    shares = drawn.bincount(minlength=kinds) / len(index)
    assert len(shares) == kinds and (shares - 1 / kinds).abs().max() < 0.0325


def test_a_fixed_speed_is_lowered_by_the_length() -> None:
    view = dataclasses.replace(VIEWS["speed"], speed=2)
    index = torch.arange(3)
    parameters = view.draw(0, 0, index, length=torch.tensor([61, 60, 5]), shape=SHAPE)
    assert parameters[:, 0].tolist() == [2.0, 1.0, 0.0]  # 15 * 4 + 1 = 61 frames
    assert view.frames_of(parameters)[2].tolist() == [0, 1, 2, 3, *[4] * 12]


def test_a_still_clip_is_its_first_frame() -> None:
    moving, still = VIEWS["warp"], dataclasses.replace(VIEWS["warp"], still=True)
    a, b = moving.frames_of(drawn(moving)[0]), still.frames_of(drawn(still)[0])
    assert torch.equal(b, a[:, :1].expand_as(a))


def pixels(count: int, frames: int = 16) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, frames, 3, *SHAPE), np.uint8))


def test_what_is_cut_out_is_what_the_view_of_images_resamples() -> None:
    """A crop of 8 x 8 out of 12 x 16 pixels: `View.apply` weighs one pixel with 1, the others with 0."""
    view = VIEWS["speed"]
    parameters, _ = drawn(view, 40)
    clips = pixels(40)
    own = view.apply(clips, parameters)
    assert own.shape == (40, 16, 3, 8, 8)
    repeated = parameters[:, None, 17:].expand(-1, 16, -1).flatten(0, 1)
    twin = view._spatial(SHAPE).apply(clips.flatten(0, 1), repeated).unflatten(0, (40, 16))
    assert torch.equal(own, twin)
    one = view.apply(clips[7:8], parameters[7:8])
    assert torch.equal(one[0], own[7])


def test_plain_clips_are_central_and_not_mirrored() -> None:
    view = dataclasses.replace(VIEWS["speed"], jitter=0.8).plain()
    parameters, _ = drawn(view, 6)
    clips = pixels(6)
    assert torch.equal(view.apply(clips, parameters), clips[..., 2:10, 4:12])
    with pytest.raises(ValueError, match=r"views\.a\.central is of crops that are cut out"):
        ClipView("a", central=True, crop_scale=(0.2, 1.0))


def test_colours_are_drawn_for_each_frame_or_once_a_clip() -> None:
    view = dataclasses.replace(VIEWS["speed"], jitter=0.8, grayscale=0.2)
    index, length = torch.arange(30), torch.full((30,), 40)
    each = view.draw(0, 0, index, length=length, shape=SHAPE)
    assert each.shape == (30, view.width) and view.width == 1 + 16 + 16 * len(PARAMETERS)
    placed = each[:, 17:].unflatten(1, (16, -1))
    factor = placed[:, :, PARAMETERS.index("brightness")]
    assert (factor.std(1) > 0).all() and (placed[:, :, :5].std(1) == 0).all()
    once = dataclasses.replace(view, colours="clip")
    assert once.width == VIEWS["speed"].width
    assert once.apply(pixels(30), once.draw(0, 0, index, length=length, shape=SHAPE)).shape == (30, 16, 3, 8, 8)
    assert view.apply(pixels(30), each).shape == (30, 16, 3, 8, 8)


def test_a_resized_crop_has_the_view_s_size() -> None:
    view = dataclasses.replace(VIEWS["speed"], crop_scale=(0.2, 1.0), size=20)  # larger than the frames
    parameters, _ = drawn(view, 5)
    assert view.apply(pixels(5), parameters).shape == (5, 16, 3, 20, 20)


@given(length=st.integers(1, 400), clips=st.integers(1, 12), frames=st.integers(2, 20), speed=st.integers(0, 4))
@settings(max_examples=300, deadline=None)
def test_uniform_clips_lie_evenly_from_the_first_to_the_last_frame(
    length: int, clips: int, frames: int, speed: int
) -> None:
    index = uniform_clips(torch.tensor([length]), clips, frames, speed)[0]
    assert index.shape == (clips, frames) and int(index.min()) >= 0 and int(index.max()) < length
    if length >= frames:
        steps = (index[:, 1:] - index[:, :-1]).unique()
        assert len(steps) == 1 and int(steps) <= 2**speed
        if clips > 1:
            assert int(index[0, 0]) == 0 and int(index[-1, -1]) == length - 1
    gaps = index[1:, 0] - index[:-1, 0]
    assert not len(gaps) or int(gaps.max() - gaps.min()) <= 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"size": 0}, "views.a.size is at least 1"),
        ({"frames": 0}, "views.a.frames is at least 1"),
        ({"speeds": 0}, "views.a.speeds is at least 1"),
        ({"speed": -1}, "views.a.speed is 0 or more"),
        ({"flip": 1.5}, "flip"),
    ],
)
def test_options_out_of_range(fields: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ClipView("a", **fields)  # type: ignore[arg-type]


def test_frames_that_are_too_small_and_clips_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"views\.speed\.size 8 is more than the decoded frames have, 6 x 16"):
        VIEWS["speed"].draw(0, 0, torch.arange(2), length=torch.tensor([20, 20]), shape=(6, 16))
    parameters, _ = drawn(VIEWS["speed"], 2)
    with pytest.raises(ValueError, match="takes uint8 clips"):
        VIEWS["speed"].apply(pixels(2, frames=15), parameters)

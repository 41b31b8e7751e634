"""Time-related tasks: which frames are cut, against naive twins; what learns and what does not; answers."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Clock, Facts
from methods.parts import draw
from methods.timing import METHOD, Config, Timing, cut, halves, pair_starts

INDEX = torch.arange(26_000)


class ToVolume(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)  # (B, C, T, H, W)


def backbone(seed: int = 0) -> Backbone:
    torch.manual_seed(seed)

    def conv(fan_in: int, width: int) -> nn.Sequential:
        layers = nn.Conv3d(fan_in, width, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(width), nn.ReLU(inplace=True)
        return nn.Sequential(*layers)

    network = nn.Sequential(ToVolume(), conv(3, 4), conv(4, 6), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5))
    return Backbone(network, 5, [0.5] * 3, [0.25] * 3, {"conv4": "1", "conv5": "2"})


def build(seed: int = 0, **fields: Any) -> Timing:
    config = Config(**{"frames": 8, "most_offset": 3, "most_gap": 4, "head": (16, 16), **fields})
    facts = Facts(100, None, {"clip": ((config.span, 3, 8, 8), 0)})
    return METHOD(config, backbone(seed), facts)


def batch(method: Timing, start: int = 0, size: int = 12) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(start)
    clip = torch.randint(256, (size, method.config.span, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return {"clip": clip, "index": start + torch.arange(size)}


def clock(step: int = 0, seed: int = 3) -> Clock:
    return Clock(step=step, total_steps=100, steps_per_epoch=10, epoch=step // 10, seed=seed)


def train(method: Timing, steps: int, size: int = 12, lr: float = 0.05, numbered: bool = False) -> list[float]:
    optimizer = torch.optim.SGD(method.parameters_of("model"), lr=lr, momentum=0.9)
    losses = []
    for step in range(steps):
        samples = ramps(method, step * size, size) if numbered else batch(method, step * size, size)
        loss, _ = method(samples, clock(step), "model")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def ramps(method: Timing, start: int, size: int) -> dict[str, Tensor]:
    """Clips that brighten from a random level on, 4 grey levels a frame."""
    u = draw(9, 0, start + torch.arange(size), "level", 1)
    levels = (u * 100).floor() + 4 * torch.arange(method.config.span)  # (B, L)
    return {
        "clip": levels.to(torch.uint8)[:, :, None, None, None].expand(-1, -1, 3, 8, 8),
        "index": start + torch.arange(size),
    }


# --------------------------------------------------------------------------------------- which frames


@given(most=st.integers(1, 15), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_pairs_lie_in_the_span_at_their_offset(most: int, seed: int) -> None:
    starts, offset = pair_starts(draw(seed, 0, INDEX[:2000], "timing", 3), most)
    assert starts.shape == (2000, 2) and starts.dtype == offset.dtype == torch.int64
    assert int(starts.min()) >= 0 and int(starts.max()) <= 2 * most
    assert torch.equal(starts[:, 1] - starts[:, 0], offset)
    assert int(offset.abs().max()) <= most


def test_offsets_are_uniform_and_neither_sequence_has_a_place_of_its_own() -> None:
    """2,000 of 26,000 each of 13 offsets, sd 43. The two sequences' starts are distributed alike."""
    starts, offset = pair_starts(draw(1, 0, INDEX, "timing", 3), 6)
    counts = torch.bincount(offset + 6, minlength=13)
    assert len(counts) == 13 and int((counts - 2000).abs().max()) < 215  # five standard deviations
    first, second = (torch.bincount(column, minlength=13) for column in starts.unbind(1))
    assert int((first - second).abs().max()) < 300
    assert int(first.min()) > 0


def test_a_pair_by_hand() -> None:
    """m = 6. u = (0, 0): offset -6, room 12 - 6 = 6, earlier 0: the first starts at 6, the second at 0. u = (.99, .99):
    offset floor(12.87) - 6 = 6, earlier floor(.99 * 7) = 6: 6 and 12. u = (.5, .5): offset 0, floor(.5 * 13) = 6."""
    starts, offset = pair_starts(torch.tensor([[0.0, 0.0], [0.99, 0.99], [0.5, 0.5]]), 6)
    assert starts.tolist() == [[6, 0], [6, 12], [6, 6]] and offset.tolist() == [-6, 6, 0]


@given(half=st.integers(1, 10), most=st.integers(0, 12), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_halves_do_not_overlap(half: int, most: int, seed: int) -> None:
    u = draw(seed, 0, INDEX[:500], "timing", 3)
    frames, after = halves(u, 2 * half, most)
    assert frames.shape == (500, 2 * half) and int(frames.min()) >= 0 and int(frames.max()) < 2 * half + most
    for row, order, (gap, place, _) in zip(frames.tolist(), after.tolist(), u.tolist(), strict=True):  # naive twin
        gap = int(gap * (most + 1))
        start = int(place * (most - gap + 1))
        early = list(range(start, start + half))
        late = list(range(start + half + gap, start + 2 * half + gap))
        assert row == (late + early if order else early + late)


def test_orders_and_gaps_are_uniform() -> None:
    frames, after = halves(draw(1, 0, INDEX, "timing", 3), 16, 12)
    assert abs(after.float().mean() - 0.5) < 0.016  # five standard deviations
    gap = (frames[:, 0] - frames[:, 8]).abs() - 8
    counts = torch.bincount(gap, minlength=13)
    assert len(counts) == 13 and int((counts - 2000).abs().max()) < 215


def test_halves_by_hand() -> None:
    """T = 4, g = 2. u = (.4, .99, .1): gap floor(1.2) = 1, start floor(.99 * 2) = 1, before: 1 2, 4 5."""
    frames, after = halves(torch.tensor([[0.4, 0.99, 0.1], [0.4, 0.99, 0.5], [0.99, 0.99, 0.0]]), 4, 2)
    assert frames.tolist() == [[1, 2, 4, 5], [4, 5, 1, 2], [0, 1, 4, 5]] and after.tolist() == [0, 1, 0]


def test_cut_is_each_samples_own() -> None:
    clips = torch.arange(3 * 5 * 2).view(3, 5, 1, 1, 2)
    frames = torch.tensor([[0, 4], [3, 3], [2, 1]])
    expected = torch.stack([torch.stack([clips[b, t] for t in row]) for b, row in enumerate(frames.tolist())])
    assert torch.equal(cut(clips, frames), expected)


# --------------------------------------------------------------------------------------------- method


@pytest.mark.parametrize("layer", ["conv5", "conv4", ""])
@pytest.mark.parametrize("task", ["synchronization", "before_after"])
def test_logits_equal_a_naive_twin(task: str, layer: str) -> None:
    """A sample at a time, cut by slices, through the network's own modules."""
    method = build(task=task, layer=layer).eval()
    samples, u = batch(method), draw(0, 0, torch.arange(12), "twin", 3)
    logits, label = method.logits(samples["clip"], u)
    network, c = method.backbone.network, method.config

    def psi(frames: list[Tensor]) -> Tensor:
        x = (torch.stack(frames).float() / 255 - 0.5) / 0.25
        stop = {"conv5": 3, "conv4": 2, "": 6}[layer]
        return network[:stop](x[None]).flatten(1)  # type: ignore[index]

    for b, clip in enumerate(samples["clip"]):
        if task == "synchronization":
            offset = int(u[b, 0] * 7) - 3
            earlier = int(u[b, 1] * (6 - abs(offset) + 1))
            first, second = (earlier, earlier + offset) if offset >= 0 else (earlier - offset, earlier)
            twin = psi(list(clip[first : first + 8])) - psi(list(clip[second : second + 8]))
            assert label[b] == offset + 3
        else:
            gap = int(u[b, 0] * 5)
            start = int(u[b, 1] * (4 - gap + 1))
            early, late = list(clip[start : start + 4]), list(clip[start + 4 + gap : start + 8 + gap])
            twin = psi(late + early if u[b, 2] >= 0.5 else early + late)
            assert label[b] == int(u[b, 2] >= 0.5)
        torch.testing.assert_close(logits[b : b + 1], method.head(twin), atol=1e-5, rtol=1e-4)
    assert logits.shape == (12, c.classes)


def test_the_head_is_three_layers_with_batch_norm() -> None:
    method = METHOD(Config(), backbone(), Facts(100, None, {"clip": ((28, 3, 8, 8), 0)}))
    kinds = [type(layer).__name__ for layer in method.head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    widths = [(layer.in_features, layer.out_features) for layer in method.head if isinstance(layer, nn.Linear)]
    assert widths == [(6 * 16 * 2 * 2, 2048), (2048, 2048), (2048, 13)]
    assert Config(task="before_after").span == 28 and Config(task="before_after").classes == 2


def test_a_frozen_backbone_does_not_move() -> None:
    method = build()
    before = copy.deepcopy(method.backbone.state_dict())
    train(method, 3)
    assert all(torch.equal(value, before[name]) for name, value in method.backbone.state_dict().items())
    assert {id(p) for p in method.parameters_of("model")} == {id(p) for p in method.head.parameters()}


def test_a_backbone_that_learns_does_so_up_to_the_layer() -> None:
    """DistributedDataParallel refuses parameters without a gradient."""
    for layer, places in (("conv5", "12"), ("conv4", "1"), ("", "125")):
        method = build(freeze_backbone=False, layer=layer)
        before = copy.deepcopy(method.backbone.network.state_dict())
        train(method, 2)
        after = method.backbone.network.state_dict()
        assert {name[0] for name in before if not torch.equal(before[name], after[name])} == set(places), layer
        assert all((p.grad is not None) == p.requires_grad for p in method.parameters())


def test_it_learns_what_only_time_tells() -> None:
    """Clips that brighten evenly from a random level on: the difference of two sequences tells the offset, the order of
    halves is their step's sign, and a single frame tells neither."""
    for task in ("synchronization", "before_after"):
        method = build(task=task, norm_momentum=0.2)
        losses = train(method, 150, size=32, lr=0.1, numbered=True)
        figures = method.task(ramps(method, 10_000, 200), clock())
        assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), task
        assert figures["accuracy"] > 0.6, task  # of chance 1/7 and 1/2
        assert task == "before_after" or figures["mae"] < 0.6  # of chance 12/7


def test_a_still_video_is_chance() -> None:
    """All sequences are equal then: the answer is constant, and of 7 offsets one is right."""
    method = build()
    clip = batch(method, size=700)["clip"][:, :1].expand(-1, method.config.span, -1, -1, -1)
    said, true, classes = method.answers({"clip": clip, "index": torch.arange(700)}, clock())["synchronization"]
    assert classes == 7 and said.shape == true.shape == (700, 1)
    assert len(said.unique()) == 1
    assert abs((said == true).float().mean() - 1 / 7) < 0.07


# ------------------------------------------------------------------------------------------ evaluation


def test_figures_by_hand() -> None:
    """Said -3, 0, 2, 1 of -3, 1, -1, 1: half are right, and the errors 0, 1, 3, 0 have the mean 1."""
    said, truth = torch.tensor([-3, 0, 2, 1]), torch.tensor([-3, 1, -1, 1])
    assert build().figures(said, truth) == {"accuracy": 0.5, "mae": 1.0}
    assert build(task="before_after").figures(said, truth) == {"accuracy": 0.5}


@pytest.mark.parametrize("task", ["synchronization", "before_after"])
def test_answers_are_those_of_their_own_draws(task: str) -> None:
    method = build(task=task).train()
    samples = batch(method, size=40)
    before = copy.deepcopy(method.state_dict())
    found = method.answers(samples, clock(0))[task]
    for step in (7, 0):  # of one epoch
        other = method.answers(samples, clock(step))[task]
        assert torch.equal(found.true, other.true) and torch.equal(found.said, other.said)
    for moment in (clock(seed=4), clock(10)):
        assert not torch.equal(found.true, method.answers(samples, moment)[task].true)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert method.head.training and not method.backbone.training
    _, label = method.logits(samples["clip"], draw(3, 0, samples["index"], "timing", 3))
    assert not torch.equal(found.true[:, 0], label)
    assert set(found.true.flatten().tolist()) == set(range(found.classes))
    figures = method.task(samples, clock())
    assert figures["accuracy"] == (found.said == found.true).float().mean()
    assert set(figures) == ({"accuracy", "mae"} if task == "synchronization" else {"accuracy"})


def test_training_draws_are_of_the_step_and_of_no_generator() -> None:
    method = build()
    samples, state = batch(method, size=64), torch.get_rng_state()
    losses = [method(samples, clock(step), "model").loss.item() for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_state_dict_resumes_to_the_bit() -> None:
    first, second = build(), build(seed=1)
    train(first, 2)
    second.load_state_dict(first.state_dict())
    assert train(first, 2) == train(second, 2)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


# --------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"task": "after"}, "task"),
        ({"frames": 1}, "frames"),
        ({"frames": 9, "task": "before_after"}, "frames"),
        ({"most_offset": 0}, "most_offset"),
        ({"most_offset": 16}, "most_offset"),
        ({"most_gap": -1}, "most_gap"),
        ({"head": (8, 0)}, "head"),
        ({"norm_momentum": 0.0}, "norm_momentum"),
    ],
)
def test_wrong_options_are_refused(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"method.{name} "):
        Config(**fields)


def test_wrong_views_and_layers_are_refused() -> None:
    for views, message in (
        ({"image": ((3, 8, 8), 0)}, "timing takes the view clip, got image"),
        ({"clip": ((16, 3, 8, 8), 0)}, "synchronization needs a view clip of 28 frames, got 16"),
    ):
        with pytest.raises(ValueError, match=message):
            METHOD(Config(), backbone(), Facts(10, None, views))
    with pytest.raises(ValueError, match=r"no layer conv9 \(it has conv4, conv5\)"):
        build(layer="conv9")

"""Temporal transformations: the frames that clips are made of, both losses, and what the method tells of its task."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Clock, Facts
from methods.parts import draw
from methods.temporal import (
    DRAWS,
    KINDS,
    PERIODIC,
    STEPS,
    Config,
    Kind,
    Temporal,
    frame_indices,
    motion_loss,
    periodic_offsets,
    possible_speed,
    speed_loss,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
CLOCK = Clock(step=0, total_steps=4, steps_per_epoch=4, epoch=0, seed=3)
COUNT = 4000


def indices(kind: Kind, speed: int, frames: int, length: int, count: int = COUNT, seed: int = 0) -> Tensor:
    """int64 (count, frames): as many draws of one speed and length."""
    u = draw(seed, 0, torch.arange(count), kind, max(DRAWS, frames + 1))
    return frame_indices(kind, torch.full((count,), speed), frames, torch.full((count,), length), u)


def mixed(frames: int, count: int = COUNT, longest: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Speeds 0 to 4, lengths from 1 on, and draws."""
    u = draw(1, 0, torch.arange(count), "speed and length", 2)
    speed, length = (u[:, 0] * 5).long(), 1 + (u[:, 1] * longest).long()
    return speed, length, draw(2, 0, torch.arange(count), "frames", max(DRAWS, frames + 1))


def chi_square(values: Tensor, expected: range) -> float:
    """Of counts against a uniform distribution over `expected`, in standard deviations above its mean."""
    counts = Counter(values.flatten().tolist())
    assert set(counts) == set(expected)
    mean, freedom = values.numel() / len(expected), len(expected) - 1
    return (sum((counts[k] - mean) ** 2 / mean for k in expected) - freedom) / math.sqrt(2 * freedom)


# ------------------------------------------------------------------------------------------- indices


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 5),
    st.integers(7, 40),
    st.integers(1, 400),
    st.lists(st.floats(0, 1 - 2**-24)),
)
def test_frames_lie_in_the_video(kind: Kind, speed: int, frames: int, length: int, numbers: list[float]) -> None:
    """Of whatever draws; and their number is T."""
    u = torch.tensor([(numbers + [0.0, 1 - 2**-24] * DRAWS)[:DRAWS]])
    found = frame_indices(kind, torch.tensor([speed]), frames, torch.tensor([length]), u)
    assert found.shape == (1, frames) and found.dtype == torch.int64
    assert int(found.min()) >= 0 and int(found.max()) < length


@every_kind
@pytest.mark.parametrize("frames", [7, 8, 16, 33])
def test_nothing_is_clamped_where_the_clip_fits(kind: Kind, frames: int) -> None:
    """The clamped frames would be the last one repeated: differences tell, at the tightest lengths too."""
    for speed in range(4):
        for extra in (0, 1, 5):
            found = indices(kind, speed, frames, (frames - 1) * 2**speed + 1 + extra, 500)
            steps = found.diff(dim=1)
            if kind == "random":
                assert torch.equal(found.sort(1).values.diff(dim=1), torch.ones_like(steps))
            elif kind == "periodic":
                turn = found.argmax(1, keepdim=True)
                backward = torch.arange(frames - 1) >= turn
                first_back = torch.arange(frames - 1) == turn
                assert (steps[~backward] == 2**speed).all()
                assert (steps[backward & ~first_back] == -(2**speed)).all()
                assert ((steps[first_back] < 0) & (steps[first_back] >= -(2**speed))).all()
            else:
                assert (steps == 2**speed).all() if kind == "speed" else ((steps >= 1) & (steps <= STEPS)).all()


def test_speed() -> None:
    """Steps of 2^kappa; rho takes each place that the length allows equally often."""
    for speed in range(4):
        found = indices("speed", speed, 16, 15 * 2**speed + 7)
        assert torch.equal(found - found[:, :1], (torch.arange(16) * 2**speed).expand(COUNT, -1))
        assert abs(chi_square(found[:, 0], range(7))) < 4


def test_a_speed_that_does_not_fit_is_lowered() -> None:
    """T = 16: kappa needs 15 2^kappa + 1 frames: 16, 31, 61, 121."""
    length = torch.tensor([1, 15, 16, 30, 31, 60, 61, 120, 121, 10**6])
    limits = [0, 0, 0, 0, 1, 1, 2, 2, 3, 16]
    assert possible_speed(torch.full_like(length, 16), 16, length).tolist() == limits
    assert possible_speed(torch.full_like(length, 2), 16, length).tolist() == [min(2, k) for k in limits]
    assert possible_speed(torch.full_like(length, 3), 1, length).tolist() == [3] * len(length)
    speed, length, u = mixed(16)
    naive = [
        max((k for k in range(s + 1) if 15 * 2**k + 1 <= n), default=0) for s, n in zip(speed, length, strict=True)
    ]
    assert possible_speed(speed, 16, length).tolist() == naive
    for kind in KINDS:
        lowered = frame_indices(kind, torch.tensor(naive), 16, length, u)
        assert torch.equal(frame_indices(kind, speed, 16, length, u), lowered)


def test_random() -> None:
    """A permutation of successive frames, whatever the speed: each place holds each frame equally often."""
    found = indices("random", 3, 16, 40)
    assert torch.equal(found, indices("random", 0, 16, 40))
    first = found.amin(1, keepdim=True)
    assert torch.equal((found - first).sort(1).values, torch.arange(16).expand(COUNT, -1))
    assert abs(chi_square(first, range(25))) < 4
    for place in range(16):
        assert abs(chi_square((found - first)[:, place], range(16))) < 4
    pairs = (found - first)[:, 0] * 16 + (found - first)[:, 1]  # of two places, a frame in one says nothing of the rest
    assert len(pairs.unique()) == 16 * 15


def naive_periodic(s: int, kappa: int, frames: int) -> list[int]:
    """The printed sequence with its printed rho, 15 being T - 1."""
    step, last = 2**kappa, frames - 1
    whole = s // step
    delta = s - whole * step
    forward = [j * step for j in range(whole + 1)]
    back = [j * step + delta for j in range(whole - 1, 2 * whole - last - 1, -1)]
    rho = max(0, (last - 2 * whole) * step - delta)
    return [rho + j for j in forward + back]


@pytest.mark.parametrize("frames", [7, 8, 16, 31])
@pytest.mark.parametrize("kappa", [0, 1, 2, 3])
def test_every_periodic_sequence(frames: int, kappa: int) -> None:
    """Of each turning point that the text allows: T frames, the lowest 0 or above, shorter than a speed clip."""
    points = range(2 * 2**kappa + 1, (frames - 3) * 2**kappa)
    assert len(points) == (frames - 5) * 2**kappa - 1 > 0
    offsets = periodic_offsets(torch.tensor([*points])[:, None], torch.full((len(points), 1), 2**kappa), frames)
    expected = torch.tensor([naive_periodic(s, kappa, frames) for s in points])
    assert expected.shape == (len(points), frames)
    assert torch.equal(offsets - offsets.amin(1, keepdim=True).clamp(max=0), expected)
    assert (expected >= 0).all() and (expected.amax(1) < (frames - 1) * 2**kappa).all()


def test_periodic_by_hand() -> None:
    """T = 16, kappa = 1, s = 11: s' = 5, delta = 1. 0, 2, 4, 6, 8, 10, then 4 * 2 + 1 = 9, 7, ..., (10 - 15) * 2 + 1 =
    -9; rho = 9. And s = 24: s' = 12, delta = 0: 0, ..., 24, 22, 20, 18; rho = max(0, -18) = 0."""
    low = [9, 11, 13, 15, 17, 19, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0]
    high = [*range(0, 25, 2), 22, 20, 18]
    assert naive_periodic(11, 1, 16) == low and naive_periodic(24, 1, 16) == high
    found = {tuple(row) for row in indices("periodic", 1, 16, 31).tolist()}
    assert tuple(low) in found and tuple(high) in found


@pytest.mark.parametrize("kappa", [0, 1, 3])
def test_periodic_draws(kappa: int) -> None:
    """Each turning point equally often, and each additional offset that the length allows."""
    length, points = 15 * 2**kappa + 3, range(2 * 2**kappa + 1, 13 * 2**kappa)
    known = {s: naive_periodic(s, kappa, 16) for s in points}
    shapes = {tuple(j - row[0] for j in row): s for s, row in known.items()}
    assert len(shapes) == len(points)
    found = indices("periodic", kappa, 16, length).tolist()
    turns = [shapes[tuple(j - row[0] for j in row)] for row in found]
    assert abs(chi_square(torch.tensor(turns), points)) < 4
    extra = [(row[0] - known[s][0], length - 1 - max(known[s])) for row, s in zip(found, turns, strict=True)]
    assert all(0 <= offset <= room for offset, room in extra)
    wide = [(offset + 0.5) / (room + 1) for offset, room in extra]
    assert abs(sum(wide) / COUNT - 0.5) < 4 / math.sqrt(12 * COUNT)
    assert min(offset for offset, _ in extra) == min(room - offset for offset, room in extra) == 0


def test_warp() -> None:
    """Steps of 1 to 8 at every speed, uniform and independent; rho uniform over what is left."""
    found = indices("warp", 0, 16, 200)
    assert torch.equal(found, indices("warp", 3, 16, 200))
    steps = found.diff(dim=1)
    assert abs(chi_square(steps, range(1, 9))) < 4
    pairs = (steps[:, :-1] - 1) * 8 + steps[:, 1:] - 1
    assert abs(chi_square(pairs[:, ::2], range(64))) < 4
    room = 199 - (found[:, -1] - found[:, 0])
    assert (found[:, 0] <= room).all()
    assert abs(float(((found[:, 0] + 0.5) / (room + 1)).mean()) - 0.5) < 4 / math.sqrt(12 * COUNT)


@pytest.mark.parametrize(
    ("length", "most"), [(16, 1), (30, 1), (31, 2), (60, 3), (61, 4), (120, 7), (121, 8), (999, 8)]
)
def test_warp_in_short_videos(length: int, most: int) -> None:
    """The greatest step is the greatest of which 15 fit: (length - 1) / 15, at least 1, at most 8."""
    assert indices("warp", 0, 16, length).diff(dim=1).unique().tolist() == [*range(1, most + 1)]


@every_kind
@pytest.mark.parametrize("length", range(1, 16))
def test_a_short_video_repeats_its_last_frame(kind: Kind, length: int) -> None:
    found, last = indices(kind, 3, 16, length, 200), length - 1
    if kind in ("speed", "warp"):
        assert torch.equal(found, torch.arange(16).clamp(max=last).expand(200, -1))
    elif kind == "random":
        assert torch.equal(found.sort(1).values, torch.arange(16).clamp(max=last).expand(200, -1))
    else:
        known = {tuple(min(j, last) for j in naive_periodic(s, 0, 16)) for s in range(3, 13)}
        if length < 10:  # the shortest periodic clip spans 8 steps: nothing of these is left to move
            assert {tuple(row) for row in found.tolist()} <= known
        assert int(found.max()) == last


@every_kind
def test_a_sample_does_not_depend_on_its_batch(kind: Kind) -> None:
    speed, length, u = mixed(16, 300)
    whole = frame_indices(kind, speed, 16, length, u)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(frame_indices(kind, speed[order], 16, length[order], u[order]), whole[order])
    for i in range(20):
        alone = frame_indices(kind, speed[i : i + 1], 16, length[i : i + 1], u[i : i + 1])
        assert torch.equal(alone, whole[i : i + 1])
    assert torch.equal(frame_indices(kind, speed, 16, length, torch.cat([u, u], 1)), whole)
    assert frame_indices(kind, speed[:0], 16, length[:0], u[:0]).shape == (0, 16)


@pytest.mark.parametrize("kind", ["speed", "random", "warp"])
def test_few_frames(kind: Kind) -> None:
    assert indices(kind, 2, 1, 5).unique().tolist() == [0, 1, 2, 3, 4]
    assert indices(kind, 2, 2, 1).unique().tolist() == [0]
    assert indices(kind, 0, 2, 2).sort(1).values.unique(dim=0).tolist() == [[0, 1]]


BAD = [
    ({"kind": "reverse"}, "kind is one of"),
    ({"frames": 0}, "at least 1 frames"),
    ({"kind": "periodic", "frames": PERIODIC - 1}, "at least 7 frames"),
    ({"draw": torch.rand(3, 63)}, "R at least 64"),
    ({"frames": 64}, "R at least 65"),
    ({"draw": torch.rand(64)}, "R at least 64"),
    ({"draw": torch.zeros(3, 64, dtype=torch.int64)}, "draw is float"),
    ({"speed": torch.tensor([0, -1, 2])}, "speed is at least 0"),
    ({"speed": torch.tensor([0.0, 1.0, 2.0])}, "speed is int64"),
    ({"speed": torch.tensor(1)}, "speed is int64"),
    ({"length": torch.tensor([30, 0, 20])}, "length is at least 1"),
    ({"length": torch.tensor([30, 20])}, "length is int64"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments(change: Mapping[str, Any], message: str) -> None:
    good = {"kind": "speed", "speed": torch.tensor([0, 1, 2]), "frames": 16, "length": torch.tensor([30, 40, 20])}
    arguments: dict[str, Any] = {**good, "draw": torch.rand(3, 64), **change}
    with pytest.raises(ValueError, match=message):
        frame_indices(**arguments)


# -------------------------------------------------------------------------------------------- losses


def test_losses_by_hand() -> None:
    """Logits are ln of weights. Two kinds, two videos.

    Motion: kind 0 weighs (3, 1) and (1, 1), so that its own class has probability 3/4 and 1/2; kind 1 weighs (1, 1)
    and (1, 4): 1/2 and 4/5. Products of Eq. 5.1, a video: 3/8 and 2/5. Loss: -(ln 3/8 + ln 2/5) / 2 = ln(20/3) / 2; the
    mean over clips is half of it.
    Speed: weights (1, 2, 1), kappa 1: 1/2, and (1, 1, 2), kappa 0: 1/4. -(ln 1/2 + ln 1/4) / 2 = 1.5 ln 2.
    """
    motion = torch.tensor([[[3.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 4.0]]]).log()
    assert motion_loss(motion).item() == pytest.approx(math.log(20 / 3) / 2, rel=1e-6)
    assert motion_loss(motion, "mean").item() == pytest.approx(math.log(20 / 3) / 4, rel=1e-6)
    speed = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]).log()
    assert speed_loss(speed, torch.tensor([1, 0])).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_losses_twin() -> None:
    """Eq. 5.1 as printed, in float64, a video after the other."""
    generator = torch.Generator().manual_seed(0)
    motion = torch.randn(4, 7, 4, generator=generator, dtype=torch.float64)
    speed = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    kappa = torch.randint(4, (7,), generator=generator)

    def probability(logits: Tensor, k: int) -> float:
        weights = [math.exp(x) for x in logits.tolist()]
        return weights[k] / sum(weights)

    products = [math.prod(probability(motion[k, i], k) for k in range(4)) for i in range(7)]
    expected = -sum(math.log(p) for p in products) / 7
    assert motion_loss(motion).item() == pytest.approx(expected, rel=1e-12)
    assert motion_loss(motion, "mean").item() == pytest.approx(expected / 4, rel=1e-12)
    expected = -sum(math.log(probability(speed[i], int(kappa[i]))) for i in range(7)) / 7
    assert speed_loss(speed, kappa).item() == pytest.approx(expected, rel=1e-12)


# -------------------------------------------------------------------------------------------- method


class Tiny(nn.Module):
    """Normalized float (B, T, C, H, W) -> (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv3d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1)]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, clips: Tensor) -> Tensor:
        return self.layers(clips.transpose(1, 2))


SHAPE = (16, 3, 6, 6)


def build(views: Mapping[str, tuple[tuple[int, ...], int]] | None = None, **options: Any) -> Temporal:
    torch.manual_seed(0)
    config = Config(**options)
    return Temporal(
        config,
        Backbone(Tiny(), 8, [0.5] * 3, [0.25] * 3),
        Facts(100, None, {view: (SHAPE, 3) for view in config.views} if views is None else views),
    )


def batch_of(count: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Videos whose brightness swings with time, each clip of the frames that the kind chooses."""
    index, length = torch.arange(count), torch.full((count,), 130)
    kappa, phase = (draw(seed, 0, index, "kappa", 1)[:, 0] * 4).long(), draw(seed, 0, index, "phase", 1)
    batch = {"index": index}
    for kind in KINDS:
        frames = frame_indices(kind, kappa, SHAPE[0], length, draw(seed, 0, index, kind, DRAWS))
        brightness = 127 + 100 * torch.sin(0.35 * frames + 6.28 * phase)
        batch[kind] = brightness[:, :, None, None, None].byte().expand(-1, -1, *SHAPE[1:]).contiguous()
        batch[f"{kind}.parameters"] = torch.cat([kappa[:, None].float(), torch.rand(count, 2)], 1)
    return batch


@pytest.mark.parametrize("on_periodic", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_that_of_all_clips_in_one_pass(on_periodic: bool, reduction: Any) -> None:
    method, batch = build(speed_on_periodic=on_periodic, reduction=reduction), batch_of()
    calls: list[int] = []
    method.backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    loss, log = method(batch, CLOCK, "model")
    assert calls == [48]
    logits = method.head(method.backbone(torch.cat([batch[kind] for kind in KINDS])))  # (48, 8)
    motion, speed = logits[:, :4], logits[:, 4:]
    ce, kappa = nn.functional.cross_entropy, batch["speed.parameters"][:, 0].long()
    terms = [ce(motion[12 * k : 12 * k + 12], torch.full((12,), k)) for k in range(4)]
    motion_term = sum(terms, torch.zeros(())) / (1 if reduction == "sum" else 4)
    timed, kappas = (torch.cat([speed[:12], speed[24:36]]), kappa.repeat(2)) if on_periodic else (speed[:12], kappa)
    torch.testing.assert_close(log["motion_loss"], motion_term.detach())
    torch.testing.assert_close(log["speed_loss"], ce(timed, kappas).detach())
    torch.testing.assert_close(loss, motion_term + ce(timed, kappas))
    right = motion.argmax(1) == torch.arange(4).repeat_interleave(12)
    assert log["motion_accuracy"] == right.float().mean()
    assert log["speed_accuracy"] == (timed.argmax(1) == kappas).float().mean()
    assert not any(value.requires_grad for value in log.values())


def test_the_order_of_transformations_says_nothing() -> None:
    config = Config(transformations=("warp", "speed", "periodic"))
    assert config.views == ("speed", "periodic", "warp")
    a, b = (build(transformations=kinds) for kinds in (config.transformations, config.views))
    assert torch.equal(a(batch_of(), CLOCK, "model").loss, b(batch_of(), CLOCK, "model").loss)
    assert a.head.out_features == 3 + 4


def test_what_is_not_learned_is_not_there() -> None:
    """Table 5.1: speed alone has no motion loss; rows without the speed loss no speed logits."""
    alone, untimed = build(transformations=("speed",)), build(speed_loss=False)
    assert (alone.head.out_features, untimed.head.out_features, build().head.out_features) == (4, 4, 8)
    for method, there, gone in ((alone, "speed", "motion"), (untimed, "motion", "speed")):
        batch = {
            name: column for name, column in batch_of().items() if name.partition(".")[0] in ("index", *method.kinds)
        }
        if gone == "speed":
            batch = {name: column for name, column in batch.items() if not name.endswith("parameters")}
        loss, log = method(batch, CLOCK, "model")
        assert set(log) == {f"{there}_loss", f"{there}_accuracy"}
        assert torch.equal(loss, log[f"{there}_loss"])
        assert set(method.answers(batch, CLOCK)) == {there}
        assert set(method.task(batch, CLOCK)) == {f"{there}_accuracy", f"{there}_confusion"}
        assert set(method.pictures(batch, CLOCK)) == {"clips"}


def test_task_and_answers() -> None:
    """Figures are those of the answers, and means: two halves of a batch average to the whole."""
    method, batch = build(), batch_of()
    method(batch, CLOCK, "model")  # running statistics
    said, figures = method.answers(batch, CLOCK), method.task(batch, CLOCK)
    assert method.training
    assert torch.equal(said["motion"].true, torch.arange(4).expand(12, -1)) and said["motion"].classes == 4
    assert torch.equal(said["speed"].true[:, 0], batch["speed.parameters"][:, 0].long()) and said["speed"].classes == 4
    motion, speed, kappa = (
        said["motion"].said.tolist(),
        said["speed"].said[:, 0].tolist(),
        said["speed"].true[:, 0].tolist(),
    )
    assert len(motion) == len(speed) == 12 and all(len(row) == 4 for row in motion)
    for i in range(4):
        for j in range(4):
            share = sum(row[i] == j for row in motion) / 12
            assert figures["motion_confusion"][i, j].item() == pytest.approx(share)
            share = sum((t, s) == (i, j) for t, s in zip(kappa, speed, strict=True)) / 12
            assert figures["speed_confusion"][i, j].item() == pytest.approx(share)
    assert figures["motion_accuracy"].item() == pytest.approx(sum(row[k] == k for row in motion for k in range(4)) / 48)
    assert figures["speed_accuracy"].item() == pytest.approx(
        sum(t == s for t, s in zip(kappa, speed, strict=True)) / 12
    )
    halves = [method.task({name: x[half] for name, x in batch.items()}, CLOCK) for half in (slice(6), slice(6, 12))]
    for name, whole in figures.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, whole)
    method.eval()
    motion_logits, speed_logits = method.logits(batch)
    assert torch.equal(said["motion"].said, motion_logits.argmax(2).T)
    assert torch.equal(said["speed"].said, speed_logits[0].argmax(1, keepdim=True))


def test_the_score_is_the_highest_motion_logit() -> None:
    """Of each clip alone; without a motion loss that of speed."""
    method, batch = build().eval(), batch_of(5)
    motion, _ = method.logits(batch)
    for number, kind in enumerate(KINDS):
        assert torch.allclose(method.score(batch[kind]), motion[number].amax(1), atol=1e-6)
    alone = build(transformations=("speed",)).eval()
    assert torch.allclose(alone.score(batch["speed"]), alone.logits(batch)[1][0].amax(1), atol=1e-6)


@pytest.mark.parametrize(("frames", "chosen"), [(16, [0, 2, 4, 6, 8, 10, 12, 14]), (3, [0, 0, 0, 1, 1, 1, 2, 2])])
def test_pictures(frames: int, chosen: list[int]) -> None:
    """Rows of 8: the kinds of the first video, then of the next; four videos at most."""
    batch = {name: x[:, :frames] if x.ndim == 5 else x for name, x in batch_of().items()}
    clips = build({kind: ((frames, *SHAPE[1:]), 1) for kind in KINDS}).pictures(batch, CLOCK)["clips"]
    assert clips.shape == (4 * 4 * 8, *SHAPE[1:]) and clips.dtype == torch.uint8
    for row in range(16):
        assert torch.equal(clips[8 * row : 8 * row + 8], batch[KINDS[row % 4]][row // 4, chosen])


def test_it_learns_the_task() -> None:
    """Of videos that it has not seen. A window of 3 frames hardly tells periodic from speed: at most about 3/4."""
    method = build()
    optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
    for step in range(50):
        optimizer.zero_grad()
        method(batch_of(32, seed=step + 1), CLOCK, "model").loss.backward()
        optimizer.step()
    figures = method.task(batch_of(256), CLOCK)
    assert figures["motion_accuracy"] > 0.4 and figures["speed_accuracy"] > 0.5  # chance: 1/4


WRONG = [
    ({"transformations": ("random", "warp")}, "hold speed"),
    ({"transformations": ()}, "hold speed"),
    ({"transformations": ("speed", "speed")}, "each once"),
    ({"transformations": ("speed", "reverse")}, "each once"),
    ({"transformations": ("speed",), "speed_loss": False}, "speed_loss"),
    ({"speed_on_periodic": True, "speed_loss": False}, "speed_on_periodic"),
    ({"speed_on_periodic": True, "transformations": ("speed", "warp")}, "speed_on_periodic"),
    ({"speeds": 1}, "method.speeds"),
    ({"speeds": 0, "speed_loss": False}, "method.speeds"),
    ({"reduction": "max"}, "method.reduction"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_wrong_views() -> None:
    good: dict[str, tuple[tuple[int, ...], int]] = {kind: (SHAPE, 1) for kind in KINDS}
    build({**good, "further": ((3, 8, 8), 0)})
    with pytest.raises(ValueError, match=r"takes the views speed, random, periodic, warp, got speed$"):
        build({"speed": (SHAPE, 1)})
    for shape in ((8, *SHAPE[1:]), SHAPE[1:]):
        with pytest.raises(ValueError, match="of one shape"):
            build({**good, "warp": (shape, 1)})
    with pytest.raises(ValueError, match="takes clips"):
        build({kind: ((3, 8, 8), 1) for kind in KINDS})
    with pytest.raises(ValueError, match="column 0"):
        build({**good, "speed": (SHAPE, 0)})
    build({kind: (SHAPE, 0) for kind in KINDS}, speed_loss=False)

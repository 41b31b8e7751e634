"""Multi-view synchronization: its loss by hand and against a naive loop, its pairs, fusions and answers."""

import math
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Clock, Facts
from methods.multiview import Config, Fusion, Multiview, accuracies, fuse, pair_loss

B, SIZE, DIM = 6, 5, 4
VIEWS = ("anchor", "synchronized", "unsynchronized")
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
CLOCK = Clock(step=7, total_steps=20, steps_per_epoch=10, epoch=0, seed=1)


def model(views: tuple[str, ...] = VIEWS, **options: Any) -> Multiview:
    """In float64. The features are linear in the pixels, of either sign, and no mirror leaves them as they are."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, DIM))
    facts = Facts(100, None, {name: ((3, SIZE, SIZE), 9) for name in views})
    return Multiview(Config(**options), Backbone(network, DIM, [0.5] * 3, [0.25] * 3), facts).double()


def batch_of(n: int = B, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 3, SIZE, SIZE)
    images = {name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for name in VIEWS}
    return {**images, "index": torch.arange(n)}


# -------------------------------------------------------------------------------------------- loss


def test_pair_loss_by_hand() -> None:
    """Logits ln 3 and 0 of positive pairs: F = 3/4, 1/2. Logits ln 4 and 0 of negative ones: F = 4/5, 1/2.

    -(ln 3/4 + ln 1/2) / 2 - (ln 1/5 + ln 1/2) / 2 = ln(8/3) / 2 + ln(10) / 2.
    """
    loss = pair_loss(torch.tensor([math.log(3), 0.0]), torch.tensor([math.log(4), 0.0]))
    assert loss.item() == pytest.approx((math.log(8 / 3) + math.log(10)) / 2, rel=1e-6)


def test_pair_loss_stays_finite() -> None:
    assert pair_loss(torch.tensor([1e4]), torch.tensor([-1e4])).item() == 0
    assert pair_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == 2e4


def test_loss_by_hand() -> None:
    """Features are one pixel x: the sole weight is 1 at the upper left. x_p = (1, 2), x_n = (1, 3), and mirrored
    images have 4 (the anchor's upper right) or 5 (the synchronized one's).

    omega_1 = 1 and omega_2 = -1, without biases: F_1(x_p) = s(2), F_1(x_n) = s(3), F_2(x_p) = s(-2). F_2(x_f) is
    s(-4 * 2) where the anchor is mirrored, s(-1 * 5) where the other is. L = -ln s(2) - ln s(-3) - ln s(-2) - ln s(8)
    or - ln s(5), the mean over both samples.
    """

    def image(left: int, right: int) -> Tensor:
        x = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
        x[0, 0, 0], x[0, 0, -1] = left, right
        return x

    method = model()
    method.backbone.mean.zero_()
    method.backbone.std.fill_(1)
    weights = {"backbone.network.1.weight": 1.0, "synchronization.weight": 1.0, "flipping.weight": -1.0}
    with torch.no_grad():
        for name, p in method.named_parameters():
            p.zero_()
            if name in weights:
                p[0, 0] = weights[name]
    index = torch.arange(40)
    mirrors = method.mirrors_first(index, CLOCK)
    index = torch.stack([index[mirrors][0], index[~mirrors][0]])
    images = {"anchor": image(1, 4), "synchronized": image(2, 5), "unsynchronized": image(3, 9)}
    batch = {name: x.expand(2, -1, -1, -1) for name, x in images.items()} | {"index": index}

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    expected = -(log_sigmoid(2) + log_sigmoid(-3) + log_sigmoid(-2) + (log_sigmoid(8) + log_sigmoid(5)) / 2)
    loss, log = method(batch, CLOCK, "model")
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert log["synchronization"].item() == pytest.approx(-log_sigmoid(2) - log_sigmoid(-3), rel=1e-6)
    verdicts = method.verdicts(batch, CLOCK)
    assert verdicts["synchronized"].tolist() == [[2, 3], [2, 3]]
    assert verdicts["unflipped"].tolist() == [[-2, -8], [-2, -5]]


def naive(method: Multiview, batch: Mapping[str, Tensor]) -> Tensor:
    """Eq. 6.1 as it is printed, a pair at a time, over the number of moments."""
    backbone, heads = method.backbone, (method.synchronization, method.flipping)

    def f(which: int, first: Tensor, second: Tensor) -> Tensor:
        a, b = (backbone(x[None])[0] for x in (first, second))
        fused = {"multiply": a * b, "add": a + b, "diff": a - b, "concat": torch.cat([a, b])}[method.config.fusion]
        head = heads[which]
        assert head is not None
        return torch.sigmoid(head(fused.clamp(min=0))[0])

    mirrors = method.mirrors_first(batch["index"], CLOCK).tolist()
    total = torch.zeros(())
    for a, p, n, mirror in zip(*(batch[name] for name in VIEWS), mirrors, strict=True):
        if method.config.synchronization:
            total = total - f(0, a, p).log() - (1 - f(0, a, n)).log()
        if method.config.flipping:
            flipped = (a.flip(2), p) if mirror else (a, p.flip(2))
            total = total - f(1, a, p).log() - (1 - f(1, *flipped)).log()
    return total / len(mirrors)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("only", ["both", "synchronization", "flipping"])
def test_loss_twin(fusion: Fusion, only: str) -> None:
    method = model(fusion=fusion, synchronization=only != "flipping", flipping=only != "synchronization")
    batch = batch_of()
    loss = method(batch, CLOCK, "model").loss
    torch.testing.assert_close(loss, naive(method, batch), check_dtype=False, rtol=1e-5, atol=1e-6)


def test_the_parts_add_up() -> None:
    """Both heads of one network: the loss of each alone, and nothing of the flipped pair in that of synchronization."""
    method, batch = model(), batch_of()
    loss, log = method(batch, CLOCK, "model")
    torch.testing.assert_close(loss.detach(), log["synchronization"] + log["flipping"])
    later = Clock(step=8, total_steps=20, steps_per_epoch=10, epoch=0, seed=1)
    other = method(batch, later, "model").log
    assert torch.equal(other["synchronization"], log["synchronization"])
    assert not torch.equal(other["flipping"], log["flipping"])


# --------------------------------------------------------------------------------------------- pairs


def test_either_image_is_mirrored_equally_often() -> None:
    mirrors = model().mirrors_first(torch.arange(10000), CLOCK)
    assert abs(mirrors.double().mean().item() - 0.5) < 0.02
    again = model().mirrors_first(torch.arange(10000).flip(0), CLOCK).flip(0)
    assert torch.equal(mirrors, again)


def test_the_unsynchronized_view_has_no_part_in_flipping() -> None:
    method, batch = model(synchronization=False, views=VIEWS), batch_of()
    without = {name: column for name, column in batch.items() if name != "unsynchronized"}
    assert torch.equal(method(batch, CLOCK, "model").loss, method(without, CLOCK, "model").loss)
    assert Config(synchronization=False).views == VIEWS[:2]
    assert Config(flipping=False).views == Config().views == VIEWS


def test_one_batch_of_the_backbone() -> None:
    """Four images a moment, each once: so batch norm sees all pairs together."""
    for heads, images in (((True, True), 4), ((True, False), 3), ((False, True), 3)):
        method = model(synchronization=heads[0], flipping=heads[1])
        seen: list[int] = []
        method.backbone.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
        method(batch_of(), CLOCK, "model")
        assert seen == [images * B]


def test_pictures_are_the_pairs() -> None:
    method, batch = model(), batch_of(11)
    pictures = method.pictures(batch, CLOCK)
    assert list(pictures) == ["synchronized", "unsynchronized", "flipped"]
    for name in VIEWS[1:]:
        assert torch.equal(pictures[name], torch.cat([batch["anchor"][:8], batch[name][:8]]))
    for i, mirror in enumerate(method.mirrors_first(batch["index"][:8], CLOCK).tolist()):
        first, second = batch["anchor"][i], batch["synchronized"][i]
        assert torch.equal(pictures["flipped"][i], first.flip(2) if mirror else first)
        assert torch.equal(pictures["flipped"][8 + i], second if mirror else second.flip(2))


# ------------------------------------------------------------------------------------------- fusions


def test_fusions_by_hand() -> None:
    a, b = torch.tensor([[2.0, -3.0, 1.0]]), torch.tensor([[4.0, -5.0, -6.0]])
    expected = {
        "multiply": [8.0, 15.0, 0.0],
        "add": [6.0, 0.0, 0.0],
        "diff": [0.0, 2.0, 7.0],
        "concat": [2.0, 0, 1, 4, 0, 0],
    }
    assert {fusion: fuse(a, b, fusion)[0].tolist() for fusion in FUSIONS} == expected


@pytest.mark.parametrize("fusion", FUSIONS)
def test_symmetry_of_fusions(fusion: Fusion) -> None:
    """Product and sum don't know which image is first; the difference is of one sign in turn, concatenation swaps."""
    a, b = torch.randn(2, 7, DIM, generator=torch.Generator().manual_seed(0)).unbind(0)
    there, back = fuse(a, b, fusion), fuse(b, a, fusion)
    assert torch.equal(there, back) == (fusion in ("multiply", "add"))
    if fusion == "diff":
        torch.testing.assert_close(there - back, a - b)
        assert (there * back == 0).all()
    if fusion == "concat":
        assert torch.equal(back, there.roll(DIM, 1))
    assert (there >= 0).all()
    if fusion == "multiply":
        assert torch.equal(there == 0, a.sign() != b.sign())


# ------------------------------------------------------------------------------------------- answers


def test_verdicts_are_those_of_the_pairs() -> None:
    method, batch = model(), batch_of()
    verdicts = method.verdicts(batch, CLOCK)
    assert {name: tuple(x.shape) for name, x in verdicts.items()} == {"synchronized": (B, 2), "unflipped": (B, 2)}
    for column, name in enumerate(VIEWS[1:]):
        pair = method.pair_logits(batch["anchor"], batch[name])
        assert pair.synchronized is not None and pair.unflipped is not None
        torch.testing.assert_close(verdicts["synchronized"][:, column], pair.synchronized)
        if not column:
            torch.testing.assert_close(verdicts["unflipped"][:, 0], pair.unflipped)
    features = [method.backbone(batch[name]) for name in VIEWS[:2]]
    torch.testing.assert_close(method.logits(*features).synchronized, verdicts["synchronized"][:, 0])
    alone = {name: column[:1] for name, column in batch.items()}
    torch.testing.assert_close(method.verdicts(alone, CLOCK)["unflipped"], verdicts["unflipped"][:1])
    assert not verdicts["unflipped"].requires_grad


def test_answers_say_what_the_verdicts_mean() -> None:
    """Each moment has a synchronized pair and another, an unflipped pair and another, in this order."""
    method, batch = model(), batch_of(40)
    answers, verdicts = method.answers(batch, CLOCK), method.verdicts(batch, CLOCK)
    assert answers["synchronized"].true.tolist() == [[1, 0]] * 40
    assert answers["flipped"].true.tolist() == [[0, 1]] * 40
    assert torch.equal(answers["synchronized"].said, (verdicts["synchronized"] > 0).long())
    assert torch.equal(answers["flipped"].said, (verdicts["unflipped"] <= 0).long())
    figures = method.task(batch, CLOCK)
    for name, head in (("synchronized", "synchronization"), ("flipped", "flipping")):
        said, true, classes = answers[name]
        assert classes == 2 and said.dtype == true.dtype == torch.int64
        assert (said == true).double().mean().item() == pytest.approx(figures[f"accuracy_{head}"].item())


@pytest.mark.parametrize("only", ["synchronization", "flipping"])
def test_what_is_not_learned_is_not_answered(only: str) -> None:
    method = model(synchronization=only != "flipping", flipping=only != "synchronization")
    batch = batch_of()
    assert list(method.verdicts(batch, CLOCK)) == ["synchronized" if only == "synchronization" else "unflipped"]
    heads = {name for name in method.task(batch, CLOCK) if name.endswith(("synchronization", "flipping"))}
    assert heads == {f"accuracy_{only}"}
    assert ("flipped" in method.pictures(batch, CLOCK)) == (only == "flipping")
    assert (method.pair_logits(batch["anchor"], batch["anchor"]).unflipped is None) == (only == "synchronization")


def test_accuracies_by_hand() -> None:
    """x_p: 1, -1, 2, 3 (three right). x_n: -1, 0, 1, 1 (two right; 0 is no yes)."""
    logits = torch.tensor([[1.0, -1.0], [-1.0, 0.0], [2.0, 1.0], [3.0, 1.0]])
    found = {name: value.item() for name, value in accuracies(logits, None).items()}
    assert found == {
        "accuracy_synchronization": 0.625,
        "accuracy_synchronized": 0.75,
        "accuracy_unsynchronized": 0.5,
    }


def test_it_learns_both_tasks() -> None:
    """Images with one bright pixel: synchronized views have it in the same place. Above chance after a few steps."""

    def moments(n: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        place = torch.randint(0, SIZE**2, (n,), generator=generator)
        other = (place + torch.randint(1, SIZE**2, (n,), generator=generator)) % SIZE**2

        def images(place: Tensor) -> Tensor:
            x = torch.nn.functional.one_hot(place, SIZE**2).view(n, 1, SIZE, SIZE).expand(-1, 3, -1, -1)
            return (255 * x).byte()

        views = {"anchor": images(place), "synchronized": images(place), "unsynchronized": images(other)}
        return {**views, "index": torch.arange(n)}

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 64), nn.ReLU(), nn.Linear(64, 32))
    facts = Facts(500, None, {name: ((3, SIZE, SIZE), 9) for name in VIEWS})
    method = Multiview(Config(), Backbone(network, 32, [0.5] * 3, [0.25] * 3), facts)
    optimizer = torch.optim.Adam(method.parameters(), 0.005)
    for step in range(300):
        clock = Clock(step=step, total_steps=300, steps_per_epoch=300, epoch=0, seed=0)
        loss = method(moments(64, step), clock, "model").loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    figures = method.task(moments(500, 1000), CLOCK)
    assert figures["accuracy_synchronization"] > 0.8 and figures["accuracy_flipping"] > 0.7


# -------------------------------------------------------------------------------------------- errors


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match=r"method\.fusion is one of multiply"):
        Config(fusion="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"method\.synchronization and method\.flipping"):
        Config(synchronization=False, flipping=False)
    with pytest.raises(
        ValueError, match=r"^multiview takes the views anchor, synchronized, unsynchronized, got anchor"
    ):
        model(("anchor", "synchronized"))
    facts = Facts(9, None, {name: ((3, size, size), 9) for name, size in zip(VIEWS, (5, 5, 6), strict=True)})
    with pytest.raises(ValueError, match="views of one size"):
        Multiview(Config(), model().backbone, facts)

"""Prelax: losses by hand and against naive float64 loops, the terms of each row of Tables 3a and 3b, what residuals
carry gradients to, and its own task."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods import byol, simsiam
from methods.backbones import Backbone
from methods.byol import regression_loss
from methods.method import Clock, Facts, Method
from methods.parts import mlp, set_batch_norm
from methods.prelax import (
    ALL,
    CONTINUOUS,
    DISCRETE,
    ROT,
    STD,
    TABLE_3A,
    TABLE_3B,
    TERMS,
    Config,
    Normalize,
    Prelax,
    Reduction,
    Statistics,
    predictive_loss,
    residual_similarity,
    rotated,
    similarity,
)
from methods.simsiam import negative_cosine
from methods.views import PARAMETERS, View
from methods.views import simsiam as simsiam_view

BATCH = 16
NORMALIZE: tuple[Normalize, ...] = ("before", "after", "none")
CLOCK = Clock(step=5, total_steps=40, steps_per_epoch=10, epoch=0, seed=3)
SIMSIAM, BYOL = simsiam.Config(2, 16, 8, 12), byol.Config(16, 8, 12)
FACTS = Facts(100, None, {"online": ((3, 8, 8), len(PARAMETERS)), "target": ((3, 8, 8), len(PARAMETERS))})
every_normalization = pytest.mark.parametrize("normalize", NORMALIZE)


def backbone() -> Backbone:
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return Backbone(nn.Sequential(*layers), 128, [0.5] * 3, [0.25] * 3)


def build(options: Mapping[str, Any] = {}, facts: Facts = FACTS, **more: Any) -> Prelax:
    torch.manual_seed(0)
    config = dataclasses.replace(Config(simsiam=SIMSIAM, byol=BYOL), **{**options, **more})
    return Prelax(config, backbone(), facts)


def batch_of(rows: slice = slice(None)) -> dict[str, Tensor]:
    images = torch.randint(0, 256, (BATCH, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    index = torch.arange(BATCH)
    batch = {"index": index[rows]}
    for name in ("online", "target"):
        view = simsiam_view(name, 8)
        parameters = view.draw(0, 0, index)
        batch |= {name: view.apply(images, parameters)[rows], f"{name}.parameters": parameters[rows]}
    return batch


def vectors(*shapes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# --------------------------------------------------------------------------------- numbers by hand


@pytest.mark.parametrize(("normalize", "first", "second"), [
    ("before", 0.25, 0.25), ("after", 2 - math.sqrt(2), 0.0), ("none", 13.0, 0.25),
])  # fmt: skip
def test_residual_similarity_by_hand(normalize: Normalize, first: float, second: float) -> None:
    """alpha = 1/2. First sample: G(z') = (3, 4), G(r) = (0, 2), z = (5, 0).

    before: (.6, .8) - (0, 1) / 2 - (1, 0) = (-.4, .3): .16 + .09 = .25.
    after: (3, 4) - (0, 1) = (3, 3), at 45 degrees to z: 2 - 2 cos = 2 - sqrt 2.
    none: (3, 3) - (5, 0) = (-2, 3): 13.
    Second sample: all three are e1: (1 - 1/2 - 1)^2 = .25; after: e1 - e1.
    """
    e1 = [1.0, 0.0]
    prediction, residual, target = (torch.tensor([x, e1]) for x in ([3.0, 4.0], [0.0, 2.0], [5.0, 0.0]))
    loss = residual_similarity(prediction, residual, target, alpha=0.5, normalize=normalize)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    loss = residual_similarity(prediction[:1], residual[:1], target[:1], alpha=0.5, normalize=normalize)
    assert loss.item() == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 2.4), (0.5, 1.9), (1.0, 1.5)])
def test_similarity_by_hand(margin: float, expected: float) -> None:
    """p = (3, 4), z = (2, 0): 2 - 2 * 3/5 = .8. p = (0, 5), z = (0, -1): 4. Margins: of each sample, not of the mean:
    (.8 + 4) / 2; (.3 + 3.5) / 2; (0 + 3) / 2."""
    p, z = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[2.0, 0.0], [0.0, -1.0]])
    assert similarity(p, z, margin=margin).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("reduction", "expected"), [
    ("sum", math.log(8 / 3) + 9), ("mean", math.log(8 / 3) / 2 + 3),
])  # fmt: skip
def test_predictive_loss_by_hand(reduction: Reduction, expected: float) -> None:
    """Log-odds 0 and ln 3 of flags 1 and 1: probabilities 1/2 and 3/4, so ln 2 + ln 4/3 = ln 8/3. Values (1, -2, 0) for
    (0, 0, 2): 1 + 4 + 4 = 9."""
    logits, flags = torch.tensor([[0.0, math.log(3)]]), torch.ones(1, 2)
    values, true = torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[0.0, 0.0, 2.0]])
    assert predictive_loss(logits, flags, values, true, reduction=reduction).item() == pytest.approx(expected)


def test_rotated_by_hand() -> None:
    """Clockwise: of rows (1, 2) and (3, 4), the left column becomes the upper row, from the bottom up."""
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    turned = rotated(image.expand(4, 1, 2, 2), torch.tensor([0, 1, 2, 3]))[:, 0].tolist()
    assert turned == [[[1, 2], [3, 4]], [[3, 1], [4, 2]], [[4, 3], [2, 1]], [[2, 4], [1, 3]]]
    assert torch.equal(rotated(rotated(image, torch.tensor([3])), torch.tensor([1])), image)


# -------------------------------------------------------------------------------------- naive twins


def unit(x: list[float]) -> list[float]:
    return [v / math.sqrt(sum(w * w for w in x)) for v in x]


@every_normalization
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_residual_similarity_twin(normalize: Normalize, alpha: float) -> None:
    p, g, z = vectors((6, 5), (6, 5), (6, 5))
    total = 0.0
    for prediction, residual, target in zip(p.tolist(), g.tolist(), z.tolist(), strict=True):
        if normalize == "before":
            prediction, residual, target = unit(prediction), unit(residual), unit(target)
        difference = [a - alpha * b for a, b in zip(prediction, residual, strict=True)]
        if normalize == "after":
            difference, target = unit(difference), unit(target)
        total += sum((a - b) ** 2 for a, b in zip(difference, target, strict=True))
    assert residual_similarity(p, g, z, alpha=alpha, normalize=normalize).item() == pytest.approx(total / 6, rel=1e-12)


def test_predictive_loss_twin() -> None:
    logits, flags, values, true = vectors((6, 3), (6, 3), (6, 4), (6, 4))
    flags = (flags > 0).double()
    total = 0.0
    for said, right in zip(logits.flatten().tolist(), flags.flatten().tolist(), strict=True):
        total -= math.log(1 / (1 + math.exp(-said if right else said)))
    for said, right in zip(values.flatten().tolist(), true.flatten().tolist(), strict=True):
        total += (said - right) ** 2
    assert predictive_loss(logits, flags, values, true).item() == pytest.approx(total / 6, rel=1e-12)
    two_classes = torch.stack([torch.zeros_like(logits), logits], 2).flatten(0, 1)
    entropy = 3 * F.cross_entropy(two_classes, flags.flatten().long())
    assert predictive_loss(logits, flags, true, true).item() == pytest.approx(entropy.item(), rel=1e-12)


def test_statistics_twin() -> None:
    """Over batches of unequal sizes: those of all samples together; constants are 0 when standardized."""
    values = torch.randn(37, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0, 0.0]) + 0.1
    statistics = Statistics(3)
    for part in values.split([1, 20, 3, 13]):
        statistics.update(part)
    assert statistics.count == 37
    torch.testing.assert_close(statistics.mean, values.mean(0))
    torch.testing.assert_close(statistics.variance, values.var(0, correction=0), atol=1e-6, rtol=1e-5)
    assert statistics.varies.tolist() == [True, True, False]
    standardized = statistics.standardized(values)
    torch.testing.assert_close(standardized.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardized.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]))


# --------------------------------------------------------------------------------------- properties


def test_residuals_are_of_projections_or_of_their_directions() -> None:
    """(3, 4) - (0, 2), and (.6, .8) - (0, 1)."""
    one, other = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert build().residual(one, other).tolist() == [[3.0, 2.0]]
    unit_length = build(normalize_residual=True)
    torch.testing.assert_close(unit_length.residual(one, other), torch.tensor([[0.6, -0.2]]))
    losses = [method(batch_of(), CLOCK, "model").log for method in (build(), unit_length)]
    assert all(losses[0][term] != losses[1][term] for term in ("r2s", "r3s", "pl", "rotation_pl"))


def test_a_view_may_end_with_further_operations() -> None:
    """Its parameters begin with those that are predicted."""
    views = {"online": ((3, 8, 8), len(PARAMETERS) + 10), "target": ((3, 8, 8), len(PARAMETERS))}
    batch = batch_of()
    more = torch.full((len(batch["index"]), 10), 7.0)
    longer = {**batch, "online.parameters": torch.cat([batch["online.parameters"], more], 1)}
    found = build(facts=Facts(100, None, views))(longer, CLOCK, "model").log
    assert all(torch.equal(value, found[name]) for name, value in build()(batch, CLOCK, "model").log.items())


@every_normalization
def test_without_residual_it_is_the_similarity(normalize: Normalize) -> None:
    """alpha = 0: equal to the bit, whatever the residual; normalized it is BYOL's loss, and 2 + 2 times SimSiam's."""
    p, g, z = vectors((6, 5), (6, 5), (6, 5))
    loss = residual_similarity(p, g, z, alpha=0.0, normalize=normalize)
    assert torch.equal(loss, similarity(p, z, normalize=normalize))
    if normalize != "none":
        torch.testing.assert_close(loss, regression_loss(p, z))
        torch.testing.assert_close(loss, 2 + 2 * negative_cosine(p, z))


@every_normalization
def test_the_identity_is_aligned(normalize: Normalize) -> None:
    """alpha = 1 and a predictor that is the identity: z' - (z' - z) = z, at no cost but where each is normalized."""
    z1, z2 = vectors((6, 5), (6, 5))
    loss = residual_similarity(z1, z1 - z2, z2, alpha=1.0, normalize=normalize)
    assert (loss > 0.1) if normalize == "before" else (loss.item() == pytest.approx(0, abs=1e-12))


@settings(deadline=None)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 100), size=st.floats(0.01, 100))
def test_bounds_and_lengths(alpha: float, seed: int, size: float) -> None:
    p, g, z = vectors((6, 5), (6, 5), (6, 5), seed=seed)
    before = residual_similarity(p, g, z, alpha=alpha)
    assert 0 <= before <= (2 + alpha) ** 2
    torch.testing.assert_close(before, residual_similarity(size * p, g / size, 2 * z, alpha=alpha))
    after = residual_similarity(p, g, z, alpha=alpha, normalize="after")
    assert 0 <= after <= 4
    torch.testing.assert_close(after, residual_similarity(size * p, size * g, z / size, alpha=alpha, normalize="after"))


def test_halves_of_a_batch_are_the_batch() -> None:
    p, g, z, flags = vectors((6, 5), (6, 5), (6, 5), (6, 5))
    flags = (flags > 0).double()
    losses: list[Callable[[slice], Tensor]] = [
        *(lambda s, n=n: residual_similarity(p[s], g[s], z[s], alpha=0.7, normalize=n) for n in NORMALIZE),
        lambda s: similarity(p[s], z[s], margin=0.5),
        lambda s: predictive_loss(p[s], flags[s], g[s], z[s]),
    ]
    for loss in losses:
        halves = (loss(slice(0, 3)) + loss(slice(3, 6))) / 2
        torch.testing.assert_close(halves, loss(slice(None)))


def test_the_target_is_stopped_and_the_residual_is_not() -> None:
    for normalize in NORMALIZE:
        p, g, z = (x.requires_grad_() for x in vectors((6, 5), (6, 5), (6, 5)))
        residual_similarity(p, g, z, alpha=0.5, normalize=normalize).backward()
        assert p.grad is not None and g.grad is not None and p.grad.any() and g.grad.any()
        assert z.grad is None
        similarity(p, z, normalize=normalize).backward()
        assert z.grad is None


# ------------------------------------------------------------------------------------- on its base


@pytest.mark.parametrize("terms", [
    TABLE_3B["Sim"], STD | {"pl_weight": 0.0, "r2s_alpha": 0.0},
], ids=["sim", "alpha=0"])  # fmt: skip
@pytest.mark.parametrize("base", ["simsiam", "byol"])
def test_similarity_alone_is_its_base(base: str, terms: Mapping[str, Any]) -> None:
    """Eq. 13 is BYOL's loss, and 4 + 4 times SimSiam's, with the same networks; the gradients too."""
    method = build(terms, base=base)
    torch.manual_seed(0)
    plain: Method = (
        simsiam.SimSiam(SIMSIAM, backbone(), FACTS) if base == "simsiam" else byol.BYOL(BYOL, backbone(), FACTS)
    )
    loss, own = method(batch_of(), CLOCK, "model").loss, plain(batch_of(), CLOCK, "model").loss
    own = 4 + 4 * own if base == "simsiam" else own
    torch.testing.assert_close(loss, own)
    loss.backward()
    own.backward()
    mine = dict(method.named_parameters())
    for name, p in plain.named_parameters():
        assert torch.equal(p, mine[name]), name
        if p.grad is not None:
            torch.testing.assert_close(mine[name].grad, p.grad, atol=1e-5, rtol=1e-4)
    assert {name for name, p in plain.named_parameters() if p.requires_grad} == {
        name for name, p in mine.items() if p.requires_grad
    }


def test_bases_are_trained_as_they_are() -> None:
    """SimSiam's predictor keeps its rate; BYOL's target network follows after the step."""
    method = build()
    constant = [p for group in method.parameters_of("model") if group.get("constant") for p in group["params"]]
    assert {id(p) for p in constant} == {id(p) for p in method.predictor.parameters()}
    decayed = build(simsiam=dataclasses.replace(SIMSIAM, fix_predictor_lr=False)).parameters_of("model")
    assert not any(group.get("constant") for group in decayed)
    assert not any(group.get("constant") for group in build(base="byol").parameters_of("model"))


# ------------------------------------------------------------------------------------------- terms


def outputs(method: Prelax) -> list[Tensor]:
    """Projections in the order of the views, with their gradients, once the method has run."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, out: Tensor) -> None:
        if out.requires_grad:
            out.retain_grad()
        kept.append(out)

    method.projector.register_forward_hook(keep)
    return kept


def only(**options: Any) -> dict[str, Any]:
    return {f"{term}_weight": 0.0 for term in TERMS} | options


@pytest.mark.parametrize(("options", "reached"), [
    (only(r2s_weight=1.0, r2s_alpha=0.0), (True, False)),
    (only(r2s_weight=1.0), (True, True)),  # x2 through the residual
    (only(similarity_weight=1.0), (False, True)),
    (only(forward_similarity_weight=1.0), (True, False)),
    (only(pl_weight=1.0), (True, True)),
    (only(r3s_weight=1.0), (True, False, True)),
    (only(r3s_weight=1.0, r3s_alpha=0.0), (False, False, True)),
    (only(rotation_pl_weight=1.0), (True, False, True)),
])  # fmt: skip
def test_where_gradients_go(options: Mapping[str, Any], reached: tuple[bool, ...]) -> None:
    """Of SimSiam, whose target is an online projection: into z1, z2, z3 but by the target."""
    method = build(options)
    z = outputs(method)
    method(batch_of(), CLOCK, "model").loss.backward()
    assert tuple(x.grad is not None and bool(x.grad.any()) for x in z) == reached
    assert all((p.grad is not None) == method.aligns for p in method.predictor.parameters())
    assert all(p.grad is not None for p in method.projector.parameters())


def test_the_residual_pushes_both_ways() -> None:
    """Of predictive losses: r12 = z1 - z2 and r31 = z3 - z1, so opposite gradients."""
    for options, plus, minus in ((only(pl_weight=1.0), 0, 1), (only(rotation_pl_weight=1.0), 2, 0)):
        method = build(options)
        z = outputs(method)
        method(batch_of(), CLOCK, "model").loss.backward()
        assert torch.equal(z[plus].grad, -z[minus].grad)  # type: ignore[operator, arg-type]


@pytest.mark.parametrize("base", ["simsiam", "byol"])
@pytest.mark.parametrize("reverse", [False, True])
def test_terms_of_three_views(base: str, reverse: bool) -> None:
    """Each term of Prelax-all from the method's own networks, written out (Eq. 14, 15, 17, 18, 20)."""
    method = build(base=base, reverse_residual=reverse, head=(6,)).eval()
    batch = batch_of()
    loss, log = method(batch, CLOCK, "model")
    images, angle = method.images(batch, CLOCK)
    assert torch.equal(images["third"], rotated(batch["online"], angle))
    assert angle.unique().numel() > 1
    z1, z2, z3 = (method.projector(method.backbone(images[view])) for view in ("online", "target", "third"))
    t1, t2 = (method.teacher(batch[v]) for v in ("online", "target")) if method.teacher else (z1, z2)
    G, r12, r31 = method.predictor, z1 - z2, z3 - z1
    torch.testing.assert_close(
        log["r2s"], residual_similarity(G(z1), G(-r12 if reverse else r12), t2, alpha=1).detach()
    )
    torch.testing.assert_close(log["r3s"], residual_similarity(G(z3), G(r31), t2, alpha=1).detach())
    torch.testing.assert_close(log["similarity"], regression_loss(G(z2), t1).detach())
    assert method.rotation_pl_head is not None
    torch.testing.assert_close(log["rotation_pl"], F.cross_entropy(method.rotation_pl_head(r31), angle).detach())
    total = (log["r2s"] + log["r3s"]) / 2 + 0.1 / 2 * (log["pl"] + log["rotation_pl"]) + log["similarity"]
    torch.testing.assert_close(loss.detach(), total)


def test_rotation_augmentation_turns_each_view_by_itself() -> None:
    method, batch = build(TABLE_3A["SimSiam + rotation aug."]), batch_of()
    images, _ = method.images(batch, CLOCK)
    turns = [method.quarters(batch["index"], CLOCK, view) for view in ("online", "target")]
    assert not torch.equal(*turns)
    for view, quarters in zip(("online", "target"), turns, strict=True):
        assert torch.equal(images[view], rotated(batch[view], quarters))


def test_pl_predicts_the_parameters_of_the_first_view() -> None:
    """As by hand from H(r12), with the batch's own statistics at the first step."""
    method, batch = build(only(pl_weight=1.0), predicted=("hue", "flip", "centre_x")), batch_of()
    z = outputs(method)
    loss = method(batch, CLOCK, "model").loss
    assert method.pl_head is not None and (method.discrete, method.continuous) == (("flip",), ("hue", "centre_x"))
    t = {name: batch["online.parameters"][:, PARAMETERS.index(name)] for name in ("flip", "hue", "centre_x")}
    said = method.pl_head(z[0] - z[1])
    true = torch.stack([(t[name] - t[name].mean()) / t[name].std(correction=0) for name in ("hue", "centre_x")], 1)
    torch.testing.assert_close(loss, predictive_loss(said[:, :1], t["flip"][:, None], said[:, 1:], true))
    mean = build(only(pl_weight=1.0), predicted=("hue", "flip", "centre_x"), pl_reduction="mean")
    expected = predictive_loss(said[:, :1], t["flip"][:, None], said[:, 1:], true, reduction="mean")
    torch.testing.assert_close(mean(batch, CLOCK, "model").loss, expected)


def test_kinds_of_parameters() -> None:
    assert sorted(DISCRETE + CONTINUOUS) == sorted(PARAMETERS)
    drawn = View("online", jitter=0.5, grayscale=0.5, blur=0.5, solarize=0.5).draw(0, 0, torch.arange(200))
    for name, column in zip(PARAMETERS, drawn.unbind(1), strict=True):
        assert (column.unique().tolist() == [0, 1]) == (name in DISCRETE), name


def test_scale_is_of_the_whole() -> None:
    whole, quarter = (build(scale=scale)(batch_of(), CLOCK, "model").loss for scale in (1.0, 0.25))
    torch.testing.assert_close(whole / 4, quarter)


# --------------------------------------------------------------------------------- rows of the tables


ROWS = {f"3a {name}": row for name, row in TABLE_3A.items()} | {f"3b {name}": row for name, row in TABLE_3B.items()}
SHOULD: Mapping[str, set[str]] = {
    "3a SimSiam": {"similarity", "forward_similarity"},
    "3a SimSiam + margin loss": {"similarity", "forward_similarity"},
    "3a Rotation": {"rotation"},
    "3a SimSiam + rotation aug.": {"similarity", "forward_similarity"},
    "3a SimSiam + Rotation loss": {"similarity", "forward_similarity", "rotation"},
    "3a SimSiam + Prelax": {"r2s", "r3s", "pl", "rotation_pl", "similarity"},
    "3b Sim": {"similarity", "forward_similarity"},
    "3b Sim + PL": {"similarity", "forward_similarity", "pl"},
    "3b Sim + R2S": {"similarity", "r2s"},
    "3b R2S + PL": {"r2s", "pl"},
    "3b Sim + PL + R2S": {"similarity", "r2s", "pl"},
    "3b Sim + RotPL": {"similarity", "forward_similarity", "rotation_pl"},
    "3b Sim + R3S": {"similarity", "r3s"},
    "3b R3S + RotPL": {"r3s", "rotation_pl"},
    "3b Sim + RotPL + R3S": {"similarity", "r3s", "rotation_pl"},
}


@pytest.mark.parametrize("base", ["simsiam", "byol"])
@pytest.mark.parametrize("row", ROWS)
def test_every_row_learns(row: str, base: str) -> None:
    method, batch = build(ROWS[row], base=base), batch_of()
    optimizer = torch.optim.SGD(method.parameters_of("model"), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(8):
        loss, log = method(batch, CLOCK, "model")
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        optimizer.step()
        losses.append(loss.item())
    assert log.keys() - {"teacher_momentum"} == SHOULD[row]
    assert losses[-1] < losses[0]


def test_rows_differ() -> None:
    """All but SimSiam, which stands in both tables."""
    losses = [build(row)(batch_of(), CLOCK, "model").loss.item() for row in ROWS.values()]
    assert len(set(losses)) == len(ROWS) - 1
    assert TABLE_3B["Sim + PL + R2S"] == STD and TABLE_3B["Sim + RotPL + R3S"] == ROT
    assert dataclasses.replace(Config(), **dict(ALL)) == Config()  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- draws


def test_turns_are_of_seed_step_and_index() -> None:
    method, index = build(), torch.arange(4000)
    turns = method.quarters(index, CLOCK, "third")
    assert torch.equal(method.quarters(index.flip(0)[:7], CLOCK, "third"), turns.flip(0)[:7])
    for other in ({"step": 6}, {"seed": 4}):
        assert not torch.equal(method.quarters(index, dataclasses.replace(CLOCK, **other), "third"), turns)
    assert not torch.equal(method.quarters(index, CLOCK, "online"), turns)
    shares = turns.bincount(minlength=4) / len(index)
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.03, rtol=0)


@pytest.mark.parametrize("base", ["simsiam", "byol"])
def test_the_same_clock_gives_the_same_loss(base: str) -> None:
    first, second = (build(base=base)(batch_of(), CLOCK, "model").loss for _ in range(2))
    assert torch.equal(first, second)


def test_halves_see_what_the_whole_sees() -> None:
    """Without batch norm and with the statistics of training, the loss is the mean of those of its halves."""
    method = set_batch_norm(build(base="byol"), "none")
    method(batch_of(), CLOCK, "model")
    method.eval()  # the statistics stay
    halves = [method(batch_of(rows), CLOCK, "model").loss for rows in (slice(0, 8), slice(8, 16))]
    torch.testing.assert_close(torch.stack(halves).mean(), method(batch_of(), CLOCK, "model").loss)


# -------------------------------------------------------------------------------------------- task


def test_task_by_hand() -> None:
    """Heads of zeros: each value is said to be the mean, R^2 = 0; a positive bias says that a flag is set, a negative
    one that it is not; angle 0 is said of all. A bias of 1 on a value: R^2 = 1 - (1 + 1) = -1."""
    method, batch = build(rotation_weight=1.0, head=()), batch_of()
    method(batch, CLOCK, "model")
    heads = (method.pl_head, method.rotation_pl_head, method.rotation_head)
    for head in heads:
        assert head is not None
        for p in head.parameters():
            nn.init.zeros_(p)
    names = method.discrete + method.continuous
    with torch.no_grad():
        bias = method.get_parameter("pl_head.0.bias")
        bias[names.index("flip")] = 1.0
        bias[names.index("grayscale")] = -1.0
        bias[names.index("hue")] = 1.0
    figures = method.task(batch, CLOCK)
    t = {name: batch["online.parameters"][:, k] for k, name in enumerate(PARAMETERS)}
    flip, gray = t["flip"].mean().item(), t["grayscale"].mean().item()
    assert figures["accuracy.flip"].item() == pytest.approx(flip)
    assert figures["chance.flip"].item() == pytest.approx(max(flip, 1 - flip))
    assert figures["accuracy.grayscale"].item() == pytest.approx(1 - gray)
    assert figures["r2.scale"].item() == pytest.approx(0, abs=1e-5)
    assert figures["r2.hue"].item() == pytest.approx(-1, abs=1e-5)
    angle = method.images(batch, CLOCK)[1]
    for name in ("rotation", "rotation_from_features"):
        assert figures[f"accuracy.{name}"].item() == pytest.approx((angle == 0).float().mean().item())
        assert figures[f"chance.{name}"] == 0.25
    assert "r2.sigma" not in figures  # no blur, so it never varies
    assert {name.partition(".")[2] for name in figures} == {*PARAMETERS, "rotation", "rotation_from_features"} - {
        "sigma"
    }


@pytest.mark.parametrize(("head", "holds"), [(Config().head, True), ((), False)])
def test_heads_learn_at_simsiams_rate(head: tuple[int, ...], holds: bool) -> None:
    """PL of std, .1 of a quarter of Eq. 5, on residuals of 2048 normalized features, as many as a projection has but
    alike, as those of a young network are: by SGD at .06 the default heads learn, linear ones run away."""
    torch.manual_seed(0)
    directions, values = torch.randn(2, 2048), torch.randn(64, 2)
    z = F.batch_norm(values @ directions, None, None, training=True)
    layers = mlp([2048, *head, 2])
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.06, momentum=0.9)
    errors = []
    for _ in range(20):
        loss = predictive_loss(torch.zeros(64, 0), torch.zeros(64, 0), layers(z - z.roll(1, 0)), values)
        optimizer.zero_grad()
        (0.25 * 0.1 * loss).backward()
        optimizer.step()
        errors.append(loss.item())
    assert (errors[-1] < 0.5 * errors[0]) if holds else (errors[-1] > 100 * errors[0])


def test_task_has_what_is_learned() -> None:
    assert build(ROT).task(batch_of(), CLOCK).keys() == {"accuracy.rotation", "chance.rotation"}
    assert build(TABLE_3B["Sim"]).task(batch_of(), CLOCK) == {}


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("options", [
    {"r2s_weight": -1.0}, {"r2s_alpha": 1.5}, {"r3s_alpha": -0.1}, {"margin": -0.5}, {"scale": 0.0}, {"head": (0,)},
    {"normalize": "both"}, {"base": "moco"}, {"pl_reduction": "max"}, {"predicted": ("angle",)}, {"predicted": ()},
    {"predicted": ("flip", "flip")}, {"simsiam": simsiam.Config(stop_gradient=False)},
], ids=lambda options: next(iter(options)))  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"method.{next(iter(options))}"):
        Config(**options)


def test_no_term_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Config(**only())


def test_views_without_parameters_are_refused() -> None:
    bare = Facts(100, None, {"online": ((3, 8, 8), 0), "target": ((3, 8, 8), 0)})
    for options in (STD, ALL):
        with pytest.raises(ValueError, match="pl-weight 0"):
            build(options, bare)
    assert build(ROT, bare)({k: v for k, v in batch_of().items() if "." not in k}, CLOCK, "model").loss.isfinite()


def test_views_that_cannot_be_turned_are_refused() -> None:
    wide = Facts(100, None, {view: ((3, 8, 10), len(PARAMETERS)) for view in ("online", "target")})
    with pytest.raises(ValueError, match="square"):
        build(ROT, wide)
    build(STD, wide)

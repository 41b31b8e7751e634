"""The losses of the Siamese methods: derived by hand, against a naive float64 loop, and by their properties."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.byol import regression_loss
from methods.moco import info_nce
from methods.ressl import relation_loss
from methods.sce import PositiveSlot, sce_loss, sce_terms
from methods.simsiam import negative_cosine

E1, E2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
SLOTS: tuple[PositiveSlot, ...] = ("masked", "zero")


def unit(*rows: int, seed: int = 0) -> list[Tensor]:
    """Random float64 unit vectors (rows, 5), one tensor a number of rows."""
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64), dim=1) for n in rows]


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


# --------------------------------------------------------------------------------- numbers by hand


def test_info_nce_by_hand() -> None:
    """q = k = e1, queue = (e2, -e1), tau = 1/ln 2, so a similarity s weighs 2^s: the own key 2, the queue 1 and 1/2.

    Loss = -ln(2 / 3.5) = ln 1.75. For a second query e1 whose key is e2 the weights are 1 and 1, 1/2:
    -ln(1 / 2.5) = ln 2.5. Mean: (ln 1.75 + ln 2.5) / 2.
    """
    loss = info_nce(torch.cat([E1, E1]), torch.cat([E1, E2]), torch.cat([E2, -E1]), temperature=1 / math.log(2))
    assert loss.item() == pytest.approx((math.log(1.75) + math.log(2.5)) / 2, rel=1e-6)


def test_relation_loss_by_hand() -> None:
    """Student e2, teacher e1, queue = (e1, e2), tau_s = 1/ln 2, tau_t = 1/ln 3.

    Student's weights: 2^0 and 2^1, p1 = (1/3, 2/3). Teacher's: 3^1 and 3^0, p2 = (3/4, 1/4).
    H(p2, p1) = -3/4 ln(1/3) - 1/4 ln(2/3) = ln 3 - ln(2) / 4.
    """
    temperatures = {"student_temperature": 1 / math.log(2), "teacher_temperature": 1 / math.log(3)}
    loss = relation_loss(E2, E1, torch.cat([E1, E2]), **temperatures)
    assert loss.item() == pytest.approx(math.log(3) - math.log(2) / 4, rel=1e-6)


@pytest.mark.parametrize(("slot", "weights"), [("masked", (2 / 4, 1 / 4, 1 / 4)), ("zero", (6 / 10, 3 / 10, 1 / 10))])
def test_sce_loss_by_hand(slot: PositiveSlot, weights: tuple[float, float, float]) -> None:
    """z1 = z2 = e1, queue = (e2, e2) or (e1, e2), tau = 1/ln 2, lambda = 1/2.

    masked, queue (e2, e2), any tau_m: s = (0, 1/2, 1/2), w = (1/2, 1/4, 1/4).
        p: weights 2, 1, 1 -> (1/2, 1/4, 1/4). Loss = ln(2)/2 + 2 ln(4)/4 = 1.5 ln 2.
    zero, queue (e1, e2), tau_m = 1/ln 3: weights 3^0 (slot), 3^1, 3^0 -> s = (1/5, 3/5, 1/5), w = (6, 3, 1) / 10.
        p: weights 2, 2, 1 -> (2/5, 2/5, 1/5). Loss = .9 ln 2.5 + .1 ln 5.
    """
    queue = torch.cat([E2, E2] if slot == "masked" else [E1, E2])
    expected = 1.5 * math.log(2) if slot == "masked" else 0.9 * math.log(2.5) + 0.1 * math.log(5)
    p = (1 / 2, 1 / 4, 1 / 4) if slot == "masked" else (2 / 5, 2 / 5, 1 / 5)
    assert -sum(w * math.log(x) for w, x in zip(weights, p, strict=True)) == pytest.approx(expected)
    temperatures = {"temperature": 1 / math.log(2), "target_temperature": 1 / math.log(3)}
    loss = sce_loss(E1, E1, queue, coefficient=0.5, positive_slot=slot, **temperatures)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_sce_terms_by_hand() -> None:
    """z1 = z2 = e1, queue = (e1, e2), tau = 1/ln 2, tau_m = 1/ln 3. Online weights: own key 2; queue 2 and 1.

    InfoNCE = -ln(2/5). Relation: p over the queue (2/3, 1/3), s = (3/4, 1/4): -3/4 ln(2/3) - 1/4 ln(1/3).
    Ceil = -ln(3/5).
    """
    terms = sce_terms(E1, E1, torch.cat([E1, E2]), temperature=1 / math.log(2), target_temperature=1 / math.log(3))
    by_hand = (math.log(2.5), 0.75 * math.log(1.5) + 0.25 * math.log(3), math.log(5 / 3))
    assert [term.item() for term in terms] == pytest.approx(by_hand, rel=1e-6)


def test_cosine_losses_by_hand() -> None:
    """p = (3, 4) and z = (2, 0): cos = 3/5. p = (0, 5) and z = (0, -1): cos = -1. Mean cos = -1/5.

    SimSiam: -(-1/5) = 1/5. BYOL: 2 - 2 (-1/5) = 2.4; for the first alone |p/5 - z/2|^2 = .4^2 + .8^2 = .8.
    """
    p, z = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[2.0, 0.0], [0.0, -1.0]])
    assert negative_cosine(p, z).item() == pytest.approx(0.2, rel=1e-6)
    assert regression_loss(p, z).item() == pytest.approx(2.4, rel=1e-6)
    assert regression_loss(p[:1], z[:1]).item() == pytest.approx(0.8, rel=1e-6)


# -------------------------------------------------------------------------------------- naive twins


def test_info_nce_twin() -> None:
    q, k, queue = unit(4, 4, 7)
    total = 0.0
    for own, key in zip(q.tolist(), k.tolist(), strict=True):
        total -= math.log(softmax([dot(own, key) / 0.2] + [dot(own, other) / 0.2 for other in queue.tolist()])[0])
    assert info_nce(q, k, queue, temperature=0.2).item() == pytest.approx(total / 4, rel=1e-12)


def test_relation_loss_twin() -> None:
    student, teacher, queue = unit(4, 4, 7)
    total = 0.0
    for z1, z2 in zip(student.tolist(), teacher.tolist(), strict=True):
        p1 = softmax([dot(z1, other) / 0.1 for other in queue.tolist()])
        p2 = softmax([dot(z2, other) / 0.04 for other in queue.tolist()])
        total -= sum(b * math.log(a) for a, b in zip(p1, p2, strict=True))
    loss = relation_loss(student, teacher, queue, student_temperature=0.1, teacher_temperature=0.04)
    assert loss.item() == pytest.approx(total / 4, rel=1e-12)


@pytest.mark.parametrize("slot", SLOTS)
def test_sce_loss_twin(slot: PositiveSlot) -> None:
    online, target, queue = unit(4, 4, 7)
    total = 0.0
    for z1, z2 in zip(online.tolist(), target.tolist(), strict=True):
        p = softmax([dot(z1, z2) / 0.1] + [dot(z1, other) / 0.1 for other in queue.tolist()])
        relation = [dot(z2, other) / 0.05 for other in queue.tolist()]
        s = [0.0, *softmax(relation)] if slot == "masked" else softmax([0.0, *relation])
        w = [0.3 * (i == 0) + 0.7 * weight for i, weight in enumerate(s)]
        total -= sum(a * math.log(b) for a, b in zip(w, p, strict=True))
    loss = sce_loss(
        online, target, queue, temperature=0.1, target_temperature=0.05, coefficient=0.3, positive_slot=slot
    )
    assert loss.item() == pytest.approx(total / 4, rel=1e-12)


def test_cosine_losses_twin() -> None:
    p, z = (3.0 * x for x in unit(6, 6))
    cosines = [dot(a, b) / math.hypot(*a) / math.hypot(*b) for a, b in zip(p.tolist(), z.tolist(), strict=True)]
    assert negative_cosine(p, z).item() == pytest.approx(-sum(cosines) / 6, rel=1e-12)
    assert regression_loss(p, z).item() == pytest.approx(2 - 2 * sum(cosines) / 6, rel=1e-12)


# --------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
def test_proposition_1(coefficient: float) -> None:
    online, target, queue = unit(6, 6, 9)
    contrast, relation, ceil = sce_terms(online, target, queue, temperature=0.1, target_temperature=0.05)
    whole = sce_loss(online, target, queue, temperature=0.1, target_temperature=0.05, coefficient=coefficient)
    torch.testing.assert_close(coefficient * contrast + (1 - coefficient) * (relation + ceil), whole)
    torch.testing.assert_close(contrast, info_nce(online, target, queue, temperature=0.1))
    other = relation_loss(online, target, queue, student_temperature=0.1, teacher_temperature=0.05)
    torch.testing.assert_close(relation, other)


@pytest.mark.parametrize("slot", SLOTS)
def test_sce_with_lambda_1_is_info_nce(slot: PositiveSlot) -> None:
    online, target, queue = unit(6, 6, 9)
    loss = sce_loss(
        online, target, queue, temperature=0.1, target_temperature=0.05, coefficient=1.0, positive_slot=slot
    )
    torch.testing.assert_close(loss, info_nce(online, target, queue, temperature=0.1))


def test_the_zero_slot_leaks_mass_to_the_positive() -> None:
    """Nothing where the relation is sharp. Where it is flat, s = 1/(K + 1) everywhere instead of (0, 1/K, ...):
    1/(K + 1) of the relation's weight 1 - lambda moves from the queue (relation + ceil) to the own key (InfoNCE)."""
    online, target, queue = unit(6, 6, 9)

    def masked_and_zero(target_temperature: float) -> list[Tensor]:
        return [
            sce_loss(
                online,
                target,
                queue,
                temperature=0.1,
                target_temperature=target_temperature,
                coefficient=0.25,
                positive_slot=slot,
            )
            for slot in SLOTS
        ]

    masked, zero = masked_and_zero(0.005)
    torch.testing.assert_close(zero, masked)
    masked, zero = masked_and_zero(1e9)
    contrast, relation, ceil = sce_terms(online, target, queue, temperature=0.1, target_temperature=1e9)
    torch.testing.assert_close(zero - masked, 0.75 / 10 * (contrast - relation - ceil))


def queue_losses(online: Tensor, target: Tensor, queue: Tensor, temperature: float = 0.1) -> dict[str, Tensor]:
    sce = {"temperature": temperature, "target_temperature": 0.05, "coefficient": 0.5}
    terms = sce_terms(online, target, queue, temperature=temperature, target_temperature=0.05)
    return {
        "info_nce": info_nce(online, target, queue, temperature=temperature),
        "relation": relation_loss(online, target, queue, student_temperature=temperature, teacher_temperature=0.05),
        "masked": sce_loss(online, target, queue, positive_slot="masked", **sce),
        "zero": sce_loss(online, target, queue, positive_slot="zero", **sce),
        **{f"term {i}": term for i, term in enumerate(terms)},
    }


def test_order_of_queue_and_batch_do_not_matter() -> None:
    online, target, queue = unit(6, 6, 9)
    losses = queue_losses(online, target, queue)
    shuffled = queue_losses(online.flip(0), target.flip(0), queue.roll(4, 0))
    for name, loss in losses.items():
        assert loss.shape == ()
        torch.testing.assert_close(shuffled[name], loss, msg=name)


@pytest.mark.parametrize("loss", [info_nce, relation_loss, negative_cosine, regression_loss])
def test_targets_get_no_gradient(loss) -> None:
    online, target, queue = (x.requires_grad_() for x in unit(6, 6, 9))
    temperatures = {
        info_nce: {"temperature": 0.1},
        relation_loss: {"student_temperature": 0.1, "teacher_temperature": 0.04},
    }
    arguments = (online, target, queue.detach()) if loss in temperatures else (online, target)
    loss(*arguments, **temperatures.get(loss, {})).backward()
    assert target.grad is None
    assert online.grad is not None
    assert online.grad.norm() > 0


def test_gradients_are_exact() -> None:
    online, target, queue = unit(3, 3, 5)
    for name in queue_losses(online, target, queue):
        assert torch.autograd.gradcheck(
            lambda x, name=name: queue_losses(x, target, queue)[name], (online.requires_grad_(),)
        )


def test_relation_loss_is_least_at_the_teacher() -> None:
    """Cross entropy: at least the entropy of p2, reached by equal relations, where the gradient vanishes."""
    student, teacher, queue = unit(6, 6, 9)
    p = F.softmax(teacher @ queue.T / 0.1, dim=1)
    entropy = -(p * p.log()).sum(1).mean()
    same = teacher.clone().requires_grad_()
    least = relation_loss(same, teacher, queue, student_temperature=0.1, teacher_temperature=0.1)
    least.backward()
    torch.testing.assert_close(least.detach(), entropy)
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-12
    assert relation_loss(student, teacher, queue, student_temperature=0.1, teacher_temperature=0.1) > entropy


def test_the_own_key_does_not_enter_the_relation() -> None:
    """ReSSL is a function of the similarities to the queue: a common part orthogonal to it changes nothing."""
    queue = F.pad(unit(9)[0], (0, 1))  # (9, 6)
    student, teacher = (F.pad(x, (0, 1)) for x in unit(6, 6, seed=1))
    extra = torch.eye(6, dtype=torch.float64)[5]
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.04}
    loss = relation_loss(student, teacher, queue, **temperatures)
    torch.testing.assert_close(relation_loss(student + extra, teacher + extra, queue, **temperatures), loss)


def test_temperatures() -> None:
    """The gradient of -log softmax is at most 2 / tau long; a high temperature tends to the uniform distribution."""
    online, target, queue = unit(6, 6, 9)
    for temperature in (0.05, 1.0):
        x = online.clone().requires_grad_()
        (6 * info_nce(x, target, queue, temperature=temperature)).backward()
        assert x.grad is not None
        assert (x.grad.norm(dim=1) <= 2 / temperature).all()
    flat = queue_losses(online, target, queue, temperature=1e6)
    assert flat["info_nce"].item() == pytest.approx(math.log(10), rel=1e-4)
    assert flat["relation"].item() == pytest.approx(math.log(9), rel=1e-4)
    assert flat["masked"].item() == pytest.approx(math.log(10), rel=1e-4)


def test_cosine_losses_are_symmetric_in_length_and_bounded() -> None:
    p, z = unit(6, 6)
    torch.testing.assert_close(negative_cosine(7 * p, 0.1 * z), negative_cosine(p, z))
    torch.testing.assert_close(regression_loss(p, z), (p - z).square().sum(1).mean())
    assert negative_cosine(p, p).item() == pytest.approx(-1)
    assert regression_loss(p, -p).item() == pytest.approx(4)


def test_losses_stay_finite_at_small_temperatures() -> None:
    online, queue = (x.float() for x in unit(6, 9))
    for name, loss in queue_losses(online, online, torch.cat([queue, online, -online]), temperature=1e-3).items():
        assert loss.isfinite(), name


def test_losses_keep_precision_under_autocast() -> None:
    online, target, queue = (x.float() for x in unit(64, 64, 512))
    plain = queue_losses(online, target, queue, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = queue_losses(online, target, queue, temperature=0.05)
    for name, loss in plain.items():
        torch.testing.assert_close(mixed[name], loss, rtol=1e-5, atol=0, msg=name)

"""Bilevel: Eq. 8.7 to 8.11 by hand, against finite differences and a naive twin; parts, dropout, mixup, two workers."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from methods import backbones
from methods.backbones import Backbone
from methods.bilevel import METHOD, Bilevel, Config, agreement_weights, confine, parts_of_a_rank, raw_weights
from methods.method import Clock, Facts
from methods.parts import draw, set_batch_norm

CLASSES, BATCH, SIDE = 3, 24, 6
CLOCK = Clock(step=5, total_steps=10, steps_per_epoch=5, epoch=1, seed=3)


def of(norm: bool = False, seed: int = 0, **fields: Any) -> Bilevel:
    """Two convolutions, with batch norm or without; float64. Parts: 4, no dropout, unless told."""
    torch.manual_seed(seed)
    norms: list[nn.Module] = [nn.BatchNorm2d(5)] if norm else []
    layers = [nn.Conv2d(3, 5, 3), *norms, nn.Tanh(), nn.Conv2d(5, 4, 3, bias=False), nn.Tanh(), nn.Flatten()]
    backbone = Backbone(nn.Sequential(*layers), 16, [0.5] * 3, [0.25] * 3, {"conv1": str(1 + norm)})
    method = METHOD(
        Config(**{"parts": 4, "dropout": 0.0, **fields}), backbone, Facts(100, CLASSES, {"image": ((3, 6, 6), 0)})
    )
    nn.init.normal_(method.classifier.weight)  # .01, as it starts, hides the backbone's gradients
    return method.double().train()


def batch(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(CLASSES, (2, BATCH), generator=generator)
    index = torch.randperm(100, generator=generator)[:BATCH]
    return {"image": images, "label": labels[0], "true_label": labels[1], "index": index}


def flat(gradients: Any) -> Tensor:
    return torch.cat([g.reshape(-1) for g in gradients])


def gradient_of(method: Bilevel, columns: dict[str, Tensor] | None = None) -> Tensor:
    """Of the returned loss, as an optimizer sees it."""
    method.zero_grad()
    method(columns or batch(), CLOCK, "model").loss.backward()
    return flat(p.grad for p in method.parameters())


def part_losses(method: Bilevel, columns: dict[str, Tensor] | None = None) -> Iterator[Tensor]:
    """The mean cross entropy of each part by itself, without dropout and mixup."""
    columns, size = columns or batch(), BATCH // method.config.parts
    for start in range(0, BATCH, size):
        rows = slice(start, start + size)
        logits = method.classifier(method.backbone(columns["image"][rows]))
        yield F.cross_entropy(logits, columns["label"][rows])


def part_gradients(method: Bilevel) -> Tensor:
    """(k, P)."""
    return torch.stack([flat(torch.autograd.grad(loss, [*method.parameters()])) for loss in part_losses(method)])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------- weights


def test_weights_by_hand() -> None:
    """g_0 = (3, 4); g = (1, 0), (0, -2), (4, -3); mu = 1, lambda = 2.

    Dot products 3, -8, 0; squares 1, 4, 25; denominators 1.5, 3, 13.5: omega = 2, -8/3, 0, whose L1 norm is 14/3.
    omega-hat = 3/7, -4/7, 0.
    """
    validation, training = torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0], [0.0, -2.0], [4.0, -3.0]])
    torch.testing.assert_close(
        raw_weights(validation, training, mu=1.0, lam=2.0), torch.tensor([2.0, -8 / 3, 0.0]), atol=0, rtol=1e-6
    )
    torch.testing.assert_close(
        agreement_weights(validation, training, mu=1.0, lam=2.0), torch.tensor([3 / 7, -4 / 7, 0.0]), atol=0, rtol=1e-6
    )


@given(st.integers(0, 999), st.integers(1, 5), st.floats(1e-3, 10.0), st.floats(0.1, 10.0))
@settings(max_examples=50, deadline=None)
def test_weights_against_a_naive_twin(seed: int, count: int, mu: float, lam: float) -> None:
    validation, training = random(7, seed=seed), random(count, 7, seed=seed + 1)
    naive = []
    for g in training.tolist():
        dot = sum(a * b for a, b in zip(validation.tolist(), g, strict=True))
        naive.append(dot / (sum(a * a for a in g) / lam + mu))
    total = sum(abs(w) for w in naive)
    weights = agreement_weights(validation, training, mu=mu, lam=lam)
    torch.testing.assert_close(weights, torch.tensor([w / total for w in naive], dtype=torch.float64))
    assert weights.abs().sum().item() == pytest.approx(1.0)
    single = agreement_weights(validation.float(), training.float(), mu=mu, lam=lam)
    torch.testing.assert_close(single.double(), weights, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_weights_turn_with_the_validation_gradient_and_not_with_its_length(seed: int) -> None:
    validation, training = random(7, seed=seed), random(4, 7, seed=seed + 1)
    weights = agreement_weights(validation, training, mu=0.01, lam=1.0)
    torch.testing.assert_close(agreement_weights(3 * validation, training, mu=0.01, lam=1.0), weights)
    torch.testing.assert_close(agreement_weights(-validation, training, mu=0.01, lam=1.0), -weights)
    assert torch.equal(weights.sign(), (training @ validation).sign())


def test_no_gradient_no_weight() -> None:
    zero, some = torch.zeros(3), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    for mu in (0.0, 0.01):
        assert torch.equal(agreement_weights(zero, some, mu=mu, lam=1.0), torch.zeros(2))
        assert torch.equal(agreement_weights(torch.ones(3), some, mu=mu, lam=1.0), torch.tensor([1.0, 0.0]))
        assert agreement_weights(torch.full((3,), torch.nan), some, mu=mu, lam=1.0).isnan().any()


def test_one_training_part_keeps_or_flips_its_gradient() -> None:
    """Section 8.4.1: "the case of 2 mini-batches ... amounts to flipping (or not) the sign"."""
    validation, training = random(6), random(1, 6, seed=1)
    assert agreement_weights(validation, training, mu=0.01, lam=1.0) == (training @ validation).sign()


def test_numerator_is_the_slope_of_the_validation_loss() -> None:
    """Of Eq. 8.10. theta(omega) = theta - epsilon sum omega_i g_i (Eq. 8.6), so at omega = 0 the validation loss falls
    by epsilon <g_0, g_i> a unit of omega_i: here by central differences of the loss itself, in float64."""
    method, epsilon, step = of(), 0.1, 1e-4
    gradients = part_gradients(method)

    def validation_loss(omega: Tensor) -> float:
        moved = copy.deepcopy(method)
        with torch.no_grad():
            theta = nn.utils.parameters_to_vector(moved.parameters())
            nn.utils.vector_to_parameters(theta - epsilon * omega @ gradients[1:], moved.parameters())
            return next(part_losses(moved)).item()

    slopes = []
    for direction in step * torch.eye(3, dtype=torch.float64):
        slopes.append((validation_loss(direction) - validation_loss(-direction)) / (2 * step))
    numerator = raw_weights(gradients[0], gradients[1:], mu=1.0, lam=1e30)  # denominators are 1
    torch.testing.assert_close(torch.tensor(slopes, dtype=torch.float64), -epsilon * numerator, rtol=1e-6, atol=1e-10)
    assert numerator.abs().min() > 1e-3


@pytest.mark.parametrize(("mu", "lam"), [(0.01, 1.0), (0.5, 3.0)])
def test_two_parts_minimize_the_proximal_problem(mu: float, lam: float) -> None:
    """Eq. 8.7 divided by epsilon, of one training part: -w <g_0, g_1> + w^2 |g_1|^2 / (2 lambda) + mu w^2 / 2. It is
    quadratic: one Newton step from 0 by autograd ends at its minimum, where neighbours are worse."""
    method = of(parts=2)
    validation, training = part_gradients(method)

    def objective(w: Tensor) -> Tensor:
        return -w * (validation @ training) + (w * training).square().sum() / (2 * lam) + mu / 2 * w**2

    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(objective(at), at, create_graph=True)
    [curvature] = torch.autograd.grad(slope, at)
    best = (-slope / curvature).detach()
    torch.testing.assert_close(raw_weights(validation, training[None], mu=mu, lam=lam)[0], best)
    assert all(objective(best) < objective(best * factor) for factor in (0.99, 1.01, -1.0))
    torch.testing.assert_close(gradient_of(of(parts=2, mu=mu, lam=lam, normalize=False)), best * training)


# ------------------------------------------------------------------------------------ returned loss


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_gradient_of_the_loss_is_the_weighted_sum(parts: int) -> None:
    method = of(parts=parts)
    gradients = part_gradients(method)
    weights = agreement_weights(gradients[0], gradients[1:], mu=0.01, lam=1.0)
    torch.testing.assert_close(gradient_of(method), weights @ gradients[1:])


def test_value_and_log_are_the_true_losses() -> None:
    method = of()
    losses, gradients = torch.stack([*part_losses(method)]).detach(), part_gradients(method)
    loss, log = method(batch(), CLOCK, "model")
    weights = agreement_weights(gradients[0], gradients[1:], mu=0.01, lam=1.0)
    torch.testing.assert_close(loss.detach(), losses.mean())
    torch.testing.assert_close(log["loss"], losses.mean())
    torch.testing.assert_close(log["validation_loss"], losses[0])
    torch.testing.assert_close(log["weight_spread"], weights.std(correction=0))
    assert log["negative_weights"].item() == pytest.approx((weights < 0).double().mean().item())
    said = method.classifier(method.backbone(batch()["image"])).argmax(1)
    assert log["accuracy"].item() == pytest.approx((said == batch()["label"]).double().mean().item())
    assert log["true_accuracy"].item() == pytest.approx((said == batch()["true_label"]).double().mean().item())
    columns = {name: column for name, column in batch().items() if name != "true_label"}
    assert "true_accuracy" not in method(columns, CLOCK, "model").log


def test_without_normalization() -> None:
    gradients = part_gradients(of())
    weights = raw_weights(gradients[0], gradients[1:], mu=0.01, lam=1.0)
    torch.testing.assert_close(gradient_of(of(normalize=False)), weights @ gradients[1:])


@pytest.mark.parametrize("normalize", [True, False])
def test_weights_of_each_layer(normalize: bool) -> None:
    """The convolution with its bias, the second one, the classifier with its bias."""
    method = of(per_layer=True, normalize=normalize)
    sizes = [5 * 27 + 5, 4 * 45, 16 * 3 + 3]
    assert method.layer_sizes() == sizes
    weigh = agreement_weights if normalize else raw_weights
    expected = [weigh(g[0], g[1:], mu=0.01, lam=1.0) @ g[1:] for g in part_gradients(method).split(sizes, 1)]
    found = gradient_of(method)
    torch.testing.assert_close(found, torch.cat(expected))
    assert not torch.allclose(found, gradient_of(of(normalize=normalize)))


@pytest.mark.parametrize("per_layer", [True, False])
def test_parts_that_learn_nothing_move_nothing(per_layer: bool) -> None:
    method = of(per_layer=per_layer)
    total, log = method.weighted(torch.zeros(4, sum(p.numel() for p in method.parameters())), torch.ones(4), CLOCK)
    assert not total.any() and log["negative_weights"] == 0 and log["weight_spread"] == 0 and log["loss"] == 1


def test_the_validation_part_may_be_drawn() -> None:
    method = of(validation="drawn")
    gradients, seen = part_gradients(method), set()
    for step in range(12):
        clock = Clock(step, 12, 12, 0, 3)
        at = int(draw(3, step, torch.zeros(1, dtype=torch.int64), "bilevel/validation", 1) * 4)
        others = gradients[[i for i in range(4) if i != at]]
        method.zero_grad()
        method(batch(), clock, "model").loss.backward()
        expected = agreement_weights(gradients[at], others, mu=0.01, lam=1.0) @ others
        torch.testing.assert_close(flat(p.grad for p in method.parameters()), expected)
        seen.add(at)
    assert seen == {0, 1, 2, 3}


def test_plain_sgd() -> None:
    method = of(norm=True, reweight=False)
    columns = batch()
    logits = method.classifier(method.backbone(columns["image"]))
    expected = flat(torch.autograd.grad(F.cross_entropy(logits, columns["label"]), [*method.parameters()]))
    torch.testing.assert_close(gradient_of(method), expected)


def test_label_smoothing() -> None:
    method = of(reweight=False, label_smoothing=0.1)
    columns = batch()
    logits = method.classifier(method.backbone(columns["image"]))
    expected = F.cross_entropy(logits, columns["label"], label_smoothing=0.1)
    torch.testing.assert_close(method(columns, CLOCK, "model").loss, expected)


def test_batch_norm_is_of_each_part() -> None:
    """Its running mean moves once a part; the loss of a part does not depend on the others."""
    method = of(norm=True)
    twin = copy.deepcopy(method)
    losses = torch.stack([*part_losses(twin)]).detach()
    torch.testing.assert_close(method(batch(), CLOCK, "model").loss.detach(), losses.mean())
    assert all(torch.equal(a, b) for a, b in zip(method.buffers(), twin.buffers(), strict=True))
    assert method.backbone.network.get_buffer("1.num_batches_tracked") == 4


# ---------------------------------------------------------------------------------- dropout and mixup


def keep_features(method: Bilevel) -> list[Tensor]:
    """What the classifier sees, a forward each."""
    seen: list[Tensor] = []
    method.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    return seen


def test_dropout_is_the_same_in_all_parts_or_each_sample_has_its_own() -> None:
    for same in (True, False):
        method = of(dropout=0.5, same_dropout=same)
        seen = keep_features(method)
        method(batch(), CLOCK, "model")
        features = [*method.backbone(batch()["image"]).detach().split(6)]
        masks = [x / y for x, y in zip(seen, features, strict=True)]
        assert all(((mask == 0) | (mask - 2).abs().lt(1e-9)).all() for mask in masks)
        assert all(torch.equal(a == 0, b == 0) == same for a, b in pairwise(masks))
        rows = {tuple(row) for row in (torch.cat(masks) == 0).int().tolist()}
        assert len(rows) == (6 if same else BATCH)
        assert 0.3 < (masks[0] == 0).double().mean() < 0.7


def test_dropout_of_a_layer_and_its_determinism() -> None:
    method = of(dropout=0.25, dropout_layer="conv1", same_dropout=False)
    state = torch.get_rng_state()
    first = gradient_of(method)
    assert torch.equal(first, gradient_of(method)) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, gradient_of(of()))
    later = Clock(6, 10, 5, 1, 3)
    assert not torch.equal(method(batch(), CLOCK, "model").loss, method(batch(), later, "model").loss)
    maps: list[Tensor] = []
    method.backbone.network[2].register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0].detach()))  # type: ignore[index]
    method(batch(), CLOCK, "model")
    assert all(0.1 < (x == 0).double().mean() < 0.4 for x in maps) and len(maps) == 4
    with torch.no_grad():
        assert not (method.backbone.maps(batch()["image"])["conv1"] == 0).any()  # nothing of it stays


def test_dropout_and_mixup_rest_in_evaluation() -> None:
    method = of(dropout=0.5, mixup=1.0)
    expected = method.classifier(method.backbone(batch()["image"]))
    torch.testing.assert_close(method.score(batch()["image"]), expected.amax(1))
    answers = method.answers(batch(), CLOCK)
    for name in ("label", "true_label"):
        assert torch.equal(answers[name].said[:, 0], expected.argmax(1))
        assert torch.equal(answers[name].true[:, 0], batch()[name]) and answers[name].classes == CLASSES
    assert method.task(batch(), CLOCK).keys() == {"accuracy", "true_accuracy"}


def test_mixup_pairs_lie_within_parts_and_labels_follow() -> None:
    method, columns = of(mixup=1.0, reweight=False), batch()
    images, partner, own = method.mixed(columns, CLOCK, 4)
    assert torch.equal(partner.view(4, 6).sort(1).values, torch.arange(BATCH).view(4, 6))
    pixels = columns["image"].float()
    share = own.view(-1, 1, 1, 1)
    torch.testing.assert_close(images, share * pixels + (1 - share) * pixels[partner])
    logits = method.classifier(method.backbone(images))
    terms = [F.cross_entropy(logits, columns["label"][at], reduction="none") for at in (torch.arange(BATCH), partner)]
    expected = (own * terms[0] + (1 - own) * terms[1]).mean()
    torch.testing.assert_close(method(columns, CLOCK, "model").loss, expected)


def test_mixup_of_a_part_does_not_depend_on_the_others() -> None:
    method, columns = of(mixup=0.4), batch()
    images, _, own = method.mixed(columns, CLOCK, 4)
    assert torch.equal(own, method.mixed(columns, CLOCK, 4)[2])
    part = {name: column[6:12] for name, column in columns.items()}
    alone, _, share = method.mixed(part, CLOCK, 1)
    assert torch.equal(alone, images[6:12]) and torch.equal(share, own[6:12])
    assert not torch.equal(own, method.mixed(columns, Clock(6, 10, 5, 1, 3), 4)[2])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_coefficients_have_their_distribution(alpha: float) -> None:
    method, count = of(mixup=alpha), 4000
    columns = {"image": torch.zeros(count, 1, 1, 1, dtype=torch.uint8), "index": torch.arange(count)}
    own = method.mixed(columns, CLOCK, 4)[2]
    assert own.min() >= 0 and own.max() <= 1
    assert kstest(own.numpy(), "beta", args=(alpha, alpha)).pvalue > 0.01


def test_it_learns_what_can_be_seen() -> None:
    """Images as bright as their class, each part with 2 of each; two runs are equal to the bit."""
    columns = {**batch(), "label": torch.arange(BATCH) % CLASSES}
    columns["image"] = (columns["image"] // 4 + 80 * columns["label"][:, None, None, None]).to(torch.uint8)
    ends = []
    for steps in (2, 2, 40):
        method = of(norm=True, mixup=0.2, dropout=0.2, validation="drawn")
        nn.init.zeros_(method.classifier.weight)
        optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
        for step in range(steps):
            optimizer.zero_grad()
            method(columns, Clock(step, 40, 40, 0, 3), "model").loss.backward()
            optimizer.step()
        ends.append(flat(method.parameters()).detach())
    assert torch.equal(ends[0], ends[1])
    assert method.task(columns, CLOCK)["accuracy"] > 0.8


# ----------------------------------------------------------------------------------------- wrong input


def test_parts_must_divide() -> None:
    assert parts_of_a_rank(128, 8, 2) == 4
    with pytest.raises(ValueError, match=r"parts 8 are not divided by 3 workers.*fewer workers"):
        parts_of_a_rank(128, 8, 3)
    with pytest.raises(ValueError, match=r"parts 8 don't divide the batch of 100.*multiple of 8"):
        parts_of_a_rank(100, 8, 2)
    with pytest.raises(ValueError, match="parts 5 don't divide the batch of 24"):
        of(parts=5)(batch(), CLOCK, "model")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parts", 1),
        ("mu", -1.0),
        ("lam", 0.0),
        ("validation", "last"),
        ("dropout", 1.0),
        ("mixup", -0.1),
        ("label_smoothing", 1.0),
    ],
)
def test_wrong_options_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"method.{field}"):
        Config(**{field: value})


def test_wrong_data_and_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no layer conv9 \(it has conv1\)"):
        of(dropout_layer="conv9")
    backbone = Backbone(nn.Flatten(), 12, [0.5] * 3, [0.25] * 3)
    with pytest.raises(ValueError, match="needs a label column"):
        METHOD(Config(), backbone, Facts(10, None, {"image": ((3, 2, 2), 0)}))


# -------------------------------------------------------------------------------------------- workers

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"per_layer": True, "normalize": False},
    "drawn": {"validation": "drawn", "mixup": 1.0, "dropout": 0.5},
    "own": {"validation": "drawn", "dropout": 0.5, "same_dropout": False, "dropout_layer": "conv1"},
}


def outcome(fields: dict[str, Any], rank: int, ranks: int) -> dict[str, Tensor]:
    """Gradients, log and parameters after three steps on this rank's share. A batch norm a part is as good as none."""
    method = of(norm=True, **fields)
    if fields.get("dropout"):
        set_batch_norm(method, "none")
    model = DistributedDataParallel(method, broadcast_buffers=False) if ranks > 1 else method
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    found: dict[str, Tensor] = {}
    for step in range(3):
        share = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
        loss, log = model({n: c[share] for n, c in batch(step).items()}, Clock(step, 3, 3, 0, 3), "model")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        common = {name: value for name, value in log.items() if "accuracy" not in name}
        found |= {f"{name} at {step}": value for name, value in common.items()}
    found |= {f"gradient of {name}": p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return found | {name: p.detach().clone() for name, p in method.named_parameters()}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {name: outcome(fields, rank, 2) for name, fields in CASES.items()}
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(of(norm=True))
    confine(synced)
    groups = [m.process_group for m in synced.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert [dist.get_world_size(group) for group in groups] == [1]  # it runs on GPUs alone
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_do_what_one_does(tmp_path: Path) -> None:
    """Each loss, weight's figure, gradient and parameter; the ranks agree to the bit."""
    mp.spawn(work, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, fields in CASES.items():
        expected = outcome(fields, 0, 1)
        assert first[name].keys() == second[name].keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(first[name][key], second[name][key]), f"{name}: {key}"
            torch.testing.assert_close(first[name][key], value, msg=f"{name}: {key}")


# ------------------------------------------------------------------------------------------ backbones


def build(name: str, side: int) -> Backbone:
    torch.manual_seed(0)
    return backbones.build(name, image=(3, side, side), mean=[0.5] * 3, std=[0.25] * 3)


def shapes(backbone: Backbone, side: int) -> dict[str, tuple[int, ...]]:
    with torch.no_grad():
        return {name: tuple(x.shape[1:]) for name, x in backbone.eval().maps(torch.zeros(1, 3, side, side)).items()}


def test_cifarnet_is_that_of_the_source() -> None:
    """Zhang et al. 2017, Table 1: 1,387,786 parameters with a classifier of 10 classes, for crops of 28."""
    backbone = build("cifarnet", 28)
    assert sum(p.numel() for p in backbone.parameters()) + 192 * 10 + 10 == 1_387_786
    expected = {"conv1": (64, 28, 28), "conv2": (64, 14, 14), "fc1": (384,), "fc2": (192,), "features": (192,)}
    assert shapes(backbone, 28) == expected
    with pytest.raises(ValueError, match=r"28 x 28 pixels, as its fc1 needs, and got 32 x 32"):
        backbone(torch.zeros(1, 3, 32, 32))
    for side in (29, 32):
        assert build("cifarnet", side)(torch.zeros(2, 3, side, side)).shape == (2, 192)


@pytest.mark.parametrize("norm", ["global", "none"])
def test_inception_is_that_of_the_source(norm: str) -> None:
    """Zhang et al. 2017, Table 1: 1,649,402 parameters with 10 classes, with and without batch norm."""
    backbone = set_batch_norm(build("inception", 28), norm)
    assert sum(p.numel() for p in backbone.parameters()) + 336 * 10 + 10 == 1_649_402
    found = shapes(backbone, 28)
    assert [x[0] for x in found.values()] == [96, 64, 80, 160, 160, 160, 160, 144, 240, 336, 336, 336]
    assert [x[1] for x in found.values() if len(x) == 3] == [28] * 3 + [14] * 5 + [7] * 3
    assert list(found)[:4] == ["conv1", "inception1", "inception2", "downsample1"]
    assert build("inception", 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 336)


def test_preact_resnet18_by_hand() -> None:
    """Stem 1,728. A stage's convolutions are 9 (a w + 3 w w) and, where it projects, a w; its batch norms 2 (a + 3 w).

    64: 147,456 + 512; 128: 516,096 + 8,192 + 896; 256 and 512: four times the weights, twice the norms' of the stage
    before, 2,097,152 + 1,792 and 8,388,608 + 3,584. Together 11,166,016.
    """
    backbone = build("preact_resnet18", 32)
    assert sum(p.numel() for p in backbone.parameters()) == 11_166_016
    sides = {"stem": (64, 32), "stage1": (64, 32), "stage2": (128, 16), "stage3": (256, 8), "stage4": (512, 4)}
    assert shapes(backbone, 32) == {**{n: (c, s, s) for n, (c, s) in sides.items()}, "features": (512,)}


def test_preactivation_keeps_what_it_gets() -> None:
    """With its last convolution at 0 a block is the identity, or the projection of the activated input."""
    network = build("preact_resnet18", 32).network.eval()
    x = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    for stage, same in (("stage1", True), ("stage2", False)):
        block = network.get_submodule(f"{stage}.0")
        nn.init.zeros_(block.get_parameter("conv2.weight"))
        shortcut = block.get_submodule("norm1")
        expected = x if same else block.get_submodule("shortcut")(F.relu(shortcut(x)))
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", backbones.SMALL_IMAGES)
def test_bilevel_on_the_chapters_networks(name: str) -> None:
    backbone = build(name, 8)
    method = METHOD(Config(parts=2), backbone, Facts(100, CLASSES, {"image": ((3, 8, 8), 0)})).train()
    pixels = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    columns = {**{n: column[:8] for n, column in batch().items()}, "image": pixels}
    loss, log = method(columns, CLOCK, "model")
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert log["negative_weights"] in (0, 1) and loss.dtype == torch.float32

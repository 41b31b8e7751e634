"""Optimizers against torch's and a naive twin; the schedule against numbers derived by hand."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from methods.method import Clock
from methods.optim import LARS, Optimizer, build, learning_rate, set_learning_rate


def clock(step: int, total: int = 100, per_epoch: int = 10) -> Clock:
    return Clock(step=step, total_steps=total, steps_per_epoch=per_epoch, epoch=step // per_epoch, seed=0)


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 2)).to(dtype)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    weight = next(network.parameters())
    for step in steps:
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(weight.dtype)
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


def naive_lars(
    network: nn.Module,
    steps: int,
    lr: float,
    momentum: float,
    decay: float,
    trust: float,
    nesterov: bool,
    exclude: bool,
) -> None:
    velocity = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for step in range(steps):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        grads = torch.autograd.grad(network(x).square().mean(), list(network.parameters()))
        with torch.no_grad():
            for (name, w), g in zip(network.named_parameters(), grads, strict=True):
                d = g.clone()
                if w.ndim > 1 or not exclude:
                    d = g + decay * w
                    if w.norm() > 0 and d.norm() > 0:
                        d = trust * w.norm() / d.norm() * d
                velocity[name] = momentum * velocity[name] + d
                w.sub_(lr * (d + momentum * velocity[name] if nesterov else velocity[name]))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_lars_is_its_naive_twin(nesterov: bool, exclude: bool) -> None:
    """The batch norm's shift starts at 0, where the trust ratio is 1."""
    ours, twin = net(torch.float64), net(torch.float64)
    spec = Optimizer("lars", lr=0.5, weight_decay=0.01, nesterov=nesterov, exclude=exclude, trust=0.02)
    train(ours, build(spec, ours.parameters(), batch_size=128), range(6))
    naive_lars(twin, 6, 0.25, 0.9, 0.01, 0.02, nesterov, exclude)
    for a, b in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_lars_first_step_by_hand() -> None:
    """w = (3, 4), g = (0, 1), no decay: |w| / |g| = 5, eta 0.1, lr 2: w - 2 * 0.1 * 5 * g = (3, 3)."""
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    w.grad = torch.tensor([0.0, 1.0])
    LARS([w], lr=2.0, trust=0.1).step()
    torch.testing.assert_close(w.detach(), torch.tensor([3.0, 3.0]))


def test_lars_of_a_scalar_by_hand() -> None:
    """w = 2, g = 4, eta .5: ratio .5 * 2 / 4 = .25, step .25 * 4 = 1."""
    w = nn.Parameter(torch.tensor(2.0))
    w.grad = torch.tensor(4.0)
    LARS([w], lr=1.0, trust=0.5).step()
    assert w.detach() == 1.0


def test_lars_with_zero_norms_stays_finite() -> None:
    still, zero = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(2, 2))
    still.grad, zero.grad = torch.zeros(2, 2), torch.ones(2, 2)
    LARS([still, zero], lr=0.5).step()
    assert torch.equal(still.detach(), torch.ones(2, 2)) and torch.equal(zero.detach(), torch.full((2, 2), -0.5))


@pytest.mark.parametrize(
    ("spec", "reference"),
    [
        (Optimizer("sgd"), lambda p: torch.optim.SGD(p, 0.03, momentum=0.9, weight_decay=5e-4)),
        (
            Optimizer("sgd", momentum=0.8, nesterov=True, scaling="none"),
            lambda p: torch.optim.SGD(p, 0.06, momentum=0.8, weight_decay=5e-4, nesterov=True),
        ),
        (
            Optimizer("adam", lr=1e-3, scaling="none", betas=(0.5, 0.99), weight_decay=0.0),
            lambda p: torch.optim.Adam(p, 1e-3, betas=(0.5, 0.99)),
        ),
        (
            Optimizer("adamw", lr=1e-2, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 5e-3, betas=(0.9, 0.999), weight_decay=0.1),
        ),
    ],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
def test_the_others_are_torchs(spec: Optimizer, reference: Callable[[Any], torch.optim.Optimizer]) -> None:
    ours, twin = net(), net()
    train(ours, build(spec, ours.parameters(), batch_size=128), range(5))
    train(twin, reference(list(twin.parameters())), range(5))
    for a, b in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_exclude_spares_biases_and_norms(name: Any) -> None:
    """With gradients of 0 only weight decay moves a weight."""
    network = net()
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = build(Optimizer(name, lr=1.0, weight_decay=0.1, exclude=True), network.parameters(), 256)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert moved == [p.ndim > 1 for p in network.parameters()]
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(2, 0.1), (4, 0.0)]


@pytest.mark.parametrize("name", ["sgd", "lars", "adam", "adamw"])
def test_a_parameter_without_gradient_is_left_alone(name: Any) -> None:
    network = net()
    optimizer = build(Optimizer(name), network.parameters(), 256)
    train(network, optimizer, range(2))
    network[0].requires_grad_(False)
    before = [p.detach().clone() for p in network.parameters()]
    train(network, optimizer, range(2, 3))
    moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert moved == [False, False, True, True, True, True]


@pytest.mark.parametrize("name", ["sgd", "lars", "adam", "adamw"])
def test_a_resumed_optimizer_goes_on_to_the_bit(name: Any, tmp_path: Path) -> None:
    spec = Optimizer(name, lr=0.1, exclude=True, warmup_epochs=0.2)

    def make(network: nn.Sequential) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": network[:3].parameters()}, {"params": network[3].parameters()}]
        groups[1]["constant"] = True
        return build(spec, groups, 256)

    def run(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            set_learning_rate(optimizer, spec, 256, clock(step))
            train(network, optimizer, range(step, step + 1))

    whole = net()
    run(whole, make(whole), range(9))
    first, second = net(), net()
    optimizer = make(first)
    run(first, optimizer, range(4))
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint")
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)
    resumed = make(second)
    second.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    run(second, resumed, range(4, 9))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_cosine_by_hand() -> None:
    """Batch 512: peak .12. 2 of 10 epochs of 10 steps warm up; the cosine's middle is step 20 + 80 / 2."""
    spec = Optimizer(lr=0.06, warmup_epochs=2)
    rate = [learning_rate(spec, 512, clock(step)) for step in range(100)]
    expected = {0: 0.0, 1: 0.006, 10: 0.06, 20: 0.12, 40: 0.06 * (1 + math.sqrt(0.5)), 60: 0.06}
    for step, value in expected.items():
        assert rate[step] == pytest.approx(value, abs=1e-12)
    assert rate[99] == pytest.approx(0.06 * (1 - math.cos(math.pi / 80)))  # one step before 0
    assert learning_rate(spec, 512, clock(100)) == pytest.approx(0, abs=1e-12)
    assert all(a < b for a, b in pairwise(rate[:21]))
    assert all(a > b for a, b in pairwise(rate[20:]))


def test_cosine_ends_at_final_lr() -> None:
    """Middle of .06 and .02 is .04; linear scaling at batch 128 halves everything."""
    spec = Optimizer(lr=0.06, final_lr=0.02)
    assert [learning_rate(spec, 128, clock(s)) for s in (0, 50, 100)] == pytest.approx([0.03, 0.02, 0.01])


def test_linear_by_hand() -> None:
    """From 3e-4 to 3e-6: halfway 1.515e-4. With a tenth of warm-up the line begins there: its middle is step 55."""
    spec = Optimizer("adam", lr=3e-4, scaling="none", schedule="linear", final_lr=3e-6)
    rate = [learning_rate(spec, 128, clock(step)) for step in range(101)]
    assert [rate[k] for k in (0, 25, 50, 100)] == pytest.approx([3e-4, 2.2575e-4, 1.515e-4, 3e-6], rel=1e-12)
    assert all(a - b == pytest.approx(2.97e-6) for a, b in pairwise(rate))
    warm = replace(spec, warmup_epochs=1)
    assert [learning_rate(warm, 128, clock(k)) for k in (5, 10, 55, 100)] == pytest.approx(
        [1.5e-4, 3e-4, 1.515e-4, 3e-6], rel=1e-12
    )
    doubled = replace(spec, scaling="linear")
    assert learning_rate(doubled, 512, clock(50)) == pytest.approx(3.03e-4)


def test_a_run_shorter_than_its_warmup_only_rises() -> None:
    spec = Optimizer(lr=1.0, scaling="none", warmup_epochs=20)
    rate = [learning_rate(spec, 512, clock(step)) for step in range(100)]
    assert rate == pytest.approx([step / 200 for step in range(100)])
    assert learning_rate(replace(spec, warmup_epochs=10), 512, clock(100)) == 1.0  # nothing left to divide by


def test_steps_and_constant() -> None:
    spec = Optimizer(lr=1.0, scaling="none", schedule="steps", milestones=(6, 8), gamma=0.1, warmup_epochs=0.5)
    assert [learning_rate(spec, 9, clock(s)) for s in (1, 5, 59, 60, 79, 80, 99)] == pytest.approx(
        [0.2, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    )
    constant = Optimizer(lr=1.0, scaling="none", schedule="constant", warmup_epochs=1)
    assert [learning_rate(constant, 9, clock(s)) for s in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]


def test_exponential_by_hand() -> None:
    """Thesis of S. Jenni, section 8.4.1: from .1, "reduced by a factor of 0.95 after every epoch"; epochs of 10 steps.
    .95^2 = .9025, .95^9 = .6302494. Warm-up of an epoch and a half ends at .95 of the peak."""
    spec = Optimizer(lr=0.1, scaling="none", schedule="exponential", gamma=0.95)
    assert [learning_rate(spec, 128, clock(s)) for s in (0, 9, 10, 19, 20, 99)] == pytest.approx(
        [0.1, 0.1, 0.095, 0.095, 0.09025, 0.06302494], rel=1e-6
    )
    assert learning_rate(spec, 128, clock(20, total=1000)) == pytest.approx(0.09025), "whatever the run's length"
    warm = replace(spec, warmup_epochs=1.5, scaling="linear")
    assert [learning_rate(warm, 512, clock(s)) for s in (0, 12, 15, 20)] == pytest.approx([0.0, 0.16, 0.19, 0.1805])


def test_constant_groups_keep_the_peak() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    spec = Optimizer(lr=0.1, warmup_epochs=1)
    groups: list[dict[str, Any]] = [{"params": list(a.parameters())}, {"params": b.parameters(), "constant": True}]
    optimizer = build(spec, groups, 512)
    assert set_learning_rate(optimizer, spec, 512, clock(55)) == pytest.approx(0.1)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.2])
    split = build(replace(spec, exclude=True), groups[:1], 512).param_groups
    assert [len(g["params"]) for g in split] == [1, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sdg"}, "name is one of sgd, lars, adam, adamw, got sdg"),
        ({"lr": 0}, "lr is above 0, got 0"),
        ({"lr": math.nan}, "lr is above 0"),
        ({"scaling": "sqrt"}, "scaling"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"trust": 0}, "trust"),
        ({"schedule": "step"}, "schedule is one of cosine, linear, steps, exponential, constant, got step"),
        ({"schedule": "exponential", "milestones": (1,)}, "milestones is given with schedule steps"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"schedule": "steps"}, "milestones is given with schedule steps"),
        ({"milestones": (1,)}, "milestones is given with schedule steps"),
        ({"schedule": "steps", "milestones": (8, 6)}, "milestones is epochs above 0, rising"),
        ({"gamma": 0}, "gamma"),
        ({"lr": 0.1, "final_lr": 0.2}, "final_lr is between 0 and lr = 0.1, got 0.2"),
    ],
)
def test_a_wrong_value_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"optimizers\.TURN\.{message}"):
        Optimizer(**fields)


def test_it_survives_json() -> None:
    spec = Optimizer("lars", schedule="steps", milestones=(60, 80))
    assert TypeAdapter(Optimizer).validate_python(json.loads(json.dumps(asdict(spec)))) == spec

"""Optimizers and their schedules: what a turn's `--optimizers.TURN.X` sets.

The rate is a pure function of the clock, set before each step, so a resumed run needs no scheduler's state.

Weight decay: `sgd`, `adam` and `lars` add weight_decay * w to the gradient; `adamw` shrinks w by
lr * weight_decay on its own. A parameter without gradient at a step (frozen, or of another turn) is not moved at all:
neither decayed nor carried on by its momentum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from methods.method import Clock

Name = Literal["sgd", "lars", "adam", "adamw"]
Scaling = Literal["linear", "none"]
Schedule = Literal["cosine", "linear", "steps", "exponential", "constant"]


@dataclass(frozen=True)
class Optimizer:
    """A turn's optimizer and schedule. Defaults: the small-image setting of ReSSL and SCE, without warm-up."""

    name: Name = "sgd"
    lr: float = 0.06
    """Base rate: the peak is lr * batch / 256 where scaling is linear, else lr. `batch` is the global batch size."""
    scaling: Scaling = "linear"
    """Linear in the batch (Goyal et al., 2017), or none."""
    momentum: float = 0.9
    """Of sgd and lars."""
    nesterov: bool = False
    """Of sgd and lars."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adam and adamw."""
    weight_decay: float = 5e-4
    exclude: bool = False
    """Leave biases and the parameters of norms (ndim <= 1) out of weight decay, and of LARS' trust ratio."""
    trust: float = 0.001
    """eta, the trust coefficient of lars."""
    schedule: Schedule = "cosine"
    """From the peak after warm-up: half a cosine or a line down to final_lr, times gamma at each milestone (steps) or
    after every epoch (exponential), or constant."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0. A run that is shorter never reaches the peak: its rate only rises."""
    milestones: tuple[float, ...] = ()
    """Of steps: epochs since the start of the run, rising."""
    gamma: float = 0.1
    """Of steps and exponential."""
    final_lr: float = 0.0
    """Of cosine and linear: the base rate at their end, in the unit of `lr` and scaled alike."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.milestones), self.milestones, strict=False))
        rules: tuple[tuple[str, bool, str], ...] = (
            ("name", self.name in get_args(Name), f"one of {', '.join(get_args(Name))}"),
            ("lr", 0 < self.lr < math.inf, "above 0"),
            ("scaling", self.scaling in get_args(Scaling), f"one of {', '.join(get_args(Scaling))}"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("nesterov", not self.nesterov or self.momentum > 0, "for a momentum above 0 alone"),
            ("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two values in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            ("trust", 0 < self.trust < math.inf, "above 0"),
            ("schedule", self.schedule in get_args(Schedule), f"one of {', '.join(get_args(Schedule))}"),
            ("warmup_epochs", 0 <= self.warmup_epochs < math.inf, "at least 0"),
            ("milestones", rising, "epochs above 0, rising"),
            (
                "milestones",
                bool(self.milestones) == (self.schedule == "steps"),
                "given with schedule steps, and then only",
            ),
            ("gamma", 0 < self.gamma < math.inf, "above 0"),
            ("final_lr", 0 <= self.final_lr <= self.lr, f"between 0 and lr = {self.lr}"),
        )
        for field, holds, rule in rules:
            if not holds:
                raise ValueError(f"optimizers.TURN.{field} is {rule}, got {getattr(self, field)}")


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You, Gitman, Ginsburg, 2017, arXiv 1708.03888), in the form of MoCo v3 and SCE's code.

        d = g + weight_decay * w
        d = trust * |w| / |d| * d      where `adapt` is on and neither norm is 0
        v = momentum * v + d
        w = w - lr * v                 nesterov: w - lr * (d + momentum * v)

    Deviation from the paper, as in those codes: the norm below is of the decayed gradient, where the paper has
    |g| + weight_decay * |w|, and the rate stands outside the momentum. It never waits for the device.

    Args:
        params: parameters or groups of them; a group may set `weight_decay` and `adapt` for its own.
        lr: rate, times which the adapted gradient moves the weights.
        momentum: in [0, 1).
        weight_decay: added to the gradient before its norm is taken.
        trust: eta, above 0.
        nesterov: look ahead by one momentum step.
        adapt: scale each tensor's update by its trust ratio.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        nesterov: bool = False,
        adapt: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, {**defaults, "nesterov": nesterov, "adapt": adapt})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients there are. `closure` recomputes them and returns the loss, as in torch.optim."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if moving:
                self._move(moving, group)
        return loss

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        grads = [w.grad for w in weights if w.grad is not None]
        updates = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
        if group["adapt"]:
            size, slope = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(updates))
            ratio = torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, 1.0)  # (tensors,)
            torch._foreach_mul_(updates, list(ratio.unbind()))
        for w in weights:
            if not self.state[w]:
                self.state[w]["momentum_buffer"] = torch.zeros_like(w)
        velocities = [self.state[w]["momentum_buffer"] for w in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        if group["nesterov"]:
            torch._foreach_add_(updates, velocities, alpha=group["momentum"])
        torch._foreach_add_(weights, updates if group["nesterov"] else velocities, alpha=-group["lr"])


def build(spec: Optimizer, groups: ParamsT, batch_size: int) -> torch.optim.Optimizer:
    """The optimizer of `spec`, at its peak rate; `set_learning_rate` moves it.

    Args:
        spec: what to build.
        groups: parameters, or dicts `{"params": [...], "constant": True}`: a constant group keeps the peak rate
            throughout (SimSiam's predictor), and one with `"rate": 10.0` has ten times the rate. Parameters that never
            get a gradient may be among them.
        batch_size: of the global batch.

    Returns:
        torch's own, fused on CUDA and foreach elsewhere, or `LARS`. Each of its groups carries `constant`.
    """
    given: list[Any] = list(groups)
    whole: list[dict[str, Any]] = given if given and isinstance(given[0], dict) else [{"params": given}]
    split = []
    for group in whole:
        params = list(group["params"])
        own = {"constant": group.get("constant", False), "rate": group.get("rate", 1.0)}
        plain = [p for p in params if spec.exclude and p.ndim <= 1]
        tensors = [p for p in params if not (spec.exclude and p.ndim <= 1)]
        split += [
            {"params": tensors, **own, "weight_decay": spec.weight_decay, "adapt": True},
            {"params": plain, **own, "weight_decay": 0.0, "adapt": False},  # `adapt` is LARS' alone
        ]
    split = [group for group in split if group["params"]]
    lr, decay, momentum, nesterov = peak_rate(spec, batch_size), spec.weight_decay, spec.momentum, spec.nesterov
    if spec.name == "lars":
        return LARS(split, lr, momentum=momentum, weight_decay=decay, trust=spec.trust, nesterov=nesterov)
    fused = all(p.is_cuda for group in split for p in group["params"])
    if spec.name == "sgd":
        return torch.optim.SGD(
            split, lr, momentum, weight_decay=decay, nesterov=nesterov, fused=fused, foreach=not fused
        )
    adam = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return adam(split, lr, spec.betas, weight_decay=decay, fused=fused, foreach=not fused)


def peak_rate(spec: Optimizer, batch_size: int) -> float:
    """The highest rate: lr * batch / 256 where scaling is linear, else lr."""
    return spec.lr * batch_size / 256 if spec.scaling == "linear" else spec.lr


def learning_rate(spec: Optimizer, batch_size: int, clock: Clock) -> float:
    """The rate of step k of K (`clock.step` from 0, `clock.total_steps`), of w = warmup_epochs * steps_per_epoch.

    warm-up, k < w:  peak * k / w, so the first step has rate 0, as in MoCo v3's code
    cosine:          final + (peak - final) * (1 + cos(pi * (k - w) / (K - w))) / 2
    linear:          final + (peak - final) * (1 - (k - w) / (K - w))
    steps:           peak * gamma ^ (number of milestones m with k >= m * steps_per_epoch)
    exponential:     peak * gamma ^ (whole epochs since the start of the run, those of warm-up among them)
    constant:        peak
    """
    peak, warmup = peak_rate(spec, batch_size), spec.warmup_epochs * clock.steps_per_epoch
    if clock.step < warmup:
        return peak * clock.step / warmup
    if spec.schedule == "steps":
        return peak * spec.gamma ** sum(clock.step >= m * clock.steps_per_epoch for m in spec.milestones)
    if spec.schedule == "exponential":
        return peak * spec.gamma ** (clock.step // clock.steps_per_epoch)
    if spec.schedule == "constant":
        return peak
    progress = min((clock.step - warmup) / max(clock.total_steps - warmup, 1), 1.0)
    final = peak * spec.final_lr / spec.lr
    left = 1.0 - progress if spec.schedule == "linear" else (1.0 + math.cos(math.pi * progress)) / 2.0
    return final + (peak - final) * left


def set_learning_rate(optimizer: torch.optim.Optimizer, spec: Optimizer, batch_size: int, clock: Clock) -> float:
    """Sets and returns the rate of this step; constant groups keep the peak rate, each times the group's own `rate`."""
    rate = learning_rate(spec, batch_size, clock)
    for group in optimizer.param_groups:
        group["lr"] = group.get("rate", 1.0) * (peak_rate(spec, batch_size) if group["constant"] else rate)
    return rate

"""DFGAN: losses by hand and in closed form, Table 7.2's networks, what a turn moves and feels, one or two workers."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.dfgan import (
    DFGAN,
    METHOD,
    Config,
    Objective,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    make_generator,
    roth_regularizer,
)
from methods.method import Clock, Facts, Step
from methods.parts import centred, draw, normal

BATCH, LATENT = 8, 8
OPTIONS: list[dict[str, Any]] = [
    {},
    {"noise": "none"},
    {"noise": "none", "objective": "hinge", "spectral_norm": True},
    {"noise": "gaussian"},
    {"noise": "gaussian", "sigma_schedule": "learned"},
    {"noise": "gaussian", "sigma_schedule": "annealed", "mix": "noisy_only"},
    {"mix": "halves"},
    {"mix": "noisy_only"},
    {"objective": "minimax", "noise_latent": "shared", "magnitude": "sum", "terms": "mean", "noise_scale": 2.0},
    {"objective": "least_squares", "spectral_norm": True},
    {"objective": "wgan_gp"},
    {"objective": "wgan_gp", "spectral_norm": True, "mix": "halves"},
    {"regularizer": "roth", "gamma": 1e3, "gamma_decay": 0.01},
    {"regularizer": "roth", "noise": "none"},
    {"generator_norm": False, "activation": "tanh", "depth": 2},
    {"discriminator_steps": 5, "normalize_noisy": True},
]


def name_of(options: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items()) or "default"


every_case = pytest.mark.parametrize("options", OPTIONS, ids=name_of)
every_turn = pytest.mark.parametrize("turn", DFGAN.turns)


def facts(size: int = 32, channels: int = 3) -> Facts:
    return Facts(100, None, {"image": ((channels, size, size), 0)})


def build(seed: int = 0, size: int = 32, **options: Any) -> DFGAN:
    """A sixteenth of the channels, at torch's weights, which are large enough for every part to be felt."""
    torch.manual_seed(seed)
    tiny = replace(Config(), width=1 / 16, latent=LATENT, initialization="torch")
    return DFGAN(replace(tiny, **options), None, facts(size))


def batch_at(step: int, size: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, generator=generator)
    return {"image": images, "index": torch.arange(BATCH) + BATCH * step}


def clock_at(step: int) -> Clock:
    return Clock(step=step, total_steps=10, steps_per_epoch=10, epoch=0, seed=3)


def optimizers_of(method: DFGAN) -> dict[str, torch.optim.Optimizer]:
    return {turn: torch.optim.Adam(method.parameters_of(turn), 1e-3, (0.5, 0.999)) for turn in method.turns}


def take(method: DFGAN, optimizers: dict[str, torch.optim.Optimizer], step: int, turn: str) -> Step:
    """One turn as the loop takes it."""
    for other in method.turns:
        for group in optimizers[other].param_groups:
            for p in group["params"]:
                p.requires_grad_(other == turn)
    out: Step = method(batch_at(step), clock_at(step), turn)
    optimizers[turn].zero_grad()
    out.loss.backward()
    optimizers[turn].step()
    return out


def state_of(method: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def moved(method: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}


def gradients(method: DFGAN, turn: str = "discriminator", step: int = 0) -> dict[str, Tensor]:
    method.zero_grad()
    method(batch_at(step), clock_at(step), turn).loss.backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


# --------------------------------------------------------------------------------- losses by hand

HAND: dict[Objective, tuple[list[float], list[float], float, float]] = {
    # real D = 3/4, 1/2; generated 1/4, 1/2. L_D = (ln 4/3 + ln 2) / 2, twice. L_G: mean of ln(1 - D); of -ln D
    "minimax": ([math.log(3), 0], [-math.log(3), 0], math.log(8 / 3), -math.log(8 / 3) / 2),
    "non_saturating": ([math.log(3), 0], [-math.log(3), 0], math.log(8 / 3), 1.5 * math.log(2)),
    # L_D = (1 + 1) / 2 / 2 + (1 + 9) / 2 / 2; L_G = (0 + 4) / 2 / 2
    "least_squares": ([2, 0], [1, 3], 3.0, 1.0),
    # L_D = (0 + 1) / 2 + (2 + 0) / 2; L_G = -(1 - 3) / 2
    "hinge": ([2, 0], [1, -3], 1.5, 1.0),
    # L_D = (1 - 3) / 2 - (2 + 0) / 2
    "wgan_gp": ([2, 0], [1, -3], -2.0, 1.0),
}


@pytest.mark.parametrize("objective", HAND)
def test_losses_by_hand(objective: Objective) -> None:
    real, fake, loss_d, loss_g = HAND[objective]
    on_real, on_fake = torch.tensor(real, dtype=torch.float32), torch.tensor(fake, dtype=torch.float32)
    assert discriminator_loss(on_real, on_fake, objective).item() == pytest.approx(loss_d)
    assert generator_loss(on_fake, objective).item() == pytest.approx(loss_g)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6))
@settings(deadline=None, max_examples=50)
def test_logistic_losses_are_eq_7_1(logits: list[float]) -> None:
    """Eq. 7.1 in Python's floats; minimax and non-saturating share L_D."""
    values = torch.tensor(logits, dtype=torch.float64)
    log_d, log_not = (sum(-math.log1p(math.exp(s * x)) for x in logits) / len(logits) for s in (-1, 1))
    for objective in ("minimax", "non_saturating"):
        assert discriminator_loss(values, values, objective).item() == pytest.approx(-log_d - log_not)
    assert generator_loss(values, "minimax").item() == pytest.approx(log_not)
    assert generator_loss(values, "non_saturating").item() == pytest.approx(-log_d)


@pytest.mark.parametrize("objective", HAND)
def test_losses_and_gradients_stay_finite(objective: Objective) -> None:
    logits = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    loss = discriminator_loss(logits, logits, objective) + generator_loss(logits, objective)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("objective", HAND)
def test_descent_pulls_apart_and_together(objective: Objective) -> None:
    """D raises real logits and lowers generated ones; G raises its own."""
    real, fake = torch.tensor([0.2, -0.3], requires_grad=True), torch.tensor([0.1, 0.4], requires_grad=True)
    discriminator_loss(real, fake, objective).backward()
    assert real.grad is not None and fake.grad is not None
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake.grad = None
    generator_loss(fake, objective).backward()
    assert fake.grad is not None and (fake.grad < 0).all()


# ------------------------------------------------------------------------------------- regularizers


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_gradient_penalty_of_a_linear_discriminator() -> None:
    """D(x) = w x has the gradient w everywhere: (|w| - 1)^2, whose gradient by w is 2 (|w| - 1) w / |w|."""
    w = pixels(12).requires_grad_()
    real, fake = pixels(5, 3, 2, 2, seed=1), pixels(5, 3, 2, 2, seed=2)
    loss = gradient_penalty(lambda x: x.flatten(1) @ w.to(x), real, fake, torch.rand(5, 1, dtype=torch.float64))
    size = w.detach().norm()
    torch.testing.assert_close(loss.double(), (size - 1) ** 2, rtol=1e-6, atol=0.0)
    loss.backward()
    torch.testing.assert_close(w.grad, 2 * (size - 1) / size * w.detach(), rtol=1e-6, atol=0.0)


def test_gradient_penalty_is_taken_between_real_and_generated() -> None:
    """D(x) = |x|^2 / 2 has the gradient x: E (|u x + (1 - u) y| - 1)^2."""
    real, fake, u = pixels(5, 3, 2, 2, seed=1), pixels(5, 3, 2, 2, seed=2), pixels(5, 1, seed=3).sigmoid()
    between = (u[..., None, None] * real + (1 - u[..., None, None]) * fake).flatten(1)
    loss = gradient_penalty(lambda x: x.flatten(1).square().sum(1) / 2, real, fake, u)
    torch.testing.assert_close(loss.double(), (between.norm(dim=1) - 1).square().mean(), rtol=1e-6, atol=0.0)


def test_gradient_penalty_where_the_slope_is_zero() -> None:
    """A dead discriminator: (0 - 1)^2, and no NaN in its gradient."""
    w = torch.zeros(12, requires_grad=True)
    loss = gradient_penalty(
        lambda x: x.flatten(1) @ w, torch.ones(2, 3, 2, 2), torch.ones(2, 3, 2, 2), torch.ones(2, 1)
    )
    loss.backward()
    assert loss.item() == 1 and w.grad is not None and w.grad.isfinite().all()


def test_roth_regularizer_of_a_linear_discriminator() -> None:
    """phi(x) = w x + b: |w|^2 E[(1 - D(x))^2 + D(y)^2], in Python's floats; and its gradient by b, by differences."""
    w, b = pixels(12), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    real, fake = pixels(5, 3, 2, 2, seed=1), pixels(5, 3, 2, 2, seed=2)

    def by_hand(offset: float) -> float:
        def d(images: Tensor) -> list[float]:
            return [1 / (1 + math.exp(-v - offset)) for v in (images.flatten(1) @ w).tolist()]

        total = sum((1 - p) ** 2 for p in d(real)) / 5 + sum(p**2 for p in d(fake)) / 5
        return float(w.square().sum()) * total

    loss = roth_regularizer(lambda x: x.flatten(1) @ w + b, real, fake)
    assert loss.item() == pytest.approx(by_hand(0.3), rel=1e-6)
    loss.backward()
    assert b.grad is not None
    assert b.grad.item() == pytest.approx((by_hand(0.3 + 1e-5) - by_hand(0.3 - 1e-5)) / 2e-5, rel=1e-5)


def test_regularizers_send_nothing_to_the_images() -> None:
    """Neither the noise nor the generator feels them."""
    image = pixels(4, 3, 2, 2).requires_grad_()
    w = pixels(12).requires_grad_()

    def d(x: Tensor) -> Tensor:
        return (x.flatten(1) @ w).square()

    (
        gradient_penalty(d, image, 2 * image, torch.ones_like(image[:, 0, 0, :1])) + roth_regularizer(d, image, image)
    ).backward()
    assert image.grad is None and w.grad is not None


# ------------------------------------------------------------------------------------ architecture

# Table 7.2. Kernel * kernel * in * out for each layer, biases where no batch norm follows, and its scale and shift.
DISCRIMINATOR = {
    32: 9 * 3 * 64 + 64 + 16 * (64 * 128 + 128 * 256 + 256 * 512) + 2 * (128 + 256 + 512) + 16 * 512 + 1,
    64: 9 * 3 * 64
    + 64
    + 16 * (64 * 128 + 128 * 256 + 256 * 512 + 512 * 1024)
    + 2 * (128 + 256 + 512 + 1024)
    + 16 * 1024
    + 1,
}
GENERATOR = {
    32: 128 * 16 * 512 + 16 * (512 * 256 + 256 * 128 + 128 * 64) + 2 * (512 + 256 + 128 + 64) + 9 * 64 * 3 + 3,
    64: 128 * 16 * 1024
    + 16 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 64)
    + 2 * (1024 + 512 + 256 + 128 + 64)
    + 9 * 64 * 3
    + 3,
}
NOISE = {  # an eighth of the channels
    32: 128 * 16 * 64 + 16 * (64 * 32 + 32 * 16 + 16 * 8) + 2 * (64 + 32 + 16 + 8) + 9 * 8 * 3 + 3,
    64: 128 * 16 * 128 + 16 * (128 * 64 + 64 * 32 + 32 * 16 + 16 * 8) + 2 * (128 + 64 + 32 + 16 + 8) + 9 * 8 * 3 + 3,
}
WIDEST = {32: 512, 64: 1024, 128: 2048}


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("size", [32, 64])
def test_parameters_of_table_7_2(size: int) -> None:
    with torch.device("meta"):
        method = METHOD(Config(), None, facts(size))
    assert count(method.backbone, method.logit) == DISCRIMINATOR[size]
    assert count(method.generator) == GENERATOR[size]
    assert count(method.noise_generator) == NOISE[size]


def test_one_layer_more_at_128() -> None:
    with torch.device("meta"):
        at64, at128 = METHOD(Config(), None, facts(64)), METHOD(Config(), None, facts(128))
    layer, norm = 16 * 1024 * 2048, 2 * 2048
    assert count(at128.backbone) - count(at64.backbone) == layer + norm
    assert count(at128.generator) - count(at64.generator) == layer + norm + 128 * 16 * 1024
    assert at128.backbone.dim == 2048


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("depth", [1, 2])
def test_shapes(size: int, depth: int) -> None:
    method = build(size=size, depth=depth)
    images = batch_at(0, size)["image"]
    maps = method.backbone.maps(images)
    stages = 1 + int(math.log2(size / 4))
    widths = [4 * 2**n for n in range(stages) for _ in range(depth)]
    sides = [size // 2**n for n in range(stages) for _ in range(depth)]
    assert list(maps) == [f"conv{n + 1}" for n in range(len(widths))] + ["features"]
    assert [maps[f"conv{n + 1}"].shape[1:] for n in range(len(widths))] == [
        (width, side, side) for width, side in zip(widths, sides, strict=True)
    ]
    last = maps[f"conv{len(widths)}"]
    torch.testing.assert_close(maps["features"], last.mean((2, 3)))
    assert method.backbone.dim == WIDEST[size] // 16 == last.shape[1]
    logits = build(size=size, depth=depth).discriminator(centred(images))
    torch.testing.assert_close(logits, method.logit(last.flatten(1))[:, 0])
    made = method.generator(torch.randn(2, LATENT))
    assert made.shape == (2, 3, size, size) and made.abs().max() <= 1
    assert method.noise_generator(torch.randn(2, LATENT)).shape == made.shape


def kinds(network: nn.Module) -> str:
    short = {"ConvTranspose2d": "Deconv", "Conv2d": "Conv", "BatchNorm2d": "BN", "Linear": "FC"}
    names = [type(m).__name__ for m in network.modules() if not list(m.children())]
    return " ".join(short.get(name, name) for name in names)


def test_layers_of_table_7_2() -> None:
    method = build()
    assert kinds(method.generator) == ("FC Unflatten BN ReLU Deconv BN ReLU Deconv BN ReLU Deconv BN ReLU Deconv Tanh")
    conv = "Conv BN LeakyReLU"
    assert kinds(method.backbone) == f"Conv LeakyReLU {conv} {conv} {conv} AdaptiveAvgPool2d Flatten"
    slopes = {m.negative_slope for m in method.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}
    tanh = build(activation="tanh", generator_norm=False, discriminator_norm=False)
    assert kinds(tanh.generator) == "FC Unflatten Tanh" + 3 * " Deconv Tanh" + " Deconv Tanh"
    assert kinds(tanh.backbone) == "Conv Tanh" + 3 * " Conv Tanh" + " AdaptiveAvgPool2d Flatten"
    assert all(m.bias is not None for m in tanh.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.ConvTranspose2d))


def test_depth_doubles_the_layers() -> None:
    """5 layers with weights each at 32 pixels; 4 more each, since the last stays alone."""
    for depth, layers in ((1, 5), (2, 9)):
        method = build(depth=depth)
        weighted = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        for networks in ([method.generator], [method.backbone, method.logit], [method.noise_generator]):
            assert sum(isinstance(m, weighted) for network in networks for m in network.modules()) == layers


def test_a_discriminator_without_batch_norm() -> None:
    def norms(**options: Any) -> int:
        return sum(isinstance(m, nn.BatchNorm2d) for m in build(**options).backbone.modules())

    assert norms() == 3
    assert norms(spectral_norm=True) == norms(objective="wgan_gp") == norms(discriminator_norm=False) == 0
    assert norms(spectral_norm=True, discriminator_norm=True) == 3


def test_dcgans_initialization() -> None:
    torch.manual_seed(0)
    method = DFGAN(Config(width=0.25), None, facts())
    for module in [*method.backbone.modules(), *method.generator.modules()]:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 1e4:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1.0, abs=0.02) and not torch.equal(
                module.weight, torch.ones_like(module.weight)
            )


@pytest.mark.parametrize("side", [(28, 28), (96, 96), (16, 16), (32, 64), (256, 256)])
def test_other_sizes_are_refused(side: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"32, 64, 128 pixels, got {side[0]} x {side[1]}: change --views\.image\.size"
    ):
        DFGAN(Config(), None, Facts(10, None, {"image": ((3, *side), 0)}))


def test_gray_images() -> None:
    method = DFGAN(Config(width=1 / 16), None, facts(channels=1))
    assert method.sample(torch.arange(2), 0).shape == (2, 1, 32, 32)
    assert method.backbone(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).shape == (2, 32)


# ----------------------------------------------------------------------------------- spectral norm


def weights_of(method: DFGAN) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each layer of D: its weight as used, and as learned."""
    for module in [*method.backbone.modules(), method.logit]:
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield module.weight, module.get_submodule("parametrizations.weight").get_parameter("original")


def test_spectral_norm_is_numpys() -> None:
    """After some forward passes, each of one power iteration, every layer of D is its weight over the largest
    singular value of (out, in * kernel * kernel)."""
    method = build(spectral_norm=True, initialization="dcgan")
    with torch.no_grad():
        for _ in range(150):
            method.discriminator(torch.zeros(1, 3, 32, 32))
        layers = list(weights_of(method.eval()))
    assert len(layers) == 5
    for used, learned in layers:
        values = np.linalg.svd(learned.detach().double().flatten(1).numpy(), compute_uv=False)
        torch.testing.assert_close(used, learned / values[0], rtol=1e-3, atol=1e-6)
        assert np.linalg.svd(used.detach().flatten(1).numpy(), compute_uv=False)[0] == pytest.approx(1.0, rel=1e-3)


# -------------------------------------------------------------------------------- what D is shown


class Shown:
    """What a method's discriminator gets: `images` of real and of generated ones, of the passes for the loss."""

    def __init__(self, method: DFGAN, turn: str = "discriminator", step: int = 0) -> None:
        inner, self.images = method.discriminator, list[Tensor]()

        def discriminator(images: Tensor) -> Tensor:
            self.images.append(images.detach())
            return inner(images)

        method.discriminator = discriminator  # type: ignore[method-assign]
        self.step = method(batch_at(0), clock_at(step), turn)


@pytest.mark.parametrize("noise", ["gaussian", "generator"])
def test_doubled(noise: str) -> None:
    """Algorithm 1: {x, x + e} and {G(z), G(z) + e} with the same e."""
    shown = Shown(build(noise=noise))
    real, fake = shown.images
    assert torch.equal(real[:BATCH], centred(batch_at(0)["image"]))
    e = real[BATCH:] - real[:BATCH]
    assert real.shape == fake.shape == (2 * BATCH, 3, 32, 32) and e.std() > 0.1
    torch.testing.assert_close(fake[BATCH:] - fake[:BATCH], e, rtol=0.0, atol=1e-6)
    assert shown.step.log["noise_power"].item() == pytest.approx(e.square().mean().item(), rel=1e-4)


def test_halves() -> None:
    """Half clean, half noisy; taken in turn, which in a shuffled batch is the same."""
    real, fake = Shown(build(mix="halves")).images
    x = centred(batch_at(0)["image"])
    assert real.shape == fake.shape == x.shape
    assert torch.equal(real[: BATCH // 2], x[0::2])
    assert (real[BATCH // 2 :] - x[1::2]).flatten(1).std(1).min() > 0.05
    with pytest.raises(ValueError, match=r"method\.mix halves takes an even batch on each worker, got 7"):
        build(mix="halves")({k: v[:7] for k, v in batch_at(0).items()}, clock_at(0), "discriminator")


def test_noisy_only_and_clean_only() -> None:
    x = centred(batch_at(0)["image"])
    noisy = Shown(build(mix="noisy_only")).images
    assert [len(images) for images in noisy] == [BATCH, BATCH] and not torch.isclose(noisy[0], x).all(1).any()
    clean = Shown(build(noise="none"))
    assert torch.equal(clean.images[0], x) and len(clean.images[1]) == BATCH
    assert "noise_power" not in clean.step.log


@pytest.mark.parametrize("mix", ["doubled", "halves", "noisy_only"])
def test_the_generators_turn_shows_generated_images_alone(mix: str) -> None:
    (fake,) = Shown(build(mix=mix), "generator").images
    assert len(fake) == (2 * BATCH if mix == "doubled" else BATCH)


def test_turns_draw_apart() -> None:
    """Algorithm 1 samples z and e anew for the generator."""
    method = build()
    in_d, in_g = Shown(method).images[1], Shown(method, "generator").images[0]
    assert not torch.isclose(in_d[:BATCH], in_g[:BATCH]).flatten(1).all(1).any()
    e_d, e_g = (images[BATCH:] - images[:BATCH] for images in (in_d, in_g))
    assert not torch.isclose(e_d, e_g).flatten(1).all(1).any()


def test_gaussian_noise_is_standard_normal_times_sigma() -> None:
    """2 * 8 * 3072 values: standard deviation within 5 standard errors, 1 / sqrt(2 n) each."""
    real = Shown(build(noise="gaussian", sigma=0.5)).images[0]
    e = real[BATCH:] - real[:BATCH]
    assert e.std().item() == pytest.approx(0.5, rel=5 / math.sqrt(2 * e.numel()))
    assert abs(e.mean().item()) < 5 * 0.5 / math.sqrt(e.numel())


def test_the_noise_network_is_bounded() -> None:
    method = build(noise_scale=0.1)
    with torch.no_grad():
        for p in method.noise_generator.parameters():
            p.mul_(50)
    real = Shown(method).images[0]
    assert (real[BATCH:] - real[:BATCH]).abs().max().item() == pytest.approx(0.1, rel=1e-3)


def test_shared_latent_is_the_generators() -> None:
    clock, index = clock_at(0), torch.arange(BATCH)
    z = normal(clock.seed, clock.step, index, "discriminator/z", LATENT)
    e = {latent: build(noise_latent=latent).noise(z, index, clock, "discriminator") for latent in ("own", "shared")}
    expected = build().noise_generator(z)
    torch.testing.assert_close(e["shared"], expected)
    assert e["own"] is not None and not torch.allclose(e["own"], expected)


@pytest.mark.parametrize("options", [{"spectral_norm": True}, {"objective": "wgan_gp"}, {"normalize_noisy": True}])
def test_noisy_images_are_normalized_apart(options: dict[str, Any]) -> None:
    """7.2.3: mean 0 and variance 1 a channel over the noisy real ones, and over the noisy generated ones."""
    for images in Shown(build(**options)).images[:2]:
        noisy = images[BATCH:]
        torch.testing.assert_close(noisy.mean((0, 2, 3)), torch.zeros(3), rtol=0.0, atol=1e-4)
        torch.testing.assert_close(noisy.var((0, 2, 3), unbiased=False), torch.ones(3), rtol=0.0, atol=1e-3)
    for images in Shown(build(**{**options, "normalize_noisy": False})).images[:2]:
        e = images[BATCH:] - images[:BATCH]
        assert e.abs().max() <= 2.0001  # as the network made it


def test_real_and_generated_images_are_normalized_apart() -> None:
    """Through D's batch norm neither tells of the other."""
    method, other = build(noise="none"), build(noise="none")
    with torch.no_grad():
        for p in other.generator.parameters():
            p.mul_(2)
    logs = [each(batch_at(0), clock_at(0), "discriminator").log for each in (method, other)]
    assert torch.equal(logs[0]["output_real"], logs[1]["output_real"])
    assert not torch.equal(logs[0]["output_fake"], logs[1]["output_fake"])
    assert torch.equal(
        build(noise="none")(batch_at(1) | {"index": torch.arange(BATCH)}, clock_at(0), "discriminator").log[
            "output_fake"
        ],
        logs[0]["output_fake"],
    )


# ------------------------------------------------------------------------------------------- terms


def test_terms() -> None:
    """Algorithm 1 adds the clean and the noisy terms: twice their mean, and lambda * Gamma stays."""
    for turn in DFGAN.turns:
        mean, both = (build(terms=terms)(batch_at(0), clock_at(0), turn) for terms in ("mean", "sum"))
        penalty = mean.log.get("noise_penalty", 0.0)
        torch.testing.assert_close(both.loss - penalty, 2 * (mean.loss - penalty))
    alone: tuple[dict[str, Any], ...] = ({"noise": "none"}, {"mix": "noisy_only"})
    for options in alone:
        losses = [build(terms=t, **options)(batch_at(0), clock_at(0), "generator").loss for t in ("mean", "sum")]
        assert torch.equal(*losses)


def test_gamma_of_the_noise_network() -> None:
    """Mean of e^2, or its sum over 3 * 32 * 32 pixels; weighted by lambda, and beside the sum of the clean term and the
    noisy one, of which the mean is logged."""
    for magnitude, factor in (("mean", 1), ("sum", 3072)):
        out = build(magnitude=magnitude, noise_penalty=0.3)(batch_at(0), clock_at(0), "discriminator")
        torch.testing.assert_close(out.log["noise_penalty"], 0.3 * factor * out.log["noise_power"])
        torch.testing.assert_close(out.loss.detach(), 2 * out.log["adversarial"] + out.log["noise_penalty"])


def test_gamma_of_a_learned_sigma() -> None:
    """lambda sigma^2, whose gradient is 2 lambda sigma."""
    options: dict[str, Any] = {"noise": "gaussian", "sigma_schedule": "learned", "sigma": 0.7}
    with_, without = (build(**options, noise_penalty=weight) for weight in (3.0, 0.0))
    out = with_(batch_at(0), clock_at(0), "discriminator")
    assert out.log["noise_penalty"].item() == pytest.approx(3 * 0.49)
    assert out.log["sigma"].item() == pytest.approx(0.7)
    difference = gradients(with_)["sigma"] - gradients(without)["sigma"]
    assert difference.item() == pytest.approx(2 * 3 * 0.7, rel=1e-5)


def test_annealed_sigma_falls_to_zero() -> None:
    method = build(noise="gaussian", sigma_schedule="annealed", sigma=2.0)
    sigmas = [method(batch_at(0), clock_at(step), "discriminator").log["sigma"].item() for step in (0, 5, 9)]
    assert sigmas == pytest.approx([2.0, 1.0, 0.2])
    assert method.sigma_at(clock_at(10)) == 0
    assert build(noise="gaussian", sigma=2.0).sigma_at(clock_at(9)) == 2


def test_fixed_noise_is_not_penalized() -> None:
    out = build(noise="gaussian", noise_penalty=5.0)(batch_at(0), clock_at(0), "discriminator")
    assert torch.equal(out.loss.detach(), 2 * out.log["adversarial"]) and "noise_penalty" not in out.log


def test_weights_of_the_regularizers() -> None:
    """gamma / 2 of Roth et al., which after 5 of 10 steps has fallen by .01 ^ .5; 10 of WGAN-GP."""

    def parts(step: int, **options: Any) -> tuple[float, DFGAN, Tensor, Tensor]:
        method = build(noise="none", discriminator_norm=False, **options)
        shown = Shown(method, step=step)
        return shown.step.log["regularizer"].item(), method, *shown.images[:2]

    value, method, real, fake = parts(0, regularizer="roth", gamma=2.0)
    assert value == pytest.approx(roth_regularizer(method.discriminator, real, fake).item(), rel=1e-5) and value > 0
    for step, factor in ((0, 1.0), (5, 0.1)):
        annealed, constant = (parts(step, regularizer="roth", gamma_decay=decay)[0] for decay in (0.01, 1.0))
        assert annealed == pytest.approx(factor * constant, rel=1e-5)
    value, method, real, fake = parts(0, objective="wgan_gp")
    u = draw(3, 0, torch.arange(BATCH), "mixture/clean", 1)
    assert value == pytest.approx(10 * gradient_penalty(method.discriminator, real, fake, u).item(), rel=1e-5)


def test_the_output_of_d_is_a_probability_where_it_has_a_sigmoid() -> None:
    for objective in HAND:
        method = build(objective=objective, noise="none")
        shown = Shown(method)
        logits = method.discriminator(shown.images[0]).detach()
        expected = torch.sigmoid(logits) if objective in ("minimax", "non_saturating") else logits
        torch.testing.assert_close(shown.step.log["output_real"], expected.mean())


# --------------------------------------------------------------------------- who feels what in a turn


@every_case
@every_turn
def test_a_turn_moves_its_own(options: dict[str, Any], turn: str) -> None:
    """Parameters, running statistics and spectral vectors of the other turn stay; all of its own move."""
    method = build(**options)
    optimizers = optimizers_of(method)
    for each in method.turns:
        take(method, optimizers, 0, each)
    before = state_of(method)
    take(method, optimizers, 1, turn)
    changed = moved(method, before)
    mine = {name for name in before if name.startswith("generator.") == (turn == "generator")}
    constant = {"backbone.mean", "backbone.std"}
    if options.get("objective") in ("wgan_gp", "hinge"):
        constant.add("logit.bias")  # their losses know differences of logits alone, at least here
    constant.add("logit.parametrizations.weight.0._u")  # of one output: a sign
    assert changed <= mine
    assert mine - changed <= constant


@every_case
def test_gradients_across_turns(options: dict[str, Any]) -> None:
    """Without the loop, which freezes the others: G gets none in D's turn, the noise none in G's turn."""
    method = build(**options)
    assert not any(name.startswith("generator.") for name in gradients(method, "discriminator"))
    felt = gradients(method, "generator")
    assert not any(name.startswith("noise_generator.") or name == "sigma" for name in felt)
    assert all(name in felt for name, _ in method.named_parameters() if name.startswith("generator."))


LEARNED: list[dict[str, Any]] = [
    {},
    {"mix": "halves"},
    {"objective": "hinge", "spectral_norm": True},
    {"objective": "least_squares", "mix": "noisy_only"},
    {"objective": "wgan_gp"},
    {"noise": "gaussian", "sigma_schedule": "learned"},
]


@pytest.mark.parametrize("options", LEARNED, ids=name_of)
def test_the_noise_climbs_what_d_descends(options: dict[str, Any]) -> None:
    """Without lambda a small step of the noise down its gradient raises L_D, one of D lowers it; each by as much as
    its gradient says."""
    step = 1e-2
    for noisy, sign in ((True, 1), (False, -1)):
        method = build(noise_penalty=0.0, gradient_penalty=0.0, **options)
        felt = gradients(method)
        before = method(batch_at(0), clock_at(0), "discriminator").log["adversarial"].item()
        names = [n for n in felt if (n.startswith("noise_generator.") or n == "sigma") == noisy]
        size = math.sqrt(sum(felt[name].square().sum().item() for name in names))
        assert size > 0
        with torch.no_grad():
            for name in names:
                method.get_parameter(name).sub_(step / size * felt[name])
        after = method(batch_at(0), clock_at(0), "discriminator").log["adversarial"].item()
        assert sign * method.factor * (after - before) == pytest.approx(step * size, rel=0.15)


@pytest.mark.parametrize("options", [{"objective": "wgan_gp"}, {"regularizer": "roth"}], ids=name_of)
def test_the_noise_does_not_feel_the_regularizer(options: dict[str, Any]) -> None:
    weight = "gradient_penalty" if "objective" in options else "gamma"
    with_, without = (gradients(build(**{**options, weight: value})) for value in (10.0, 0.0))
    assert not torch.equal(with_["logit.weight"], without["logit.weight"])
    for name in with_:
        if name.startswith("noise_generator."):
            assert torch.equal(with_[name], without[name])


@pytest.mark.parametrize(
    ("options", "without"),
    [
        ({"regularizer": "roth"}, {}),
        ({"objective": "wgan_gp", "spectral_norm": True}, {"objective": "hinge", "spectral_norm": True}),
    ],
)
def test_the_regularizer_moves_no_statistics(options: dict[str, Any], without: dict[str, Any]) -> None:
    """Running statistics and spectral vectors are those of the passes for L_D."""
    one, other = build(**options), build(**without)
    for method in (one, other):
        method(batch_at(0), clock_at(0), "discriminator")
    assert not moved(one, state_of(other))


# ---------------------------------------------------------------------------------------- contract


def test_groups_hold_every_parameter_once() -> None:
    for options in OPTIONS:
        method = build(**options)
        held = [id(p) for turn in method.turns for p in method.parameters_of(turn)]
        assert sorted(held) == sorted(id(p) for p in method.parameters())
        assert {id(p) for p in method.parameters_of("generator")} == {id(p) for p in method.generator.parameters()}


def test_five_steps_of_the_discriminator_to_one() -> None:
    turns = [build(discriminator_steps=5).turns_at(clock_at(step)) for step in range(10)]
    assert turns == 2 * [*4 * [("discriminator",)], ("discriminator", "generator")]
    assert all(build().turns_at(clock_at(step)) == DFGAN.turns for step in range(3))


@every_case
def test_a_state_dict_resumes_to_the_bit(options: dict[str, Any]) -> None:
    def run(method: DFGAN, optimizers: dict[str, torch.optim.Optimizer], steps: range) -> list[Tensor]:
        return [take(method, optimizers, s, turn).loss for s in steps for turn in method.turns_at(clock_at(s))]

    first = build(**options)
    optimizers = optimizers_of(first)
    run(first, optimizers, range(3, 5))
    second = build(seed=1, **options)
    second.load_state_dict(state_of(first))
    others = optimizers_of(second)
    for turn, optimizer in optimizers.items():
        others[turn].load_state_dict(deepcopy(optimizer.state_dict()))
    for a, b in zip(run(first, optimizers, range(5, 6)), run(second, others, range(5, 6)), strict=True):
        assert torch.equal(a, b) and a.isfinite()
    assert not moved(second, state_of(first))


@every_case
@every_turn
def test_no_draw_from_the_process_and_finite_logs(options: dict[str, Any], turn: str) -> None:
    method = build(**options)
    before = torch.get_rng_state()
    out = take(method, optimizers_of(method), 0, turn)
    assert torch.equal(torch.get_rng_state(), before)
    assert out.loss.shape == () and out.loss.dtype == torch.float32
    for name, value in out.log.items():
        assert value.shape == () and not value.requires_grad and value.isfinite(), name


@every_case
@every_turn
def test_bf16_autocast(options: dict[str, Any], turn: str) -> None:
    plain, mixed = build(**options), build(**options)
    expected = plain(batch_at(0), clock_at(0), turn).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mixed(batch_at(0), clock_at(0), turn)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, expected, rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in mixed.parameters() if p.grad is not None)


def test_other_views_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^dfgan takes the view image, got left"):
        DFGAN(Config(), None, Facts(10, None, {"left": ((3, 32, 32), 0)}))


WRONG: list[tuple[str, Any]] = [
    ("objective", "wasserstein"),
    ("noise", "salt"),
    ("mix", "thirds"),
    ("depth", 3),
    ("activation", "gelu"),
    ("noise_penalty", -1.0),
    ("sigma", 0.0),
    ("noise_scale", math.inf),
    ("discriminator_steps", 0),
    ("gamma", -0.1),
    ("gamma_decay", 0.0),
    ("gradient_penalty", math.nan),
    ("width", 0.0),
    ("latent", 0),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_wrong_options_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^method\.{field} is "):
        replace(Config(), **{field: value})


def test_roth_is_for_a_sigmoid() -> None:
    with pytest.raises(ValueError, match=r"^method\.regularizer roth is .*not hinge"):
        Config(objective="hinge", regularizer="roth")


# ----------------------------------------------------------------------------------------- samples


def test_samples_know_neither_batch_nor_moment() -> None:
    """The same image in any batch, but for a rounding of the last bit; nothing moves, and training mode stays."""
    method = build()
    optimizers = optimizers_of(method)
    for step in range(3):
        take(method, optimizers, step, "generator")
    before, index = state_of(method), torch.arange(20, 37)
    whole = method.sample(index, seed=5)
    assert whole.shape == (17, 3, 32, 32) and whole.dtype == torch.uint8
    parts = torch.cat([method.sample(some, 5) for some in index.split(3)])
    assert (whole.int() - parts.int()).abs().max() <= 1
    assert torch.equal(method.sample(index.flip(0), 5).flip(0), whole)
    assert not torch.equal(method.sample(index, 6), whole) and not torch.equal(whole[0], whole[1])
    assert not moved(method, before) and all(m.training for m in method.modules())


@every_case
def test_pictures(options: dict[str, Any]) -> None:
    method = build(**options)
    before, state = state_of(method), torch.get_rng_state()
    pictures = method.pictures(batch_at(0), clock_at(10))
    noisy = options.get("noise") != "none"
    assert set(pictures) == ({"samples", "noise", "noisy"} if noisy else {"samples"})
    assert torch.equal(pictures["samples"], method.sample(torch.arange(64), 3))
    for images in pictures.values():
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 32, 32)
    if noisy:
        assert len(pictures["noise"]) == len(pictures["noisy"]) == (4 if options.get("mix") == "halves" else BATCH)
    assert not moved(method, before) and torch.equal(torch.get_rng_state(), state)


def test_a_noise_of_nothing_is_gray() -> None:
    method = build(noise="gaussian", sigma_schedule="annealed")
    pictures = method.pictures(batch_at(0), clock_at(10))
    assert pictures["noise"].eq(128).all() and torch.equal(pictures["noisy"], batch_at(0)["image"])


def test_make_generator_takes_a_share() -> None:
    eighth, whole = (make_generator(Config(), (3, 32, 32), share) for share in (1 / 8, 1.0))
    assert count(eighth) == NOISE[32] and count(whole) == GENERATOR[32]

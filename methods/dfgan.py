"""DFGAN: Distribution Filtering GAN (S. Jenni, P. Favaro, CVPR 2019, arXiv 1906.04612; chapter 7 of Jenni's thesis on
self-supervised learning, whose sections, tables and Algorithm 1 are named here).

A discriminator D tells real images x from generated ones, both clean and with noise e added: Eq. 7.8. The same noise is
added to real and generated images, and a network that learns it (or its deviation sigma) works against D:

    turn `discriminator`: D descends L_D(x, x + e), the noise -L_D + lambda * Gamma(e), by a reversed gradient
    turn `generator`: G descends L_G(G(z), G(z) + e), through a D and a noise that stay as they are

View: `image`, uint8 of 32, 64 or 128 pixels; networks see and make [-1, 1]. `backbone` is D's convolutional part, whose
last map, averaged, are the features and, flattened, goes into D's logit. Real and generated images pass D one after the
other, so each has its own batch statistics (7.2.3).

Where the thesis and the released code differ, the thesis is the default, but for Gamma: the mean of e^2 over pixels, as
the lambdas of Table 7.1 fit the code alone; Algorithm 1 sums them (`magnitude="sum"`). The code averages clean and
noisy terms (`terms="mean"`), its noise is 2 * tanh (`noise_scale=2`) and of G's latent (`noise_latent="shared"`).
In neither, so chosen: no bias before a batch norm, no batch norm after D's first layer, G's first one by channel, batch
norm's momentum and epsilon (torch's), samples by its running statistics, `initialization`, the layers that `depth`
adds, the 2048 channels at 128 pixels, each objective's form as in its own paper. The originals' own architectures
(7.3.2) are not here: Table 7.2 serves all. `--batch-norm none` takes the normalization of `normalize_noisy` too.

Legend: B this rank's share of the batch, C channels, M channels of D's last map, n rows that D sees (2B or B).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.parts import centred, draw, evaluating, normal, reverse_gradient, still, to_uint8

Objective = Literal["minimax", "non_saturating", "least_squares", "hinge", "wgan_gp"]
Noise = Literal["none", "gaussian", "generator"]
Sigma = Literal["fixed", "learned", "annealed"]
Mix = Literal["doubled", "halves", "noisy_only"]
Reduction = Literal["mean", "sum"]
LOGISTIC = ("minimax", "non_saturating")
SIZES = (32, 64, 128)
PICTURES = 64
ROWS: Mapping[str, tuple[slice, slice]] = {  # of a batch: those that D sees clean, and those that it sees with noise
    "doubled": (slice(None), slice(None)),
    "halves": (slice(0, None, 2), slice(1, None, 2)),  # in turn, so that they are the same for any number of workers
    "noisy_only": (slice(0), slice(None)),
}


@dataclass(frozen=True)
class Config:
    """Defaults: DFGAN of Table 7.1 g."""

    objective: Objective = "non_saturating"
    """L_D and L_G (7.3.2): MMGAN, DCGAN, LSGAN, SVM-GAN, WGAN-GP, which takes gradients of gradients: torch.compile
    can't."""
    spectral_norm: bool = False
    """Every weight of D divided by its largest singular value: SNGAN (Miyato et al., 2018)."""
    noise: Noise = "generator"
    """e (7.2.1): none, N(0, sigma^2), or a network's output."""
    noise_penalty: float = 1.0
    """lambda of Eq. 7.8 (Table 7.1 f-h): weight of Gamma, for learned noise."""
    magnitude: Reduction = "mean"
    """Gamma over the pixels of a noise image: mean of e^2 (released code), or sum (Algorithm 1)."""
    mix: Mix = "doubled"
    """What D sees where there is noise: each image clean and noisy (Algorithm 1), every second one noisy (Table 7.1 i),
    or noisy images alone (Table 7.1 a-c)."""
    terms: Reduction = "sum"
    """Clean and noisy terms weigh 1 each (Eq. 7.8, Algorithm 1), or 1/2 each (released code): half as much beside
    lambda's."""
    normalize_noisy: bool | None = None
    """Noisy images enter D with mean 0 and variance 1 over the batch, a channel, real and generated ones apart (7.2.3).
    None: where D has no batch norm."""
    sigma_schedule: Sigma = "fixed"
    """Of Gaussian noise: sigma stays, is learned with Gamma = sigma^2, or falls linearly to 0 over the training."""
    sigma: float = 1.0
    """Deviation of Gaussian noise at the start, for images in [-1, 1]."""
    noise_latent: Literal["own", "shared"] = "own"
    """The noise network's input: a w of its own (7.2.1), or G's z (released code)."""
    noise_width: float = 1 / 8
    """The noise network's channels, as a share of G's (Table 7.2)."""
    noise_scale: float = 1.0
    """The noise network ends in noise_scale * tanh: 1, as Table 7.2 has it "follow" G; 2 in the released code."""
    discriminator_steps: int = 1
    """n_disc: steps of D to one of G (Table 7.4 e). Each has a new batch, so the run needs as many more epochs."""
    regularizer: Literal["none", "roth"] = "none"
    """The gradient regularizer of Roth et al. (arXiv 1705.09367), "GAN+GP" in 7.3.3: gamma / 2 times its Omega."""
    gamma: float = 0.1
    """Of Roth et al.: the default of their code; not in the thesis."""
    gamma_decay: float = 1.0
    """Of Roth et al.: gamma at the end over gamma at the start, falling exponentially; .01 is their annealing."""
    gradient_penalty: float = 10.0
    """Weight of WGAN-GP's penalty (Gulrajani et al., 2017)."""
    generator_norm: bool = True
    """Batch norm in G (Table 7.4 a) and in the noise network."""
    discriminator_norm: bool | None = None
    """Batch norm in D. None: except with spectral norm and in WGAN-GP, as their papers."""
    activation: Literal["relu", "tanh"] = "relu"
    """ReLU in G and leaky ReLU in D, or tanh in both (Table 7.4 b)."""
    initialization: Literal["dcgan", "torch"] = "dcgan"
    """Weights from N(0, .02), batch norm's scale from N(1, .02), biases 0 (Radford et al., 2016); or torch's own."""
    width: float = 1.0
    """Factor of all channels of Table 7.2."""
    depth: Literal[1, 2] = 1
    """2 doubles the layers of D, G and the noise network (7.3.3): a 3x3 layer of stride 1 follows each but the last."""
    latent: int = 128
    """Width of z and of w."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if get_origin(each.type) is Literal and getattr(self, each.name) not in get_args(each.type):
                known = ", ".join(map(str, get_args(each.type)))
                raise ValueError(f"method.{each.name} is one of {known}, got {getattr(self, each.name)}")
        rules: tuple[tuple[str, bool, str], ...] = (
            ("noise_penalty", 0 <= self.noise_penalty < math.inf, "lambda, 0 or more"),
            ("sigma", 0 < self.sigma < math.inf, "above 0"),
            ("noise_width", 0 < self.noise_width <= 1, "a share in (0, 1]"),
            ("noise_scale", 0 < self.noise_scale < math.inf, "above 0"),
            ("discriminator_steps", self.discriminator_steps >= 1, "at least 1"),
            ("gamma", 0 <= self.gamma < math.inf, "0 or more"),
            ("gamma_decay", 0 < self.gamma_decay <= 1, "in (0, 1]"),
            ("gradient_penalty", 0 <= self.gradient_penalty < math.inf, "0 or more"),
            ("width", 0 < self.width < math.inf, "above 0"),
            ("latent", self.latent >= 1, "at least 1"),
        )
        for field, holds, rule in rules:
            if not holds:
                raise ValueError(f"method.{field} is {rule}, got {getattr(self, field)}")
        if self.regularizer == "roth" and self.objective not in LOGISTIC:
            raise ValueError(f"method.regularizer roth is derived for minimax and non_saturating, not {self.objective}")

    @property
    def has_discriminator_norm(self) -> bool:
        if self.discriminator_norm is None:
            return not self.spectral_norm and self.objective != "wgan_gp"
        return self.discriminator_norm

    @property
    def normalizes_noisy(self) -> bool:
        wanted = not self.has_discriminator_norm if self.normalize_noisy is None else self.normalize_noisy
        return wanted and self.noise != "none"

    @property
    def learns_noise(self) -> bool:
        return self.noise == "generator" or (self.noise == "gaussian" and self.sigma_schedule == "learned")


# ------------------------------------------------------------------------------------------ networks


def channels_of(config: Config, size: int, share: float = 1.0) -> list[int]:
    """64, 128, ..., M: one more for each halving of the image, down to 4 x 4 pixels."""
    return [max(1, round(64 * 2**n * config.width * share)) for n in range(size.bit_length() - 2)]


def make_generator(config: Config, image: tuple[int, ...], share: float = 1.0) -> nn.Sequential:
    """Table 7.2, left: (B, latent) -> (B, C, size, size) in [-1, 1], with `share` of its channels."""
    bias, widths = not config.generator_norm, channels_of(config, image[-1], share)[::-1]

    def after(width: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(width)] if config.generator_norm else []
        return [*norm, nn.Tanh() if config.activation == "tanh" else nn.ReLU(inplace=True)]

    def more(width: int) -> list[nn.Module]:
        return [nn.Conv2d(width, width, 3, 1, 1, bias=bias), *after(width)] if config.depth == 2 else []

    first = widths[0]
    layers = [nn.Linear(config.latent, 16 * first, bias=bias), nn.Unflatten(1, (first, 4, 4)), *after(first)]
    layers += more(first)
    for fan_in, width in pairwise(widths):
        layers += [nn.ConvTranspose2d(fan_in, width, 4, 2, 1, bias=bias), *after(width), *more(width)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], image[0], 3, 1, 1), nn.Tanh())


def make_trunk(config: Config, image: tuple[int, ...]) -> nn.Sequential:
    """Table 7.2, right, up to its last map: (n, C, size, size) in [-1, 1] -> (n, M, 4, 4), by the layers conv1, ..."""
    fan_in, layers = image[0], OrderedDict[str, nn.Module]()
    for width in channels_of(config, image[-1]):
        for repeat in range(config.depth):
            norm = config.has_discriminator_norm and bool(layers)
            kernel, stride = (4, 2) if layers and repeat == 0 else (3, 1)
            conv = nn.Conv2d(fan_in, width, kernel, stride, 1, bias=not norm)
            act = nn.Tanh() if config.activation == "tanh" else nn.LeakyReLU(0.2, inplace=True)
            layers[f"conv{len(layers) + 1}"] = nn.Sequential(conv, *([nn.BatchNorm2d(width)] if norm else []), act)
            fan_in = width
    return nn.Sequential(layers)


def initialize(network: nn.Module) -> None:
    """As DCGAN: N(0, .02), batch norm's scale N(1, .02), biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# -------------------------------------------------------------------------------------------- losses


def discriminator_loss(real: Tensor, fake: Tensor, objective: Objective) -> Tensor:
    """L_D, which D descends, of the logits (n,) of real and of generated images: a scalar, means over the rows.

    minimax, non_saturating:  -E ln D(x) - E ln(1 - D(G(z)))              (Eq. 7.1), D the sigmoid of the logit
    least_squares:            E (D(x) - 1)^2 / 2 + E D(G(z))^2 / 2        (Mao et al., 2017), below D is the logit
    hinge:                    E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))  (Lim and Ye, 2017)
    wgan_gp:                  E D(G(z)) - E D(x)                          (Gulrajani et al., 2017), without its penalty
    """
    if objective in LOGISTIC:
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if objective == "least_squares":
        return ((real - 1).square().mean() + fake.square().mean()) / 2
    if objective == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return fake.mean() - real.mean()


def generator_loss(fake: Tensor, objective: Objective) -> Tensor:
    """L_G, which G descends, of the logits (n,) of generated images.

    minimax E ln(1 - D(G(z))); non_saturating -E ln D(G(z)); least_squares E (D(G(z)) - 1)^2 / 2; others -E D(G(z)).
    """
    if objective == "minimax":
        return -F.softplus(fake).mean()
    if objective == "non_saturating":
        return F.softplus(-fake).mean()
    if objective == "least_squares":
        return (fake - 1).square().mean() / 2
    return -fake.mean()


Discriminator = Callable[[Tensor], Tensor]
"""Images (n, ...) -> logits (n,)."""


def slopes(discriminator: Discriminator, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n,) and their gradients (n, pixels) by the images, which are detached; both attached to D."""
    images = images.detach().requires_grad_()
    logits = discriminator(images)
    (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return logits, gradients.flatten(1).float()


def gradient_penalty(discriminator: Discriminator, real: Tensor, fake: Tensor, mixture: Tensor) -> Tensor:
    """E (|grad D(u x + (1 - u) G(z))| - 1)^2, of real and generated images (n, C, H, W) and u = `mixture` (n, 1)
    in [0, 1] (Gulrajani et al., 2017, Algorithm 1)."""
    gradients = slopes(discriminator, torch.lerp(fake, real, mixture[..., None, None]))[1]
    return (gradients.norm(dim=1) - 1).square().mean()


def roth_regularizer(discriminator: Discriminator, real: Tensor, fake: Tensor) -> Tensor:
    """Omega = E (1 - D(x))^2 |grad phi(x)|^2 + E D(G(z))^2 |grad phi(G(z))|^2, phi the logit and D its sigmoid, of
    images (n, C, H, W) (Roth et al., 2017)."""
    (phi, slope), (phi_fake, slope_fake) = slopes(discriminator, real), slopes(discriminator, fake)
    on_real = torch.sigmoid(-phi).square() * slope.square().sum(1)
    return (on_real + torch.sigmoid(phi_fake).square() * slope_fake.square().sum(1)).mean()


# -------------------------------------------------------------------------------------------- method


class DFGAN(Method):
    turns = ("discriminator", "generator")
    owns_backbone = True

    def __init__(self, config: Config, backbone: Backbone | None, facts: Facts) -> None:
        super().__init__()
        if "image" not in facts.views:
            raise ValueError(f"dfgan takes the view image, got {', '.join(facts.views)}")
        self.config = config
        self.image = facts.views["image"][0]  # (C, H, W)
        channels, height, width = self.image
        if height != width or height not in SIZES:
            raise ValueError(
                f"dfgan makes square images of {', '.join(map(str, SIZES))} pixels, got {height} x {width}: "
                "change --views.image.size"
            )
        self.clean: slice
        self.noisy: slice
        self.clean, self.noisy = ROWS[config.mix] if config.noise != "none" else (slice(None), slice(0))
        both = config.noise != "none" and config.mix != "noisy_only"
        self.factor = 2.0 if both and config.terms == "sum" else 1.0

        trunk, dim = make_trunk(config, self.image), channels_of(config, height)[-1]
        layers = {name: f"trunk.{name}" for name, _ in trunk.named_children()}
        network = nn.Sequential(OrderedDict(trunk=trunk, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
        self.backbone = Backbone(network, dim, [0.5] * channels, [0.5] * channels, layers)
        self.logit = nn.Linear(16 * dim, 1)
        self.generator = make_generator(config, self.image)
        self.noise_generator: nn.Module = nn.Identity()
        if config.noise == "generator":
            self.noise_generator = make_generator(config, self.image, config.noise_width)
        if config.initialization == "dcgan":
            initialize(self)
        if config.spectral_norm:
            for module in [*trunk.modules(), self.logit]:
                if isinstance(module, nn.Conv2d | nn.Linear):
                    spectral_norm(module)
        learned = config.noise == "gaussian" and config.learns_noise
        self.sigma = nn.Parameter(torch.tensor(config.sigma)) if learned else None
        apart = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)
        self.normalize = apart if config.normalizes_noisy else nn.Identity()

    def turns_at(self, clock: Clock) -> tuple[str, ...]:
        return self.turns if (clock.step + 1) % self.config.discriminator_steps == 0 else self.turns[:1]

    def parameters_of(self, turn: str) -> list[nn.Parameter]:
        generator = set(self.generator.parameters())
        return [p for p in self.parameters() if (p in generator) == (turn == "generator")]

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        return self.generator_turn(batch, clock) if turn == "generator" else self.discriminator_turn(batch, clock)

    def discriminator_turn(self, batch: Batch, clock: Clock) -> Step:
        c, index = self.config, batch["index"]
        z = normal(clock.seed, clock.step, index, "discriminator/z", c.latent)  # (B, latent)
        with still(self.generator), torch.no_grad():
            generated = self.generator(z).float()
        noise = self.noise(z, index, clock, "discriminator")
        against = None if noise is None else reverse_gradient(noise)
        real, fake = self.seen(centred(batch["image"]), against), self.seen(generated, against)  # (n, C, H, W)
        on_real, on_fake = self.discriminator(real), self.discriminator(fake)  # (n,)
        adversarial = discriminator_loss(on_real, on_fake, c.objective)
        regularizer = self.regularizer(real, fake, index, clock)
        loss = self.factor * (adversarial + regularizer)
        log = {"adversarial": adversarial, "output_real": self.output(on_real), "output_fake": self.output(on_fake)}
        if c.objective == "wgan_gp" or c.regularizer != "none":
            log["regularizer"] = regularizer
        if noise is not None:
            log["noise_power"] = noise.square().mean()
        if noise is not None and c.learns_noise:
            log["noise_penalty"] = c.noise_penalty * self.magnitude(noise)
            loss = loss + log["noise_penalty"]
        if c.noise == "gaussian":
            log["sigma"] = self.sigma_at(clock) * torch.ones_like(adversarial)
        return Step(loss, {name: value.detach() for name, value in log.items()})

    def generator_turn(self, batch: Batch, clock: Clock) -> Step:
        index = batch["index"]
        z = normal(clock.seed, clock.step, index, "generator/z", self.config.latent)
        generated = self.generator(z).float()
        with still(self.noise_generator), torch.no_grad():
            noise = self.noise(z, index, clock, "generator")
        with still(self.backbone, self.logit):
            on_fake = self.discriminator(self.seen(generated, noise))
        return Step(self.factor * generator_loss(on_fake, self.config.objective), {})

    def discriminator(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], with or without noise, (n, C, H, W) -> logits (n,)."""
        trunk: Any = self.backbone.network.trunk
        return self.logit(trunk(images).flatten(1)).float().squeeze(1)

    def output(self, logits: Tensor) -> Tensor:
        """Mean of D: the sigmoid of its logit, or for the other objectives the logit itself."""
        return (torch.sigmoid(logits) if self.config.objective in LOGISTIC else logits).mean()

    def noise(self, z: Tensor, index: Tensor, clock: Clock, name: str) -> Tensor | None:
        """e for the noisy rows of the batch, (B or B / 2, C, H, W); None where there is no noise."""
        c = self.config
        if c.noise == "none":
            return None
        if c.mix == "halves" and len(index) % 2:
            raise ValueError(f"method.mix halves takes an even batch on each worker, got {len(index)}")
        index = index[self.noisy]
        if c.noise == "gaussian":
            e = normal(clock.seed, clock.step, index, f"{name}/noise", math.prod(self.image))
            return self.sigma_at(clock) * e.view(-1, *self.image)
        shared = c.noise_latent == "shared"
        w = z[self.noisy] if shared else normal(clock.seed, clock.step, index, f"{name}/w", c.latent)
        return c.noise_scale * self.noise_generator(w).float()

    def sigma_at(self, clock: Clock) -> Tensor | float:
        if self.sigma is not None:
            return self.sigma
        left = 1 - clock.step / clock.total_steps
        return self.config.sigma * (left if self.config.sigma_schedule == "annealed" else 1.0)

    def magnitude(self, noise: Tensor) -> Tensor:
        """Gamma: sigma^2, or the noise images' squared norm over their pixels."""
        if self.sigma is not None:
            return self.sigma.square()
        squares = noise.square().flatten(1)
        return (squares.mean(1) if self.config.magnitude == "mean" else squares.sum(1)).mean()

    def seen(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """What D sees of images (B, C, H, W): the clean rows, then the noisy ones, (n, C, H, W)."""
        clean = images[self.clean]
        return clean if noise is None else torch.cat([clean, self.normalize(images[self.noisy] + noise)])

    def regularizer(self, real: Tensor, fake: Tensor, index: Tensor, clock: Clock) -> Tensor:
        """What is added to L_D, of the images (n, C, H, W) that D saw; nothing of it reaches the noise."""
        c = self.config
        with still(self.backbone, self.logit):
            if c.objective == "wgan_gp":
                parts = {"clean": index[self.clean], "noisy": index[self.noisy]}
                draws = [draw(clock.seed, clock.step, rows, f"mixture/{name}", 1) for name, rows in parts.items()]
                return c.gradient_penalty * gradient_penalty(self.discriminator, real, fake, torch.cat(draws))
            if c.regularizer == "roth":
                gamma = c.gamma * c.gamma_decay ** (clock.step / clock.total_steps)
                return gamma / 2 * roth_regularizer(self.discriminator, real, fake)
        return real.new_zeros(())

    def score(self, images: Tensor) -> Tensor:
        """D's logit of images without noise."""
        return self.discriminator(centred(images))

    @torch.no_grad()
    def sample(self, index: Tensor, seed: int) -> Tensor:
        """In evaluation mode: batch norm takes its running statistics, so an image does not depend on its batch."""
        z = normal(seed, 0, index.to(self.backbone.mean.device), "sample", self.config.latent)
        with evaluating(self.generator):
            return to_uint8(self.generator(z))

    @torch.no_grad()
    def pictures(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """`samples` of the same latents at any time; `noise`, from -noise_scale in black to noise_scale in white, and
        the real images under it, `noisy`."""
        rows = min(PICTURES, len(batch["index"]))
        rows -= rows % 2 if self.config.mix == "halves" else 0
        index, images = batch["index"][:rows], batch["image"][:rows]
        pictures = {"samples": self.sample(torch.arange(PICTURES), clock.seed)}
        z = normal(clock.seed, clock.step, index, "pictures/z", self.config.latent)
        with evaluating(self.noise_generator):
            noise = self.noise(z, index, clock, "pictures")
        if noise is not None:
            noisy = to_uint8(centred(images[self.noisy]) + noise)
            pictures |= {"noise": to_uint8(noise / self.config.noise_scale), "noisy": noisy}
        return pictures


METHOD = DFGAN

"""Learning visual patterns by damaging them: spotting artifacts (S. Jenni's thesis on self-supervised learning, chapter
3; Jenni and Favaro, Self-Supervised Feature Learning by Learning to Spot Artifacts, CVPR 2018).

An autoencoder, trained before and frozen, makes real images from whole codes and corrupt ones from codes of which
entries were dropped. Repair blocks before each layer of its decoder paint over the damage, and only there. The
discriminator, whose convolutions are kept, tells real from corrupt and says which entries were dropped; discriminator
(turn `model`) and repair blocks (turn `repairer`) are adversaries.

View: `image`. The autoencoder is held whole; `--start-from` loads its run. Released code:
sjenni/LearningToSpotArtifacts.

Where the released code differs, the thesis is the default:
- the discriminator's fully connected layer has neither batch norm (`head_norm`) nor dropout (`dropout`);
- the mask's loss has the weight 1 (`mask_weight`), and real images have none (`mask_on_real`);
- the repair blocks play Eq. 3.4's minimax game (`adversary`), and nothing but it (`kept_weight`, `sum_losses`);
- half of the corrupt images are of earlier steps (`history`), which the code lacks.
Not the thesis' but the code's: sums over images and over cells are means, L_class that over real and corrupt ones
together, so that L_mask weighs less beside it than as printed (`mask_weight`). The printed L_mask lacks its minus: it
is the cross entropy.
Not in the thesis but in the code: the averaging kernel is 3 wide and, at the border, averages what there is; the
repair blocks' leaky ReLU has the slope .2; the discriminator sees real and corrupt images as one batch, which its batch
norm normalizes together; so it does in the repairer's turn.
In neither: the size of the history; the noise that may fill dropped entries has the mean and deviation of its channel
in that code; the discriminator sees whole grey levels, with the gradient passed straight through the rounding, since
the history is of bytes, and by its levels alone it would be known.

Legend: B batch, C channels, H x W pixels, L x M x N the code, K images in the history.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.autoencoder import SHOWN, Autoencoder, conv, norm, reconstruction_error
from methods.autoencoder import Config as AutoencoderConfig
from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.parts import centred, draw, evaluating, gather, normal, rank, still, to_uint8

Fill = Literal["average", "noise"]
Real = Literal["autoencoded", "input"]
Repair = Literal["distributed", "local"]
Adversary = Literal["minimax", "flipped"]


@dataclass(frozen=True)
class Config:
    """Defaults: the baseline of Table 3.1."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """That of the run to start from."""
    drop_rate: float = 0.5
    """theta, the probability that an entry of the code is dropped, in (0, 1) (Table 3.1 g to j): .5 is the baseline,
    .7 the best and that of the transfer experiments and of the code."""
    fill: Fill = "average"
    """What takes a dropped entry's place: the local average of the code, or noise ("no significant difference")."""
    kernel: int = 3
    """Width of u, the uniform kernel of the average: odd, from 3 on. "Large" in the thesis, 3 in the code."""
    real: Real = "autoencoded"
    """What the discriminator takes for real: images from the same decoder, or the input (Table 3.1 a)."""
    mask_weight: float = 1.0
    """Of L_mask, the mean over the mask's cells; 0 is without the mask's prediction (Table 3.1 b). The printed sums are
    M N / 2 (18 at 96 pixels); the code has .1."""
    mask_on_real: bool = False
    """Real images have a mask of ones in L_mask, as in the code."""
    repair: Repair = "distributed"
    """A repair block before each of the decoder's layers, or all of them before the first (Table 3.1 c)."""
    gating: bool = True
    """Repair blocks change dropped entries alone (Eqs. 3.1 and 3.2, Table 3.1 e)."""
    slope: float = 0.2
    """Of the repair blocks' leaky ReLU, in [0, 1)."""
    history: int = 1024
    """K, images kept from earlier steps; 0 for none (Table 3.1 f). The thesis does not say how many."""
    hidden: int = 4096
    """Width of the discriminator's fully connected layer."""
    head_norm: bool = False
    """Batch norm in that layer, as in the code."""
    dropout: float = 0.0
    """Behind that layer, in [0, 1); .5 in the code."""
    adversary: Adversary = "minimax"
    """The repair blocks ascend the discriminator's class loss (Eq. 3.4), or descend it with all labels exchanged (the
    code), which does not fade where the discriminator is sure."""
    kept_weight: float = 0.0
    """Of the squared error between corrupt and input images where the mask keeps them; 30 in the code."""
    sum_losses: bool = False
    """A quirk of the code: the repair blocks also descend the discriminator's losses."""

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, bool, str], ...] = (
            ("drop_rate", 0 < self.drop_rate < 1, "a probability in (0, 1), ends excluded"),
            ("fill", self.fill in get_args(Fill), f"one of {', '.join(get_args(Fill))}"),
            ("kernel", self.kernel >= 3 and self.kernel % 2 == 1, "an odd number from 3 on"),
            ("real", self.real in get_args(Real), f"one of {', '.join(get_args(Real))}"),
            ("mask_weight", self.mask_weight >= 0, "0 or more"),
            ("repair", self.repair in get_args(Repair), f"one of {', '.join(get_args(Repair))}"),
            ("slope", 0 <= self.slope < 1, "in [0, 1)"),
            ("history", self.history >= 0, "0 or more"),
            ("hidden", self.hidden >= 1, "at least 1"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("adversary", self.adversary in get_args(Adversary), f"one of {', '.join(get_args(Adversary))}"),
            ("kept_weight", self.kept_weight >= 0, "0 or more"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"method.{name} is {rule}, got {getattr(self, name)}")


# ----------------------------------------------------------------------------------- damage and repair


def damage(code: Tensor, mask: Tensor, *, kernel: int = 3, noise: Tensor | None = None) -> Tensor:
    """phi_hat = mask * phi + (1 - mask) * (u * phi), section 3.2.

    Args:
        code: phi (B, L, M, N).
        mask: Omega (B, 1, M, N), 1 where an entry is kept, 0 where it is dropped.
        kernel: odd width of u. At the border the mean is over what lies inside.
        noise: standard normal (B, L * M * N); takes the place of u * phi, at the mean and deviation of each channel
            over its code.
    """
    mask = mask.to(code.dtype)
    if noise is None:
        filling = F.avg_pool2d(code, kernel, 1, kernel // 2, count_include_pad=False)
    else:
        deviation, mean = torch.std_mean(code.float(), (2, 3), correction=0, keepdim=True)
        filling = (mean + deviation * noise.view_as(code)).to(code.dtype)
    return mask * code + (1 - mask) * filling


class RepairBlock(nn.Module):
    """Figure 3.5: x -> x + (1 - mask) * R(x), where R sees the mask as a channel more.

    Args:
        width: channels of x.
        slope: of the leaky ReLU.
        gated: False adds R(x) everywhere.
    """

    def __init__(self, width: int, slope: float, *, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self.residual = nn.Sequential(
            conv(width + 1, width, 3), norm(width), nn.LeakyReLU(slope), conv(width, width, 3, bias=True)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, c, h, w), mask (B, 1, M, N), which is resized to h x w by its nearest entries."""
        mask = F.interpolate(mask.to(x.dtype), x.shape[2:], mode="nearest")
        residual = self.residual(torch.cat([x, mask], 1))
        return x + (1 - mask) * residual if self.gated else x + residual


def grey_levels(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> whole numbers from 0 to 255, float32; the gradient is that of the scale alone."""
    levels = (images.float() + 1.0) * 127.5
    return levels + (levels.round() - levels).detach()


class History(nn.Module):
    """Corrupt images of earlier steps with their masks (Shrivastava et al., CVPR 2017, section 2.3): buffers, equal on
    all ranks, of which filled slots alone are read.

    Args:
        size: K, images held.
        image: (C, H, W).
        mask: (1, M, N).
    """

    images: Tensor
    masks: Tensor
    filled: Tensor

    def __init__(self, size: int, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *image, dtype=torch.uint8))
        self.register_buffer("masks", torch.zeros(size, *mask, dtype=torch.uint8))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, images: Tensor, masks: Tensor, index: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """Half of the global batch, rounded down, gives way to stored images, and the other half is stored after that.
        Nothing gives way while nothing is stored.

        Args:
            images: float (B, C, H, W), whole numbers from 0 to 255.
            masks: float (B, 1, M, N) of 0 and 1.
            index: int64 (B,).
        """
        u = draw(clock.seed, clock.step, index, "history", 2)  # (B, 2)
        order = gather(u[:, 0]).argsort(stable=True)  # of all ranks' samples
        fresh = order[: (len(order) + 1) // 2]
        stays = torch.zeros_like(order, dtype=torch.bool).index_fill_(0, fresh, True)
        stays = stays[rank() * len(index) : (rank() + 1) * len(index)] | (self.filled == 0)
        slot = torch.minimum((u[:, 1] * self.filled).long(), self.filled - 1).clamp(min=0)  # (B,)
        mixed = [
            torch.where(stays[:, None, None, None], new, old[slot].to(new.dtype))
            for new, old in ((images, self.images), (masks, self.masks))
        ]
        new, new_masks = (gather(x.to(torch.uint8))[fresh] for x in (images, masks))
        self.store(new, new_masks, clock)
        return mixed[0], mixed[1]

    def store(self, images: Tensor, masks: Tensor, clock: Clock) -> None:
        """uint8 images and masks, equal on all ranks, into empty slots first, and then over random ones."""
        size = len(self.images)
        slot = torch.arange(size, device=images.device)
        u = draw(clock.seed, clock.step, slot, "history/slot", 1)[:, 0]
        slots = torch.where(slot < self.filled, u, slot - float(size)).argsort(stable=True)[: len(images)]
        self.images.index_copy_(0, slots, images[: len(slots)])
        self.masks.index_copy_(0, slots, masks[: len(slots)])
        self.filled.add_(len(slots)).clamp_(max=size)


# ------------------------------------------------------------------------------------------- losses


def class_loss(real: Tensor, corrupt: Tensor) -> Tensor:
    """Eq. 3.4 for the discriminator, who descends: -(mean log C(real) + mean log(1 - C(corrupt))) / 2.

    Args:
        real, corrupt: float32 (B,), logits of being real.
    """
    return (F.softplus(-real).mean() + F.softplus(corrupt).mean()) / 2


def mask_loss(cells: Tensor, mask: Tensor) -> Tensor:
    """L_mask: cross entropy of the mask, the mean over cells and images.

    Args:
        cells: float32 (B, 1, M, N), logits of being kept.
        mask: (B, 1, M, N) of 0 and 1.
    """
    return F.binary_cross_entropy_with_logits(cells, mask.to(cells.dtype))


def kept_error(made: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """The code's: mean squared error over the pixels, of all ranks, that the mask keeps.

    Args:
        made: float (B, C, H, W) in [-1, 1].
        images: uint8 (B, C, H, W).
        mask: (B, 1, M, N), resized by its nearest entries.
    """
    mask = F.interpolate(mask.float(), made.shape[2:], mode="nearest")
    error = (mask * (made.float() - centred(images)).square()).sum()
    kept = gather(mask.sum()[None]).mean()  # of a rank, on average: the ranks' mean is that over all pixels
    return error / (made.shape[1] * kept).clamp(min=1)


class Verdict(NamedTuple):
    logit: Tensor
    """Float32 (B,), of being real."""
    cells: Tensor | None
    """Float32 (B, 1, M, N), logits of each entry's being kept; None without the mask's prediction."""


# ------------------------------------------------------------------------------------------- method


class Artifacts(Method):
    """The discriminator: the backbone to its last named map; on it, a 3x3 convolution for the mask, whose map is
    resized to M x N by averaging, and a fully connected layer with one output for the class.

    Raises:
        ValueError: another view than `image`, an image that the autoencoder can't halve or whose code is one entry, or
            a backbone without named layers.
    """

    turns = ("model", "repairer")
    starts_from = "autoencoder"

    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if facts.views.keys() != {"image"}:
            raise ValueError(f"artifacts takes the view image, got {', '.join(facts.views)}")
        if not backbone.layers:
            raise ValueError(
                "artifacts reads the last convolution's map, and this backbone names none: "
                "give --backbone alexnet:lrn, alexnet, resnet18 or resnet20"
            )
        image = facts.views["image"][0]
        self.config = config
        self.autoencoder = Autoencoder(config.autoencoder, None, facts)
        self.cells = self.autoencoder.code_shape[1:]
        """(M, N)."""
        if self.cells == (1, 1):
            raise ValueError(
                f"the code of {image[1]} x {image[2]} pixels is a single entry, and can't be dropped in parts: "
                "give a larger views.image.size or fewer method.autoencoder.widths"
            )
        widths = config.autoencoder.widths
        places = (*reversed(widths),) if config.repair == "distributed" else (widths[-1],) * len(widths)
        self.repairs = nn.ModuleList(RepairBlock(width, config.slope, gated=config.gating) for width in places)
        self.backbone = backbone
        self.last = list(backbone.layers)[-1]
        c, h, w = map_shape(backbone, self.last, image)
        self.units = nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, config.hidden, bias=not config.head_norm))
        if config.head_norm:
            self.units.append(nn.BatchNorm1d(config.hidden, eps=1e-3, momentum=0.025))
        self.units.append(nn.ReLU())
        self.classifier = nn.Linear(config.hidden, 1)
        self.mask_head = nn.Conv2d(c, 1, 3, padding=1) if config.mask_weight else None
        self.history = History(config.history, image, (1, *self.cells)) if config.history else None
        self.train()

    def frozen(self) -> Iterable[nn.Module]:
        return self.autoencoder.modules()  # its batch norm keeps the statistics of its own training

    def parameters_of(self, turn: str) -> list[nn.Parameter]:
        if turn == "repairer":
            return list(self.repairs.parameters())
        heads = [self.units, self.classifier, *([self.mask_head] if self.mask_head else [])]
        return [p for network in (self.backbone, *heads) for p in network.parameters()]

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        return self.spot(batch, clock) if turn == "model" else self.deceive(batch, clock)

    def spot(self, batch: Batch, clock: Clock) -> Step:
        """The discriminator's turn."""
        real, damaged, mask = self.examples(batch, clock)
        with torch.no_grad(), still(self.repairs):
            corrupt = grey_levels(self.repaired(damaged, mask))
        if self.history is not None:
            corrupt, mask = self.history(corrupt, mask, batch["index"], clock)
        said = self.discriminate(torch.cat([real, corrupt]), self.units_kept(batch["index"], clock))
        loss, log = self.discriminator_loss(said, mask)
        return Step(loss, {**log, **accuracies(said, mask)})

    def deceive(self, batch: Batch, clock: Clock) -> Step:
        """The repair blocks' turn."""
        c = self.config
        real, damaged, mask = self.examples(batch, clock)
        made = self.repaired(damaged, mask)
        with still(self.backbone, self.units):
            said = self.discriminate(torch.cat([real, grey_levels(made)]), self.units_kept(batch["index"], clock))
        logits = said.logit.chunk(2)
        loss = -class_loss(*logits) if c.adversary == "minimax" else class_loss(*reversed(logits))
        log = {"adversarial": loss.detach()}
        if c.kept_weight:
            error = kept_error(made, batch["image"], mask)
            loss = loss + c.kept_weight * error
            log["kept_mse"] = error.detach()
        if c.sum_losses:
            loss = loss + self.discriminator_loss(said, mask)[0]
        return Step(loss, log)

    # ------------------------------------------------------------------------------------- images

    @torch.no_grad()
    def examples(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor, Tensor]:
        """What is taken for real, whole numbers from 0 to 255 (B, C, H, W); phi_hat (B, L, M, N); and its mask."""
        c, images, index = self.config, batch["image"], batch["index"]
        mask = self.mask(index, clock)
        code = self.autoencoder.encode(images)
        real = images.float() if c.real == "input" else grey_levels(self.autoencoder.decode(code))
        noise = normal(clock.seed, clock.step, index, "noise", code[0].numel()) if c.fill == "noise" else None
        return real, damage(code, mask, kernel=c.kernel, noise=noise), mask

    def mask(self, index: Tensor, clock: Clock) -> Tensor:
        """Omega, float32 (B, 1, M, N): each entry is dropped, 0, with probability theta; others each step."""
        kept = draw(clock.seed, clock.step, index, "mask", math.prod(self.cells)) >= self.config.drop_rate
        return kept.float().view(-1, 1, *self.cells)

    def repaired(self, damaged: Tensor, mask: Tensor) -> Tensor:
        """The decoder with the repair blocks: phi_hat (B, L, M, N) -> corrupt images (B, C, H, W) in [-1, 1]."""
        if self.config.repair == "local":
            for block in self.repairs:
                damaged = block(damaged, mask)
            return self.autoencoder.decode(damaged)
        return self.autoencoder.decode(damaged, lambda layer, x: self.repairs[layer](x, mask))

    # ------------------------------------------------------------------------------ discriminator

    def discriminate(self, images: Tensor, units_kept: Tensor | None = None) -> Verdict:
        """uint8 (B, C, H, W), or float from 0 to 255. `units_kept` (B, hidden): dropout's factors of the units."""
        last = self.backbone.maps(images)[self.last]
        units = self.units(last)
        logit = self.classifier(units if units_kept is None else units * units_kept)[:, 0].float()
        if self.mask_head is None:
            return Verdict(logit, None)
        return Verdict(logit, F.adaptive_avg_pool2d(self.mask_head(last).float(), self.cells))

    def units_kept(self, index: Tensor, clock: Clock) -> Tensor | None:
        """Dropout by draws of our own, for real and corrupt images (2 B, hidden)."""
        p = self.config.dropout
        if not p or not self.training:
            return None
        names = ("dropout/real", "dropout/corrupt")
        u = torch.cat([draw(clock.seed, clock.step, index, name, self.config.hidden) for name in names])
        return (u >= p).float() / (1 - p)

    def discriminator_loss(self, said: Verdict, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of real and corrupt images as one batch; `mask` is that of the corrupt ones."""
        c = self.config
        loss = class_loss(*said.logit.chunk(2))
        log = {"class": loss.detach()}
        if said.cells is not None:
            cells = said.cells if c.mask_on_real else said.cells.chunk(2)[1]
            missed = mask_loss(cells, torch.cat([torch.ones_like(mask), mask]) if c.mask_on_real else mask)
            loss = loss + c.mask_weight * missed
            log["mask"] = missed.detach()
        return loss, log

    # ---------------------------------------------------------------------------- for evaluation

    def score(self, images: Tensor) -> Tensor:
        """The logit of being real (Figure 3.9)."""
        return self.discriminate(images).logit

    @torch.no_grad()
    def task(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """Accuracies, without history; and the autoencoder's squared error."""
        images = batch["image"]
        with evaluating(self):
            real, damaged, mask = self.examples(batch, clock)
            said = self.discriminate(torch.cat([real, grey_levels(self.repaired(damaged, mask))]))
            made = self.autoencoder.decode(self.autoencoder.encode(images))
        return {**accuracies(said, mask), "autoencoder_mse": reconstruction_error(made, images)}

    @torch.no_grad()
    def pictures(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """Images, autoencoded, corrupt, their masks (white is kept), and corrupt without repair (Figure 3.3)."""
        batch = {name: batch[name][:SHOWN] for name in ("image", "index")}
        with evaluating(self):
            images, (_, damaged, mask) = batch["image"], self.examples(batch, clock)
            made = {
                "autoencoded": self.autoencoder.decode(self.autoencoder.encode(images)),
                "corrupt": self.repaired(damaged, mask),
                "mask": F.interpolate(2 * mask - 1, images.shape[2:], mode="nearest").expand_as(images),
                "unrepaired": self.autoencoder.decode(damaged),
            }
        return {"original": images, **{name: to_uint8(each.float()) for name, each in made.items()}}


def map_shape(backbone: Backbone, layer: str, image: tuple[int, ...]) -> tuple[int, ...]:
    """(c, h, w) of a layer's map of images (C, H, W)."""
    with evaluating(backbone), torch.no_grad():
        return tuple(backbone.maps(torch.zeros(1, *image))[layer].shape[1:])


@torch.no_grad()
def accuracies(said: Verdict, mask: Tensor) -> dict[str, Tensor]:
    """Shares of real and of corrupt images that are told as such, and of the corrupt ones' cells."""
    real, corrupt = said.logit.chunk(2)
    found = {"accuracy_real": (real > 0).float().mean(), "accuracy_corrupt": (corrupt <= 0).float().mean()}
    if said.cells is not None:
        found["accuracy_mask"] = ((said.cells.chunk(2)[1] > 0) == (mask > 0.5)).float().mean()
    return found


METHOD = Artifacts

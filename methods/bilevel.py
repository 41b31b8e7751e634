"""Deep Bilevel Learning (S. Jenni, P. Favaro, ECCV 2018; S. Jenni's thesis on self-supervised learning, chapter 8).
The authors' code of the Inception experiments: sjenni/DeepBilevel at 661f7bf.

A global batch is k parts, the chapter's mini-batches, consecutive and equally large. One is the validation part; the
gradient of each other part is weighted by how well it agrees with the validation part's (Eq. 8.10), and the weighted
sum (Eq. 8.11) goes to any optimizer. The validation part's own gradient moves nothing. The labels' distribution should
be the same in all parts (Remark 1): that is the data's order, not this file's.

View: one, of any name; the batch holds `label`, which is learned and may be wrong, and may hold `true_label`, against
which accuracy is logged beside. The classifier is a linear layer on the backbone's features.

Exact on any number of ranks that divides k: each part lies whole on one rank, the validation gradient is sent to all,
losses, dot products and squared norms are gathered, so that every rank has the same weights. DistributedDataParallel
averages gradients; each rank's sum is therefore multiplied by the number of ranks.

Batch norm normalizes each part by itself (Ghost batch norm), as in the released code: one forward a part, so that its
running statistics move k / ranks times a step. SyncBatchNorm would mix the parts of several ranks: here it is confined
to its rank.

Where the text is silent or differs from itself, ours:
- a part's loss l_i is the mean over its samples, as in the code; Eq. 8.1 has the sum, for which mu would differ;
- mu and lambda are those of Eq. 8.10, with hats; the code leaves lambda out, which is 1;
- weights that are all 0 stay 0 under the L1 normalization;
- a layer (ablation b) is a module with parameters of its own: a convolution's weight and bias are weighted alike, a
  batch norm is another layer;
- dropout lies before the classifier, as in the code's Inception; where CifarNet's single one lies is not said, and
  `dropout_layer` moves it. Equal dropping: the samples of one place in their parts have the same mask;
- mixup's pairs are a random permutation within each part, and each pair has a coefficient of its own (mixup's code
  draws one a batch).

Legend: B this rank's share of the global batch, k parts, n of them on this rank, P parameters, L layers, c classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Answers, Batch, Clock, Facts, Method, Step
from methods.parts import draw, evaluating, gather, rank, world_size

Validation = Literal["first", "drawn"]
QUANTILES = 4096  # cells between the stored quantiles of mixup's Beta distribution


@dataclass(frozen=True)
class Config:
    """Defaults: the baseline of section 8.4.1, Table 8.1."""

    parts: int = 8
    """k, of the GLOBAL batch (8.3: 2, 4, 8, 16 or 32), at least 2; the number of ranks divides it."""
    mu: float = 0.01
    """mu-hat of Eq. 8.10, 0 or more: large values make the weights follow the dot products alone."""
    lam: float = 1.0
    """lambda-hat of Eq. 8.10, above 0."""
    normalize: bool = True
    """Divide the weights by their L1 norm; False: Table 8.1 a."""
    per_layer: bool = False
    """Weights of each layer's gradients by themselves, omega^(l), normalized by themselves; Table 8.1 b."""
    validation: Validation = "first"
    """Which part is V^t: the first, as in the released code, or one drawn each step. The same in distribution where
    the data's order is new each epoch."""
    reweight: bool = True
    """False: plain SGD on the whole batch with the same data, dropout and mixup, the row "SGD" of the tables; `parts`
    then still cut mixup's pairs, but not batch norm."""
    dropout: float = 0.5
    """Probability of a 0, in [0, 1). "A single dropout layer"; .5 is of the released code."""
    dropout_layer: str = ""
    """The backbone's layer whose output is dropped. Empty: the features."""
    same_dropout: bool = True
    """The same dropping in all parts; False: each sample its own, Table 8.1 d, and always so without `reweight`."""
    mixup: float = 0.0
    """alpha of mixup's Beta(alpha, alpha) (Zhang et al., 2018; "Bilevel + [229]" in Table 8.3). 0: no mixup."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, in [0, 1). Table 8.3 has .1 beside plain SGD."""

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, bool, str], ...] = (
            ("parts", self.parts >= 2, "at least 2: one to validate, the others to train"),
            ("mu", 0 <= self.mu < math.inf, "0 or more"),
            ("lam", 0 < self.lam < math.inf, "above 0"),
            ("validation", self.validation in get_args(Validation), f"one of {', '.join(get_args(Validation))}"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("mixup", 0 <= self.mixup < math.inf, "alpha, 0 or more"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
        )
        for field, holds, rule in rules:
            if not holds:
                raise ValueError(f"method.{field} is {rule}, got {getattr(self, field)}")


# ------------------------------------------------------------------------------------------- weights


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where the denominator is 0; NaN stays NaN."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)


def unit(weights: Tensor) -> Tensor:
    """omega-hat = omega / |omega|_1 of Eq. 8.10, over the first dimension; all 0 stay 0."""
    return quotient(weights, weights.abs().sum(0, keepdim=True))


def raw_weights(validation_gradient: Tensor, training_gradients: Tensor, *, mu: float, lam: float) -> Tensor:
    """omega of Eq. 8.10 before its normalization: <g_0, g_i> / (|g_i|^2 / lam + mu).

    For one training part it is the minimizer of Eq. 8.7; for several, Eq. 8.8's terms of other parts are left out.

    Args:
        validation_gradient: g_0, (P,).
        training_gradients: g_i, (k - 1, P).
        mu: 0 or more.
        lam: above 0.

    Returns:
        (k - 1,); 0 where the denominator is 0.
    """
    squares = torch.linalg.vector_norm(training_gradients, dim=1).square()
    return quotient(training_gradients @ validation_gradient, squares / lam + mu)


def agreement_weights(validation_gradient: Tensor, training_gradients: Tensor, *, mu: float, lam: float) -> Tensor:
    """omega-hat of Eq. 8.10: `raw_weights`, whose absolute values sum to 1 (or are all 0). Arguments as there."""
    return unit(raw_weights(validation_gradient, training_gradients, mu=mu, lam=lam))


def parts_of_a_rank(batch: int, parts: int, ranks: int) -> int:
    """n, how many of the `parts` of a global batch of `batch` samples lie on each of `ranks`.

    Raises:
        ValueError: the ranks don't divide the parts, or the parts don't divide the batch.
    """
    if parts % ranks:
        raise ValueError(
            f"method.parts {parts} are not divided by {ranks} workers, and a part lies on one alone: "
            "choose as many parts as a multiple of the workers, or fewer workers"
        )
    if batch % parts:
        raise ValueError(
            f"method.parts {parts} don't divide the batch of {batch}: choose a batch size that is a multiple of {parts}"
        )
    return parts // ranks


# -------------------------------------------------------------------------------------------- method


def confine(network: nn.Module) -> None:
    """SyncBatchNorm takes its statistics from its own rank alone. Every rank calls it."""
    norms = [m for m in network.modules() if isinstance(m, nn.SyncBatchNorm) and m.process_group is None]
    if norms and world_size() > 1:
        own, _ = dist.new_subgroups(group_size=1)
        for norm in norms:
            norm.process_group = own


def beta_quantiles(alpha: float) -> Tensor:
    """Of Beta(alpha, alpha) at 0, 1 / QUANTILES, ..., 1: (QUANTILES + 1,)."""
    return torch.tensor(betaincinv(alpha, alpha, np.linspace(0.0, 1.0, QUANTILES + 1)), dtype=torch.float32)


class Bilevel(Method):
    quantiles: Tensor

    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if len(facts.views) != 1:
            raise ValueError(f"bilevel takes the view image or another, one alone; got {', '.join(facts.views)}")
        if facts.classes is None:
            raise ValueError("bilevel learns from labels, and this data has none: it needs a label column")
        if config.dropout_layer and config.dropout_layer not in backbone.layers:
            there = f"it has {', '.join(backbone.layers)}" if backbone.layers else "this backbone names none"
            raise ValueError(f"method.dropout_layer: the backbone has no layer {config.dropout_layer} ({there})")
        self.config, self.classes = config, facts.classes
        [self.view] = facts.views
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.dim, facts.classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.register_buffer("quantiles", beta_quantiles(config.mixup or 1.0), persistent=False)

    # ---------------------------------------------------------------------------------- one part

    def logits(self, images: Tensor, places: Tensor | None = None, clock: Clock | None = None) -> Tensor:
        """uint8 (B, C, H, W), or float from 0 to 255 -> (B, c). Those at the same `places` (B,) share a dropout mask;
        without any, nothing is dropped."""
        p, layer = self.config.dropout, self.config.dropout_layer

        def dropped(x: Tensor) -> Tensor:
            if places is None or clock is None or not p:
                return x
            u = draw(clock.seed, clock.step, places, "bilevel/dropout", math.prod(x.shape[1:]))
            return x * ((u >= p) / (1 - p)).to(x.dtype).view(x.shape)

        if not layer:
            return self.classifier(dropped(self.backbone(images)))
        module = self.backbone.network.get_submodule(self.backbone.layers[layer])
        hook = module.register_forward_hook(lambda module, inputs, output: dropped(output))
        try:
            return self.classifier(self.backbone(images))
        finally:
            hook.remove()

    def mixed(self, batch: Batch, clock: Clock, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images mixed within each of n parts; each sample's partner (B,), and its own share in [0, 1] (B,)."""
        images, index = batch[self.view], batch["index"]
        if not self.config.mixup:
            return images, torch.arange(len(images), device=images.device), torch.ones(len(images), device=index.device)
        u = draw(clock.seed, clock.step, index, "bilevel/mixup", 2)
        order = u[:, 0].view(n, -1).argsort(dim=1, stable=True)
        partner = (order + torch.arange(n, device=order.device)[:, None] * order.shape[1]).flatten()
        place = u[:, 1] * QUANTILES
        cell = place.long()
        own = torch.lerp(self.quantiles[cell].float(), self.quantiles[cell + 1].float(), place - cell)
        share = own.view(-1, *[1] * (images.dim() - 1))
        return share * images.float() + (1 - share) * images[partner].float(), partner, own

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        n = parts_of_a_rank(len(batch["index"]) * world_size(), self.config.parts, world_size())
        images, partner, own = self.mixed(batch, clock, n)
        targets = {"accuracy": batch["label"]}
        if "true_label" in batch:
            targets["true_accuracy"] = batch["true_label"]

        def loss_of(rows: slice, places: Tensor) -> tuple[Tensor, Tensor]:
            """The mean loss of these samples, and accuracies (targets,)."""
            logits = self.logits(images[rows], places, clock)
            first, second, share = batch["label"][rows], batch["label"][partner[rows]], own[rows]
            smoothing = self.config.label_smoothing
            losses = [F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing) for y in (first, second)]
            said = logits.detach().argmax(1)
            right = [share * (said == y[rows]) + (1 - share) * (said == y[partner[rows]]) for y in targets.values()]
            return (share * losses[0] + (1 - share) * losses[1]).mean(), torch.stack(right).mean(1)

        if not self.config.reweight:
            loss, right = loss_of(slice(None), batch["index"])
            return Step(loss, dict(zip(targets, right, strict=True)))
        confine(self)
        size = len(images) // n
        parameters = [p for p in self.parameters() if p.requires_grad]
        gradients = images.new_empty(n, sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
        losses, rights = [], []
        for i in range(n):
            rows = slice(i * size, (i + 1) * size)
            index = batch["index"][rows]
            loss, right = loss_of(rows, torch.arange(size, device=index.device) if self.config.same_dropout else index)
            found = torch.autograd.grad(loss, parameters, materialize_grads=True)
            torch.cat([gradient.reshape(-1) for gradient in found], out=gradients[i])
            losses.append(loss.detach())
            rights.append(right)
        weighted, log = self.weighted(gradients, torch.stack(losses), clock)
        # its gradient is the weighted sum, its value the true loss: the mean over this rank's samples
        pieces = weighted.split([p.numel() for p in parameters])
        carrier = torch.stack([(p * g.view_as(p)).sum() for p, g in zip(parameters, pieces, strict=True)]).sum()
        loss = torch.stack(losses).mean() + (carrier - carrier.detach())
        return Step(loss, {**log, **dict(zip(targets, torch.stack(rights).mean(0), strict=True))})

    # ----------------------------------------------------------------------------------- weights

    def layer_sizes(self) -> list[int]:
        """Parameters of each of the L layers that have weights of their own, in order; of one without `per_layer`."""
        sizes = [(name.rpartition(".")[0], p.numel()) for name, p in self.named_parameters() if p.requires_grad]
        if not self.config.per_layer:
            return [sum(count for _, count in sizes)]
        return [sum(count for _, count in group) for _, group in groupby(sizes, key=lambda size: size[0])]

    @torch.no_grad()
    def weighted(self, gradients: Tensor, losses: Tensor, clock: Clock) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients (n, P) and losses (n,) of this rank's parts -> what it adds to the average over the ranks (P,), and
        figures of the losses and weights of all parts."""
        c, n, ranks = self.config, len(gradients), world_size()
        at = 0
        if c.validation == "drawn":
            at = int(draw(clock.seed, clock.step, torch.zeros(1, dtype=torch.int64), "bilevel/validation", 1) * c.parts)
        validation = gradients[at % n].clone() if rank() == at // n else torch.empty_like(gradients[0])
        if ranks > 1:
            dist.broadcast(validation, src=at // n)
        sizes = self.layer_sizes()
        with torch.autocast(gradients.device.type, enabled=False):
            layers = gradients.split(sizes, dim=1)
            dots = [own @ other for own, other in zip(layers, validation.split(sizes), strict=True)]
            squares = [torch.linalg.vector_norm(own, dim=1).square() for own in layers]
            every = gather(torch.cat([torch.stack(dots, 1), torch.stack(squares, 1), losses[:, None]], 1))
            training = torch.cat([every[:at], every[at + 1 :]])  # slices: an index made here would wait for the device
            numerator, square = training[:, : len(sizes)], training[:, len(sizes) : -1]
            weights = quotient(numerator, square / c.lam + c.mu)  # (k - 1, L)
            weights = unit(weights) if c.normalize else weights
            own = torch.cat([weights[:at], torch.zeros_like(weights[:1]), weights[at:]])
            own = own[rank() * n : (rank() + 1) * n] * ranks
            total = torch.cat([w @ part for w, part in zip(own.unbind(1), layers, strict=True)])
        return total, {
            "loss": every[:, -1].mean(),
            "validation_loss": every[at, -1],
            "weight_spread": weights.std(0, correction=0).mean(),
            "negative_weights": (weights < 0).float().mean(),
        }

    # -------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def answers(self, batch: Batch, clock: Clock) -> Mapping[str, Answers]:
        """The most probable class, k = 1, against `label`, and against `true_label` where there is one."""
        with evaluating(self):
            said = self.logits(batch[self.view]).argmax(1)[:, None]
        names = [name for name in ("label", "true_label") if name in batch]
        return {name: Answers(said, batch[name][:, None], self.classes) for name in names}

    def task(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """`accuracy` and, where there is a `true_label`, `true_accuracy` of `answers`."""
        names = {"label": "accuracy", "true_label": "true_accuracy"}
        return {names[name]: (a.said == a.true).float().mean() for name, a in self.answers(batch, clock).items()}

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(features)

    def score(self, images: Tensor) -> Tensor:
        """The highest logit."""
        return self.logits(images).amax(1)


METHOD = Bilevel

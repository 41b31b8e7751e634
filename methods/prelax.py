"""Prelax: Residual Relaxation for Multi-view Representation Learning (Y. Wang, Geng, Jiang, Li, Y. Wang, Yang, Lin;
NeurIPS 2021).

Views of an image differ by what augmentation did to them. The prediction of one view is to match the other's projection
only up to a residual, the difference of the two projections (R2S, R3S), and the residual is to tell which augmentation
it was (PL, RotPL). It stands on SimSiam or BYOL, of which it takes projector, predictor and target network. There is no
released code.

Views: `online` x1, with its parameters t1, and `target` x2. Made inside: x3, the augmented x1 turned clockwise by 0,
90, 180 or 270 degrees, by a draw for each image. z_i: projections of the online network, also within residuals,
r12 = z1 - z2 and r31 = z3 - z1, whose gradient flows into both; only the target network's, F_phi, is stopped.

What the residual r12 predicts of t1, by the names of `methods.views.PARAMETERS`:

| parameter                                     | kind       | loss                                                    |
| --------------------------------------------- | ---------- | ------------------------------------------------------- |
| flip, jitter, grayscale, blur, solarize       | discrete   | cross entropy of two classes                            |
| centre_x, centre_y, scale, ratio              | continuous | squared error, standardized                             |
| brightness, contrast, saturation, hue         | continuous | squared error, standardized; 1 (hue: 0) without jitter  |
| sigma                                         | continuous | squared error, standardized; 0 without blur             |
| quarter turns of x3 (from r31)                | discrete   | cross entropy of four classes                           |

Standardized: less the mean and over the deviation of all samples seen so far, of all ranks and with this batch, which
are buffers, as a method knows its views' shapes and not their distributions. What never varies is 0.

Where the printed text is silent, ours:
- heads H have a hidden layer of 512 with batch norm (`head`), as SimSiam's predictor; they read r itself, as in Eq. 5
  and 18. Linear ones diverge: r has 2048 features of variance up to 2, and at SimSiam's rate (.06, gamma .1) the
  squared error grew without end within ten steps;
- L2 normalization within Eq. 4 (`normalize`); residuals are of projections as they are, though "typically projected to
  a unit spherical ball" (section 3.1) may be read of them too (`normalize_residual`);
- each of x1, x2, x3 and each residual passes through the networks as a batch of its own;
- losses are those of Eq. 13 and 16 to 20 as printed, sums of squared distances, so that the similarity alone has four
  times the gradient of SimSiam's own loss and equals BYOL's (`scale`);
- "Sim" without R2S and R3S is both directions, Eq. 13; beside one of them it is x2 -> x1 alone, Eq. 15;
- the rotation loss of Table 3a reads the backbone's features of x3, one angle an image, and has the weight 1.
Without a reading: heads of BYOL are printed as 256 hidden and 4096 out, the reverse of BYOL's own, which are kept.

Legend: B batch, D projection, F discrete and V continuous parameters, S side of a view.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.byol import BYOL
from methods.byol import Config as BYOLConfig
from methods.method import Batch, Clock, Facts, Method, Step
from methods.parts import draw, evaluating, gather, mlp, momentum_at
from methods.simsiam import Config as SimSiamConfig
from methods.simsiam import SimSiam
from methods.views import PARAMETERS

Base = Literal["simsiam", "byol"]
Normalize = Literal["before", "after", "none"]
Reduction = Literal["sum", "mean"]

DISCRETE = ("flip", "jitter", "grayscale", "blur", "solarize")
CONTINUOUS = tuple(name for name in PARAMETERS if name not in DISCRETE)
ANGLES = 4
"""Quarter turns of x3."""
TERMS = ("r2s", "r3s", "pl", "rotation_pl", "similarity", "forward_similarity", "rotation")
"""Of the loss: each has a `<term>_weight`."""

_NONE: dict[str, float] = {f"{term}_weight": 0.0 for term in TERMS} | {"margin": 0.0, "rotation_augmentation": False}
_SIM = _NONE | {"similarity_weight": 1.0, "forward_similarity_weight": 1.0}
STD = _NONE | {"r2s_weight": 1.0, "pl_weight": 0.1, "similarity_weight": 1.0}
"""Options of Prelax-std, Eq. 16: fields of `Config` and their values, as are the others."""
ROT = _NONE | {"r3s_weight": 1.0, "rotation_pl_weight": 0.1, "similarity_weight": 1.0}
"""Prelax-rot, Eq. 19."""
ALL = (
    _NONE
    | {"r2s_weight": 0.5, "r3s_weight": 0.5, "pl_weight": 0.05, "rotation_pl_weight": 0.05}
    | {"similarity_weight": 1.0}
)
"""Prelax-all, Eq. 20: halves of the relaxed losses, halves of gamma."""
TABLE_3A: Mapping[str, Mapping[str, float]] = {
    "SimSiam": _SIM,
    "SimSiam + margin loss": _SIM | {"margin": 0.5},
    "Rotation": _NONE | {"rotation_weight": 1.0, "scale": 1.0},  # alone, a cross entropy as any other
    "SimSiam + rotation aug.": _SIM | {"rotation_augmentation": True},
    "SimSiam + Rotation loss": _SIM | {"rotation_weight": 1.0},
    "SimSiam + Prelax": ALL,
}
"""Rows: the alternatives, each by its options."""
TABLE_3B: Mapping[str, Mapping[str, float]] = {
    "Sim": _SIM,
    "Sim + PL": _SIM | {"pl_weight": 0.1},
    "Sim + R2S": STD | {"pl_weight": 0.0},
    "R2S + PL": STD | {"similarity_weight": 0.0},
    "Sim + PL + R2S": STD,
    "Sim + RotPL": _SIM | {"rotation_pl_weight": 0.1},
    "Sim + R3S": ROT | {"rotation_pl_weight": 0.0},
    "R3S + RotPL": ROT | {"similarity_weight": 0.0},
    "Sim + RotPL + R3S": ROT,
}
"""Rows: the ablation, each by its options."""


@dataclass(frozen=True)
class Config:
    """Defaults: Prelax-all on SimSiam, Eq. 20 with the coefficients of section 5, the best of Table 2a."""

    base: Base = "simsiam"
    """The method whose projector, predictor and target network are taken."""
    simsiam: SimSiamConfig = field(default_factory=SimSiamConfig)
    """Of base simsiam; its `stop_gradient` stays on."""
    byol: BYOLConfig = field(default_factory=BYOLConfig)
    """Of base byol."""
    r2s_weight: float = 0.5
    """Of the residual relaxed similarity, Eq. 14: 1 in std, 1/2 in all."""
    r2s_alpha: float = 1.0
    """alpha, alpha_1, in [0, 1]: 0 aligns the views exactly, 1 by the identity."""
    r3s_weight: float = 0.5
    """Of the rotation's, Eq. 17: 1 in rot, 1/2 in all."""
    r3s_alpha: float = 1.0
    """alpha, alpha_2, in [0, 1]."""
    pl_weight: float = 0.05
    """Of predictive learning from r12, Eq. 5: gamma in std, gamma_1 / 2 in all."""
    rotation_pl_weight: float = 0.05
    """Of predictive learning from r31, Eq. 18: gamma in rot, gamma_2 / 2 in all."""
    similarity_weight: float = 1.0
    """beta, of the constraint L_sim(x2, x1), Eq. 15."""
    forward_similarity_weight: float = 0.0
    """Of L_sim(x1, x2), in whose place R2S and R3S are; 1, where there is neither (Eq. 13)."""
    rotation_weight: float = 0.0
    """Of the rotation loss (Table 3a): the angle of x3 from its features."""
    margin: float = 0.0
    """eta of Eq. 9, in both L_sim: 0 is Eq. 1; .5 in Table 3a."""
    rotation_augmentation: bool = False
    """x1 and x2 are turned too, each by its own draw (Table 3a)."""
    reverse_residual: bool = False
    """r21 in place of r12 in R2S: "sometimes slightly better" (section 5). PL keeps r12."""
    normalize: Normalize = "before"
    """L2 normalization in similarities: of prediction, G(r) and target; of the difference and the target; none."""
    normalize_residual: bool = False
    """Residuals are differences of L2-normalized projections, in PL and RotPL too."""
    predicted: tuple[str, ...] = PARAMETERS
    """Parameters of t1 that PL predicts."""
    pl_reduction: Reduction = "sum"
    """Of PL over the parameters of either kind: `sum` is Eq. 5, `mean` the "mean square error" of its text."""
    head: tuple[int, ...] = (512,)
    """Widths of the hidden layers of H, each with batch norm and ReLU; empty: linear, for lower rates."""
    scale: float = 1.0
    """Of the whole loss, above 0: 1 as printed; .25 gives "Sim" the gradient of SimSiam's own loss."""

    def __post_init__(self) -> None:
        rules: list[tuple[str, bool, str]] = [
            (f"{term}_weight", weight >= 0, "0 or more") for term, weight in self.weights.items()
        ]
        rules += [(name, 0 <= getattr(self, name) <= 1, "in [0, 1]") for name in ("r2s_alpha", "r3s_alpha")]
        rules += [
            ("base", self.base in get_args(Base), f"one of {', '.join(get_args(Base))}"),
            ("margin", self.margin >= 0, "0 or more"),
            ("scale", self.scale > 0, "above 0"),
            ("normalize", self.normalize in get_args(Normalize), f"one of {', '.join(get_args(Normalize))}"),
            ("pl_reduction", self.pl_reduction in get_args(Reduction), f"one of {', '.join(get_args(Reduction))}"),
            ("head", all(width >= 1 for width in self.head), "widths of at least 1"),
            ("predicted", set(self.predicted) <= set(PARAMETERS), f"names among {', '.join(PARAMETERS)}"),
            ("predicted", len(set(self.predicted)) == len(self.predicted) > 0, "at least one name, each once"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"method.{name} is {rule}, got {getattr(self, name)}")
        if not self.simsiam.stop_gradient:
            raise ValueError("method.simsiam.stop_gradient stays on: the target's gradient is always stopped")
        if not any(self.weights.values()):
            raise ValueError(f"one of method.{', '.join(f'{term}_weight' for term in TERMS)} has to be above 0")

    @property
    def weights(self) -> dict[str, float]:
        """Of each of `TERMS`."""
        return {term: getattr(self, f"{term}_weight") for term in TERMS}


# -------------------------------------------------------------------------------------------- losses


def _distances(prediction: Tensor, residual: Tensor, target: Tensor, alpha: float, normalize: Normalize) -> Tensor:
    """|G(z') - alpha G(r) - z|^2 of each sample (B,); z is detached."""
    target = target.detach()
    if normalize == "before":
        prediction, residual, target = (F.normalize(x, dim=1) for x in (prediction, residual, target))
    difference = prediction - alpha * residual
    if normalize == "after":
        difference, target = F.normalize(difference, dim=1), F.normalize(target, dim=1)
    return (difference - target).square().sum(1)


def residual_similarity(
    prediction: Tensor,
    residual_prediction: Tensor,
    target: Tensor,
    *,
    alpha: float,
    normalize: Normalize = "before",
) -> Tensor:
    """Eq. 4 (and 14, 17): |G(z') - alpha G(r) - z|^2, summed over the features, mean over the batch.

    Args:
        prediction: G(z') (B, D); carries a gradient.
        residual_prediction: G(r) (B, D); carries a gradient.
        target: z (B, D); its gradient is stopped.
        alpha: 0 is `similarity`, 1 the identity alignment (Eq. 3).
        normalize: `before`: each of the three has length 1 (ours); `after`: the difference and the target have; `none`.

    Returns:
        Scalar >= 0, at most (2 + alpha)^2 with `before`, 4 with `after`.
    """
    return _distances(prediction, residual_prediction, target, alpha, normalize).mean()


def similarity(prediction: Tensor, target: Tensor, *, margin: float = 0.0, normalize: Normalize = "before") -> Tensor:
    """Eq. 1 (and 15): |G(z') - z|^2, with a margin Eq. 9: max(|G(z') - z|^2 - eta, 0); mean over the batch.

    Args:
        prediction: G(z') (B, D); carries the gradient.
        target: z (B, D); its gradient is stopped.
        margin: eta >= 0.
        normalize: as in `residual_similarity`; `before` and `after` are one here.
    """
    return F.relu(_distances(prediction, torch.zeros_like(prediction), target, 0.0, normalize) - margin).mean()


def predictive_loss(
    logits: Tensor, flags: Tensor, values: Tensor, standardized: Tensor, *, reduction: Reduction = "sum"
) -> Tensor:
    """Eq. 5: CE(H^d(r), t^d) + |H^c(r) - t^c|^2, summed over the parameters, mean over the batch.

    Args:
        logits: H^d(r) (B, F), the log-odds of each flag: a cross entropy of the two classes (0, logit).
        flags: t^d (B, F), 0 or 1.
        values: H^c(r) (B, V).
        standardized: t^c (B, V).
        reduction: `mean` divides the first sum by F and the second by V.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, flags, reduction="none").sum(1).mean()
    error = (values - standardized).square().sum(1).mean()
    if reduction == "mean":
        entropy, error = entropy / max(logits.shape[1], 1), error / max(values.shape[1], 1)
    return entropy + error


def rotated(images: Tensor, quarters: Tensor) -> Tensor:
    """Each image turned clockwise by its own quarter turns: (B, C, S, S), int64 (B,) in 0 ... 3 -> (B, C, S, S)."""
    turned = torch.stack([images.rot90(-k, (2, 3)) for k in range(ANGLES)])
    return turned[quarters, torch.arange(len(images), device=images.device)]


class Statistics(nn.Module):
    """Mean and variance of each column over all samples ever seen, of all ranks: equal on them, part of checkpoints.

    Args:
        width: columns.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.zeros(width))

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Takes in values (B, width) of every rank (Chan, Golub and LeVeque, 1983)."""
        everywhere = gather(values)
        variance, mean = torch.var_mean(everywhere, 0, correction=0)
        self.count += len(everywhere)
        share, shift = len(everywhere) / self.count, mean - self.mean
        self.variance.lerp_(variance, share).add_(share * (1 - share) * shift.square())
        self.mean.add_(share * shift)

    @property
    def varies(self) -> Tensor:
        """Bool (width,): the deviation is above 1e-4; of a constant rounding alone remains."""
        return self.variance > 1e-8

    def standardized(self, values: Tensor) -> Tensor:
        """(B, width) -> (B, width), of mean 0 and deviation 1 where a column varies, else 0."""
        return (values - self.mean) * torch.where(self.varies, self.variance.clamp(min=1e-8).rsqrt(), 0.0)


# -------------------------------------------------------------------------------------------- method


class Prelax(Method):
    """Networks that none of the configuration's terms reads do not learn; heads that none needs are not made.

    Raises:
        ValueError: other views; PL of a view without the parameters of `methods.views.View`; views that are not square
            where they are turned.
    """

    columns: Tensor

    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if facts.views.keys() != {"online", "target"}:
            raise ValueError(f"prelax takes the views online and target, got {', '.join(facts.views)}")
        if config.pl_weight and facts.views["online"][1] < len(PARAMETERS):
            raise ValueError(
                f"prelax predicts the {len(PARAMETERS)} parameters of the view online, which has "
                f"{facts.views['online'][1]}: make it of methods.views.View, or give --method.pl-weight 0"
            )
        relaxes_rotation = bool(config.r3s_weight or config.rotation_pl_weight)
        turned = relaxes_rotation or config.rotation_weight or config.rotation_augmentation
        shape = facts.views["online"][0]
        if turned and (len(shape) != 3 or shape[1] != shape[2]):
            raise ValueError(f"prelax turns square images (C, S, S), got a view of {shape}: use std, without rotation")
        self.config = config
        self.backbone = backbone
        base = (
            SimSiam(config.simsiam, backbone, facts) if config.base == "simsiam" else BYOL(config.byol, backbone, facts)
        )
        self.projector, self.predictor = base.projector, base.predictor
        self.teacher = base.teacher if isinstance(base, BYOL) else None  # F_phi; SimSiam's is the online network
        dim = config.simsiam.dim if config.base == "simsiam" else config.byol.dim

        weights = config.weights
        self.aligns = any(weights[term] for term in ("r2s", "r3s", "similarity", "forward_similarity"))
        projects = self.aligns or bool(config.pl_weight or config.rotation_pl_weight)
        self.projected = ("online", "target", "third")[: 3 if relaxes_rotation else 2] if projects else ()
        self.seen = (*self.projected, "third") if config.rotation_weight and not relaxes_rotation else self.projected
        self.projector.requires_grad_(projects)
        self.predictor.requires_grad_(self.aligns)

        self.discrete = tuple(name for name in config.predicted if name in DISCRETE)
        self.continuous = tuple(name for name in config.predicted if name in CONTINUOUS)
        names = self.discrete + self.continuous
        self.register_buffer("columns", torch.tensor([PARAMETERS.index(name) for name in names]), persistent=False)
        self.statistics = Statistics(len(names)) if config.pl_weight else None
        self.pl_head = mlp([dim, *config.head, len(names)]) if config.pl_weight else None
        self.rotation_pl_head = mlp([dim, *config.head, ANGLES]) if config.rotation_pl_weight else None
        self.rotation_head = mlp([backbone.dim, *config.head, ANGLES]) if config.rotation_weight else None

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        c = self.config
        images, angle = self.images(batch, clock)
        features = {view: self.backbone(images[view]) for view in self.seen}
        z = {view: self.projector(features[view]).float() for view in self.projected}  # (B, D)
        losses: dict[str, Tensor] = {}
        if self.aligns:
            target = self.targets(images, z, batch["index"], clock)
            if c.r2s_weight:
                r12 = self.residual(z["online"], z["target"])
                residual = -r12 if c.reverse_residual else r12
                losses["r2s"] = self.relaxed(z["online"], residual, target["target"], c.r2s_alpha)  # Eq. 14
            if c.r3s_weight:
                r31 = self.residual(z["third"], z["online"])
                losses["r3s"] = self.relaxed(z["third"], r31, target["target"], c.r3s_alpha)  # Eq. 17
            if c.similarity_weight:
                losses["similarity"] = self.aligned(z["target"], target["online"])  # Eq. 15
            if c.forward_similarity_weight:
                losses["forward_similarity"] = self.aligned(z["online"], target["target"])
        if self.pl_head is not None and self.statistics is not None:
            parameters = batch["online.parameters"].index_select(1, self.columns)
            if self.training:
                self.statistics.update(parameters)
            said, true = self.predicted(z), self.true(parameters)
            losses["pl"] = predictive_loss(said[0], true[0], said[1], true[1], reduction=c.pl_reduction)  # Eq. 5
        if self.rotation_pl_head is not None:
            losses["rotation_pl"] = F.cross_entropy(
                self.rotation_pl_head(self.residual(z["third"], z["online"])).float(), angle
            )
        if self.rotation_head is not None:
            losses["rotation"] = F.cross_entropy(self.rotation_head(features["third"]).float(), angle)
        loss = (
            c.scale * torch.stack([c.weights[term] * value for term, value in losses.items()]).sum()
        )  # Eq. 16, 19, 20
        log = {term: value.detach() for term, value in losses.items()}
        if self.teacher is not None:
            log["teacher_momentum"] = loss.new_full((), self.momentum(clock))
        return Step(loss, log)

    # ------------------------------------------------------------------------------------------ views

    def quarters(self, index: Tensor, clock: Clock, view: str) -> Tensor:
        """int64 (B,), quarter turns of each image, uniform in 0 ... 3."""
        return (ANGLES * draw(clock.seed, clock.step, index, f"rotation/{view}", 1)[:, 0]).long()

    def images(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], Tensor]:
        """x1, x2 and, where a term needs it, x3, uint8 (B, C, S, S), and x3's quarter turns a, int64 (B,)."""
        index = batch["index"]
        images = {view: batch[view] for view in ("online", "target")}
        if self.config.rotation_augmentation:
            images = {view: rotated(x, self.quarters(index, clock, view)) for view, x in images.items()}
        angle = self.quarters(index, clock, "third")
        if "third" in self.seen:
            images["third"] = rotated(images["online"], angle)
        return images, angle

    def targets(
        self, images: Mapping[str, Tensor], z: Mapping[str, Tensor], index: Tensor, clock: Clock
    ) -> dict[str, Tensor]:
        """F_phi of x1 and x2, float32 (B, D), without gradient (section 4.1)."""
        if self.teacher is None:
            return {view: z[view].detach() for view in ("online", "target")}
        order = draw(clock.seed, clock.step, index, "shuffle", 1)[:, 0]
        return {view: self.teacher(images[view], order).float() for view in ("online", "target")}

    # ------------------------------------------------------------------------------------------ terms

    def relaxed(self, z: Tensor, residual: Tensor, target: Tensor, alpha: float) -> Tensor:
        """Eq. 4; G sees the residual where alpha is above 0."""
        prediction = self.predictor(z).float()
        relief = self.predictor(residual).float() if alpha else torch.zeros_like(prediction)
        return residual_similarity(prediction, relief, target, alpha=alpha, normalize=self.config.normalize)

    def aligned(self, z: Tensor, target: Tensor) -> Tensor:
        """Eq. 1, or Eq. 9."""
        prediction = self.predictor(z).float()
        return similarity(prediction, target, margin=self.config.margin, normalize=self.config.normalize)

    def residual(self, one: Tensor, other: Tensor) -> Tensor:
        """r = one - other (B, D), of projections or of their directions."""
        if self.config.normalize_residual:
            one, other = F.normalize(one, dim=1), F.normalize(other, dim=1)
        return one - other

    def predicted(self, z: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """H(r12): log-odds (B, F) and standardized values (B, V), float32."""
        assert self.pl_head is not None
        said = self.pl_head(self.residual(z["online"], z["target"])).float()
        return said[:, : len(self.discrete)], said[:, len(self.discrete) :]

    def true(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Of t1 (B, F + V), discrete parameters first: flags (B, F), 0 or 1, and standardized values (B, V)."""
        assert self.statistics is not None
        count = len(self.discrete)
        return (parameters[:, :count] > 0.5).float(), self.statistics.standardized(parameters)[:, count:]

    # --------------------------------------------------------------------------------------- training

    def momentum(self, clock: Clock) -> float:
        return momentum_at(clock.step, clock.total_steps, self.config.byol.momentum, self.config.byol.momentum_end)

    def after_step(self, clock: Clock) -> None:
        if self.teacher is not None:
            self.teacher.follow(self.backbone, self.projector, momentum=self.momentum(clock))

    def parameters_of(self, turn: str) -> list[dict[str, Any]]:
        """Groups: all but the predictor; the predictor, with `"constant": True` under `simsiam.fix_predictor_lr`."""
        predictor = [p for p in self.predictor.parameters() if p.requires_grad]
        held = {id(p) for p in predictor}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in held]
        if not predictor:
            return [{"params": others}]
        constant = self.config.base == "simsiam" and self.config.simsiam.fix_predictor_lr
        return [{"params": others}, {"params": predictor, "constant": constant}]

    # ------------------------------------------------------------------------------------ for evaluation

    @torch.no_grad()
    def task(self, batch: Batch, clock: Clock) -> Mapping[str, Tensor]:
        """How well the residual tells each augmentation parameter, by its name; of what the loss predicts.

        `r2.NAME` of continuous ones, R^2: 1 less the squared error over training's variance; those that did not vary in
        training are left out. `accuracy.NAME` of discrete ones, and `chance.NAME`, that of always saying what was
        commonest in training. `rotation`: the quarter turns from r31; `rotation_from_features`: of the rotation loss.
        """
        figures: dict[str, Tensor] = {}
        with evaluating(self):
            images, angle = self.images(batch, clock)
            features = {view: self.backbone(images[view]) for view in self.seen}
            z = {view: self.projector(features[view]).float() for view in self.projected}
            turns: dict[str, Tensor] = {}
            if self.rotation_pl_head is not None:
                turns["rotation"] = self.rotation_pl_head(self.residual(z["third"], z["online"]))
            if self.rotation_head is not None:
                turns["rotation_from_features"] = self.rotation_head(features["third"])
            said = self.predicted(z) if self.pl_head is not None else None
        if said is not None and self.statistics is not None:
            flags, standardized = self.true(batch["online.parameters"].index_select(1, self.columns))
            common = self.statistics.mean[: len(self.discrete)] > 0.5
            right, usual = ((x == (flags > 0.5)).float().mean(0) for x in (said[0] > 0, common))
            for k, name in enumerate(self.discrete):
                figures |= {f"accuracy.{name}": right[k], f"chance.{name}": usual[k]}
            explained = 1 - (said[1] - standardized).square().mean(0)
            varies = self.statistics.varies[len(self.discrete) :].tolist()
            figures |= {f"r2.{name}": explained[k] for k, name in enumerate(self.continuous) if varies[k]}
        for name, logits in turns.items():
            accuracy = (logits.argmax(1) == angle).float().mean()
            figures |= {f"accuracy.{name}": accuracy, f"chance.{name}": torch.full_like(accuracy, 1 / ANGLES)}
        return figures


METHOD = Prelax

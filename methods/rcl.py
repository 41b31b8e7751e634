"""RCL: Relative Contrastive Loss for Unsupervised Representation Learning (Tang, Zhu, Bai, Zhao, Ouyang; ECCV 2022).

A pair of query and key is positive under some criteria and negative under others. Criterion i is level i of a
hierarchy of clusters (methods.clusters): at level 1 each sample is its own cluster. Each criterion has its predictor.
There is no code of the training.

Views: `online` and `target`, each once the query's and once the key's (the symmetric loss of BYOL).

Equations 2 and 3: where query and key are not in one cluster of a level, the numerator is 1, so that the level's loss
is the logarithm of the denominator, which drives the query off the key. It is never left out.

In the text, and here: a queue and a momentum teacher; projector fc-BN-ReLU twice, then fc-BN; predictors
fc-BN-ReLU-fc; 10 epochs of the contrastive loss, DBSCAN for levels 2 to H, then split and merge in each iteration.

The text is silent, so ours:
- The key z' is drawn from the queue's entries of other samples that share the query's label at a level, which is drawn
  uniformly; at level 1, or where there is none, it is the sample's own key. It stays in the denominator besides the
  queue, as in Eq. 3. So with one level, or before there are labels, the loss is InfoNCE (of each predictor).
- Predictions and keys are L2-normalized, as in MoCo; the teacher's momentum is BYOL's, whose setting the text names.
- Clusters are found on the backbone's normalized features of one augmented view of each sample, as the feed has it in
  that epoch, by Euclidean distance; those that fill no batch begin alone. They are refined on the teacher's keys.
  `radius` and `radius_step` give the text's .6, .7, .8 (of its offline baseline, section 5.3) from level 2 up. Noise of
  DBSCAN is alone: given to the nearest core it would join what the radius keeps apart.
- One sigma_m for all levels would make them alike, as what may not merge at level 3 would be split there as at level 2:
  it falls by `sigma_step` a level. 0 is the paper's.
- Samples at hand: this step's keys, of both views and all ranks; `at_hand` takes more of the queue's newest.
- The property of section 4.3 is kept always, also by `kmeans` and `dbscan`, whose clusters the paper leaves as found;
  `conformity` in the log is the share of samples that needed no change.
More of it, and what happens where all merge or all split, in methods.clusters.

Labels are functions of tensors that are equal on all ranks (the queue, the labels before): ranks of one kind of device
compute the same ones. Those found anew are rank 0's.

Legend: B batch, D projection, K queue, H levels, N samples.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.clusters import Bank, Similarity, dbscan, kmeans, neighbours, radius_at, refine, sizes
from methods.method import Advice, Batch, Clock, Facts, Method, Step
from methods.parts import Queue, Teacher, draw, mlp, momentum_at, rank, world_size

Clustering = Literal["online", "kmeans", "dbscan", "nearest"]
RadiusIs = Literal["distance", "quantile"]


@dataclass(frozen=True)
class Config:
    """Defaults: the paper's ImageNet setting, section 5."""

    levels: int = 3
    """H, number of criteria (Table 3)."""
    shared_predictor: bool = False
    """One predictor for all criteria (Table 3, rows 1 to 4) in place of one each."""
    clustering: Clustering = "online"
    """Table 4: DBSCAN once, then split and merge; k-means or DBSCAN anew before each epoch; or NNCLR, where the nearest
    entry of the queue is the key, positive under all criteria (`levels` 1 is NNCLR), also where that is an older key of
    the sample itself. All of them after the warm-up."""
    symmetric: bool = True
    """Each view is query once and key once; the loss is the mean of both directions."""
    temperature: float = 0.1
    """tau (Eq. 3)."""
    queue: int = 98304
    """K, size of the support queue S (Figure 5b)."""
    hidden: int = 2048
    """Width of the projector's hidden layers."""
    dim: int = 256
    """d, width of z."""
    predictor_hidden: int = 4096
    momentum: float = 0.99
    """The teacher's momentum at the start. Not in the paper, whose settings are "the same as BYOL": of BYOL's code at
    the rate .3 and decay 1e-6 that the paper names, for 300 epochs; .996 belongs to 1000."""
    momentum_end: float = 1.0
    """The teacher's momentum at the end, by a cosine."""
    warmup_epochs: int = 10
    """Epochs of InfoNCE before the first clusters."""
    radius: float = 0.6
    """DBSCAN's r at level 2: as `radius_is` says."""
    radius_step: float = 0.1
    """By how much r is larger at each next level."""
    radius_is: RadiusIs = "distance"
    """A distance of normalized features, up to 2; or the share of the samples that are to be cores, up to 1, which
    fits any features."""
    min_samples: int = 4
    """Samples within r, itself counted, that make a sample a core."""
    cells: int | None = None
    """k-means cells of the search for neighbours. None: the square root of N."""
    probes: int = 16
    """Cells that a sample asks for neighbours."""
    clusters: float = 0.78
    """Clusters of k-means at level 2 as a share of the samples, half as many at each next level: 1,000,000, 500,000 and
    250,000 of 1.28 million in the paper."""
    prototypes: int = 2
    """m, pieces of a split (section 4.3)."""
    sigma: float = 0.8
    """sigma_m, the possibility above which clusters merge (section 4.3), at level 2."""
    sigma_step: float = 0.1
    """By how much sigma_m is lower at each next level."""
    similarity: Similarity = "centre"
    """By what units go to prototypes and clusters merge: centres, or label propagation (section 4.3 names both)."""
    cutoff: float = 0.5
    """d_c of the density as a share of a cluster's mean distance."""
    propagation: float = 0.9
    """alpha of label propagation; .99 in TPN, which the paper cites."""
    at_hand: int | None = None
    """The queue's newest keys that splits and merges see. None: those of this step."""
    held_above: float = 0.99
    """Share of the samples in one cluster, or alone, above which a level is held as it was."""

    def __post_init__(self) -> None:
        for name in ("levels", "probes", "cells", "at_hand"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"method.{name} is at least 1, got {value}")
        for name in ("min_samples", "prototypes"):
            if getattr(self, name) < 2:
                raise ValueError(f"method.{name} is at least 2, got {getattr(self, name)}")
        for name in ("temperature", "radius", "cutoff"):
            if getattr(self, name) <= 0:
                raise ValueError(f"method.{name} is above 0, got {getattr(self, name)}")
        for name in ("warmup_epochs", "radius_step", "sigma_step"):
            if getattr(self, name) < 0:
                raise ValueError(f"method.{name} is 0 or more, got {getattr(self, name)}")
        for name in ("clusters", "held_above"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"method.{name} is a share of the samples in (0, 1], got {getattr(self, name)}")
        for name, choices in (("clustering", Clustering), ("radius_is", RadiusIs), ("similarity", Similarity)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"method.{name} is one of {', '.join(get_args(choices))}, got {getattr(self, name)}")
        widest = self.radius + self.radius_step * max(self.levels - 2, 0)
        if self.radius_is == "quantile" and widest > 1:
            raise ValueError(f"method.radius is a share of the samples, at most 1 at every level, got {widest:g}")
        if not 0 <= self.propagation < 1:
            raise ValueError(f"method.propagation is in [0, 1), got {self.propagation}")
        if not -1 <= self.sigma <= 1:
            raise ValueError(f"method.sigma is a cosine, in [-1, 1], got {self.sigma}")
        if not (0 <= self.momentum <= 1 and 0 <= self.momentum_end <= 1):
            raise ValueError("method.momentum and method.momentum_end lie in [0, 1]")


def relative_contrastive_loss(
    predictions: Tensor, keys: Tensor, positive: Tensor, queue: Tensor, *, temperature: float
) -> Tensor:
    """Eq. 2 and 3 with alpha_i = 1/H, mean over the batch.

    Args:
        predictions: q of each criterion (H, B, D), normalized; carries the gradient.
        keys: z' (B, D), normalized; its gradient is stopped.
        positive: bool (H, B), whether query and key share a label: the numerator is exp(q z' / tau), otherwise 1.
        queue: (K, D), normalized.
        temperature: tau > 0.

    Returns:
        Scalar. Autocast is off here: bf16 rounds a similarity near 1 by up to .002, which tau then divides.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        key = (predictions * keys.detach()).sum(2) / temperature  # (H, B)
        others = (predictions @ queue.T / temperature).logsumexp(2)  # (H, B)
        denominator = torch.logaddexp(key, others)
        return (denominator - torch.where(positive, key, 0.0)).mean()


def retrieve(query: Tensor, entries: Tensor, level: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """Draws for each query one of the queue's entries of other samples that share its label at its level.

    Args:
        query: labels (H, B), the first level's being the samples themselves.
        entries: labels of the queue's entries (H, K), -1 where there is no sample.
        level: int64 (B,), from 0; at 0 nothing is found.
        chance: (B,) in [0, 1), which of them.

    Returns:
        (found bool (B,), position in the queue int64 (B,), of meaning where found).
    """
    shared = torch.zeros(query.shape[1], entries.shape[1], dtype=torch.bool, device=query.device)
    for h in range(1, len(query)):
        shared |= (level == h)[:, None] & (query[h][:, None] == entries[h])
    shared &= query[0][:, None] != entries[0]
    until = shared.cumsum(1, dtype=torch.int32)  # (B, K)
    count = until[:, -1]
    which = (chance.double() * count).long().minimum(count - 1) + 1  # from 1
    position = torch.searchsorted(until, which[:, None].int())[:, 0]
    return count > 0, position.clamp_max(entries.shape[1] - 1)


class RCL(Method):
    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if facts.views.keys() != {"online", "target"}:
            raise ValueError(f"rcl takes the views online and target, got {', '.join(facts.views)}")
        self.config = config
        self.pairs = [("online", "target"), ("target", "online")][: 2 if config.symmetric else 1]  # query, key
        self.backbone = backbone
        self.projector = mlp([backbone.dim, config.hidden, config.hidden, config.dim], last_norm=True)
        widths = [config.dim, config.predictor_hidden, config.dim]
        self.predictors = nn.ModuleList(mlp(widths) for _ in range(1 if config.shared_predictor else config.levels))
        self.teacher = Teacher(self.backbone, self.projector)
        self.queue = Queue(config.queue, config.dim, {"index": torch.int64})
        self.bank = Bank(facts.samples, config.levels, config.held_above)

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        c, index = self.config, batch["index"]
        if not index.is_cuda or clock.step % clock.steps_per_epoch == 0:
            self.bank.check(index)  # waits for the device: on a GPU once an epoch
        order = draw(clock.seed, clock.step, index, "shuffle", 1)[:, 0]
        queue, owners = self.queue.keys.clone(), self.queue.get_buffer("index").clone()  # as before this batch
        keys = {view: F.normalize(self.teacher(batch[view], order).float(), dim=1) for _, view in self.pairs}
        losses, found, positives = [], [], []
        for online, target in self.pairs:
            z = self.projector(self.backbone(batch[online]))
            q = torch.stack([F.normalize(p(z).float(), dim=1) for p in self.predictors]).expand(c.levels, -1, -1)
            retrieved, slot, owner = self.key(keys[target], index, queue, owners, clock, target)
            key = torch.where(retrieved[:, None], queue[slot], keys[target])  # (B, D)
            nearest = c.clustering == "nearest"
            positive = (self.bank.of(index) == self.bank.of(owner)) | nearest  # (H, B)
            losses.append(relative_contrastive_loss(q, key, positive, queue, temperature=c.temperature))
            found.append(retrieved.float().mean())
            positives.append(positive.float().mean(1))
        for view in keys:
            self.queue.enqueue(keys[view], {"index": index})
        loss = torch.stack(losses).mean()
        log = {"teacher_momentum": loss.new_full((), self.momentum(clock)), "retrieved": torch.stack(found).mean()}
        log |= {f"positive.{h}": v for h, v in enumerate(torch.stack(positives).mean(0), 1)}
        return Step(loss, log | self.refined(clock, len(index) * len(keys)))

    @torch.no_grad()
    def key(
        self, own: Tensor, index: Tensor, queue: Tensor, owners: Tensor, clock: Clock, view: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where z' is: (whether in the queue, bool (B,); at which entry, int64 (B,); whose sample's, int64 (B,))."""
        if self.config.clustering == "nearest":
            with torch.autocast(own.device.type, enabled=False):
                similarity = (own @ queue.T).masked_fill(owners < 0, -torch.inf)  # (B, K)
            slot = similarity.argmax(1)
            found = (owners[slot] >= 0) & (clock.epoch >= self.config.warmup_epochs)
        else:
            u = draw(clock.seed, clock.step, index, f"key/{view}", 2)  # (B, 2)
            level = (u[:, 0] * self.config.levels).long()
            found, slot = retrieve(self.bank.of(index), self.bank.of(owners), level, u[:, 1])
        return found, slot, torch.where(found, owners[slot], index)

    @torch.no_grad()
    def refined(self, clock: Clock, keys: int) -> dict[str, Tensor]:
        """Splits and merges on the queue's newest, which are equal on all ranks; what the log says of the clusters."""
        c, bank = self.config, self.bank
        log: dict[str, Tensor] = {"held": bank.held.sum().float()} if c.levels > 1 else {}
        if c.levels > 1 and c.clustering == "online" and clock.epoch >= c.warmup_epochs:
            size = len(self.queue.keys)
            count = min(c.at_hand or keys * world_size(), size)
            slots = (self.queue.pointer - count + torch.arange(count, device=self.queue.keys.device)) % size
            with torch.autocast(self.queue.keys.device.type, enabled=False):
                new = refine(
                    bank.labels,
                    self.queue.keys[slots],
                    self.queue.get_buffer("index")[slots],
                    prototypes=c.prototypes,
                    sigma=c.sigma,
                    sigma_step=c.sigma_step,
                    similarity=c.similarity,
                    cutoff=c.cutoff,
                    alpha=c.propagation,
                    held_above=c.held_above,
                    counted=bank.counted,
                )
            bank.labels.copy_(torch.where(bank.started, new.labels, bank.labels))
            bank.held += new.held & bank.started
            log["held"] = bank.held.sum().float()
            for h in range(2, c.levels + 1):
                log[f"split.{h}"] = new.split[h - 1].float() * bank.started
                log[f"merged.{h}"] = new.merged[h - 1].float() * bank.started
        if c.levels > 1:
            log["conformity"] = bank.conformity.clone()
            for name, values in sizes(bank.labels, bank.counted)._asdict().items():
                log |= {f"{name}.{h}": values[h - 1] for h in range(2, c.levels + 1)}
        return log

    def before_epoch(self, clock: Clock, features: Callable[[], tuple[Tensor, Tensor]]) -> None:
        c = self.config
        if c.levels == 1 or c.clustering == "nearest":
            return
        if clock.epoch == 0 and clock.total_steps <= c.warmup_epochs * clock.steps_per_epoch:
            epochs = clock.total_steps // clock.steps_per_epoch
            warnings.warn(
                f"this run never has clusters and is InfoNCE: its {epochs} epochs are within the warm-up of "
                f"{c.warmup_epochs}. Give --method.warmup-epochs below {epochs}, or more --epochs",
                Advice,
                stacklevel=1,
            )
        if clock.epoch < c.warmup_epochs:
            return
        if c.clustering == "online" and bool(self.bank.started):
            return
        x, index = features()
        self.bank.check(index)
        index, order = index.sort()  # the clusters do not depend on the order of the epoch
        if rank() == 0:  # which is waited for
            self.bank.replace(self.found(F.normalize(x.float()[order], dim=1), clock), index)
        self.bank.share()
        if not bool(self.bank.started) and clock.epoch == c.warmup_epochs:
            warnings.warn(
                "no clusters were found: at each level nearly all samples are alone, or all in one cluster. Until "
                "there are some this run is InfoNCE. Alone: raise --method.radius; in one: lower it; or lengthen "
                "--method.warmup-epochs",
                Advice,
                stacklevel=1,
            )

    def found(self, x: Tensor, clock: Clock) -> Tensor:
        """Clusters of normalized features (N, D), each level by itself: int64 (H - 1, N), noise -1."""
        c, steps = self.config, range(self.config.levels - 1)
        if c.clustering == "kmeans":
            counts = [max(round(c.clusters * len(x) / 2**step), 1) for step in steps]
            return torch.stack([kmeans(x, count, seed=clock.seed + clock.epoch)[1] for count in counts])
        radii = [c.radius + c.radius_step * step for step in steps]
        widest = radii[-1] if c.radius_is == "distance" else math.inf
        cells = c.cells or math.isqrt(len(x))
        pairs, distances = neighbours(x, widest, cells=cells, probes=c.probes, most=max(64, c.min_samples))
        if c.radius_is == "quantile":
            radii = [radius_at(pairs, distances, share, c.min_samples) for share in radii]
        return torch.stack([dbscan(pairs, distances, len(x), radius, c.min_samples) for radius in radii])

    def momentum(self, clock: Clock) -> float:
        return momentum_at(clock.step, clock.total_steps, self.config.momentum, self.config.momentum_end)

    def after_step(self, clock: Clock) -> None:
        self.teacher.follow(self.backbone, self.projector, momentum=self.momentum(clock))


METHOD = RCL

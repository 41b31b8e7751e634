"""Labels of every sample at H levels of a hierarchy: the criteria of RCL (Tang et al., ECCV 2022, section 4.3).

Level 1: each sample its own cluster. Cluster preserve property: samples that share a label at level h share it at
h + 1. It holds by construction: whatever changes a level writes it as a function of the level below.

- `nested`: first labels, clustered level by level (DBSCAN, k-means), made a hierarchy.
- `refine`: one iteration of online split and merge, on the samples at hand.
- `Bank`: the labels as a buffer, by the samples' `index`, equal on all ranks.

An id is bounded for ever: a cluster's id is the lowest `index` among its samples, at any level, so ids are below N,
and clusters, being disjoint, never share one. After each change all ids are found anew (`canonical`).

The paper leaves to its supplement, which we don't have, how many prototypes, sigma_m, and label propagation. Ours:
- Only units with samples at hand move, and they move whole, with all their samples. Units out of sight stay with the
  piece of the densest prototype, which keeps the cluster: a later batch that shows them may move them.
- Every cluster with more than m units at hand is split into m; the merge that follows takes back what was split for
  nothing. A split's pieces and other clusters at hand are merged by the same rule, transitively.
- Density of a unit: sum of exp(-(d / d_c)^2) over the cluster's units at hand, d the Euclidean distance of normalized
  centres, d_c a share (`cutoff`) of their mean distance. The m units with the largest density x distance to the next
  denser one are prototypes (Rodriguez and Laio, Science 2014, there gamma); of equals the one first in the batch.
- Possibility that two clusters are one: the cosine of their centres, or by label propagation (`propagate`).
- A level is degenerate where more than `held_above` of the samples lie in one cluster, or alone. A change that would
  make a level degenerate in one of these ways, in which it wasn't, is not made there (it is held), and counted.
- Products of features have the device's precision: on GPUs with TF32 distances of near ones are off by about .01, alike
  on all ranks of one kind.

Legend: N samples, H levels, D features, n samples at hand, P pairs.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from methods.parts import draw, world_size

Similarity = Literal["centre", "propagation"]
CHUNK = 2**26
"""Similarities held at once."""

# ------------------------------------------------------------------------------------------- searching


def closest(features: Tensor, centres: Tensor, count: int) -> Tensor:
    """The `count` most similar centres (C, D) of each feature (N, D): int64 (N, count), the most similar first."""
    parts = features.split(max(CHUNK // len(centres), 1))
    return torch.cat([(part @ centres.T).topk(count, dim=1).indices for part in parts])


@torch.no_grad()
def kmeans(
    features: Tensor, clusters: int, *, seed: int, iterations: int = 10, sample: int = 64
) -> tuple[Tensor, Tensor]:
    """Spherical k-means by Lloyd's iterations, on the features' device, from samples drawn at random.

    Args:
        features: (N, D), normalized.
        clusters: at least 1; of more than N, N.
        sample: features a cluster, drawn at random, that the centres are made of.

    Returns:
        (centres (C, D), normalized; each feature's cluster, int64 (N,), below C). A centre without features stays.
    """
    clusters = min(clusters, len(features))
    order = draw(seed, 0, torch.arange(len(features), device=features.device), "kmeans", 1)[:, 0].argsort(stable=True)
    centres, seen = features[order[:clusters]], features[order[: sample * clusters]]
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, closest(seen, centres, 1)[:, 0], seen)
        length = sums.norm(dim=1, keepdim=True)
        centres = torch.where(length > 0, sums / length.clamp_min(1e-12), centres)
    return centres, closest(features, centres, 1)[:, 0]


@torch.no_grad()
def neighbours(
    features: Tensor, radius: float, *, cells: int, probes: int, most: int = 64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Pairs of features within a radius, by inverted lists: k-means cells, of which each feature asks the closest.

    Time is that of N * N * probes / cells similarities; memory that of N * most pairs, and of `CHUNK` similarities.
    Exact where probes = cells, up to `most`.

    Args:
        features: (N, D), normalized.
        radius: Euclidean distance, up to 2; infinity for the nearest at any distance.
        cells: k-means cells, at least 1. About the square root of N is cheapest.
        probes: cells that a feature asks, at least 1.
        most: neighbours kept a feature, the nearest ones: what bounds the memory where features have collapsed.

    Returns:
        (pairs int64 (2, P): a feature and its neighbour, never itself; distances (P,)), a feature's together, features
        in order, the nearest neighbour first. The relation need not be symmetric.
    """
    count, device = len(features), features.device
    most = min(most, count - 1)
    centres, _ = kmeans(features, cells, seed=seed)
    cells, probes = len(centres), min(probes, len(centres))
    probed = closest(features, centres, probes)  # (N, probes)
    own = probed[:, 0]
    members = own.argsort(stable=True).split(torch.bincount(own, minlength=cells).tolist())
    asking = probed.flatten().argsort(stable=True) // probes  # (N * probes,), by the cell that is asked
    asked = torch.bincount(probed.flatten(), minlength=cells)
    best = torch.full((count, most), -torch.inf, dtype=features.dtype, device=device)
    found = torch.zeros((count, most), dtype=torch.int64, device=device)
    for candidates, askers in zip(members, asking.split(asked.tolist()), strict=True):
        if not len(candidates):
            continue
        for rows in askers.split(max(CHUNK // len(candidates), 1)):
            similarity = features[rows] @ features[candidates].T
            similarity.masked_fill_(rows[:, None] == candidates, -torch.inf)
            here = similarity.topk(min(most, len(candidates)), dim=1)
            values = torch.cat([best[rows], here.values], 1)
            names = torch.cat([found[rows], candidates[here.indices]], 1)
            top = values.topk(most, dim=1)
            best[rows], found[rows] = top.values, names.gather(1, top.indices)
    distance = (2.0 - 2.0 * best).clamp_min(0.0).sqrt()  # infinite where there was none
    near = (distance <= radius) & distance.isfinite()
    row, column = near.nonzero(as_tuple=True)
    return torch.stack([row, found[row, column]]), distance[row, column]


def dbscan(pairs: Tensor, distances: Tensor, samples: int, radius: float, min_samples: int) -> Tensor:
    """DBSCAN (Ester et al., KDD 1996) on pairs as `neighbours` returns them, found at this radius or a larger one.

    Clusters are the connected components of core samples; a border sample goes to its nearest core sample.

    Args:
        min_samples: samples within the radius, itself counted, that make a sample a core.

    Returns:
        int64 (N,) on the pairs' device: clusters from 0, noise -1.
    """
    from scipy.sparse import coo_array  # here: it takes long to import
    from scipy.sparse.csgraph import connected_components

    keep = distances <= radius
    row, column = pairs[:, keep].cpu().numpy()
    core = np.bincount(row, minlength=samples) + 1 >= min_samples
    joined = core[row] & core[column]
    edges = (np.ones(joined.sum(), bool), (row[joined], column[joined]))
    _, component = connected_components(coo_array(edges, shape=(samples, samples)), directed=False)
    labels = np.full(samples, -1)
    labels[core] = np.unique(component[core], return_inverse=True)[1]
    border = ~core[row] & core[column]
    sample, nearest = np.unique(row[border], return_index=True)  # the first of a row is the nearest
    labels[sample] = labels[column[border][nearest]]
    return torch.from_numpy(labels).to(pairs.device)


def radius_at(pairs: Tensor, distances: Tensor, share: float, min_samples: int) -> float:
    """The radius at which that share of the samples are cores: a quantile of the distances to the neighbour that
    makes a sample one. `pairs` were found at an infinite radius; samples of which fewer neighbours were found, as in a
    search of few cells, don't count."""
    row = pairs[0]
    position = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)  # within the row
    kth = distances[position == min_samples - 2].sort().values
    return float(kth[round(share * (len(kth) - 1))]) if len(kth) else 0.0


# ------------------------------------------------------------------------------------------- hierarchy


def canonical(labels: Tensor, ids: int) -> Tensor:
    """The same clusters, named by their lowest sample: int64 (N,) in [0, ids) -> in [0, N)."""
    samples = torch.arange(len(labels), device=labels.device)
    lowest = samples.new_full((ids,), len(labels)).scatter_reduce(0, labels, samples, "amin")
    return lowest[labels]


def nested(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Makes a hierarchy of clusters that were found level by level: each cluster of a level goes whole into the
    cluster of the next that most of its samples are in (of equals, the one with the lowest id).

    Args:
        raw: levels 2 to H, int64 (H - 1, N), any ids of 0 or more.

    Returns:
        (labels (H, N), level 1 before them; share of the samples that conformed already, at all levels, a scalar:
        73.88% of k-means' and 97.3% of DBSCAN's in the paper, section 5.3).
    """
    samples = torch.arange(raw.shape[1], device=raw.device)
    levels, conform = [samples], torch.ones_like(samples, dtype=torch.bool)
    for wanted in raw:
        units, ids = levels[-1], int(wanted.max()) + 1
        code, votes = torch.unique(units * ids + wanted, return_counts=True)
        order = votes.argsort(descending=True, stable=True)
        order = order[(code[order] // ids).argsort(stable=True)]  # by unit, then votes, then the lowest id
        unit = code[order] // ids
        first = torch.cat([unit.new_ones(1, dtype=torch.bool), unit[1:] != unit[:-1]])
        chosen = samples.clone()
        chosen[unit[first]] = code[order][first] % ids
        conform &= chosen[units] == wanted
        levels.append(canonical(chosen[units], ids))
    return torch.stack(levels), conform.float().mean()


def preserved(labels: Tensor) -> Tensor:
    """Whether samples that share a label share it at all higher levels too: (H, N) -> bool scalar. As ids are those
    of samples, that is: each sample has the labels of the sample that names its cluster, from that level on."""
    lower, upper = labels[:-1], labels[1:]
    return (upper.gather(1, lower) == upper).all()


class Sizes(NamedTuple):
    """Of each level, float (H,)."""

    clusters: Tensor
    largest: Tensor
    """Share of the samples that is in the largest cluster."""
    alone: Tensor
    """Share of the samples that is alone in its cluster."""

    def degenerate(self, held_above: float) -> Tensor:
        """bool (H,): nearly all in one cluster, or alone."""
        return torch.maximum(self.largest, self.alone) > held_above


def sizes(labels: Tensor, counted: Tensor | None = None) -> Sizes:
    """Of clusters named by their samples, (H, N). `counted`: bool (N,), the samples that are there; None: all."""
    present = labels.new_ones(labels.shape[1]) if counted is None else counted.to(labels.dtype)
    size = torch.zeros_like(labels).scatter_add_(1, labels, present.expand_as(labels))
    samples = present.sum()
    return Sizes((size > 0).sum(1).float(), size.amax(1) / samples, (size == 1).sum(1) / samples)


def purity(labels: Tensor, classes: Tensor) -> Tensor:
    """Share of samples whose class is the most frequent of their cluster, by level: 1 where all are alone.

    Args:
        labels: int64 (H, N), any ids of 0 or more.
        classes: int64 (N,), from 0.

    Returns:
        float (H,).
    """
    found = []
    for level in labels:
        code, counts = torch.unique(level * (classes.max() + 1) + classes, return_counts=True)
        most = torch.zeros_like(code.new_empty(int(level.max()) + 1))
        most.scatter_reduce_(0, code // (classes.max() + 1), counts, "amax")
        found.append(most.sum() / len(classes))
    return torch.stack(found)


# ------------------------------------------------------------------------------------ split and merge


def propagate(distance: Tensor, linked: Tensor, scale: Tensor, seeds: Tensor, alpha: float) -> Tensor:
    """Label propagation in closed form (Liu et al., TPN, 2018, Eq. 4): (I - alpha S)^-1 Y.

    Args:
        distance: (n, n), symmetric.
        linked: bool (n, n), symmetric: between which the graph has edges.
        scale: d_c of each row, (n,), equal where linked.
        seeds: Y (n, columns).
        alpha: in [0, 1).

    Returns:
        (n, columns), at least 0.
    """
    weight = torch.exp(-((distance / scale[:, None]) ** 2)) * linked
    weight = weight - torch.diag(weight.diagonal())
    root = weight.sum(1).clamp_min(1e-12).rsqrt()
    graph = root[:, None] * weight * root
    identity = torch.eye(len(graph), dtype=graph.dtype, device=graph.device)
    return torch.linalg.solve_ex(identity - alpha * graph, seeds).result.clamp_min(0.0)


def components(linked: Tensor) -> Tensor:
    """The lowest member of each one's connected component: bool (n, n), symmetric -> int64 (n,). Nothing waits for the
    device: the number of rounds, by hooking and pointer jumping, is fixed, which long chains may exceed; what is
    joined is always connected."""
    count = len(linked)
    slots = torch.arange(count, device=linked.device)
    root = slots
    for _ in range(count.bit_length() + 1):
        lowest = torch.where(linked, root, count).amin(1).minimum(root)
        root = root.scatter_reduce(0, root, lowest, "amin").minimum(lowest)
        root = root[root]
    return root


def density_peaks(distance: Tensor, same: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Rank of each unit among its cluster's by density x distance to the next denser, and d_c.

    Args:
        distance: (n, n).
        same: bool (n, n): both are units, and of one cluster.
        cutoff: d_c as a share of the cluster's mean distance.

    Returns:
        (rank int64 (n,), 0 the highest peak; d_c (n,)).
    """
    units = same.sum(1)
    earlier = torch.ones_like(same).tril(-1)  # the column before the row
    rows = (distance * same).sum(1)
    scale = (same.to(rows) @ rows) / (units * (units - 1)).clamp_min(1) * cutoff
    scale = scale.clamp_min(1e-6)
    density = (torch.exp(-((distance / scale[:, None]) ** 2)) * same).sum(1)

    def above(value: Tensor) -> Tensor:
        return same & ((value > value[:, None]) | ((value == value[:, None]) & earlier))

    denser = above(density)
    gap = distance.masked_fill(~denser, torch.inf).amin(1)
    gap = torch.where(denser.any(1), gap, (distance * same).amax(1))
    return above(density * gap).sum(1), scale


class Refined(NamedTuple):
    labels: Tensor
    """int64 (H, N)."""
    split: Tensor
    """Clusters that splits added, int64 (H,)."""
    merged: Tensor
    """Clusters that merges took away, int64 (H,)."""
    held: Tensor
    """bool (H,): the level would have become degenerate, and is as it was."""


@torch.no_grad()
def refine(
    labels: Tensor,
    features: Tensor,
    index: Tensor,
    *,
    prototypes: int,
    sigma: float,
    sigma_step: float = 0.0,
    similarity: Similarity = "centre",
    cutoff: float = 0.5,
    alpha: float = 0.9,
    held_above: float = 0.99,
    counted: Tensor | None = None,
) -> Refined:
    """One iteration of cluster split and merge, from level 2 up (section 4.3). No host-device sync; O(H (N + n^2)).

    Args:
        labels: int64 (H, N), a hierarchy, clusters named by their lowest samples.
        features: (n, D), of the samples at hand; rows of one sample count as their mean.
        index: int64 (n,), which samples they are; negative: nobody.
        prototypes: m, pieces of a split.
        sigma: sigma_m, the possibility above which clusters at level 2 of the same parent merge.
        sigma_step: by how much it is lower at each next level.
        similarity: how units go to prototypes, and clusters to one another: by their centres, or label propagation.
        cutoff, alpha: of the density, and of label propagation.
        held_above: a share of the samples, see above.
        counted: bool (N,), of which samples; None: of all.

    Of six samples in one cluster of level 2, three look east and three north: it is split between them, and the two
    pieces are too far apart to be merged again.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [0.1, 1.0], [-0.1, 1.0]])
    >>> one = torch.zeros(6, dtype=torch.int64)
    >>> labels = torch.stack([torch.arange(6), one])
    >>> refine(labels, x, torch.arange(6), prototypes=2, sigma=0.8).labels[1].tolist()
    [0, 0, 0, 3, 3, 3]
    """
    count, levels = labels.shape[1], len(labels)
    x = F.normalize(features.float(), dim=1)
    slots = torch.arange(len(index), device=index.device)
    identity = torch.arange(count + len(index), device=index.device)  # ids of clusters in the bank, then of slots
    absent, index = index < 0, index.clamp_min(0)

    def ids_at(level: Tensor) -> Tensor:
        return torch.where(absent, count + slots, level[index])

    def first(ids: Tensor) -> Tensor:
        """The first slot with the same id."""
        return slots.new_full((len(identity),), len(slots)).scatter_reduce(0, ids, slots, "amin")[ids]

    def centres(of: Tensor, values: Tensor) -> Tensor:
        return F.normalize((of == slots[:, None]).to(values) @ values, dim=1)  # a sum whose order is fixed

    now, split, merged, held = [labels[0]], [slots.new_zeros(())], [slots.new_zeros(())], [absent.new_zeros(())]
    for level in range(1, levels):
        old, top = labels[level], level == levels - 1
        unit, cluster = ids_at(now[-1]), ids_at(old)
        parent = torch.where(absent, count + slots, 0) if top else ids_at(labels[level + 1])

        # split: the units are the clusters of the level below
        u, c = first(unit), first(cluster)
        is_unit = u == slots
        units = centres(u, x)  # (n, D), of meaning where is_unit
        distance = (2.0 - 2.0 * units @ units.T).clamp_min(0.0).sqrt().fill_diagonal_(0.0)
        both = is_unit[:, None] & is_unit
        same = both & (c[:, None] == c)
        rank, scale = density_peaks(distance, same, cutoff)
        prototype = is_unit & (rank < prototypes) & (same.sum(1) > prototypes)
        if similarity == "centre":
            score = -distance
        else:
            score = propagate(distance, same, scale, torch.diag(prototype.to(distance)), alpha)
        score = score.masked_fill(~(same & prototype), -torch.inf)
        score.masked_fill_(torch.diag(prototype), torch.inf)  # a prototype's own
        nearest = score.argmax(1)  # (n,)
        leaves = is_unit & prototype[nearest] & same.gather(1, nearest[:, None])[:, 0] & (rank[nearest] > 0)
        piece = torch.where(leaves, count + nearest, cluster)[u]  # (n,)

        # merge: pieces and clusters at hand, of one parent
        p = first(piece)
        is_piece = p == slots
        kin = is_piece[:, None] & is_piece & (parent[:, None] == parent)
        if similarity == "centre":
            centre = centres(p, x)
        else:
            related = both & (parent[:, None] == parent)
            spread = density_peaks(distance, related, cutoff)[1]
            seeds = ((p[:, None] == slots) & is_unit[:, None]).to(distance)  # (n, n): units to their pieces
            centre = F.normalize(propagate(distance, related, spread, seeds, alpha), dim=0).T
        possible = centre @ centre.T > sigma - sigma_step * (level - 1)
        into = components(kin & possible)

        # the whole bank follows, by the level below
        of_unit = identity.scatter(0, now[-1], old).scatter(0, unit, piece)
        of_piece = identity.scatter(0, piece, piece[into[p]])
        new = canonical(of_piece[of_unit[now[-1]]], len(identity))
        before, after = (sizes(each[None], counted) for each in (old, new))
        stays = ((after.largest > held_above) & (before.largest <= held_above))[0]
        stays |= ((after.alone > held_above) & (before.alone <= held_above))[0]
        now.append(torch.where(stays, old, new))
        split.append(torch.where(stays, 0, (prototype & (rank > 0)).sum()))
        merged.append(torch.where(stays, 0, (into != slots).sum()))
        held.append(stays)
    return Refined(torch.stack(now), torch.stack(split), torch.stack(merged), torch.stack(held))


# ------------------------------------------------------------------------------------------------ bank


class Bank(nn.Module):
    """Labels of N samples at H levels, by `index`. It starts with every sample alone at every level.

    Args:
        samples: N.
        levels: H.
        held_above: the share of the samples above which a level is degenerate.
    """

    labels: Tensor
    counted: Tensor
    """bool (N,): whose labels were found; of a dataset of which a run takes a part, no others."""
    started: Tensor
    held: Tensor
    conformity: Tensor

    def __init__(self, samples: int, levels: int, held_above: float = 0.99) -> None:
        super().__init__()
        self.held_above = held_above
        self.register_buffer("labels", torch.arange(samples).repeat(levels, 1))
        self.register_buffer("counted", torch.ones(samples, dtype=torch.bool))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("held", torch.zeros(levels, dtype=torch.int64))
        self.register_buffer("conformity", torch.ones(()))
        self.register_load_state_dict_pre_hook(_same_samples)

    def check(self, index: Tensor) -> None:
        """Waits for the device.

        Raises:
            ValueError: an index outside the bank.
        """
        samples = self.labels.shape[1]
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < samples:
            raise ValueError(
                f"index from {int(index.min())} to {int(index.max())}, but labels are kept for {samples} samples: the "
                "data have more rows than when the method was made. Start a new run, or give the data it began with"
            )

    def of(self, index: Tensor) -> Tensor:
        """int64 (B,) -> labels (H, B); -1 where the index is negative."""
        return torch.where(index < 0, -1, self.labels[:, index.clamp_min(0)])

    @torch.no_grad()
    def replace(self, raw: Tensor, index: Tensor) -> None:
        """Takes clusters found level by level, made a hierarchy.

        Where a level would be degenerate, all levels stay as they are, if ever there was a better clustering;
        otherwise that level is as the one below it. Until one level is better than that, `started` stays False.

        Args:
            raw: levels 2 to H, int64 (H - 1, M), -1: alone.
            index: int64 (M,), whose labels they are; who is missing is alone.
        """
        samples = self.labels.shape[1]
        ids = raw.new_zeros(()) if not raw.numel() else raw.max() + 1
        whole = (ids + torch.arange(samples, device=raw.device)).repeat(len(raw), 1)  # alone
        whole[:, index] = torch.where(raw < 0, whole[:, index], raw)
        labels, conformity = nested(whole)
        self.counted.fill_(False)
        self.counted[index] = True
        bad = sizes(labels, self.counted).degenerate(self.held_above)
        bad[0] = False
        if bool(self.started) and bool(bad.any()):
            self.held += bad
        else:
            for level in range(1, len(labels)):
                if bad[level]:
                    labels[level] = labels[level - 1]
            self.held += bad
            self.labels.copy_(labels)
            self.conformity.copy_(conformity)
            self.started.copy_(~bad[1:].all())

    def share(self) -> None:
        """Rank 0's labels become everybody's."""
        if world_size() > 1:
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)


def _same_samples(bank: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    stored, here = state.get(f"{prefix}labels"), bank.get_buffer("labels")
    if stored is not None and stored.shape != here.shape:
        raise ValueError(
            f"the run's labels are of {stored.shape[1]} samples at {stored.shape[0]} levels, data and method.levels "
            f"now have {here.shape[1]} at {here.shape[0]}: give the data and levels it began with, or start a new run"
        )

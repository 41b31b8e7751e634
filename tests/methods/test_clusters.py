"""Neighbours, DBSCAN, hierarchies of labels, split and merge: constructed geometries, naive twins and properties."""

import doctest
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods import clusters
from methods.clusters import (
    Bank,
    Refined,
    canonical,
    components,
    dbscan,
    kmeans,
    neighbours,
    nested,
    preserved,
    purity,
    radius_at,
    refine,
    sizes,
)


def around(angles: list[float], seed: int = 0, spread: float = 0.0) -> Tensor:
    """Unit vectors in the plane at these degrees, with noise in 4 more dimensions."""
    radians = torch.tensor(angles).deg2rad()
    noise = torch.randn(len(angles), 4, generator=torch.Generator().manual_seed(seed)) * spread
    return F.normalize(torch.cat([radians.cos()[:, None], radians.sin()[:, None], noise], 1), dim=1)


def blobs(count: int, centres: int, dim: int = 16, spread: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normalized features around random centres, and whose they are."""
    generator = torch.Generator().manual_seed(seed)
    means = F.normalize(torch.randn(centres, dim, generator=generator), dim=1)
    owner = torch.arange(count) % centres
    return F.normalize(means[owner] + spread * torch.randn(count, dim, generator=generator), dim=1), owner


def groups(labels: Tensor) -> set[frozenset[int]]:
    return {frozenset((labels == each).nonzero()[:, 0].tolist()) for each in labels.unique()}


def naive_preserved(labels: Tensor) -> bool:
    for lower, upper in zip(labels[:-1].tolist(), labels[1:].tolist(), strict=True):
        if any(lower[i] == lower[j] and upper[i] != upper[j] for i, j in combinations(range(len(lower)), 2)):
            return False
    return True


def hierarchy(*levels: list[int]) -> Tensor:
    return nested(torch.tensor(levels))[0]


# ---------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("cells", [1, 7])
def test_neighbours_of_all_cells_are_exact(cells: int) -> None:
    x, _ = blobs(150, 10, spread=0.2)
    distance = torch.cdist(x, x)
    expected = {(i, j) for i, j in (distance <= 0.9).nonzero().tolist() if i != j}
    pairs, found = neighbours(x, 0.9, cells=cells, probes=cells, most=149)
    assert {(i, j) for i, j in pairs.T.tolist()} == expected
    assert len(found) == len(expected)
    torch.testing.assert_close(found, distance[pairs[0], pairs[1]], atol=1e-3, rtol=0)
    step = pairs[0].diff()
    assert (step >= 0).all()  # a feature's together
    assert (found.diff()[step == 0] >= 0).all()  # the nearest first


def test_recall_grows_with_the_cells_that_are_probed() -> None:
    """2000 features in 40 noisy blobs, 45 cells (the square root): a handful of probes find most pairs."""
    x, _ = blobs(2000, 40, dim=32, spread=0.15)
    exact = neighbours(x, 1.0, cells=1, probes=1)[0].shape[1]
    recalls = [neighbours(x, 1.0, cells=45, probes=probes)[0].shape[1] / exact for probes in (1, 4, 45)]
    assert recalls == sorted(recalls)
    assert recalls[1] > 0.9
    assert recalls[2] == pytest.approx(1.0, abs=1e-4)


def test_the_nearest_are_kept_where_there_are_too_many() -> None:
    x = around([0, 1, 3, 7, 15])
    pairs, _ = neighbours(x, math.inf, cells=1, probes=1, most=2)
    assert pairs.T.tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 1], [2, 0], [3, 2], [3, 1], [4, 3], [4, 2]]
    assert neighbours(x[:1], 1.0, cells=3, probes=2)[0].shape == (2, 0)


def test_the_worked_example() -> None:
    assert doctest.testmod(clusters) == (0, 4)


def test_kmeans_finds_blobs_and_repeats_itself() -> None:
    x, owner = blobs(200, 4, spread=0.02)
    centres, labels = kmeans(x, 4, seed=1)
    assert centres.shape == (4, 16)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(4))
    assert purity(kmeans(x, 16, seed=1)[1][None], owner) == 1  # more than blobs: none is shared
    assert torch.equal(kmeans(x, 4, seed=1)[1], labels)
    assert groups(kmeans(x[:3], 9, seed=0)[1]) == {frozenset({0}), frozenset({1}), frozenset({2})}


def test_dbscan_is_scikit_learns() -> None:
    """The same cores in the same clusters, the same noise; a border sample goes to a cluster that it touches."""
    from sklearn.cluster import DBSCAN

    x, _ = blobs(300, 12, dim=6, spread=0.25)
    twin = DBSCAN(eps=0.35, min_samples=4).fit(x.numpy())
    pairs, distances = neighbours(x, 0.5, cells=1, probes=1, most=299)  # a larger radius serves a smaller one
    labels = dbscan(pairs, distances, 300, 0.35, 4)
    theirs, core = torch.from_numpy(twin.labels_).long(), torch.from_numpy(twin.core_sample_indices_)
    assert groups(labels[core]) == groups(theirs[core])
    assert torch.equal(labels < 0, theirs < 0)
    assert (labels < 0).any() and len(core) < (labels >= 0).sum() < 300
    assert labels.max() + 1 == len(labels[labels >= 0].unique())


def test_dbscan_by_hand() -> None:
    """On a circle at 0, 1, 2 degrees (the middle one is a core of 3 within 1.5 degrees) and 40: one cluster, noise."""
    pairs, distances = neighbours(around([0, 1, 2, 40]), math.inf, cells=1, probes=1)
    radius = 2 * math.sin(math.radians(0.75))
    assert dbscan(pairs, distances, 4, radius, 3).tolist() == [0, 0, 0, -1]
    assert dbscan(pairs, distances, 4, radius, 4).tolist() == [-1] * 4
    assert dbscan(pairs, distances, 4, 2.0, 4).tolist() == [0] * 4


def test_radius_at_a_share_of_cores() -> None:
    x, _ = blobs(200, 10, spread=0.3)
    pairs, distances = neighbours(x, math.inf, cells=1, probes=1, most=10)
    for share in (0.25, 0.5, 1.0):
        radius = radius_at(pairs, distances, share, 4)
        cores = (torch.bincount(pairs[0][distances <= radius], minlength=200) >= 3).float().mean()
        assert float(cores) == pytest.approx(share, abs=0.01)


# ----------------------------------------------------------------------------------------- hierarchy


def test_nested_by_hand() -> None:
    """Level 2: {0, 1, 2}, {3, 4}, {5}. At level 3 as found 0, 1 are in a, 2, 3 in b, 4, 5 in c: 2 follows 0 and 1;
    3 and 4 are in doubt, so take b, the lower id. Two of six change."""
    labels, conformity = nested(torch.tensor([[7, 7, 7, 2, 2, 9], [0, 0, 1, 1, 2, 2]]))
    assert labels.tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 3, 3, 5], [0, 0, 0, 3, 3, 5]]
    assert conformity == pytest.approx(4 / 6)
    labels, conformity = nested(torch.tensor([[1, 1, 0, 0], [5, 5, 5, 5]]))
    assert labels.tolist() == [[0, 1, 2, 3], [0, 0, 2, 2], [0, 0, 0, 0]]
    assert conformity == 1
    assert nested(torch.zeros(0, 3, dtype=torch.int64))[0].tolist() == [[0, 1, 2]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**31))
def test_nested_is_a_hierarchy_and_leaves_hierarchies_alone(levels: int, count: int, seed: int) -> None:
    raw = torch.randint(0, count, (levels, count), generator=torch.Generator().manual_seed(seed))
    labels, _ = nested(raw)
    assert naive_preserved(labels) and preserved(labels)
    assert groups(labels[1]) == groups(raw[0])
    again, conformity = nested(labels[1:])
    assert torch.equal(again, labels) and conformity == 1
    swapped = raw.flip(0)
    both = torch.cat([torch.arange(count)[None], torch.stack([canonical(each, count) for each in swapped])])
    assert bool(preserved(both)) == naive_preserved(both)


def test_sizes_and_purity_by_hand() -> None:
    """Clusters {0, 1, 2}, {3}: 3/4 in the largest, 1/4 alone. Classes a a b b: 2 + 1 of 4 are right; one cluster: 2."""
    labels = hierarchy([0, 0, 0, 1], [0, 0, 0, 0])
    found = sizes(labels)
    assert found.clusters.tolist() == [4, 2, 1]
    assert found.largest.tolist() == [0.25, 0.75, 1]
    assert found.alone.tolist() == [1, 0.25, 0]
    assert purity(labels, torch.tensor([0, 0, 1, 1])).tolist() == [1, 0.75, 0.5]
    assert found.degenerate(0.75).tolist() == [True, False, True]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.floats(0, 0.2), st.integers(0, 2**31))
def test_components(count: int, density: float, seed: int) -> None:
    linked = torch.rand(count, count, generator=torch.Generator().manual_seed(seed)) < density
    linked = linked | linked.T
    expected = list(range(count))
    for _ in range(count):
        for i, j in linked.nonzero().tolist():
            expected[i] = min(expected[i], expected[j])
    assert components(linked).tolist() == expected


def test_a_long_chain_is_one_component() -> None:
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    linked = torch.zeros(500, 500, dtype=torch.bool)
    linked[order[:-1], order[1:]] = True
    assert (components(linked | linked.T) == 0).all()


# ----------------------------------------------------------------------------------- split and merge


def step(labels: Tensor, x: Tensor, index: list[int] | None = None, **options: Any) -> Refined:
    index = list(range(len(x))) if index is None else index
    return refine(labels, x, torch.tensor(index), **({"prototypes": 2, "sigma": 0.9, "held_above": 1.0} | options))


BOTH = pytest.mark.parametrize("similarity", ["centre", "propagation"])


@BOTH
def test_two_groups_in_one_cluster_are_split(similarity: str) -> None:
    """Three samples about 0 degrees, three about 90, one cluster at level 2, one at level 3 with two more at 180."""
    labels = hierarchy([0] * 6 + [1] * 2, [0] * 8)
    found = step(labels, around([0, 2, 4, 90, 92, 94, 180, 182]), similarity=similarity, sigma=0.7)
    assert groups(found.labels[1]) == {frozenset({0, 1, 2}), frozenset({3, 4, 5}), frozenset({6, 7})}
    assert found.split[1] == 1 and found.merged[1] == 0


@BOTH
def test_what_was_split_for_nothing_is_merged_again(similarity: str) -> None:
    x = around([0, 1, 2, 3, 4, 5, 178, 179, 180, 181, 182, 183], spread=0.01)
    labels = hierarchy([0] * 6 + [1] * 6)
    found = step(labels, x, similarity=similarity, sigma=0.5)
    assert torch.equal(found.labels, labels)
    assert found.split[1] == 2 and found.merged[1] == 2


def test_m_prototypes_are_m_pieces() -> None:
    x = around([a + 2 * i for a in (0, 90, 180, 270) for i in range(3)])
    labels = hierarchy([0] * 12, [0] * 12)
    for m in (2, 3, 4):
        found = step(labels, x, prototypes=m, sigma=0.9)
        assert found.split[1] == m - 1
        assert len(found.labels[1].unique()) == m
    assert groups(found.labels[1]) == {frozenset(range(i, i + 3)) for i in (0, 3, 6, 9)}
    assert step(labels, x[:4], prototypes=4).split[1] == 0  # m < k: four units are not split into four


@BOTH
def test_merges_stay_within_the_parent(similarity: str) -> None:
    """Six pairs of nearly equal samples, in three places; the two pairs of a place merge, unless parents differ."""
    x = around([0, 1, 2, 3, 90, 91, 92, 93, 180, 181, 182, 183])
    pairs = [i // 2 for i in range(12)]
    found = step(hierarchy(pairs, [0] * 8 + [1] * 4), x, similarity=similarity, sigma=0.7)
    assert groups(found.labels[1]) == {frozenset(range(i, i + 4)) for i in (0, 4, 8)}
    apart = step(hierarchy(pairs, [0, 0, 1, 1] * 3), x, similarity=similarity, sigma=0.7)
    assert groups(apart.labels[1]) == groups(torch.tensor(pairs))
    assert apart.merged[1] == 0


def test_sigma_falls_with_the_level() -> None:
    """Alone at 0, 30, 60 degrees: cos 30 = .87 exceeds .8, the sigma of level 3, but not that of level 2."""
    found = step(hierarchy([0, 1, 2, 3], [0, 1, 2, 3]), around([0, 30, 180, 100]), sigma=0.9, sigma_step=0.1)
    assert len(found.labels[1].unique()) == 4
    assert groups(found.labels[2]) == {frozenset({0, 1}), frozenset({2}), frozenset({3})}
    assert found.merged.tolist() == [0, 0, 1]


def test_units_move_whole_and_those_out_of_sight_stay_with_the_densest() -> None:
    """Level 2: {0, 1, 2}, {3, 4}, {5, 6}, {7, 8}, {9}: one cluster of level 3. Seen are 0, 3, 5 (0, 1, 2 degrees) and 7
    (90): the pair {7, 8} leaves, with 8 which is not seen; 9 stays, and so do all others."""
    labels = hierarchy([0, 0, 0, 1, 1, 2, 2, 3, 3, 4], [0] * 10)
    found = step(labels, around([0, 1, 2, 90]), [0, 3, 5, 7], sigma=1.0, sigma_step=0.1)
    assert torch.equal(found.labels[1], labels[1])
    assert groups(found.labels[2]) == {frozenset({0, 1, 2, 3, 4, 5, 6, 9}), frozenset({7, 8})}


def test_two_views_of_a_sample_are_one_unit_and_nobody_is_nobody() -> None:
    labels = hierarchy([0] * 6 + [1] * 2)
    x = around([0, 2, 4, 90, 92, 94])
    expected = step(labels, x).labels
    doubled = step(labels, torch.cat([x, x, around([45, 200])]), [*range(6), *range(6), -1, -1]).labels
    assert torch.equal(doubled, expected)
    assert torch.equal(step(labels, x, [-1] * 6).labels, labels)


def test_all_merged_or_all_split_is_held() -> None:
    x = around([0, 1, 2, 3])
    labels = hierarchy([0, 0, 1, 1])
    found = step(labels, x, held_above=0.99)
    assert torch.equal(found.labels, labels)
    assert found.held.tolist() == [False, True]
    assert found.merged.tolist() == [0, 0]
    labels = hierarchy([0, 0, 0, 1])
    found = step(labels, around([0, 90, 180, 270]), prototypes=2, held_above=0.74)  # a split leaves at most 1/2 alone
    assert found.held.tolist() == [False, False]  # 3/4 in one cluster: it was degenerate before
    labels = hierarchy([0, 0, 0, 1, 2, 3, 4, 5, 6])
    spread = around([40 * i for i in range(9)])
    found = step(labels, spread, prototypes=2, held_above=0.75)
    assert torch.equal(found.labels, labels) is bool(found.held[1])
    assert found.held.tolist() == [False, True]  # 7 of 9 would be alone
    found = step(hierarchy([0, 1, 2, 3]), x, held_above=0.99)  # all were alone, and would be in one: degenerate anew
    assert found.held.tolist() == [False, True] and len(found.labels[1].unique()) == 4


@settings(max_examples=15, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(2, 24),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=6),
    st.sampled_from(["centre", "propagation"]),
    st.sampled_from([0.5, 0.9, 1.0]),
)
def test_the_property_holds_after_any_sequence(
    levels: int, count: int, seeds: list[int], similarity: str, held_above: float
) -> None:
    """Random features, random batches with repetitions and empty slots: a hierarchy with lowest ids after every step,
    which counts what it did, and does the same again."""
    start = torch.Generator().manual_seed(seeds[0])
    labels, _ = nested(torch.randint(0, max(count // 2, 1), (levels - 1, count), generator=start))
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows = int(torch.randint(1, 30, (), generator=generator))
        index = torch.randint(-1, count, (rows,), generator=generator)
        x = torch.randn(rows, 3, generator=generator)
        options: dict[str, Any] = {
            "prototypes": 2 + seed % 3,
            "sigma": 0.3 * (seed % 4),
            "sigma_step": 0.1,
            "similarity": similarity,
            "held_above": held_above,
        }
        found = refine(labels, x, index, **options)
        assert naive_preserved(found.labels) and preserved(found.labels)
        for level in found.labels:
            assert torch.equal(canonical(level, count), level)
        assert torch.equal(found.labels[0], torch.arange(count))
        before, after = sizes(labels), sizes(found.labels)
        assert torch.equal(before.clusters + found.split - found.merged, after.clusters)
        assert not (after.degenerate(held_above) & ~before.degenerate(held_above)).any()
        assert all(torch.equal(a, b) for a, b in zip(refine(labels, x, index, **options), found, strict=True))
        labels = found.labels


# ---------------------------------------------------------------------------------------------- bank


def test_an_index_outside_is_refused() -> None:
    bank = Bank(5, 2)
    bank.check(torch.tensor([0, 4]))
    bank.check(torch.empty(0, dtype=torch.int64))
    for index in ([5], [-1, 2]):
        with pytest.raises(ValueError, match=r"labels are kept for 5 samples.*new run"):
            bank.check(torch.tensor(index))


def test_labels_of_other_data_are_refused() -> None:
    for other in (Bank(6, 3), Bank(5, 2)):
        with pytest.raises(ValueError, match=r"labels are of 5 samples at 3 levels.*new run"):
            other.load_state_dict(Bank(5, 3).state_dict())


def test_first_labels_noise_and_the_missing_are_alone() -> None:
    bank = Bank(6, 3)
    assert bank.of(torch.tensor([2, -1])).tolist() == [[2, -1]] * 3
    assert not bank.started
    bank.replace(torch.tensor([[0, 0, -1, 1], [0, 0, 0, -1]]), torch.tensor([0, 2, 3, 5]))
    assert bank.started
    assert bank.labels.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 0, 3, 4, 5], [0, 1, 0, 0, 4, 5]]
    assert bank.held.tolist() == [0, 0, 0]


def test_clusters_that_are_one_or_all_alone_are_held() -> None:
    """The first time a degenerate level is as the one below; if all are, there are no labels yet. Later, nothing
    moves."""
    index = torch.arange(4)
    alone, one, good = [0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 1, 1]
    bank = Bank(4, 3)
    bank.replace(torch.tensor([alone, one]), index)
    assert not bank.started and bank.labels.tolist() == [alone] * 3
    assert bank.held.tolist() == [0, 1, 1]
    bank.replace(torch.tensor([good, one]), index)
    assert bank.started and bank.labels.tolist() == [alone, [0, 0, 2, 2], [0, 0, 2, 2]]
    bank.replace(torch.tensor([[0, 0, 0, 1], one]), index)
    assert bank.labels.tolist() == [alone, [0, 0, 2, 2], [0, 0, 2, 2]]
    assert bank.held.tolist() == [0, 1, 3]
    bank.replace(torch.tensor([[0, 1, 1, 2], [0, 1, 1, 1]]), index)
    assert bank.labels.tolist() == [alone, [0, 1, 1, 3], [0, 1, 1, 1]]
    assert np.isclose(float(bank.conformity), 1)


def test_shares_are_of_the_samples_that_a_run_takes() -> None:
    """8 of 1,000 rows, in two clusters of 6 and 2: the 992 others are alone, and are no reason to hold anything."""
    bank = Bank(1000, 2)
    index = torch.arange(0, 800, 100)
    bank.replace(torch.tensor([[0] * 6 + [1] * 2]), index)
    assert bank.started and bank.held.tolist() == [0, 0]
    found = sizes(bank.labels, bank.counted)
    assert found.clusters.tolist() == [8, 2] and found.largest.tolist() == [0.125, 0.75]
    assert found.alone.tolist() == [1, 0]
    held = refine(bank.labels, around([0] * 8), index, prototypes=2, sigma=0.9, held_above=0.99, counted=bank.counted)
    assert held.held.tolist() == [False, True] and torch.equal(held.labels, bank.labels)  # all would be in one

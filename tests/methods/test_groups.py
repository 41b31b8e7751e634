"""Figures over groups: against numbers by hand, naive twins and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import recall_score
from torch import Tensor

from methods.metrics import groups
from methods.metrics.groups import balanced_accuracy, balanced_interval, chance_by_length, leave_one_group_out
from methods.parts import draw


def sample(n: int, classes: int, seed: int, right: float = 0.5) -> tuple[Tensor, Tensor]:
    """Said and true, of which a share `right` is made right."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=generator)
    said = torch.randint(classes, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < right, target, said), target


# ---------------------------------------------------------------------------------- balanced accuracy


def test_balanced_accuracy_by_hand() -> None:
    """Class 0: 3 of 4 right, class 1: 0 of 1, class 3: 2 of 2; class 2 has none: (3/4 + 0 + 1) / 3."""
    target = torch.tensor([0, 0, 0, 0, 1, 3, 3])
    said = torch.tensor([0, 0, 0, 2, 0, 3, 3])
    assert balanced_accuracy(said, target, 4) == pytest.approx(1.75 / 3)
    assert balanced_accuracy(torch.zeros(7, dtype=torch.int64), target, 4) == pytest.approx(1 / 3)


@given(n=st.integers(1, 60), classes=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_balanced_accuracy_is_scikit_learns(n: int, classes: int, seed: int) -> None:
    said, target = sample(n, classes, seed)
    twin = recall_score(target, said, labels=target.unique(), average="macro", zero_division=0)
    assert balanced_accuracy(said, target, classes) == pytest.approx(twin)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert balanced_accuracy(said[order], target[order], classes) == balanced_accuracy(said, target, classes)
    assert balanced_accuracy(target, target, classes) == 1


def test_balanced_accuracy_refuses_what_has_none() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one sample"):
        balanced_accuracy(empty, empty, 2)
    with pytest.raises(ValueError, match="lie in 0 to 1, got 0 to 2"):
        balanced_accuracy(torch.tensor([0, 1]), torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match="predicted of shape"):
        balanced_accuracy(torch.tensor([0]), torch.tensor([0, 1]), 2)


# ------------------------------------------------------------------------------------------- interval


@pytest.mark.parametrize("cells", [2**23, 50])
def test_the_interval_equals_a_naive_twin(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resample by resample, each group's samples appended; groups of unequal sizes, of which one lacks a class."""
    monkeypatch.setattr(groups, "_CELLS", cells)
    said, target = sample(60, 3, seed=0)
    group = torch.tensor([7, 7, 3, 100, 100, 100, 5, 5, 3, -2] * 6)
    number = group.unique()
    chosen = (draw(4, 0, torch.arange(200), "bootstrap", 5).double() * 5).long()
    figures = []
    for row in chosen:
        rows = torch.cat([torch.nonzero(group == number[g])[:, 0] for g in row])
        figures.append(balanced_accuracy(said[rows], target[rows], 3))
    figure, low, high = balanced_interval(said, target, group, 3, level=0.9, resamples=200, seed=4)
    assert figure == balanced_accuracy(said, target, 3)
    np.testing.assert_allclose([low, high], np.quantile(figures, [0.05, 0.95]))
    assert low < figure < high


def test_the_interval_is_wider_over_groups_than_over_samples() -> None:
    """100 groups of 10 samples with one answer: sqrt(10) times as wide as samples of their own."""
    said, target = (column.repeat_interleave(10) for column in sample(100, 2, seed=1, right=0.4))
    own = torch.arange(1000)
    _, low, high = balanced_interval(said, target, own // 10, 2)
    _, inner, outer = balanced_interval(said, target, own, 2)
    assert (high - low) / (outer - inner) == pytest.approx(math.sqrt(10), rel=0.15)


def test_the_interval_covers_the_truth() -> None:
    """A true accuracy of .7, 60 groups: about 95 of 100 intervals hold it; 86 is four standard deviations below."""
    held = 0
    for seed in range(100):
        said, target = sample(60, 2, seed=seed, right=0.4)  # .4 + .6 / 2
        _, low, high = balanced_interval(said, target, torch.arange(60), 2, resamples=300, seed=seed)
        held += low <= 0.7 <= high
    assert held >= 86


def test_the_interval_is_a_function_of_its_seed_and_of_all_right_a_point() -> None:
    said, target = sample(50, 2, seed=2)
    group = torch.arange(50) // 5
    state = torch.get_rng_state()
    assert balanced_interval(said, target, group, 2) == balanced_interval(said, target, 3 * group + 1, 2)
    assert balanced_interval(said, target, group, 2) != balanced_interval(said, target, group, 2, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert balanced_interval(target, target, group, 2) == (1, 1, 1)


def test_intervals_refuse_what_they_cannot_tell() -> None:
    said, target = sample(10, 2, seed=0)
    with pytest.raises(ValueError, match="at least two"):
        balanced_interval(said, target, torch.zeros(10, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="level lies"):
        balanced_interval(said, target, torch.arange(10), 2, level=1.0)
    with pytest.raises(ValueError, match="resamples"):
        balanced_interval(said, target, torch.arange(10), 2, resamples=0)
    with pytest.raises(ValueError, match="group of shape"):
        balanced_interval(said, target, torch.arange(9), 2)


# --------------------------------------------------------------------------------------------- length


def speeds(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Lengths 16 to 127, and a speed type uniform in 0 ... floor(log2(length / 16)), as far as the length allows."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(16, 128, (n,), generator=generator)
    most = (length / 16).log2().floor()
    return length, (torch.rand(n, generator=generator) * (most + 1)).long()


def test_chance_by_length_is_what_the_length_gives_away() -> None:
    """Lengths 16-31 allow speed 0, 32-63 also 1, 64-127 also 2, which are 1/7, 2/7, 4/7 of all.

    p(length range | speed) in proportion: speed 0: 1/7, 1/7, 4/21; speed 1: 0, 1/7, 4/21; speed 2: 0, 0, 4/21. Over
    their sums 10/21, 7/21, 4/21: speed 0 .3 .3 .4; speed 1 0 3/7 4/7; speed 2 0 0 1. The best answers 0, 1, 2 by
    range: (.3 + 3/7 + 1) / 3 = .576.
    """
    found = chance_by_length(*speeds(4000, 0), *speeds(4000, 1), 3)
    assert found == pytest.approx((0.3 + 3 / 7 + 1) / 3, abs=0.03)


def test_chance_by_length_is_the_constants_where_it_tells_nothing() -> None:
    """Targets drawn apart from the length: never below 1/4, and hardly above."""
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(16, 200, (2, 3000), generator=generator)
    target = torch.randint(4, (2, 3000), generator=generator)
    assert 0.25 <= chance_by_length(length[0], target[0], length[1], target[1], 4) < 0.29
    same = torch.full((3000,), 30)
    assert chance_by_length(same, target[0], same, target[1], 4) == 0.25


def test_chance_by_length_finds_ranges_that_alternate() -> None:
    """Six ranges of lengths with classes 0 1 2 0 1 2: a threshold would not do, a tree of some depth is never wrong."""
    length = torch.arange(600).repeat(2)
    target = length // 100 % 3
    assert chance_by_length(length, target, length.float(), target, 3) > 0.99


def test_chance_by_length_does_not_learn_videos_by_heart() -> None:
    """Random labels of videos, whose clips share length and label: where folds may share a video the deepest tree knows
    them all, and where they don't depth does not pay."""
    generator = torch.Generator().manual_seed(1)
    length, label = (torch.randint(high, (50,), generator=generator).repeat_interleave(8) for high in (1000, 2))
    video = torch.arange(50).repeat_interleave(8)
    by_group = chance_by_length(length, label, length, label, 2, train_group=video)
    by_heart = chance_by_length(length, label, length, label, 2)
    assert 0.5 <= by_group < by_heart
    assert by_heart > 0.85


def test_chance_by_length_refuses_what_it_cannot_fit() -> None:
    one = torch.tensor([1])
    with pytest.raises(ValueError, match="at least two training"):
        chance_by_length(one, one, one, one, 2)
    with pytest.raises(ValueError, match="test_length of shape"):
        chance_by_length(one, one, torch.tensor([1, 2]), one, 2)


# ------------------------------------------------------------------------------------- leave one out


def nearest_mean(features: Tensor, label: Tensor, others: Tensor) -> Tensor:
    means = torch.stack([features[label == c].mean(0) for c in label.unique()])
    return label.unique()[torch.cdist(others, means).argmin(1)]


def test_leave_one_group_out_equals_a_naive_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(40) % 2
    features = torch.randn(40, 3, generator=generator).double() + label[:, None]
    group = torch.randint(5, (40,), generator=generator) * 10 - 3
    found = leave_one_group_out(features, label, group, nearest_mean)
    for n in range(40):
        others = group != group[n]
        assert found[n] == nearest_mean(features[others], label[others], features[n : n + 1])[0]
    assert found.dtype == torch.int64 and (found == label).float().mean() > 0.7


def test_nothing_of_a_group_is_seen_before_it_is_asked() -> None:
    """A nearest neighbour finds a group's twin at distance 0 if it can: here labels differ from all other groups'."""
    features = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    label, group = torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 9, 9])
    assert leave_one_group_out(features, label, group, nearest_mean).tolist() == [1, 1, 0, 0]


def test_leaving_out_refuses_what_cannot_be() -> None:
    features, label = torch.zeros(4, 1), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="at least two"):
        leave_one_group_out(features, label, torch.zeros(4), nearest_mean)
    with pytest.raises(ValueError, match="4 features, 3 labels"):
        leave_one_group_out(features, label[:3], torch.arange(4), nearest_mean)
    with pytest.raises(ValueError, match="fit_predict said"):
        leave_one_group_out(features, label, torch.arange(4), lambda f, y, x: torch.zeros(7, dtype=torch.int64))

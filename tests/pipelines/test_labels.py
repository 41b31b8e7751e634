"""Noise that is exact by class, and batches whose parts have the same labels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import UserError
from pipelines.labels import Balance, balanced, digest, too_rare, uniform_noise, validating

fast = settings(max_examples=60, deadline=None)


def some(sizes: list[int], seed: int = 0) -> torch.Tensor:
    label = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return label[torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))]


@fast
@given(st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(sum), st.floats(0, 1), st.integers(0, 2**31))
def test_noise_is_exact_by_class(sizes: list[int], share: float, seed: int) -> None:
    label = some(sizes)
    index = torch.arange(len(label)) * 3 + 1
    found = uniform_noise(label, index, len(sizes), share, seed)
    for c, size in enumerate(sizes):
        assert int((found[label == c] != c).sum()) == round(share * size)
    assert found.min() >= 0 and found.max() < len(sizes)
    assert torch.equal(found, uniform_noise(label, index, len(sizes), share, seed))
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(1))  # each sample keeps its own
    assert torch.equal(uniform_noise(label[order], index[order], len(sizes), share, seed), found[order])


def test_noise_is_uniform_over_the_other_classes_and_grows_with_its_share() -> None:
    """Of 8,000 changed labels of class 1 a quarter falls on each of the four others: 2,000 with a deviation of 39."""
    label, index = torch.ones(10_000, dtype=torch.int64), torch.arange(10_000)
    found = uniform_noise(label, index, 5, 0.8, 0)
    counts = found.bincount(minlength=5)
    assert counts[1] == 2000 and (counts[[0, 2, 3, 4]] - 2000).abs().max() < 4 * 39
    less = uniform_noise(label, index, 5, 0.4, 0)
    assert torch.equal(less[less != 1], found[less != 1])
    assert not torch.equal(found, uniform_noise(label, index, 5, 0.8, 1))


def test_noise_that_cannot_be() -> None:
    label = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UserError, match="no other"):
        uniform_noise(label, torch.arange(4), 1, 0.5, 0)
    with pytest.raises(UserError, match=r"in \[0, 1\], got 1\.5"):
        uniform_noise(label, torch.arange(4), 2, 1.5, 0)


@fast
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
def test_parts_have_the_same_labels(sizes: list[int], parts: int, of_a_part: int, seed: int) -> None:
    size, tuples = parts * of_a_part, sum(n // parts for n in sizes)
    label = some(sizes)
    index = torch.arange(len(label)) * 3 + 1
    if tuples < of_a_part:
        with pytest.raises(UserError, match="too rare to balance"):
            balanced(label, index, Balance(parts), size, seed, 0)
        return
    rows = balanced(label, index, Balance(parts), size, seed, 0)
    assert len(rows) == tuples // of_a_part * size and len(rows.unique()) == len(rows)
    each = label[rows].view(-1, parts, of_a_part)
    assert torch.equal(each, each[:, :1].expand_as(each))
    assert torch.equal(rows, balanced(label, index, Balance(parts), size, seed, 0))


def test_epochs_differ_and_all_samples_have_their_turn() -> None:
    label = some([30, 30])
    epochs = [balanced(label, torch.arange(60), Balance(4), 16, 0, epoch) for epoch in range(20)]
    assert len({tuple(rows.tolist()) for rows in epochs}) == 20
    assert len(torch.cat(epochs).unique()) == 60  # 48 an epoch
    first = label[torch.cat([rows[:4] for rows in epochs])]
    assert 0.3 < first.double().mean() < 0.7  # batches are mixtures


def test_parts_that_do_not_divide_the_batch() -> None:
    with pytest.raises(UserError, match="3 parts do not divide a batch of 16"):
        balanced(some([9]), torch.arange(9), Balance(3), 16, 0, 0)


@fast
@given(
    st.lists(st.integers(8, 40), min_size=1, max_size=5),
    st.sampled_from([2, 4, 8]),
    st.integers(1, 3),
    st.floats(0.1, 0.6),
    st.integers(0, 2**31),
)
def test_what_validates_is_never_trained_on(
    sizes: list[int], parts: int, of_a_part: int, ratio: float, seed: int
) -> None:
    label = some(sizes)
    index = torch.arange(len(label)) * 3 + 1
    held = validating(label, index, ratio, seed)
    for c, size in enumerate(sizes):
        assert int(held[label == c].sum()) == round(ratio * size)
    tuples = sum((n - round(ratio * n)) // (parts - 1) for n in sizes)
    if tuples < of_a_part:
        return
    for epoch in range(3):
        rows = balanced(label, index, Balance(parts, ratio), parts * of_a_part, seed, epoch).view(-1, parts, of_a_part)
        assert len(rows) == tuples // of_a_part
        assert held[rows[:, 0]].all() and not held[rows[:, 1:]].any()
        assert len(rows[:, 1:].unique()) == rows[:, 1:].numel()
        assert torch.equal(label[rows], label[rows[:, :1]].expand_as(rows))
        for c in range(len(sizes)):  # in turn, but for what fills no batch
            used = rows[:, 0][label[rows[:, 0]] == c].unique(return_counts=True)[1]
            most = (sizes[c] - round(ratio * sizes[c])) // (parts - 1)
            assert not len(used) or used.max() <= -(-most // int(held[label == c].sum()))


def test_a_class_without_what_validates() -> None:
    with pytest.raises(UserError, match="leaves a class without an image that validates"):
        balanced(some([40, 2]), torch.arange(42), Balance(2, 0.2), 4, 0, 0)


def test_classes_that_are_too_rare_are_named() -> None:
    """40, 40 and 7 samples; of class 1 half become others, so that 20 are left, and with a ratio of .7 six of them."""
    label = some([40, 40, 7])
    usable = torch.arange(87).numpy()
    assert too_rare(Balance(8), label.numpy(), usable, None) == [2]
    assert not (label[balanced(label, torch.arange(87), Balance(8), 16, 0, 0)] == 2).any()
    assert too_rare(Balance(4), label.numpy(), usable, None) == too_rare(None, label.numpy(), usable, None) == []
    fewer = torch.where((label == 1) & (torch.arange(87) % 2 == 0), 0, label)
    ones = int((fewer == 1).sum())
    assert too_rare(Balance(8, 0.7), label.numpy(), usable, fewer) == ([1, 2] if ones - round(0.7 * ones) < 7 else [2])


def test_a_digest_is_of_rows_and_labels() -> None:
    usable, label = torch.arange(6).numpy(), torch.tensor([0, 1, 2, 0, 1, 2]).numpy()
    assert digest(usable, label) == digest(usable.copy(), label.copy())
    assert len({digest(usable, label), digest(usable + 1, label), digest(usable, label[::-1])}) == 3

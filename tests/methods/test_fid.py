"""FID against closed forms on Gaussians, inception score against constant and one-hot predictions. No network."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.metrics.fid import factor, fid, frechet_distance, inception_score, moments

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def covariance(dim: int, seed: int, rank: int | None = None) -> Tensor:
    x = normal(dim, rank or dim + 2, seed=seed)
    return x @ x.T / x.shape[1]


def with_moments(count: int, mean: Tensor, cov: Tensor, seed: int) -> Tensor:
    """Samples (count, D) whose mean and unbiased covariance are these, to rounding."""
    x = normal(count, len(mean), seed=seed)
    x = x - x.mean(0)
    x = torch.linalg.qr(x).Q * math.sqrt(count - 1)  # of covariance 1
    return mean + x @ torch.linalg.cholesky(cov).T


# ---------------------------------------------------------------------------------- frechet distance


def test_one_dimension_by_hand() -> None:
    """N(1, 4) and N(-2, 25): (1 + 2)^2 + (2 - 5)^2 = 18."""
    numbers = ([1.0], [[4.0]], [-2.0], [[25.0]])
    assert frechet_distance(*(torch.tensor(x) for x in numbers)) == pytest.approx(18, abs=1e-12)


def test_two_dimensions_that_do_not_commute_by_hand() -> None:
    """C1 = diag(1, 4), C2 = [[5, 3], [3, 5]]: C1 C2 = [[5, 3], [12, 20]], of trace 25 and determinant 64. Of a 2 x 2
    matrix M, tr(M^(1/2)) = sqrt(tr M + 2 sqrt(det M)) = sqrt(41). So 5 + 10 - 2 sqrt(41), and 3^2 + 4^2 of the means.
    """
    c1, c2 = torch.tensor([[1.0, 0], [0, 4]]), torch.tensor([[5.0, 3], [3, 5]])
    found = frechet_distance(torch.tensor([3.0, 0]), c1, torch.tensor([0.0, 4]), c2)
    assert found == pytest.approx(25 + 15 - 2 * math.sqrt(41), abs=1e-12)


@few
@given(seed=seeds, dim=st.integers(1, 12))
def test_diagonal_and_equally_rotated_gaussians(seed: int, dim: int) -> None:
    """Where the covariances commute, the distance is |m1 - m2|^2 + the sum of (s1 - s2)^2 over the axes."""
    m1, m2 = normal(2, dim, seed=seed)
    s1, s2 = normal(2, dim, seed=seed + 1).abs() * 3 + 0.05
    q = rotation(dim, seed + 2)
    expected = ((m1 - m2).square() + (s1 - s2).square()).sum().item()
    diagonal = frechet_distance(m1, s1.square().diag(), m2, s2.square().diag())
    rotated = frechet_distance(q @ m1, q @ s1.square().diag() @ q.T, q @ m2, q @ s2.square().diag() @ q.T)
    assert diagonal == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert rotated == pytest.approx(expected, rel=1e-9, abs=1e-9)


@few
@given(seed=seeds, dim=st.integers(2, 8))
def test_equals_scipys_square_root_of_the_product(seed: int, dim: int) -> None:
    m1, m2 = normal(2, dim, seed=seed)
    c1, c2 = covariance(dim, seed + 1), covariance(dim, seed + 2)
    root = np.real(scipy.linalg.sqrtm((c1 @ c2).numpy()))
    expected = ((m1 - m2).square().sum() + c1.trace() + c2.trace()).item() - 2 * float(np.trace(root))
    found = frechet_distance(m1, c1, m2, c2)
    assert found == pytest.approx(expected, rel=1e-7, abs=1e-7)
    assert found == pytest.approx(frechet_distance(m2, c2, m1, c1), rel=1e-9, abs=1e-9)
    assert found == frechet_distance(m1, c1, m2, c2, factor(c2))
    assert frechet_distance(m1, c1, m1, c1) < 1e-12 * dim * c1.trace().item()


def test_variances_of_very_different_sizes_keep_their_digits() -> None:
    """Deviations from 1e3 down to 1e-3, against the sum of (s1 - s2)^2: 13 of 15 digits."""
    s1, s2 = torch.logspace(3, -3, 40, dtype=torch.float64), torch.logspace(2.5, -3.5, 40, dtype=torch.float64)
    q, zero = rotation(40, 0), torch.zeros(40)
    found = frechet_distance(zero, q @ s1.square().diag() @ q.T, zero, q @ s2.square().diag() @ q.T)
    assert found == pytest.approx((s1 - s2).square().sum().item(), rel=1e-10)


@pytest.mark.parametrize("cosine", [0.0, 0.5, 1.0])
def test_covariances_of_rank_one(cosine: float) -> None:
    """a^2 u u^T and b^2 v v^T in 50 dimensions: tr((C1 C2)^(1/2)) = a b |u v|."""
    basis = rotation(50, 1)
    u, v = basis[0], cosine * basis[0] + math.sqrt(1 - cosine**2) * basis[1]
    zero = torch.zeros(50)
    found = frechet_distance(zero, 9 * torch.outer(u, u), zero, 4 * torch.outer(v, v))
    assert found == pytest.approx(9 + 4 - 2 * 3 * 2 * cosine, abs=1e-6)


def test_what_is_no_gaussian_is_refused() -> None:
    zero, one = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match=r"\(2,\), \(2, 2\), \(3,\), \(3, 3\)"):
        frechet_distance(zero, one, torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(zero, one * torch.nan, zero, one)
    with pytest.raises(ValueError, match="no eigenvalue below 0"):
        frechet_distance(zero, one, zero, -one)


# ------------------------------------------------------------------------------------------------ fid


def test_moments_are_numpys() -> None:
    x = normal(20, 5, seed=0) * 3 + 100
    mean, cov = moments(x.float())
    np.testing.assert_allclose(mean.numpy(), x.float().double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov.numpy(), np.cov(x.float().double().numpy(), rowvar=False), rtol=1e-10)
    assert mean.dtype == cov.dtype == torch.float64


@few
@given(seed=seeds, dim=st.integers(1, 8))
def test_of_samples_with_exact_moments_it_is_that_of_the_gaussians(seed: int, dim: int) -> None:
    m1, m2 = normal(2, dim, seed=seed)
    c1, c2 = (covariance(dim, seed + k) + 0.1 * torch.eye(dim) for k in (1, 2))
    found = fid(with_moments(30, m1, c1, seed + 3), with_moments(45, m2, c2, seed + 4))
    assert found == pytest.approx(frechet_distance(m1, c1, m2, c2), rel=1e-8, abs=1e-8)


@few
@given(seed=seeds, count=st.integers(3, 40), dim=st.integers(1, 20))
def test_invariances(seed: int, count: int, dim: int) -> None:
    """Rotation, shift and the order of samples change nothing, a factor c gives c^2; with few samples too."""
    a, b = normal(count, dim, seed=seed), 2 * normal(count + 3, dim, seed=seed + 1) + 1
    expected = pytest.approx(fid(a, b), rel=1e-6, abs=1e-6)
    q, shift = rotation(dim, seed + 2), normal(dim, seed=seed + 3)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert fid(a @ q, b @ q) == expected
    assert fid(a + shift, b + shift) == expected
    assert fid(a[order], b) == expected
    assert fid(b, a) == expected
    assert fid(3 * a, 3 * b) / 9 == expected
    assert fid(a, a[order]) < 1e-6


def test_fewer_samples_than_features() -> None:
    """Of +-a e1 and +-b e2 (N = 2, divided by 1): variances 2 a^2 and 2 b^2 on axes at right angles, so their sum.
    Of +-a e1 and +-b e1: 2 (a - b)^2."""
    e = torch.eye(100)
    a, b = torch.stack([3 * e[0], -3 * e[0]]), torch.stack([5 * e[1], -5 * e[1]])
    assert fid(a, b) == pytest.approx(18 + 50, abs=1e-9)
    assert fid(a, b.roll(-1, 1)) == pytest.approx(2 * (3 - 5) ** 2, abs=1e-9)
    assert math.isfinite(fid(normal(5, 300, seed=0), normal(7, 300, seed=1)))


def test_equal_images_are_a_gaussian_without_width() -> None:
    assert fid(torch.ones(4, 3), 3 * torch.ones(5, 3)) == pytest.approx(12)


def test_features_that_have_no_covariance_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        fid(torch.ones(1, 3), torch.ones(4, 3))
    with pytest.raises(ValueError, match="not finite"):
        fid(torch.full((4, 3), torch.inf), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        fid(torch.ones(4, 3), torch.ones(4, 2))


# ---------------------------------------------------------------------------------- inception score


def predictions(count: int, classes: int, seed: int) -> Tensor:
    return (3 * normal(count, classes, seed=seed)).softmax(1)


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_constant_predictions_give_one(splits: int) -> None:
    row = torch.tensor([0.5, 0.25, 0.25, 0.0])
    assert inception_score(row.expand(30, 4), splits) == (pytest.approx(1, abs=1e-12), pytest.approx(0, abs=1e-12))
    one_hot = torch.eye(4)[2].expand(30, 4)
    assert inception_score(one_hot, splits) == (1.0, 0.0)


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_sure_predictions_of_each_class_give_their_number(classes: int) -> None:
    mean, deviation = inception_score(torch.eye(classes).repeat(10, 1), splits=10)
    assert mean == pytest.approx(classes, rel=1e-12) and deviation == pytest.approx(0, abs=1e-9)


def test_two_splits_by_hand() -> None:
    """First split: (1, 0) and (0, 1), p = (.5, .5), KL = log 2 of both: score 2. Second: (.5, .5) twice: score 1.
    Mean 1.5; deviation, divided by 2: .5. As one split p is (.5, .5) and KL is log 2, log 2, 0, 0: sqrt(2)."""
    rows = torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5], [0.5, 0.5]])
    assert inception_score(rows, splits=2) == (pytest.approx(1.5), pytest.approx(0.5))
    assert inception_score(rows, splits=1) == (pytest.approx(math.sqrt(2)), 0.0)


@few
@given(seed=seeds, count=st.integers(20, 60), classes=st.integers(2, 12), splits=st.integers(1, 10))
def test_equals_a_naive_twin(seed: int, count: int, classes: int, splits: int) -> None:
    rows = predictions(count, classes, seed)
    scores = []
    for part in np.array_split(rows.numpy(), splits):
        marginal = part.mean(0)
        divergences = [sum(p * math.log(p / q) for p, q in zip(row, marginal, strict=True)) for row in part]
        scores.append(math.exp(sum(divergences) / len(part)))
    mean, deviation = inception_score(rows, splits)
    assert mean == pytest.approx(np.mean(scores), rel=1e-10)
    assert deviation == pytest.approx(np.std(scores), rel=1e-6, abs=1e-9)
    assert 1 - 1e-9 <= mean <= classes + 1e-9


@few
@given(seed=seeds)
def test_order_within_a_split_and_names_of_classes_do_not_count(seed: int) -> None:
    rows = predictions(40, 6, seed)
    generator = torch.Generator().manual_seed(seed)
    expected = inception_score(rows, splits=1)
    assert inception_score(rows[torch.randperm(40, generator=generator)], splits=1) == pytest.approx(expected)
    columns = torch.randperm(6, generator=generator)
    assert inception_score(rows[:, columns], splits=4) == pytest.approx(inception_score(rows, splits=4))


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="1 in sum"):
        inception_score(torch.ones(20, 3))
    with pytest.raises(ValueError, match="1 in sum"):
        inception_score(torch.tensor([[1.5, -0.5]] * 20))
    with pytest.raises(ValueError, match="1 in sum"):
        inception_score(torch.full((20, 2), torch.nan))
    with pytest.raises(ValueError, match="10 splits"):
        inception_score(torch.eye(3))
    with pytest.raises(ValueError, match="0 splits"):
        inception_score(torch.eye(3), splits=0)

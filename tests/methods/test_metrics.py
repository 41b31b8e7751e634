"""Metrics of features, each against numbers by hand, a naive twin or scikit-learn. No network, no files."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from methods.metrics import knn as nearest
from methods.metrics import retrieval
from methods.metrics.collapse import monitors
from methods.metrics.knn import knn, knn_loocv
from methods.metrics.linear import IMAGENET, RESSL, RESSL_IMAGENET, Linear, linear
from methods.metrics.logistic import logistic, logistic_several
from methods.metrics.precision import average_precision, mean_average_precision
from methods.metrics.projection import scatter_figure, tsne
from methods.metrics.retrieval import clip_retrieval_figure, neighbours, retrieval_figure, topk_retrieval


def blobs(n: int, classes: int, dim: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian clouds around fixed unit centres, which do not depend on `seed`."""
    centres = F.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(7)), dim=1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return centres[labels] + spread * torch.randn(n, dim, generator=generator), labels


def angles(*degrees: float) -> Tensor:
    radians = torch.tensor(degrees) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], 1)


# ----------------------------------------------------------------------------------------- neighbours


def test_neighbours_by_hand() -> None:
    """Query at 0 degrees; gallery at 90, 10, 30, 180: 10, 30, 90 come first, with their cosines. Norms do not count."""
    index, similarity = neighbours(5 * angles(0), torch.tensor([[3.0], [9], [0.1], [1]]) * angles(90, 10, 30, 180), k=3)
    assert index.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(similarity, torch.tensor([[0.9848078, 0.8660254, 0.0]]), atol=1e-6, rtol=0)


def test_neighbours_equal_a_naive_twin_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(n, 6, generator=generator) for n in (23, 41))
    cosine = (F.normalize(queries.double()) @ F.normalize(gallery.double()).T).numpy()
    expected = np.argsort(-cosine, axis=1, kind="stable")[:, :7]
    for cells in (2**24, 100):  # 100: two queries at once
        monkeypatch.setattr(retrieval, "_CELLS", cells)
        index, similarity = neighbours(queries, gallery, k=7)
        assert (index.numpy() == expected).all()
        np.testing.assert_allclose(similarity.numpy(), np.take_along_axis(cosine, expected, 1), atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_of_equal_similarities_the_lower_index_is_nearer(k: int) -> None:
    """Gallery: 0 and 3 at 90 degrees, 1, 2, 4, 5 at 0. Axis-aligned, so the products are exact."""
    gallery = torch.tensor([[0.0, 1], [1, 0], [2, 0], [0, 2], [4, 0], [8, 0]])
    index, _ = neighbours(torch.tensor([[1.0, 0], [0, 1]]), gallery, k=k)
    assert index.tolist() == [[1, 2, 4, 5, 0, 3][:k], [0, 3, 1, 2, 4, 5][:k]]


def test_the_same_set_leaves_each_row_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_CELLS", 8)
    index, _ = neighbours(angles(0, 10, 30, 35), angles(0, 10, 30, 35), k=1, same=True)
    assert index.tolist() == [[1], [0], [3], [2]]
    with pytest.raises(ValueError, match="1 to 3"):
        neighbours(angles(0, 10, 30, 35), angles(0, 10, 30, 35), k=4, same=True)


def test_neighbours_refuse_what_cannot_be_ranked() -> None:
    with pytest.raises(ValueError, match="not finite"):
        neighbours(torch.tensor([[1.0, math.nan]]), angles(0, 10), k=1)
    with pytest.raises(ValueError, match="widths 3 and 2"):
        neighbours(torch.ones(1, 3), angles(0, 10), k=1)


# -------------------------------------------------------------------------------------- top-k retrieval


def test_topk_retrieval_by_hand() -> None:
    """The gallery's mean is (10, 0), its deviations 5 and 1: normalized it is (1, 1), (-1, 1), (1, -1), (-1, -1) of
    classes 0, 1, 2, 3. The queries (20, .5) and (10, -2) become (2, .5) and (0, -2): the first is nearest to classes
    0, 2, then 1, the second to 2 and 3 alike, of which the lower index comes first. Of the true classes 2 and 3 none is
    first, and both are among two. As they are, all of the gallery but one would lie at about 0 degrees."""
    gallery = torch.tensor([[15.0, 1], [5, 1], [15, -1], [5, -1]])
    query = torch.tensor([[20.0, 0.5], [10, -2]])
    found = topk_retrieval(query, torch.tensor([2, 3]), gallery, torch.arange(4), ks=(1, 2, 4, 5))
    assert found == {"top1": 0.0, "top2": 1.0, "top4": 1.0}
    assert topk_retrieval(query, torch.tensor([0, 2]), gallery, torch.arange(4), ks=(1,)) == {"top1": 1.0}


def test_topk_retrieval_equals_a_naive_twin() -> None:
    """Query by query in float64; a dimension that is constant in the gallery does not count."""
    gallery, labels = blobs(60, 12, 9, 0.8, seed=0)
    query, query_labels = blobs(40, 12, 9, 0.8, seed=1)
    scale, shift = torch.rand(9, generator=torch.Generator().manual_seed(3)) * 10 + 0.1, torch.arange(9.0)
    gallery, query = (features * scale + shift for features in (gallery, query))
    gallery[:, 4] = 7.0
    x, q = gallery.double().numpy(), query.double().numpy()
    spread = np.where(x.std(0) > 0, x.std(0), 1)
    x, q = (x - x.mean(0)) / spread, (q - x.mean(0)) / spread
    hits = {1: 0, 5: 0, 10: 0, 20: 0, 50: 0}
    for one, label in zip(q, query_labels.tolist(), strict=True):
        cosine = [float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) for other in x]
        ranked = labels[np.argsort(cosine)[::-1].copy()].tolist()
        for k in hits:
            hits[k] += label in ranked[:k]
    found = topk_retrieval(query, query_labels, gallery, labels)
    assert found == {f"top{k}": pytest.approx(n / 40) for k, n in hits.items()}
    assert list(found) == ["top1", "top5", "top10", "top20", "top50"]
    assert list(found.values()) == sorted(found.values()) and found["top1"] < 1
    few = topk_retrieval(query, query_labels, gallery[:19], labels[:19])
    assert list(few) == ["top1", "top5", "top10"]


def test_topk_retrieval_does_not_depend_on_the_features_units() -> None:
    gallery, labels = blobs(60, 6, 8, 0.7, seed=0)
    query, query_labels = blobs(30, 6, 8, 0.7, seed=1)
    factor = 4.0 ** torch.arange(-4, 4)
    expected = topk_retrieval(query, query_labels, gallery, labels)
    assert topk_retrieval(query * factor, query_labels, gallery * factor, labels) == expected


def test_topk_retrieval_refuses_bad_arguments() -> None:
    one, label = torch.ones(1, 2), torch.tensor([0])
    for ks in ((), (0, 1), (5,)):
        with pytest.raises(ValueError, match="retrieval of k"):
            topk_retrieval(one, label, one, label, ks)
    with pytest.raises(ValueError, match="one label"):
        topk_retrieval(one, torch.tensor([0, 1]), one, label)
    with pytest.raises(ValueError, match="not finite"):
        topk_retrieval(one / 0, label, one, label)


# ------------------------------------------------------------------------------------------------ knn


def test_knn_by_hand() -> None:
    """One test point at 0 degrees, class 1. Training: 10 degrees of class 0; 40 and 50 of class 1.

    cosines .9848, .7660, .6428. With temperature .07 class 0 votes exp(14.07), class 1 exp(10.94) + exp(9.18): wrong.
    With temperature 1 class 0 votes 2.677, class 1 2.151 + 1.902: right. With k = 1 always wrong.
    """
    data = angles(10, 40, 50), torch.tensor([0, 1, 1]), angles(0), torch.tensor([1])
    assert knn(*data, k=3, temperature=0.07) == {"top1": 0.0}
    assert knn(*data, k=3, temperature=1.0) == {"top1": 1.0}
    assert knn(*data, k=1, temperature=1.0) == {"top1": 0.0}


def test_knn_equals_scikit_learn_with_the_same_weights() -> None:
    train, train_labels = blobs(300, 8, 16, 0.4, seed=0)
    test, test_labels = blobs(100, 8, 16, 0.4, seed=1)
    twin = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    twin.fit(train.double().numpy(), train_labels.numpy())
    votes = torch.from_numpy(twin.predict_proba(test.double().numpy()))
    top5 = (votes.topk(5, dim=1).indices == test_labels[:, None]).any(1).double().mean()
    found = knn(train, train_labels, test, test_labels)
    assert found == {"top1": twin.score(test.double().numpy(), test_labels.numpy()), "top5": pytest.approx(float(top5))}
    assert 0.5 < found["top1"] < found["top5"] < 1


def test_knn_of_equal_votes_takes_the_lower_class() -> None:
    train, labels = torch.eye(2), torch.tensor([1, 0])
    query = torch.tensor([[1.0, 1.0]])
    assert knn(train, labels, query, torch.tensor([0]), k=2) == {"top1": 1.0}
    assert knn(train, labels, query, torch.tensor([1]), k=2) == {"top1": 0.0}


def test_knn_does_not_depend_on_scale_or_on_the_order_of_samples() -> None:
    train, labels = blobs(200, 6, 8, 0.5, seed=0)
    test, test_labels = blobs(80, 6, 8, 0.5, seed=1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    expected = knn(train, labels, test, test_labels)
    assert knn(train[order], labels[order], test, test_labels) == expected
    assert knn(train * 1e4, labels, test * 1e-4, test_labels) == expected
    assert "top5" not in knn(train, labels % 5, test, test_labels % 5)
    assert "top5" in knn(train, labels % 5, test, test_labels % 5, classes=6)


def test_knn_refuses_bad_arguments() -> None:
    data = angles(10, 40), torch.tensor([0, 1]), angles(0), torch.tensor([1])
    with pytest.raises(ValueError, match="k = 20 neighbours of 2"):
        knn(*data)
    with pytest.raises(ValueError, match="temperature"):
        knn(*data, k=1, temperature=0.0)
    with pytest.raises(ValueError, match="labels lie in 0 to 0"):
        knn(*data, k=1, classes=1)


# ---------------------------------------------------------------------------------------- leave one out


def test_leave_one_out_by_hand() -> None:
    """At 0, 10, 25, 90 and 100 degrees, of classes 0, 0, 1, 1, 1. With k = 1 the neighbours are of 10, 0, 10, 100 and
    90: right but for the third. With k = 3 (0: 10, 25, 90; 10: 0, 25, 90; 25: 10, 0, 90; 90: 100, 25, 10; 100: 90,
    25, 10) the first three are outvoted 2 to 1, and the last two right. With k = 4 each sees all others: the first two
    a 1 to 3, the third a tie, which class 0 wins, likewise the last two."""
    features, labels = angles(0, 10, 25, 90, 100), torch.tensor([0, 0, 1, 1, 1])
    found = knn_loocv(features, labels, ks=(1, 3, 4, 5), standardize=False)
    assert found == {"top1_1": 0.8, "top1_3": 0.4, "top1_4": 0.0}
    sharp = knn_loocv(features, labels, ks=(4,), standardize=False, temperature=0.01)
    assert sharp == {"top1_4": 0.8}  # the nearest alone decides


@pytest.mark.parametrize("temperature", [None, 0.2])
def test_leave_one_out_equals_a_naive_twin(monkeypatch: pytest.MonkeyPatch, temperature: float | None) -> None:
    """Each of 60 samples against a set without it, in float64, of standardized features; in chunks of four rows too."""
    features, labels = blobs(60, 6, 5, 0.5, seed=0)
    features = features * torch.tensor([1.0, 10, 100, 1, 1]) + 7
    x = features.double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    right = {1: 0, 7: 0, 59: 0}
    for i in range(60):
        others = [j for j in range(60) if j != i]
        order = sorted(others, key=lambda j: (-(x[i] @ x[j]), j))
        for k in right:
            votes = np.zeros(6)
            for j in order[:k]:
                votes[labels[j]] += 1 if temperature is None else np.exp((x[i] @ x[j] - 1) / temperature)
            right[k] += int(votes.argmax() == labels[i])
    expected = {f"top1_{k}": n / 60 for k, n in right.items()}
    assert len({*expected.values()}) == 3 and min(expected.values()) < 0.8
    for cells in (2**24, 24):
        monkeypatch.setattr(nearest, "_CELLS", cells)
        monkeypatch.setattr(retrieval, "_CELLS", 10 * cells)
        assert knn_loocv(features, labels, ks=(1, 7, 59, 60), temperature=temperature) == expected


def test_leave_one_out_never_sees_the_sample_itself() -> None:
    """Pairs of equal features with other labels: each one's nearest is the other of its pair, which is wrong."""
    features = angles(0, 30, 60, 90).repeat_interleave(2, 0)
    assert knn_loocv(features, torch.arange(8) % 2, ks=(1,)) == {"top1_1": 0.0}


def test_leave_one_out_refuses_bad_arguments() -> None:
    features, labels = angles(0, 10, 90), torch.tensor([0, 0, 1])
    for ks in ((), (3,), (0, 1)):
        with pytest.raises(ValueError, match="choose from 1 on"):
            knn_loocv(features, labels, ks=ks)
    with pytest.raises(ValueError, match="temperature is above 0"):
        knn_loocv(features, labels, ks=(1,), temperature=0)
    with pytest.raises(ValueError, match="labels lie in 0 to 0"):
        knn_loocv(features, labels, ks=(1,), classes=1)
    with pytest.raises(ValueError, match="3 features and 2 labels"):
        knn_loocv(features, labels[:2], ks=(1,))
    with pytest.raises(ValueError, match="not finite"):
        knn_loocv(features / 0, labels, ks=(1,))


# ------------------------------------------------------------------------------------ average precision


def test_average_precision_by_hand() -> None:
    """By falling score: wrong, right, wrong, right, right. Precision at the three hits is 1/2, 2/4 and 3/5; the highest
    at a recall or beyond is 3/5 everywhere. So it is 3/5 by area and at 11 points; not interpolated 1.6 / 3.

    Right, wrong, wrong, right: 1 at recall 1/2 and 2/4 at 1. Area: (1 + 1/2) / 2; of the 11 points six, 0 to .5, have
    1 and five 1/2."""
    scores, positive = torch.tensor([5.0, 4, 3, 2, 1]), torch.tensor([False, True, False, True, True])
    for points in (None, 11):
        assert average_precision(scores, positive, points=points) == pytest.approx(0.6)
    assert average_precision_score(positive, scores) == pytest.approx(1.6 / 3)
    scores, positive = torch.tensor([1.0, 4, 3, 2]), torch.tensor([True, True, False, False])
    assert average_precision(scores, positive) == pytest.approx(0.75)
    assert average_precision(scores, positive, points=11) == pytest.approx((6 + 5 / 2) / 11)


def test_average_precision_of_equal_scores_and_of_exact_tenths() -> None:
    """Equal scores are retrieved at once: two of five positive. Ten positives, the first seven of them found without a
    mistake, then ten others: at 0 to .7 precision is 1, and .8 needs 18 for 8, .9 19 for 9 and 1 20 for 10 (a half,
    the highest there)."""
    flat = torch.tensor([True, True, False, False, False])
    for points in (None, 11):
        assert average_precision(torch.zeros(5), flat, points=points) == pytest.approx(0.4)
    positive = torch.tensor([True] * 7 + [False] * 10 + [True] * 3)
    found = average_precision(-torch.arange(20.0), positive, points=11)
    assert found == pytest.approx((8 + 3 / 2) / 11)


def test_average_precision_equals_a_naive_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        scores, positive = torch.randn(50, generator=generator), torch.rand(50, generator=generator) < 0.3
        hits = positive[scores.argsort(descending=True)].double()
        precision, recall = hits.cumsum(0) / torch.arange(1, 51), hits.cumsum(0) / hits.sum()
        area = sum(precision[i:].max() for i in hits.nonzero()[:, 0]) / hits.sum()
        eleven = sum(precision[recall >= t / 10 - 1e-9].max() for t in range(11)) / 11
        assert average_precision(scores, positive) == pytest.approx(float(area))
        assert average_precision(scores, positive, points=11) == pytest.approx(float(eleven))
        assert average_precision(scores, positive) >= average_precision_score(positive, scores)


def test_mean_average_precision_leaves_out_what_is_not_known() -> None:
    """The first class: .75 (see above), and 1 without its second sample; the second has no positive sample at all."""
    scores = torch.tensor([[1.0, 4, 3, 0], [0, 0, 0, 0]]).T
    positive = torch.tensor([[True, False, False, False], [False] * 4]).T
    known = torch.tensor([[True, False, False, True], [True] * 4]).T
    assert mean_average_precision(scores, positive) == pytest.approx(1 / 3)
    assert mean_average_precision(scores, positive, known=known) == 1.0
    with pytest.raises(ValueError, match="no class has a positive sample"):
        mean_average_precision(scores, positive & ~known)
    with pytest.raises(ValueError, match=r"scores of shape \(4, 1\)"):
        mean_average_precision(scores[:, :1], positive)


def test_average_precision_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="without a positive sample"):
        average_precision(torch.zeros(2), torch.tensor([False, False]))
    with pytest.raises(ValueError, match="finite"):
        average_precision(torch.tensor([math.inf, 0]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match="2 points"):
        average_precision(torch.zeros(1), torch.tensor([True]), points=1)


# ------------------------------------------------------------------------------------------- logistic


def test_logistic_equals_scikit_learn_at_a_known_strength() -> None:
    train, train_labels = blobs(300, 4, 8, 0.6, seed=0)
    test, test_labels = blobs(200, 4, 8, 0.6, seed=1)
    scale = train.square().sum(1).mean().sqrt()
    twin = LogisticRegression(C=0.1, max_iter=200).fit((train / scale).numpy(), train_labels.numpy())
    found = logistic(train, train_labels, test, test_labels, regularizations=[10.0])
    assert found["top1"] == twin.score((test / scale).numpy(), test_labels.numpy())
    assert found["regularization"] == 10.0 and found["converged"] == 1.0
    assert logistic(1e3 * train, train_labels, 1e3 * test, test_labels, regularizations=[10.0]) == found


def test_logistic_chooses_a_strength_that_is_neither_too_weak_nor_too_strong() -> None:
    """Sixty noisy dimensions, fifty samples a class: without regularization it overfits, with much it learns little."""
    train, train_labels = blobs(200, 4, 60, 0.35, seed=0)
    test, test_labels = blobs(500, 4, 60, 0.35, seed=1)
    grid = (1e6, 1.0, 1e-6)
    chosen = logistic(train, train_labels, test, test_labels, regularizations=grid, validation=0.3)
    alone = [logistic(train, train_labels, test, test_labels, regularizations=[r])["top1"] for r in grid]
    assert chosen["regularization"] == 1.0
    assert chosen["top1"] == alone[1] > max(alone[0], alone[2])
    assert chosen == logistic(train, train_labels, test, test_labels, regularizations=grid[::-1], validation=0.3)


def test_logistic_reports_the_mean_over_classes() -> None:
    """Nine of ten test samples are of class 0, all right; of the one of class 1, which lies among them, none."""
    train, labels = torch.tensor([[0.0], [0.1], [1], [1.1]]).repeat(5, 1), torch.tensor([0, 0, 1, 1]).repeat(5)
    test, test_labels = torch.zeros(10, 1), torch.tensor([0] * 9 + [1])
    found = logistic(train, labels, test, test_labels, validation=0.2, metric="mean_per_class")
    assert (found["top1"], found["mean_per_class"]) == (0.9, 0.5) and found["validation_mean_per_class"] == 1.0


def test_logistic_of_several_labels_equals_scikit_learn_class_by_class() -> None:
    """Two classes that are told by one dimension each; the third sample does not count for the second."""
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(200, 4, generator=generator), torch.randn(300, 4, generator=generator)
    noise = torch.randn(500, 2, generator=generator)
    labels, test_labels = train[:, :2] + noise[:200] > 0, test[:, :2] + noise[200:] > 0
    known = torch.ones_like(labels)
    known[2, 1] = False
    found = logistic_several(train, labels, test, test_labels, train_known=known, regularizations=[3.0], points=None)
    scale = train.square().sum(1).mean().sqrt()
    figures = []
    for c in range(2):
        twin = LogisticRegression(C=1 / 3, max_iter=200).fit((train / scale)[known[:, c]], labels[known[:, c], c])
        said = torch.from_numpy(twin.decision_function(test / scale))
        figures.append(average_precision(said, test_labels[:, c]))
    assert found["map"] == pytest.approx(sum(figures) / 2, abs=1e-6) and 0.7 < found["map"] < 1
    assert found["regularization"] == 3.0 and found["converged"] == 1.0
    eleven = logistic_several(train, labels, test, test_labels, regularizations=[3.0])
    assert eleven["map"] != found["map"]
    chosen = logistic_several(train, labels, test, test_labels, regularizations=[1e7, 3.0])
    assert chosen["validation_map"] >= eleven["validation_map"]
    with pytest.raises(ValueError, match="class 1 has samples of one kind"):
        logistic_several(train, labels & torch.tensor([True, False]), test, test_labels)


# --------------------------------------------------------------------------------------------- linear

SHORT = replace(Linear(), epochs=10, batch_size=50)


def test_linear_learns_what_is_separable_and_nothing_from_random_labels() -> None:
    train, train_labels = blobs(500, 4, 16, 0.05, seed=0)
    test, test_labels = blobs(400, 4, 16, 0.05, seed=1)
    assert linear(train, train_labels, test, test_labels, SHORT)["top1"] == 1.0
    noise = torch.randn(500, 16, generator=torch.Generator().manual_seed(2))
    shuffled = train_labels[torch.randperm(500, generator=torch.Generator().manual_seed(3))]
    unseen = torch.randn(4000, 16, generator=torch.Generator().manual_seed(4))
    chance = linear(noise, shuffled, unseen, torch.arange(4000) % 4, SHORT)["top1"]
    assert abs(chance - 0.25) < 0.03  # more than four standard deviations of 4,000 tries, each for itself


def test_linear_is_a_function_of_its_seed() -> None:
    train, train_labels = blobs(300, 7, 8, 0.6, seed=0)
    test, test_labels = blobs(300, 7, 8, 0.6, seed=1)
    state = torch.get_rng_state()
    first = linear(train, train_labels, test, test_labels, SHORT, seed=1)
    torch.manual_seed(5)
    assert linear(train, train_labels, test, test_labels, SHORT, seed=1) == first
    torch.set_rng_state(state)
    linear(train, train_labels, test, test_labels, SHORT, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first["top1"] < first["top5"] <= 1


def test_linear_does_not_depend_on_the_features_scale() -> None:
    train, train_labels = blobs(300, 4, 8, 0.6, seed=0)
    test, test_labels = blobs(300, 4, 8, 0.6, seed=1)
    small, large = (linear(c * train, train_labels, c * test, test_labels, SHORT) for c in (2.0**-6, 2.0**8))
    assert small["top1"] == large["top1"] and large["scale"] / small["scale"] == 2.0**14
    plain = linear(train, train_labels, test, test_labels, replace(SHORT, scale="none"))
    assert plain["scale"] == 1.0 and plain["lr"] == 30.0


def test_linear_equals_a_twin_by_hand() -> None:
    """One step of the whole set from W: W - lr * (softmax - onehot)^T x / N; it classifies as the twin in float64."""
    train, train_labels = blobs(64, 3, 8, 0.8, seed=0)
    test, test_labels = blobs(200, 3, 8, 0.8, seed=1)
    x, scale = train.double(), train.double().square().sum(1).mean().sqrt()
    w = torch.zeros(3, 8).normal_(std=0.01, generator=torch.Generator().manual_seed(0)).double()
    error = (x / scale @ w.T).softmax(1) - F.one_hot(train_labels, 3)
    w, b = w - 30 * error.T @ (x / scale) / 64, -30 * error.mean(0)
    expected = (test.double() / scale @ w.T + b).argmax(1) == test_labels
    found = linear(train, train_labels, test, test_labels, replace(SHORT, epochs=1, batch_size=64))
    assert found["top1"] == expected.double().mean().item()


def test_linear_searches_the_rate_on_held_out_samples() -> None:
    train, train_labels = blobs(400, 4, 60, 0.35, seed=0)
    test, test_labels = blobs(400, 4, 60, 0.35, seed=1)
    found = linear(train, train_labels, test, test_labels, replace(SHORT, search=(1e-9, 0.1)))
    assert found["lr"] == 3.0
    rate = replace(SHORT.optimizer, lr=3.0)
    assert found == linear(train, train_labels, test, test_labels, replace(SHORT, optimizer=rate))


def test_linear_refuses_what_it_cannot_do() -> None:
    train, labels = blobs(40, 4, 8, 0.1, seed=0)
    with pytest.raises(ValueError, match="batch_size 50 is above the 40"):
        linear(train, labels, train, labels, SHORT)
    with pytest.raises(ValueError, match="labels lie in 0 to 2"):
        linear(train, labels, train, labels, replace(SHORT, batch_size=20), classes=3)
    with pytest.raises(ValueError, match="not finite"):
        linear(train * math.inf, labels, train, labels, replace(SHORT, batch_size=20))
    with pytest.raises(ValueError, match=r"linear\.search"):
        Linear(search=(0.0,))


def test_the_papers_linear_protocols() -> None:
    assert Linear().optimizer.lr == 30 and Linear().optimizer.milestones == (60, 80)
    assert replace(Linear(), optimizer=replace(Linear().optimizer, lr=10.0)) == RESSL
    assert IMAGENET.optimizer.schedule == "cosine" and (IMAGENET.batch_size, IMAGENET.epochs) == (1024, 90)
    assert replace(IMAGENET, optimizer=replace(IMAGENET.optimizer, nesterov=True)) == RESSL_IMAGENET


# ------------------------------------------------------------------------------------------- collapse


def test_effective_rank_of_k_orthonormal_directions_is_k() -> None:
    for k in (1, 3, 8):
        a = 5 * torch.eye(8)[torch.arange(24) % k]
        assert monitors(a, a)["effective_rank"].item() == pytest.approx(k, rel=1e-5)


def test_effective_rank_by_hand() -> None:
    """Three copies of e1, one of e2: singular values sqrt(3) and 1, p = (.634, .366); exp(.6568) is 1.9286."""
    a = torch.eye(4)[torch.tensor([0, 0, 0, 1])]
    p = np.array([math.sqrt(3), 1]) / (math.sqrt(3) + 1)
    expected = math.exp(-(p * np.log(p)).sum())
    assert expected == pytest.approx(1.9286, abs=1e-3)
    assert monitors(a, a)["effective_rank"].item() == pytest.approx(expected, rel=1e-5)


def test_alignment_and_uniformity_by_hand() -> None:
    """Samples at 0 and 90 degrees: squared distance 2, uniformity log exp(-2 * 2) = -4. Second views at 60 and 90:
    squared distance to the first 2 - 2 cos 60 = 1 and 0, alignment .5; own distance 2 - 2 cos 30 = .2679, uniformity
    -.5359. Mean of the two views: -2.26795."""
    found = monitors(3 * angles(0, 90), angles(60, 90))
    assert found["alignment"].item() == pytest.approx(0.5, abs=1e-6)
    assert found["uniformity"].item() == pytest.approx((-4 - 4 * (1 - math.cos(math.pi / 6))) / 2, abs=1e-5)


def test_uniformity_equals_the_mean_over_pairs() -> None:
    a, b = (torch.randn(9, 5, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    means = []
    for x in (a, b):
        z = F.normalize(x.double(), dim=1)
        values = [math.exp(-2 * float((z[i] - z[j]).square().sum())) for i in range(9) for j in range(i)]
        means.append(math.log(sum(values) / len(values)))
    assert monitors(a, b)["uniformity"].item() == pytest.approx(sum(means) / 2, abs=1e-5)


def test_feature_std_is_one_where_isotropic_and_zero_where_collapsed() -> None:
    """All of +e_i, -e_i: each dimension holds +1 and -1 in 2 of 2D places, variance 1 / D: 1 after sqrt(D)."""
    cross = torch.cat([torch.eye(6), -torch.eye(6)])
    assert monitors(cross, cross)["feature_std"].item() == pytest.approx(1.0, abs=1e-6)
    flat = torch.ones(8, 16) * torch.arange(1, 9)[:, None]
    collapsed = monitors(flat, flat)
    assert collapsed["feature_std"].item() == pytest.approx(0.0, abs=1e-5)
    assert collapsed["effective_rank"].item() == pytest.approx(1.0, abs=1e-3)
    assert collapsed["uniformity"].item() == pytest.approx(0.0, abs=1e-5)
    assert collapsed["alignment"].item() == 0.0


def test_monitors_take_any_float_type_and_survive_nan() -> None:
    a = torch.randn(16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16).requires_grad_()
    found = monitors(a, a.flip(0))
    assert all(v.dtype == torch.float32 and v.ndim == 0 and not v.requires_grad for v in found.values())
    assert monitors(torch.full((4, 3), math.nan), torch.ones(4, 3))["alignment"].isnan()


# ------------------------------------------------------------------------------------------- pictures


def png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def test_tsne_keeps_clusters_together_and_repeats_itself() -> None:
    features, labels = blobs(90, 3, 16, 0.05, seed=0)
    points = tsne(features, perplexity=10)
    assert points.shape == (90, 2) and points.dtype == torch.float32
    assert torch.equal(points, tsne(features, perplexity=10))
    nearest = torch.cdist(points, points).fill_diagonal_(math.inf).argmin(1)
    assert (labels[nearest] == labels).float().mean() > 0.95
    with pytest.raises(ValueError, match="perplexity below"):
        tsne(features[:30])


@pytest.mark.parametrize("classes", [None, 1, 3, 15, 40])
def test_scatter_figure_renders(classes: int | None) -> None:
    points = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    labels = None if classes is None else torch.arange(80) % classes
    figure = scatter_figure(points, labels, [f"class {i}" for i in range(classes or 0)], "t-SNE")
    legend = figure.axes[0].get_legend()
    assert (len(legend.get_texts()) if legend else 0) == (classes if classes and classes <= 20 else 0)
    assert png(figure)[1:4] == b"PNG"


def test_retrieval_figure_frames_right_and_wrong() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 2, 3, 8, 8), generator=generator, dtype=torch.uint8)
    similarity = torch.tensor([[0.9, 0.8]] * 3)
    queries, near = torch.tensor([0, 1, 1]), torch.tensor([[0, 1], [1, 1], [0, 0]])
    figure = retrieval_figure(
        images[:, 0], images, similarity, query_labels=queries, neighbour_labels=near, class_names=["cat", "dog"]
    )
    assert png(figure)[1:4] == b"PNG"
    [axis] = figure.axes
    green, red = to_rgba("tab:green"), to_rgba("tab:red")
    assert [frame.get_edgecolor() for frame in axis.patches] == [green, red, green, green, red, red]
    written = [text.get_text() for text in axis.texts]
    assert written[:6] == ["cat", "query", "cat", "0.900", "dog", "0.800"]
    assert png(retrieval_figure(images[:, 0, :1], images[:, :, :1], similarity))[1:4] == b"PNG"  # gray, no labels


def test_clip_retrieval_figure_shows_frames_side_by_side() -> None:
    """Of 7 frames 3: the first, the fourth and the last, with white between them; frame t has the level 30 t."""
    levels = (30 * torch.arange(7, dtype=torch.uint8))[:, None, None, None].expand(7, 3, 8, 56)
    queries, near = levels.expand(2, 7, 3, 8, 56), levels.expand(2, 2, 7, 3, 8, 56)
    similarity, labels = torch.full((2, 2), 0.5), torch.tensor([0, 1])
    figure = clip_retrieval_figure(
        queries,
        near,
        similarity,
        query_labels=labels,
        neighbour_labels=labels.expand(2, 2),
        class_names=["walk", "run"],
    )
    assert png(figure)[1:4] == b"PNG"
    [axis] = figure.axes
    green, red = to_rgba("tab:green"), to_rgba("tab:red")
    assert [frame.get_edgecolor() for frame in axis.patches] == [green, red, red, green]
    assert [text.get_text() for text in axis.texts][:6] == ["walk", "query", "walk", "0.500", "run", "0.500"]
    assert len(axis.images) == 6
    row = np.asarray(axis.images[0].get_array())[0, :, 0]
    assert row.tolist() == [0] * 56 + [255] * 2 + [90] * 56 + [255] * 2 + [180] * 56
    gray = clip_retrieval_figure(queries[:, :, :1], near[:, :, :, :1], similarity, frames=1)
    assert np.asarray(gray.axes[0].images[3].get_array()).tolist() == [[90] * 56] * 8
    with pytest.raises(ValueError, match="choose 1 to 7"):
        clip_retrieval_figure(queries, near, similarity, frames=8)

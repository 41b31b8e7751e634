"""Low-shot classification, against numbers by hand and scikit-learn."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.svm import LinearSVC
from torch import Tensor

from methods.metrics.precision import average_precision
from methods.metrics.svm import SVM, drawn, low_shot, scores


def clouds(n: int, classes: int, dim: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    centres = F.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(7)))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, dim, generator=generator), labels


def test_scores_are_those_of_normalized_features_and_heavier_positives() -> None:
    """PCL's machine: L2-normalized, squared hinge, cost .5, positive samples twice as heavy; each class by itself."""
    train, labels = clouds(90, 3, 5, 0.6, seed=0)
    test, _ = clouds(30, 3, 5, 0.6, seed=1)
    found = scores(train, F.one_hot(labels).bool(), test, SVM(), seed=3)
    x, x_test = (F.normalize(f.double()).numpy() for f in (train, test))
    for c in range(3):
        twin = LinearSVC(C=0.5, loss="squared_hinge", class_weight={1: 2, 0: 1}, max_iter=2000, random_state=3)
        expected = twin.fit(x, (labels == c).long().numpy()).decision_function(x_test)
        torch.testing.assert_close(found[:, c], torch.from_numpy(expected), rtol=1e-3, atol=1e-3)
    again = scores(9 * train, F.one_hot(labels).bool(), test / 9, SVM(), seed=3)
    torch.testing.assert_close(again, found)
    even = scores(train, F.one_hot(labels).bool(), test, SVM(positive_weight=1.0), seed=3)
    assert (found > even).double().mean() > 0.9  # heavier positive samples raise scores


def test_a_margin_by_hand() -> None:
    """Features at 0 and 90 degrees, with a great cost: the plane w.x + b is 1 at (1, 0) and -1 at (0, 1), and of the
    least |w|^2 + b^2, as liblinear penalizes the bias: w = (1, -1), b = 0. At 45 degrees it is 0."""
    train, labels = torch.tensor([[2.0, 0], [0, 3]]), torch.tensor([[True], [False]])
    found = scores(train, labels, torch.tensor([[1.0, 0], [0, 1], [5, 5]]), SVM(costs=(1e4,), max_iterations=100_000))
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, -1, 0], dtype=torch.float64), atol=1e-3, rtol=0)


def test_samples_that_do_not_count_are_left_out() -> None:
    train, labels = clouds(60, 2, 4, 0.3, seed=0)
    positive = F.one_hot(labels).bool()
    wrong, known = positive.clone(), torch.ones_like(positive)
    wrong[:20, 1] = ~wrong[:20, 1]
    known[:20, 1] = False
    found = scores(train, wrong, train, SVM(), known=known)
    torch.testing.assert_close(found[:, 0], scores(train, positive, train, SVM())[:, 0])
    torch.testing.assert_close(found[:, 1], scores(train[20:], positive[20:], train, SVM())[:, 1])


def test_the_cost_is_chosen_by_cross_validation_of_the_training_samples() -> None:
    """Forty dimensions of noise: a tiny cost learns hardly more than the classes' means, which is best here."""
    train, labels = clouds(120, 2, 40, 0.5, seed=0)
    test, test_labels = clouds(2000, 2, 40, 0.5, seed=1)
    positive = F.one_hot(labels).bool()[:, :1]
    costs = (1e4, 1e-3)
    alone = {cost: scores(train, positive, test, SVM(costs=(cost,))) for cost in costs}
    chosen = scores(train, positive, test, SVM(costs=costs))
    figures = {cost: average_precision(said[:, 0], test_labels == 0) for cost, said in alone.items()}
    assert figures[1e-3] > figures[1e4]
    assert torch.equal(chosen, alone[1e-3])
    few = torch.tensor([0, 1, 3])  # a single positive sample: no folds, the first cost
    first = scores(train[few], positive[few], test, SVM(costs=costs[:1]))
    assert torch.equal(scores(train[few], positive[few], test, SVM(costs=costs)), first)


def test_k_of_each_class_are_drawn() -> None:
    """Of a sample of two classes both may draw it; more shots add to fewer; a class with fewer gives all."""
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(300, 3, generator=generator) < torch.tensor([0.5, 0.3, 0.01])
    few, many = drawn(positive, 8, seed=1, run=2), drawn(positive, 16, seed=1, run=2)
    rare = int(positive[:, 2].sum())
    assert 0 < rare < 8 and len(few) == 16 + rare and len(many) == 32 + rare
    for c in range(2):
        block = many[16 * c : 16 * c + 16]
        assert positive[block, c].all() and len(block.unique()) == 16
        assert torch.equal(block[:8], few[8 * c : 8 * c + 8])
    assert torch.equal(few, drawn(positive, 8, seed=1, run=2))
    assert not torch.equal(few, drawn(positive, 8, seed=1, run=3)) and not torch.equal(few, drawn(positive, 8, run=2))
    both = torch.ones(4, 2, dtype=torch.bool)
    assert sorted(drawn(both, 4).tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_draws_are_uniform() -> None:
    """One of ten samples in 2000 draws: 200 times each, with a deviation of 13."""
    positive = torch.ones(10, 1, dtype=torch.bool)
    counts = torch.cat([drawn(positive, 1, run=run) for run in range(2000)]).bincount(minlength=10)
    assert (counts - 200).abs().max() < 4 * 13.5


def test_low_shot_is_the_mean_of_its_draws() -> None:
    train, labels = clouds(300, 4, 8, 0.5, seed=0)
    test, test_labels = clouds(200, 4, 8, 0.5, seed=1)
    found = low_shot(train, labels, test, test_labels, SVM(), shots=(1, 8), draws=3, seed=5)
    names = [f"{name}_{k}" for k in (1, 8) for name in ("top1", "map", "deviation")]
    assert list(found) == [*names, "top1_full", "map_full"]
    positive, tops = F.one_hot(labels).bool(), []
    for run in range(3):
        rows = drawn(positive, 8, seed=5, run=run)
        said = scores(train[rows], positive[rows], test, SVM(), seed=5).argmax(1)
        tops.append((said == test_labels).double().mean())
    assert found["top1_8"] == pytest.approx(float(torch.stack(tops).mean()))
    assert found["deviation_8"] == pytest.approx(float(torch.stack(tops).std(correction=0)), abs=1e-6)
    assert 0.25 < found["top1_1"] < found["top1_8"] < found["top1_full"] < 1
    assert low_shot(train, labels, test, test_labels, SVM(), shots=(8,), full=False, draws=3, seed=5) == {
        name: found[name] for name in ("top1_8", "map_8", "deviation_8")
    }
    said, shown = scores(train, positive, test, SVM(), seed=5), F.one_hot(test_labels).bool()
    areas = [average_precision(said[:, c], shown[:, c]) for c in range(4)]
    assert found["map_full"] == pytest.approx(sum(areas) / 4)


def test_low_shot_of_several_labels_is_mean_average_precision() -> None:
    """Each sample shows some of three classes; what does not count neither trains nor is drawn nor tested."""
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(200, 6, generator=generator), torch.randn(150, 6, generator=generator)
    labels, test_labels = train[:, :3] > 0, test[:, :3] > 0
    found = low_shot(train, labels, test, test_labels, SVM(), shots=(8,), draws=2)
    assert list(found) == ["map_8", "deviation_8", "map_full"]
    said = scores(train, labels, test, SVM())
    areas = [average_precision(said[:, c], test_labels[:, c]) for c in range(3)]
    assert found["map_full"] == pytest.approx(sum(areas) / 3)
    assert 0.6 < found["map_8"] < found["map_full"]
    eleven = low_shot(train, labels, test, test_labels, SVM(points=11), shots=())
    assert eleven["map_full"] != found["map_full"]
    known = torch.rand(200, 3, generator=generator) < 0.5
    wrong, test_wrong = torch.where(known, labels, ~labels), test_labels.clone()
    test_known = torch.ones_like(test_labels)
    test_wrong[:70] = ~test_wrong[:70]
    test_known[:70] = False
    masks: dict[str, Any] = {"train_known": known, "test_known": test_known}
    masked = low_shot(train, wrong, test, test_wrong, SVM(), shots=(8,), draws=2, **masks)
    assert masked == low_shot(train, labels, test, test_labels, SVM(), shots=(8,), draws=2, **masks)
    assert low_shot(train, wrong, test, test_wrong, SVM(), shots=())["map_full"] < masked["map_full"]


def test_low_shot_refuses_bad_arguments() -> None:
    data = torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 1])
    for bad in ({"shots": (0,)}, {"shots": (), "full": False}, {"draws": 0}):
        with pytest.raises(ValueError, match="k and draws are at least 1"):
            low_shot(*data, SVM(), **bad)
    with pytest.raises(ValueError, match="labels lie in 0 to 0"):
        low_shot(*data, SVM(), classes=1)
    with pytest.raises(ValueError, match="of different kinds"):
        low_shot(*data[:3], torch.eye(2).bool(), SVM())
    with pytest.raises(ValueError, match="class 2 has no training sample"):
        low_shot(*data, SVM(), shots=(1,), classes=3)
    with pytest.raises(ValueError, match="class 0 has no training sample of the others"):
        low_shot(data[0], torch.tensor([0, 0]), data[2], torch.tensor([0, 0]), SVM())
    with pytest.raises(ValueError, match="not finite"):
        low_shot(data[0] / 0, *data[1:], SVM())
    for costs in ((), (0.0,)):
        with pytest.raises(ValueError, match="above 0"):
            SVM(costs=costs)
    with pytest.raises(ValueError, match="at least 2 folds"):
        SVM(folds=1)

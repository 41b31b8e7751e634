"""RCL: the loss by hand and against a naive twin, the retrieved key, and training on labels that move."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from methods.backbones import Backbone
from methods.clusters import preserved, sizes
from methods.method import Advice, Clock, Facts, Step
from methods.moco import info_nce
from methods.parts import set_batch_norm
from methods.rcl import RCL, Config, relative_contrastive_loss, retrieve

E1, E2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
SAMPLES, BATCH = 60, 20
STEPS = SAMPLES // BATCH


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, 5, generator=generator, dtype=torch.float64), dim=-1)


# ---------------------------------------------------------------------------------------------- loss


def test_loss_by_hand() -> None:
    """tau = 1/ln 2, so a similarity s weighs 2^s. Key e1, queue (e2, -e1), three criteria, the last not shared.

    q1 = e1: key 2, queue 1 and 1/2; positive: ln(3.5 / 2) = ln 1.75.
    q2 = e2: key 1, queue 2 and 1; positive: ln(4 / 1) = ln 4.
    q3 = e1: negative: the logarithm of the denominator 3.5.
    Mean: (ln 1.75 + ln 4 + ln 3.5) / 3 = ln(24.5) / 3.
    """
    predictions, positive = torch.stack([E1, E2, E1]), torch.tensor([[True], [True], [False]])
    loss = relative_contrastive_loss(predictions, E1, positive, torch.cat([E2, -E1]), temperature=1 / math.log(2))
    assert loss.item() == pytest.approx(math.log(24.5) / 3, rel=1e-6)


def naive(predictions: Tensor, keys: Tensor, positive: Tensor, queue: Tensor, tau: float) -> float:
    total = 0.0
    for i in range(len(predictions)):
        for b in range(len(keys)):
            pair = math.exp(float(predictions[i, b] @ keys[b]) / tau)
            denominator = pair + sum(math.exp(float(predictions[i, b] @ s) / tau) for s in queue)
            same = bool(positive[i, b])
            total += -math.log((same * pair + (not same)) / denominator)
    return total / len(predictions) / len(keys)


@pytest.mark.parametrize("levels", [1, 3])
def test_loss_is_a_naive_double_precision_one(levels: int) -> None:
    q, keys, queue = unit(levels, 4), unit(4, seed=1), unit(7, seed=2)
    positive = torch.rand(levels, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    loss = relative_contrastive_loss(q, keys, positive, queue, temperature=0.1)
    assert loss.item() == pytest.approx(naive(q, keys, positive, queue, 0.1), rel=1e-12)


def test_a_negative_level_is_the_logarithm_of_its_denominator_and_pushes_away() -> None:
    q, keys, queue = unit(1, 1).requires_grad_(), unit(1, seed=1), unit(7, seed=2)
    loss = relative_contrastive_loss(q, keys, torch.tensor([[False]]), queue, temperature=0.2)
    expected = (q[0] @ torch.cat([keys, queue]).T / 0.2).logsumexp(1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    assert q.grad is not None and (q.grad[0] @ keys[0]) > 0  # towards the key the loss rises


def test_one_level_with_the_own_key_is_info_nce() -> None:
    q, keys, queue = unit(1, 6), unit(6, seed=1), unit(9, seed=2)
    loss = relative_contrastive_loss(q, keys, torch.ones(1, 6, dtype=torch.bool), queue, temperature=0.1)
    assert torch.equal(loss, info_nce(q[0], keys, queue, temperature=0.1))


def test_the_key_gets_no_gradient() -> None:
    q, keys = unit(2, 3).requires_grad_(), unit(3, seed=1).requires_grad_()
    relative_contrastive_loss(q, keys, torch.ones(2, 3, dtype=torch.bool), unit(4), temperature=0.1).backward()
    assert keys.grad is None and q.grad is not None


# --------------------------------------------------------------------------------------- retrieved key


def test_retrieved_keys_by_hand() -> None:
    """Samples 0 to 5 in clusters {0, 1, 2}, {3}, {4, 5} and {0, 1, 2, 3}, {4, 5}. The queue: 2, nobody, 0, 1, 3, 3.

    Query 0 at level 2 has 2 and 1, at entries 0 and 3; at level 3 also 3, twice; at level 1 nothing, as own entries
    do not count. Query 3 at level 2 has itself alone; query 5 has nobody.
    """
    labels = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 0, 3, 4, 4], [0, 0, 0, 0, 4, 4]])
    entries = labels[:, [2, 0, 0, 1, 3, 3]]
    entries[:, 1] = -1

    def draws(sample: int, level: int) -> list[int]:
        chance = torch.arange(8) / 8
        found, position = retrieve(labels[:, [sample] * 8], entries, torch.full((8,), level), chance)
        assert found.all() or not found.any()
        assert ((position >= 0) & (position < 6)).all()
        return position.tolist() if found.all() else []

    assert draws(0, 1) == [0] * 4 + [3] * 4
    assert draws(0, 2) == [0, 0, 3, 3, 4, 4, 5, 5]
    assert draws(0, 0) == draws(3, 1) == draws(5, 2) == []
    assert draws(3, 2) == [0] * 3 + [2] * 3 + [3] * 2  # 3 entries of 8 draws


# ------------------------------------------------------------------------------------------- training


def build(seed: int = 0, **options: Any) -> RCL:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    backbone = Backbone(nn.Sequential(*layers, nn.Flatten()), 8, [0.5] * 3, [0.25] * 3, {})
    tiny = Config(queue=50, hidden=16, dim=8, predictor_hidden=12, warmup_epochs=1, radius_is="quantile", min_samples=3)
    config = dataclasses.replace(tiny, **{"sigma": 0.98, "sigma_step": 0.04, **options})
    return RCL(config, backbone, Facts(SAMPLES, None, {"online": ((3, 8, 8), 0), "target": ((3, 8, 8), 0)}))


def images() -> Tensor:
    """Six colours, ten noisy images each."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(40, 216, (6, 3, 1, 1), generator=generator)
    noise = torch.randint(-40, 40, (SAMPLES, 3, 8, 8), generator=generator)
    return (colours[torch.arange(SAMPLES) % 6] + noise).clamp(0, 255).to(torch.uint8)


IMAGES = images()


def clock_at(step: int) -> Clock:
    return Clock(step=step, total_steps=300, steps_per_epoch=STEPS, epoch=step // STEPS, seed=3)


def batch_at(step: int, share: slice = slice(None)) -> dict[str, Tensor]:
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(step // STEPS))
    index = order[step % STEPS * BATCH :][:BATCH][share]
    return {"online": IMAGES[index], "target": IMAGES[index].flip(-1), "index": index}


def train(
    method: RCL,
    optimizer: torch.optim.Optimizer,
    steps: range,
    model: nn.Module | None = None,
    share: slice = slice(None),
) -> list[Step]:
    def features() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(9))[
                : SAMPLES - 3
            ]  # some are missing
            return method.backbone.eval()(IMAGES[order]), order

    found = []
    for step in steps:
        if step % STEPS == 0:
            method.before_epoch(clock_at(step), features)
            method.train()
        out = (model or method)(batch_at(step, share), clock_at(step), "model")
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        method.after_step(clock_at(step))
        assert out.loss.isfinite() and all(value.isfinite() for value in out.log.values())
        assert preserved(method.bank.labels)
        found.append(out)
    return found


def sgd(method: RCL) -> torch.optim.Optimizer:
    return torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_warm_up_is_info_nce_of_each_predictor() -> None:
    """Also with a queue that holds the batch's own samples: before there are labels the own key is taken."""
    method = build()
    train(method, sgd(method), range(2))
    batch, queue = batch_at(1), method.queue.keys.clone()
    twin = deepcopy(method)
    out = method(batch, clock_at(2), "model")
    expected = []
    for online, target in (("online", "target"), ("target", "online")):
        key = F.normalize(twin.teacher(batch[target]), dim=1)
        z = twin.projector(twin.backbone(batch[online]))
        expected += [info_nce(F.normalize(p(z), dim=1), key, queue, temperature=0.1) for p in twin.predictors]
    torch.testing.assert_close(out.loss, torch.stack(expected).mean())
    assert out.log["retrieved"] == 0
    assert all(out.log[f"positive.{h}"] == 1 for h in (1, 2, 3))


def test_labels_begin_after_the_warm_up_move_and_are_used() -> None:
    method = build()
    optimizer = sgd(method)
    train(method, optimizer, range(STEPS))
    assert not method.bank.started
    steps = train(method, optimizer, range(STEPS, 4 * STEPS))
    assert method.bank.started
    assert sum(float(s.log[f"{kind}.{h}"]) for s in steps for kind in ("split", "merged") for h in (2, 3)) > 0
    last = steps[-1].log
    assert 0 < last["retrieved"] < 1
    assert last["positive.1"] <= last["positive.2"] <= last["positive.3"] <= 1
    torch.testing.assert_close(last["positive.1"], 1 - last["retrieved"])  # at level 1 others are negative
    now = sizes(method.bank.labels, method.bank.counted)
    assert last["clusters.2"] == now.clusters[1] and last["largest.3"] == now.largest[2]


@pytest.mark.parametrize(
    "options",
    [
        {"clustering": "kmeans", "clusters": 0.3},
        {"clustering": "dbscan"},
        {"clustering": "nearest", "levels": 1},
        {"similarity": "propagation", "at_hand": 30},
        {"shared_predictor": True, "symmetric": False, "warmup_epochs": 0},
        {"levels": 1},
        {"levels": 4, "prototypes": 3, "radius_is": "distance", "radius": 0.01},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_options_train(options: dict[str, Any]) -> None:
    method = build(**options)
    steps = train(method, sgd(method), range(2 * STEPS + 1))
    assert len(method.predictors) == (1 if options.get("shared_predictor") else options.get("levels", 3))
    assert (steps[-1].log["retrieved"] > 0) == (options.get("levels") != 1 or options.get("clustering") == "nearest")
    if options.get("clustering") in ("kmeans", "dbscan"):
        assert method.bank.started
        assert "split.2" not in steps[-1].log


def test_what_never_has_clusters_is_said() -> None:
    method = build()
    features = lambda: (torch.eye(60), torch.arange(60))  # noqa: E731
    with pytest.warns(Advice, match="this run never has clusters and is InfoNCE: its 1 epochs are within"):
        method.before_epoch(Clock(0, STEPS, STEPS, 0, 0), features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.before_epoch(clock_at(0), features)
    alone = build(radius_is="distance", radius=0.01)  # of features at right angles
    with pytest.warns(Advice, match="no clusters were found"):
        alone.before_epoch(clock_at(STEPS), features)
    assert not alone.bank.started


def test_nearest_is_nnclr() -> None:
    """The key is the queue's nearest to the own one, and positive."""
    method = build(clustering="nearest", levels=1, warmup_epochs=0, symmetric=False)
    train(method, sgd(method), range(2))
    batch, queue, filled = batch_at(2), method.queue.keys.clone(), method.queue.get_buffer("index") >= 0
    twin = deepcopy(method)
    own = F.normalize(twin.teacher(batch["target"]), dim=1)
    nearest = queue[filled][(own @ queue[filled].T).argmax(1)]
    q = F.normalize(twin.predictors[0](twin.projector(twin.backbone(batch["online"]))), dim=1)
    loss = method(batch, clock_at(2), "model").loss
    torch.testing.assert_close(loss, info_nce(q, nearest, queue, temperature=0.1))


def test_a_state_dict_resumes_to_the_bit() -> None:
    first = build()
    optimizer = sgd(first)
    train(first, optimizer, range(2 * STEPS + 1))
    state, momentum = deepcopy(first.state_dict()), deepcopy(optimizer.state_dict())
    second = build(seed=1)
    second.load_state_dict(state)
    resumed = sgd(second)
    resumed.load_state_dict(momentum)
    rest = range(2 * STEPS + 1, 4 * STEPS)
    losses = [
        torch.stack([step.loss for step in train(m, o, rest)]) for m, o in ((first, optimizer), (second, resumed))
    ]
    assert torch.equal(*losses)
    assert same(first.state_dict(), second.state_dict())
    assert not torch.equal(state["bank.labels"], first.bank.labels)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"clustering": "kmean"}, "method.clustering is one of online, kmeans, dbscan, nearest, got kmean"),
        ({"similarity": "center"}, "method.similarity is one of centre"),
        ({"radius_is": "quantil"}, "method.radius_is is one of distance, quantile"),
        ({"radius_is": "quantile", "radius": 0.8, "radius_step": 0.3}, "at most 1 at every level, got 1.1"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Config(**options)


def test_an_index_outside_is_refused() -> None:
    method = build()
    batch = batch_at(0)
    with pytest.raises(ValueError, match="labels are kept for 60 samples"):
        method({**batch, "index": batch["index"] + 50}, clock_at(0), "model")
    with pytest.raises(ValueError, match="labels are kept for 60 samples"):
        method.before_epoch(clock_at(STEPS), lambda: (torch.rand(61, 8), torch.arange(61)))


MANY = 300


def outcome(rank: int) -> dict[str, Tensor]:
    """Labels at the end of each of 100 epochs on this rank's half of each batch, and the state at the end; a run that
    goes on from the middle is compared with it here. `train` looks at each step whether the property holds."""

    def begun(seed: int) -> tuple[RCL, torch.optim.Optimizer, nn.Module]:
        method = set_batch_norm(build(seed), "none")
        return method, sgd(method), DistributedDataParallel(method, broadcast_buffers=False)

    method, optimizer, model = begun(0)
    share = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    labels = []
    middle: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for epoch in range(MANY // STEPS):
        train(method, optimizer, range(epoch * STEPS, (epoch + 1) * STEPS), model, share)
        labels.append(method.bank.labels.clone())
        if epoch == MANY // STEPS // 2:
            middle = deepcopy(method.state_dict()), deepcopy(optimizer.state_dict())
    resumed, optimizer, model = begun(1)
    resumed.load_state_dict(middle[0])
    optimizer.load_state_dict(middle[1])
    train(resumed, optimizer, range((MANY // STEPS // 2 + 1) * STEPS, MANY), model, share)
    assert same(method.state_dict(), resumed.state_dict())
    return {"history": torch.stack(labels)} | {n: v.detach().clone() for n, v in method.state_dict().items()}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(outcome(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.ray
def test_two_workers_hold_identical_labels_through_300_steps(tmp_path: Path) -> None:
    mp.spawn(work, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert same(first, second)
    history = first["history"]  # (epochs, H, N)
    assert first["bank.started"] and all(preserved(labels) for labels in history)
    assert len(history.unique(dim=0)) > 10  # they moved
    assert 1 < len(history[-1, 1].unique()) < SAMPLES

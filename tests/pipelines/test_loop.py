"""The loop without Ray, on the smallest of methods."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Batch, Clock, Method, Step
from methods.optim import Optimizer
from methods.views import View
from pipelines.errors import UserError
from pipelines.feed import ResidentFeed, Share
from pipelines.loop import Meter, NotFinite, Training, embed, train, usage


class Toy(Method):
    """Two turns: `up` pulls its parameter to the data's mean, `down` follows `up`'s every second step."""

    turns = ("up", "down")
    moments: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(nn.Flatten(), 48, (0.5,) * 3, (0.5,) * 3)
        self.up = nn.Parameter(torch.zeros(()))
        self.down = nn.Parameter(torch.zeros(()))
        self.register_buffer("moments", torch.zeros((), dtype=torch.int64))

    def parameters_of(self, turn: str) -> list[nn.Parameter]:
        return [self.up if turn == "up" else self.down]

    def turns_at(self, clock: Clock) -> tuple[str, ...]:
        return self.turns if clock.step % 2 else ("up",)

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        target = batch["image"].float().mean() / 255 if turn == "up" else self.up.detach()
        own, other = (self.up, self.down) if turn == "up" else (self.down, self.up)
        assert own.requires_grad and not other.requires_grad
        return Step((own - target) ** 2, {f"{turn}.value": own.detach().clone()})

    def after_step(self, clock: Clock) -> None:
        self.moments += 1


def feed(batch_size: int = 8) -> ResidentFeed:
    images = torch.randint(0, 256, (37, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = {"image": View("image", 4)}
    return ResidentFeed(images, torch.arange(37), None, views, seed=0, share=Share(batch_size))


def toy(it: Training) -> Toy:
    assert isinstance(it.method, Toy)
    return it.method


def training(epochs: int = 3) -> Training:
    torch.manual_seed(0)
    method = Toy()
    spec = Optimizer(lr=0.1, scaling="none", weight_decay=0.0)
    return Training(method, method, {"up": spec, "down": spec}, 8, epochs, feed().steps, seed=0)


def test_turns_move_their_own_parameters_and_all_is_logged() -> None:
    it = training()
    lines: list[dict[str, float]] = []
    saved: list[bool] = []
    train(it, feed(), log_steps=2, on_log=lambda clock, values: lines.append(values), checkpoint=saved.append)
    assert it.step == 12 and int(toy(it).moments) == 12 and saved == [True] * 3
    assert {"loss.up", "loss.down", "up.value", "down.value", "lr.up", "lr.down", "images_per_second"} <= set(lines[0])
    assert toy(it).up.item() > 0 and toy(it).down.item() != 0
    assert len(lines) == 6 and all(0 <= line["waiting_for_data"] <= 1 for line in lines)


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_resume_at_any_step_is_exact(stop: int) -> None:
    whole = training()
    states = {}
    train(
        whole, feed(), checkpoint_steps=1, checkpoint=lambda end: states.update({whole.step: deepcopy(whole.state())})
    )
    again = training()
    again.load_state(states[stop])
    assert again.step == stop and not torch.equal(toy(again).up, toy(whole).up)
    train(again, feed())
    assert torch.equal(toy(again).up, toy(whole).up) and torch.equal(toy(again).down, toy(whole).down)


def test_stop_epoch_stops_within_the_schedule() -> None:
    it = training()
    train(it, feed(), stop_epoch=2)
    assert it.step == 8 and it.clock().total_steps == 12


def test_stops_where_an_epochs_end_says_so_after_its_checkpoint() -> None:
    it, saved = training(), list[int]()
    asked: list[int] = []

    def leaving() -> bool:
        """Also at that step: who stops for good does not leave for others to go on."""
        asked.append(it.step)
        return it.step == 2 * it.steps_per_epoch

    save: Callable[[bool], None] = lambda end: saved.append(it.step)  # noqa: E731
    train(it, feed(), on_epoch=lambda clock, batch: clock.epoch == 2, checkpoint=save, leaving=leaving)
    assert it.clock().epoch == 2 and saved == [it.steps_per_epoch, 2 * it.steps_per_epoch]
    assert asked == [it.steps_per_epoch]


@pytest.mark.parametrize(("at", "expected"), [(6, [(4, True), (6, False)]), (8, [(4, True), (8, False)])])
def test_leaves_with_a_checkpoint_where_it_is_asked_to(at: int, expected: list[tuple[int, bool]]) -> None:
    it, saved = training(), list[tuple[int, bool]]()
    train(it, feed(), log_steps=3, checkpoint=lambda end: saved.append((it.step, end)), leaving=lambda: it.step == at)
    assert it.step == at and saved == expected  # epochs of four, the end of which may be no checkpoint


def test_a_gpu_that_cannot_be_asked_has_no_curve_of_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        """As NVIDIA's library has it: of parts of a GPU, for instance."""

    def refused() -> int:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**21)
    monkeypatch.setattr(torch.cuda, "utilization", refused)
    assert usage() == {"gpu_memory_mib": 2.0}
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 40)
    assert usage() == {"gpu_memory_mib": 2.0, "gpu_utilization": 0.4}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_step_and_term(bad: float) -> None:
    it = training()
    forward = it.method.forward

    def broken(batch: Batch, clock: Clock, turn: str) -> Step:
        loss, log = forward(batch, clock, turn)
        return Step(loss, {**log, "relation": loss.new_tensor(bad if clock.step == 5 else 1.0)})

    it.method.forward = broken  # type: ignore[method-assign]
    saved: list[int] = []
    with pytest.raises(NotFinite, match="relation is not finite at step 5"):
        train(it, feed(), log_steps=100, checkpoint=lambda end: saved.append(it.step))
    assert saved == [4]  # the epoch before; the broken one is never saved


def test_other_checkpoints_are_refused_with_the_remedy() -> None:
    state = training().state()
    with pytest.raises(UserError, match=r"steps_per_epoch 9, this recipe 4: resume with the same recipe"):
        training().load_state({**state, "steps_per_epoch": 9})
    with pytest.raises(UserError, match="of another recipe"):
        training().load_state({**state, "method": {"other": torch.zeros(1)}})
    spec = Optimizer(lr=0.1)
    with pytest.raises(UserError, match=r"optimizers are given for model; the method's turns are up, down"):
        Training(Toy(), nn.Identity(), {"model": spec}, 8, 1, 4, seed=0)


def test_meter_means_over_steps_of_turns_that_move_now_and_then() -> None:
    meter = Meter()
    meter.add({"a": torch.tensor(1.0)}, 0)
    meter.add({"a": torch.tensor(3.0), "b": torch.tensor(5.0)}, 1)
    meter.add({"a": torch.tensor(5.0)}, 2)
    values = meter.read(8)
    assert values["a"] == 3.0 and values["b"] == 5.0


def test_meter_of_names_in_other_orders() -> None:
    """Means by name, and for each set of names one index, made once."""
    meter = Meter()
    logs = [{"a": 1.0, "b": 5.0}, {"b": 7.0}, {"b": 9.0, "a": 3.0}, {"b": 11.0}, {"c": 2.0, "b": 8.0}]
    made = []
    for step, log in enumerate(logs):
        meter.add({name: torch.tensor(value) for name, value in log.items()}, step)
        made.append(meter.places[tuple(log)])
    assert made[0] == slice(2) and made[1] is made[3]
    values = meter.read(8)
    assert (values["a"], values["b"], values["c"]) == (2.0, 8.0, 2.0)


def test_meter_tells_the_step_and_the_name_of_what_is_now_and_then() -> None:
    meter = Meter()
    for step, log in enumerate([{"a": 1.0, "b": 1.0}, {"b": 1.0}, {"b": math.nan}, {"b": math.inf, "a": 1.0}]):
        meter.add({name: torch.tensor(value) for name, value in log.items()}, step)
    with pytest.raises(NotFinite, match="b is not finite at step 2"):
        meter.read(8)


def test_before_epoch_gets_the_features_of_the_training_set() -> None:
    it = training(epochs=1)
    got: list[tuple[Tensor, Tensor]] = []
    it.method.before_epoch = lambda clock, features: got.append(features())  # type: ignore[method-assign]
    train(it, feed())
    features, index = got[0]
    assert features.shape == (32, 48) and sorted(index.tolist()) == sorted(set(index.tolist()))


def embedded(rank: int, folder: str) -> None:
    """Each rank's batch norm has seen other data: rank 0's mean is 0, rank 1's 5."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    method = Toy()
    norm = nn.BatchNorm1d(48, affine=False)
    norm.running_mean = torch.full((48,), 5.0 * rank)
    method.backbone = Backbone(nn.Sequential(nn.Flatten(), norm), 48, (0.5,) * 3, (0.5,) * 3)
    images = torch.arange(8 * 48, dtype=torch.uint8).view(8, 3, 4, 4)
    feed = ResidentFeed(
        images, torch.arange(8), None, {"image": View("image", 4, crop=0.0, flip=0.0)}, seed=0, share=Share(4, rank, 2)
    )
    torch.save(embed(method, feed, 0), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_features_of_all_ranks_are_of_one_network(tmp_path: Path) -> None:
    """As after a restart, when every rank has the running statistics of the checkpoint, rank 0's."""
    mp.spawn(embedded, args=(str(tmp_path),), nprocs=2)
    (features, index), other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(features, other[0]) and torch.equal(index, other[1])
    images = torch.arange(8 * 48, dtype=torch.uint8).view(8, 3, 4, 4)
    network = Backbone(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48, affine=False)), 48, (0.5,) * 3, (0.5,) * 3).eval()
    torch.testing.assert_close(features, network(images)[index])
    assert sorted(index.tolist()) == list(range(8))

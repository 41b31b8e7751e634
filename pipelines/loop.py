"""The training loop: it knows no method by name and no Ray. One process a rank; a process group, where there is one,
has been set up around it.

Legend: B this rank's share of the global batch.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from methods import optim
from methods.method import Batch, Clock, Facts, Method
from methods.metrics.collapse import monitors
from methods.parts import evaluating, gather, rank, world_size
from pipelines.errors import UserError
from pipelines.feed import Feed


class NotFinite(UserError):
    """Found on all ranks at the same step."""


@dataclass
class Training:
    """A method on its way: all that a checkpoint holds, and the steps.

    Args:
        method: on its device already.
        wrapped: what is called: the method itself, or around it DistributedDataParallel.
        specs: optimizer and schedule of each turn; of others, which a variant of the method lacks, unused.
        batch_size: of all ranks together.
        precision: bf16 autocasts the forward pass.
    """

    method: Method
    wrapped: nn.Module
    specs: Mapping[str, optim.Optimizer]
    batch_size: int
    epochs: int
    steps_per_epoch: int
    seed: int
    precision: Literal["float32", "bf16"] = "float32"
    step: int = 0
    optimizers: dict[str, Optimizer] = field(init=False)
    rates: dict[str, float] = field(init=False, default_factory=dict)
    """Learning rates of the last step."""

    def __post_init__(self) -> None:
        if not set(self.method.turns) <= set(self.specs):
            raise UserError(
                f"optimizers are given for {', '.join(self.specs)}; "
                f"the method's turns are {', '.join(self.method.turns)}"
            )
        self.optimizers = {
            turn: optim.build(spec, self.method.parameters_of(turn), self.batch_size)
            for turn, spec in self.specs.items()
            if turn in self.method.turns
        }
        self._moving = {
            turn: [p for group in optimizer.param_groups for p in group["params"]]
            for turn, optimizer in self.optimizers.items()
        }

    @property
    def device(self) -> torch.device:
        return next(self.method.parameters()).device

    def clock(self) -> Clock:
        n = self.steps_per_epoch
        return Clock(self.step, n * self.epochs, n, self.step // n, self.seed)

    def one_step(self, batch: Batch) -> dict[str, Tensor]:
        """All turns on one batch. Returns `loss` (`loss.TURN` where there are several) and the method's log."""
        clock = self.clock()
        torch.manual_seed(abs(hash((self.seed, self.step, rank()))))  # for dropout in a backbone: a restart repeats it
        log: dict[str, Tensor] = {}
        for turn in self.method.turns_at(clock):
            optimizer = self.optimizers[turn]
            self.rates[turn] = optim.set_learning_rate(optimizer, self.specs[turn], self.batch_size, clock)
            if len(self.optimizers) > 1:
                for other, parameters in self._moving.items():
                    for p in parameters:
                        p.requires_grad_(other == turn)
            autocast = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
            with autocast:
                loss, extras = self.wrapped(batch, clock, turn)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            log |= {"loss" if len(self.optimizers) == 1 else f"loss.{turn}": loss.detach(), **extras}
        self.method.after_step(clock)
        self.step += 1
        return log

    def state(self) -> dict[str, Any]:
        """All that resumes this training. Draws are functions of the clock: no generator needs to be kept."""
        return {
            "method": self.method.state_dict(),
            "optimizers": {turn: optimizer.state_dict() for turn, optimizer in self.optimizers.items()},
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises UserError where the checkpoint is of another method, size or number of samples."""
        for name in ("steps_per_epoch", "batch_size", "seed"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the checkpoint has {name} {state[name]}, this recipe {getattr(self, name)}: "
                    "resume with the same recipe and data, or give another --run.name"
                )
        try:
            self.method.load_state_dict(state["method"])
            for turn, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][turn])
        except (RuntimeError, KeyError, ValueError) as error:
            first = str(error).strip().splitlines()
            raise UserError(
                f"the checkpoint is of another recipe ({' '.join(line.strip() for line in first[:2])}): "
                "resume with the recipe that began it, or give another --run.name"
            ) from error
        self.step = state["step"]


class Meter:
    """Sums of logged scalars on the device, and the first step at which each was not finite: no sync until read."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.places: dict[tuple[str, ...], slice | Tensor] = {}
        self.sums = self.counts = self.broken = torch.zeros(0)
        self.steps = 0
        self.seconds = time.perf_counter()
        self.waited = 0.0

    def add(self, log: Mapping[str, Tensor], step: int) -> None:
        values = torch.stack([value.float() for value in log.values()])
        names = tuple(log)
        if names not in self.places:  # the first step, or turns that move now and then
            new = [name for name in names if name not in self.names]
            self.names += new
            zeros = values.new_zeros(len(new))
            self.sums, self.counts = (torch.cat([old.to(zeros), zeros]) for old in (self.sums, self.counts))
            self.broken = torch.cat([self.broken.to(zeros), zeros + math.inf])
            index = [self.names.index(name) for name in names]
            first = index == list(range(len(index)))  # of all names: then nothing goes to the device
            self.places[names] = slice(len(index)) if first else torch.tensor(index, device=values.device)
        places = self.places[names]
        self.sums[places] += values
        self.counts[places] += 1
        self.broken[places] = self.broken[places].minimum(torch.where(values.isfinite(), math.inf, float(step)))
        self.steps += 1

    def read(self, batch_size: int) -> dict[str, float]:
        """Means over the steps and over all ranks, with images/s: in all, and if no step waited for data. A meter is
        read once.

        Raises:
            NotFinite: with the step and the term, on all ranks alike.
        """
        if world_size() > 1:
            dist.all_reduce(self.sums)
            dist.all_reduce(self.counts)
            dist.all_reduce(self.broken, op=dist.ReduceOp.MIN)
        means, broken = (self.sums / self.counts).tolist(), self.broken.tolist()
        for name, at in sorted(zip(self.names, broken, strict=True), key=lambda pair: pair[1]):
            if math.isfinite(at):
                raise NotFinite(f"{name} is not finite at step {int(at)}")
        seconds = time.perf_counter() - self.seconds
        out = dict(zip(self.names, means, strict=True))
        out["images_per_second"] = self.steps * batch_size / seconds
        out["step_images_per_second"] = self.steps * batch_size / max(seconds - self.waited, 1e-9)
        out["waiting_for_data"] = self.waited / seconds
        return out


def usage() -> dict[str, float]:
    """Peak of the GPU since the start, or this process's resident memory, in MiB; and the share of the last moments in
    which the GPU had work, where NVIDIA's library tells."""
    if torch.cuda.is_available():
        peak = {"gpu_memory_mib": torch.cuda.max_memory_allocated() / 2**20}
        try:
            return peak | {"gpu_utilization": torch.cuda.utilization() / 100}
        except Exception:  # of NVIDIA's library, whose errors have no class in common with others
            return peak
    return {"memory_mib": psutil.Process().memory_info().rss / 2**20}


def train(
    training: Training,
    feed: Feed,
    *,
    log_steps: int = 20,
    checkpoint_steps: int = 0,
    stop_epoch: int = 0,
    on_log: Callable[[Clock, dict[str, float]], None] = lambda clock, values: None,
    on_epoch: Callable[[Clock, Batch], bool] = lambda clock, batch: False,
    on_first: Callable[[Batch], None] = lambda batch: None,
    checkpoint: Callable[[bool], None] = lambda end_of_epoch: None,
    leaving: Callable[[], bool] = lambda: False,
    features: Callable[[], tuple[Tensor, Tensor]] | None = None,
) -> None:
    """From where `training` stands to its last epoch.

    Args:
        log_steps: steps between two readings of the meter (each is one sync of host and device, and of the ranks).
        stop_epoch: if above 0, stop there, before the schedule's end.
        on_log: gets the clock of the last step done and the means since the reading before.
        on_epoch: gets the clock after the epoch's last step, and that step's batch. Where it says True, on any rank,
            all stop there.
        on_first: gets the first batch.
        checkpoint: called on all ranks, once the steps before are known to be finite: at the end of each epoch (True),
            and each `checkpoint_steps` and before leaving (False).
        leaving: asked after each reading. Where it says True, on any rank, all stop there.
        features: handed to the method's `before_epoch`.

    Raises:
        NotFinite: a loss or a logged term became NaN or infinite.
    """
    method = training.method
    method.train()
    first = True
    for epoch in range(training.step // training.steps_per_epoch, min(stop_epoch or training.epochs, training.epochs)):
        start = training.step - epoch * training.steps_per_epoch
        if start == 0:
            method.before_epoch(training.clock(), features or partial(embed, method, feed, epoch))
        meter = Meter()
        for batch, waited in timed(feed.batches(epoch, start)):
            if first:
                on_first(batch)
                first = False
            clock = training.clock()
            meter.add(training.one_step(batch), clock.step)
            meter.waited += waited
            end = training.step % training.steps_per_epoch == 0
            save = end or (checkpoint_steps and training.step % checkpoint_steps == 0)
            if save or training.step % log_steps == 0:
                values, meter = meter.read(training.batch_size), Meter()
                several = len(training.optimizers) > 1
                rates = {f"lr.{turn}" if several else "lr": rate for turn, rate in training.rates.items()}
                on_log(clock, values | rates | usage())
                stop = end and on_epoch(training.clock(), batch)
                leave = on_any_rank(not stop and leaving(), training.device)
                if save or leave:
                    checkpoint(end and not leave)
                if leave or (end and on_any_rank(stop, training.device)):
                    return


def largest_of_ranks(number: int, device: torch.device) -> int:
    if world_size() == 1:
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def on_any_rank(said: bool, device: torch.device) -> bool:
    return bool(largest_of_ranks(int(said), device))


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that it was waited for."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - start


@torch.no_grad()
def embed(method: Method, feed: Feed, epoch: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) of the epoch's first views, and their index (N,), of all ranks in rank order. Running statistics
    of batch norm, which may differ between ranks, become rank 0's, as a checkpoint has them."""
    features, index = [], []
    if world_size() > 1:
        for buffer in method.backbone.buffers():
            dist.broadcast(buffer, 0)
    with evaluating(method.backbone):
        for batch in feed.batches(epoch):
            name = next(n for n, column in batch.items() if column.dim() >= 4)
            features.append(gather(method.backbone(batch[name])))
            index.append(gather(batch["index"]))
    return torch.cat(features), torch.cat(index)


@torch.no_grad()
def collapse(method: Method, facts: Facts, batch: Batch, most: int = 512) -> dict[str, float]:
    """The collapse monitors of the backbone in eval mode, on the batch's first two views; of one: no alignment."""
    backbone = method.backbone
    seen = [batch[name][:most] for name in list(facts.views)[:2]]
    with evaluating(backbone):
        pair = [backbone(x[:, : method.frames(x.shape[1])] if x.ndim == 5 else x).float() for x in seen]
    values = monitors(pair[0], pair[-1])
    return {name: float(value) for name, value in values.items() if len(pair) == 2 or name != "alignment"}

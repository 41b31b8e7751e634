"""Parts that methods hold: draws, turns, queue, teacher, heads, batch norm. Legend: B batch, D features, K queue."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

# ---------------------------------------------------------------------------------------------- draws


def _signed(value: int) -> int:
    return (value & (2**64 - 1)) - ((value & 2**63) << 1)


def _mix(bits: Tensor) -> Tensor:
    """The finalizer of splitmix64 (Steele, Lea, Flood, 2014) on int64, where products wrap around."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ ((bits >> shift) & (2 ** (64 - shift) - 1))) * _signed(factor)
    return bits ^ ((bits >> 31) & (2**33 - 1))


def draw(seed: int, moment: int, index: Tensor, name: str, width: int) -> Tensor:
    """Uniform random numbers as a pure function of their arguments: a counter-based generator.

    Integer arithmetic alone, so the same bits on CPU and GPU, in any process, order or batch.

    Args:
        seed: the recipe's seed.
        moment: the step, or for views the epoch.
        index: int64 (B,), each sample's position in the dataset.
        name: what is drawn; other names give independent numbers.
        width: numbers a sample.

    Returns:
        float32 (B, width) in [0, 1), multiples of 2^-24.
    """
    digest = hashlib.blake2b(f"{seed}/{moment}/{name}".encode(), digest_size=8).digest()
    start = _signed(int.from_bytes(digest, "little"))
    golden = _signed(0x9E3779B97F4A7C15)
    rows = _mix(index.long() * golden + start)  # (B,)
    columns = torch.arange(1, width + 1, device=index.device) * golden  # (width,)
    bits = _mix(rows[:, None] + columns)  # (B, width)
    return ((bits >> 40) & (2**24 - 1)).float() * 2.0**-24


def normal(seed: int, moment: int, index: Tensor, name: str, width: int) -> Tensor:
    """Standard normal numbers, float32 (B, width), from `draw` by the Box-Muller transform; |values| < 5.9."""
    u, angle = draw(seed, moment, index, name, 2 * width).chunk(2, dim=1)
    return (-2.0 * torch.log1p(-u)).sqrt() * torch.cos(2 * math.pi * angle)


# --------------------------------------------------------------------------------------------- turns


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def reverse_gradient(x: Tensor) -> Tensor:
    """x, whose gradient changes its sign on the way back (Ganin and Lempitsky, 2015): opposite goals in one turn."""
    return _Reversed.apply(x)


@contextmanager
def still(*networks: nn.Module) -> Iterator[None]:
    """Networks that a turn uses and does not train: gradients pass through, batch norm still takes the batch's
    statistics, but neither its running ones nor the vectors of spectral norm move."""
    norms = [m for n in networks for m in n.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    spectral = [m for n in networks for m in n.modules() if isinstance(m, _SpectralNorm)]
    flags: list[tuple[nn.Module, str]] = [(m, "track_running_stats") for m in norms if m.training]
    flags += [(m, "training") for m in spectral]
    before = [(module, name, getattr(module, name)) for module, name in flags]
    for module, name in flags:
        setattr(module, name, False)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In eval mode: with running statistics, of which none move and no rank waits for another."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def centred(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W), or float from 0 to 255 -> float in [-1, 1]."""
    return images / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8, rounded and clamped: what `centred` takes back."""
    return ((images.detach() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


# --------------------------------------------------------------------------------------------- ranks


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """(B, ...) of every rank -> (B * ranks, ...) in rank order, equal on all ranks, without gradient."""
    if world_size() == 1:
        return x.detach()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


# --------------------------------------------------------------------------------------------- queue


class Queue(nn.Module):
    """Ring buffer of the newest keys of all ranks: MoCo's dictionary (He et al., 2020), a memory buffer.

    Any size, any batch: the size need not be a multiple of the batch. It starts with random unit vectors,
    and is part of the checkpoint. `columns` names further integer or float values stored a key.

    Args:
        size: K, keys held.
        dim: D, width of a key.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, columns: Mapping[str, torch.dtype] | None = None) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue holds at least one key, got size {size}")
        self.columns = tuple(columns or ())
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        for name, dtype in (columns or {}).items():
            self.register_buffer(name, torch.full((size,), -1, dtype=dtype))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, columns: Mapping[str, Tensor] | None = None) -> None:
        """Stores keys (B, D) of all ranks, in rank order, over the oldest ones."""
        size = self.keys.shape[0]
        keys = gather(keys)
        start = max(len(keys) - size, 0)  # of more keys than the queue holds, the newest remain
        slots = (self.pointer + torch.arange(start, len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, slots, keys[start:].to(self.keys.dtype))
        for name in self.columns:
            values: Tensor = getattr(self, name)
            values.index_copy_(0, slots, gather((columns or {})[name])[start:].to(values.dtype))
        self.pointer.copy_((self.pointer + len(keys)) % size)


# ------------------------------------------------------------------------------------------- teacher


class Teacher(nn.Module):
    """Momentum copy of networks: theta_t <- m theta_t + (1 - m) theta_s (He et al., 2020, Eq. 2).

    It starts as an exact copy. Parameters alone follow; batch norm's running statistics are its own,
    as in the authors' code of MoCo, ReSSL and SCE. No gradient ever flows into it.

    `norm` is set by `set_batch_norm`: with `shuffle` each batch's samples are exchanged between ranks for
    the forward pass, so that batch statistics tell nothing of the own query (He et al., 2020, 3.3);
    with `split:N` one rank does the same with N random parts of its batch.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(nn.Sequential(*networks)).requires_grad_(False)
        self.norm = "global"

    @torch.no_grad()
    def forward(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """x (B, ...) -> (B, D). `order`: uniform numbers (B,), whose ranking is the shuffle of this step."""
        if self.norm == "global" or order is None:
            return self.network(x)
        everywhere = self.norm == "shuffle"
        images, order = (gather(x), gather(order)) if everywhere else (x, order)
        permutation = order.argsort(stable=True)
        share = permutation.chunk(world_size())[rank()] if everywhere else permutation
        out = self.network(images[share])
        out = gather(out) if everywhere else out
        restored = torch.empty_like(out).index_copy_(0, permutation, out)
        return restored[rank() * len(x) : (rank() + 1) * len(x)] if everywhere else restored

    @torch.no_grad()
    def follow(self, *networks: nn.Module, momentum: float) -> None:
        own: list[Tensor] = list(self.network.parameters())
        online: list[Tensor] = [p for network in networks for p in network.parameters()]
        torch._foreach_lerp_(own, online, 1.0 - momentum)


def momentum_at(step: int, total_steps: int, start: float, end: float) -> float:
    """Cosine from `start` at step 0 to `end` at the last step: 1 - (1-m0)(1+cos(pi k/K))/2 where end = 1."""
    progress = min(step / max(total_steps - 1, 1), 1.0)
    return end - (end - start) * (1.0 + math.cos(math.pi * progress)) / 2.0


# --------------------------------------------------------------------------------------------- heads


def mlp(
    widths: Sequence[int],
    *,
    hidden_norm: bool = True,
    last_norm: bool | None = False,
    last_bias: bool = True,
) -> nn.Sequential:
    """Fully connected layers widths[0] -> ... -> widths[-1] with ReLU between them.

    Args:
        widths: input, hidden and output widths.
        hidden_norm: batch norm after each hidden layer (which then has no bias).
        last_norm: batch norm after the last layer: False none, True affine, None without scale and shift.
        last_bias: whether the last layer has a bias; ignored where `last_norm` follows it.
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        norm = last_norm is not False if last else hidden_norm
        layers.append(nn.Linear(fan_in, fan_out, bias=not norm and (last_bias or not last)))
        if norm:
            layers.append(nn.BatchNorm1d(fan_out, affine=not last or last_norm is not None))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


# ---------------------------------------------------------------------------------------- batch norm


class SplitBatchNorm(nn.BatchNorm2d):
    """Batch norm over each of `splits` consecutive parts of the batch; the running statistics are their mean."""

    splits = 1

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected (B, C) or (B, C, H, W), got shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        n, c = input.shape[:2]
        if n % self.splits:
            raise ValueError(f"--batch-norm split:{self.splits} does not divide a worker's batch of {n}: change one")
        # parts become channels: (B, C, ...) -> (B / splits, splits * C, ...), each normalized on its own
        x = input.reshape(self.splits, n // self.splits, c, -1).permute(1, 0, 2, 3).flatten(1, 2)
        mean, var = (v.repeat(self.splits) for v in (self.running_mean, self.running_var))  # type: ignore[union-attr]
        scale, shift = ((v.repeat(self.splits) if v is not None else None) for v in (self.weight, self.bias))
        out = F.batch_norm(x, mean, var, scale, shift, True, self.momentum or 0.1, self.eps)
        with torch.no_grad():
            self.running_mean.copy_(mean.view(self.splits, c).mean(0))  # type: ignore[union-attr]
            self.running_var.copy_(var.view(self.splits, c).mean(0))  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return out.unflatten(1, (self.splits, c)).permute(1, 0, 2, 3).reshape(input.shape)


def _split(norm: nn.modules.batchnorm._BatchNorm, splits: int) -> SplitBatchNorm:
    new = SplitBatchNorm(norm.num_features, norm.eps, norm.momentum or 0.1, norm.affine)
    new.to(norm.running_mean).load_state_dict(norm.state_dict())  # device and dtype too
    new.splits = splits
    return new.train(norm.training).requires_grad_(norm.affine and norm.weight.requires_grad)


def _replace_norms(module: nn.Module, make: Callable[[nn.modules.batchnorm._BatchNorm], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, make(child))
        else:
            _replace_norms(child, make)


M = TypeVar("M", bound=nn.Module)


def set_batch_norm(method: M, mode: str) -> M:
    """Makes every batch norm of a method what the recipe's `--batch-norm` says; returns the method.

    - `global`: statistics of the global batch: SyncBN on several GPUs. SyncBN exists on CUDA alone: on the CPU,
      and with one worker, plain batch norm over the worker's share.
    - `shuffle`: plain batch norm; the teachers' inputs are exchanged between ranks (MoCo). With one worker
      there is nothing to exchange: `split:N` is its simulation there.
    - `split:N`: the teachers' batch norm in N random parts of the batch (SCE's code: N = 8 in the teacher alone).
    - `none`: no batch norm anywhere.

    Raises:
        ValueError: another mode, or a mode for teachers where the method has none.
    """
    teachers = [m for m in method.modules() if isinstance(m, Teacher)]
    kind, _, count = mode.partition(":")
    if mode == "none":
        _replace_norms(method, lambda norm: nn.Identity())
        return method
    if mode == "global":
        cuda = next(method.parameters()).is_cuda
        return nn.SyncBatchNorm.convert_sync_batchnorm(method) if cuda and world_size() > 1 else method
    if mode != "shuffle" and not (kind == "split" and count.isdigit() and int(count) > 0):
        raise ValueError(f"--batch-norm {mode}: choose global, shuffle, split:N (N parts, as split:8) or none")
    if not teachers:
        raise ValueError(f"--batch-norm {mode} is for methods with a teacher, and this one has none: choose global")
    for teacher in teachers:
        teacher.norm = kind
        if kind == "split":
            _replace_norms(teacher, partial(_split, splits=int(count)))
    return method

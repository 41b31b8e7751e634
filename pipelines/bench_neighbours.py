"""`bench neighbours`: the search for neighbours by which `rcl` finds its first clusters, methods.clusters.neighbours.

Recall beside exact search, and time and peak memory by the number of features, each of a fresh process. The features
are normalized ones around random centres, with noise alike in all directions: within a group nothing tells who is near,
which is harder to search than what a network learns, whose features lie on something of fewer dimensions.

Legend: N features, D their width, k neighbours kept.
"""

import dataclasses
import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from typing import Any, Literal

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.clusters import CHUNK, neighbours
from pipelines.bench import machine, peak_resident

IMAGENET = 1_281_167
"""Training images of ImageNet."""


@dataclass(frozen=True)
class BenchNeighbours:
    """Recall, seconds and MiB of the search for neighbours by inverted lists, and what 1.28 million would take."""

    sizes: tuple[int, ...] = (50_000, 1_000_000)
    """Numbers of features that are timed."""
    recall: int = 50_000
    """Features on which recall is measured, all of them asking. 0: it is not."""
    dim: int = 128
    """D. Backbones have more, ResNet-50 2048: products take as much more time, features as much more memory."""
    cells: int | None = None
    """k-means cells. None: the square root of N, as in `rcl`."""
    probes: int = 16
    """Cells that a feature asks."""
    k: int = 64
    """Neighbours kept a feature, at most."""
    radius: float | None = None
    """Euclidean distance, up to 2, within which neighbours are. None: the k nearest at any distance."""
    groups: int = 1000
    """Centres of the features."""
    spread: float = 0.7
    """Length of the noise around a centre, whose length is 1."""
    rounds: int = 1
    """How often each size is timed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """On the CPU; 0: torch's own choice."""

    def __post_init__(self) -> None:
        least = {"dim": 1, "cells": 1, "probes": 1, "k": 1, "groups": 1, "rounds": 1, "recall": 0, "threads": 0}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise ValueError(f"{name} is at least {bound}, got {value}")
        if not self.sizes or min(self.sizes) <= self.k or 0 < self.recall <= self.k:
            raise ValueError(f"sizes and recall are above k = {self.k}, got {self.sizes} and {self.recall}")
        if (self.radius is not None and self.radius <= 0) or self.spread < 0:
            raise ValueError(f"radius is above 0 and spread at least 0, got {self.radius} and {self.spread}")

    @property
    def within(self) -> float:
        return math.inf if self.radius is None else self.radius

    def cells_of(self, count: int) -> int:
        return self.cells or math.isqrt(count)

    def place(self) -> str:
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device


def search(options: BenchNeighbours) -> dict[str, Any]:
    """Returns {"recall": ..., "sizes": {N: seconds, MiB, ...}, "extrapolated": ...}. Needs no Ray."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        sizes = dict(zip(options.sizes, processes.map(measured, options.sizes, repeat(options)), strict=True))
    return {
        "machine": machine(),
        **dataclasses.asdict(options),
        "device": options.place(),
        "recall": recall(options) if options.recall else None,
        "sizes": {str(count): figures for count, figures in sizes.items()},
        "extrapolated": extrapolated(sizes, options),
    }


def features(count: int, options: BenchNeighbours) -> Tensor:
    """(N, D), normalized, on the device; the same at each call."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(options.groups, options.dim, generator=generator), dim=1)
    x = torch.empty(count, options.dim)
    for part in x.split(2**16):  # so that the peak is not that of making them
        owner = torch.randint(options.groups, (len(part),), generator=generator)
        part.normal_(std=options.spread / math.sqrt(options.dim), generator=generator).add_(centres[owner])
        part.div_(part.norm(dim=1, keepdim=True))
    return x.to(options.place())


def prepare(options: BenchNeighbours) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured(count: int, options: BenchNeighbours) -> dict[str, Any]:
    """Seconds of a search, and by how much it raises the memory above that with the features alone, at its peak: on a
    GPU what torch allocated, else what is resident. For a fresh process."""
    prepare(options)
    x = features(count, options)
    on_gpu = x.is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    seconds, pairs = [], 0
    for _ in range(options.rounds):
        start = time.perf_counter()
        pairs = searched(x, options)[0].shape[1]
        wait()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_resident()
    return {
        "cells": options.cells_of(count),
        "seconds": round(statistics.median(seconds), 3),
        "peak_memory_mib": round(max(peak - before / 2**20, 0.0), 1),
        "features_mib": round(x.nbytes / 2**20, 1),
        "pairs_per_feature": round(pairs / count, 2),
        "measured": [round(value, 3) for value in seconds],
    }


def searched(x: Tensor, options: BenchNeighbours) -> tuple[Tensor, Tensor]:
    return neighbours(x, options.within, cells=options.cells_of(len(x)), probes=options.probes, most=options.k)


def recall(options: BenchNeighbours) -> dict[str, Any]:
    """Which share of each feature's nearest 1, 4, 16 and k neighbours (of those within the radius) is found."""
    prepare(options)
    x = features(options.recall, options)
    start = time.perf_counter()
    nearest, near = exact(x, options.k, options.within)
    wait()
    seconds = time.perf_counter() - start
    pairs, _ = searched(x, options)
    return {
        "samples": options.recall,
        "cells": options.cells_of(options.recall),
        "share_of_nearest": found(pairs, nearest, near),
        "exact_seconds": round(seconds, 3),
    }


def exact(x: Tensor, k: int, radius: float) -> tuple[Tensor, Tensor]:
    """Search by all similarities: (N, D) -> (the k nearest of each, the nearest first, int64 (N, k); whether they lie
    within the radius, bool (N, k))."""
    nearest, near = [], []
    for rows in torch.arange(len(x), device=x.device).split(max(CHUNK // len(x), 1)):
        similarity = x[rows] @ x.T
        similarity[torch.arange(len(rows), device=x.device), rows] = -torch.inf  # not itself
        top = similarity.topk(k, dim=1)
        nearest.append(top.indices)
        near.append((2.0 - 2.0 * top.values).clamp_min(0.0).sqrt() <= radius)
    return torch.cat(nearest), torch.cat(near)


def found(pairs: Tensor, nearest: Tensor, near: Tensor) -> dict[str, float | None]:
    """Share of the nearest neighbours, by how many of them, that `pairs` (2, P) has; None where nobody has any."""
    count, k = nearest.shape
    wanted = torch.arange(count, device=nearest.device)[:, None] * count + nearest
    hit = torch.isin(wanted, pairs[0] * count + pairs[1]) & near
    shares: dict[str, float | None] = {}
    for first in sorted({n for n in (1, 4, 16, k) if n <= k}):
        total = int(near[:, :first].sum())
        shares[str(first)] = round(int(hit[:, :first].sum()) / total, 4) if total else None
    return shares


def extrapolated(sizes: dict[int, dict[str, Any]], options: BenchNeighbours) -> dict[str, Any]:
    """What all of ImageNet would take: not measured, but from the largest size that was. Similarities are
    N * N * probes / cells: N^1.5 where cells are the square root of N. Memory is that of N * k pairs; what doesn't grow
    with N, as blocks of similarities, is taken to, which is too much rather than too little."""
    largest = max(sizes)
    ratio, power = IMAGENET / largest, 1.5 if options.cells is None else 2.0
    return {
        "samples": IMAGENET,
        "measured": False,
        "how": f"from {largest}: seconds as N^{power:g}, peak memory as N; the same width {options.dim}",
        "seconds": round(sizes[largest]["seconds"] * ratio**power, 1),
        "peak_memory_mib": round(sizes[largest]["peak_memory_mib"] * ratio, 1),
        "features_mib": round(sizes[largest]["features_mib"] * ratio, 1),
    }

"""Features of a whole dataset: Ray Data decodes on CPUs, `Embed` maps batches on CPUs or GPUs.

A video's features are the mean of those of clips that lie evenly over it.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from methods.backbones import Backbone, channels_last
from pipelines.errors import UserError
from pipelines.feed import Decode, Share, Stage, blocks_of, epoch_plan, piecewise
from pipelines.sources import NOUNS, Bad, Data, Source, check_bad, selected

PIXEL_BYTES = 2 * 2**30  # raw pixels beyond this are taken of images scaled down to 32 px
CLIP_PIXELS = 16  # those of clips always of frames scaled down to this
VIDEOS_OF_A_TASK = 8
CLIPS_AT_ONCE = 16


@dataclass(frozen=True)
class Features:
    """Rows in the order of their index, on the CPU."""

    index: Tensor
    """int64 (N,)."""
    label: Tensor
    """int64 (N,), -1 where there is none."""
    of: dict[str, Tensor]
    """A network's name -> float32 (N, D); `raw_pixels` is the channel-normalized image, flattened."""


@dataclass(frozen=True)
class Embed:
    """A Ray Data stage for `map_batches`: decoded images in, the features of each network out; of several clips of a
    video their mean.

    A task, not an actor: Ray keeps its processes, and each loads the networks once.
    """

    networks: Any
    """A reference to backbones by name."""
    crop: int
    """Pixels of the central square that a network sees."""
    pixels: int
    """Pixels of the square whose values are `raw_pixels`; 0 for none."""
    device: str

    @torch.no_grad()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        networks = loaded(self.networks, self.device)
        images = central(torch.from_numpy(np.array(batch.pop("image"))), self.crop)
        clips = images.shape[:2] if images.ndim == 6 else None  # of videos (n, K, T, C, S, S)

        def mapped(function: Callable[[Tensor], Tensor]) -> np.ndarray:
            if clips is None:
                return function(images.to(self.device)).float().cpu().numpy()
            parts = [function(some.to(self.device)).float() for some in images.flatten(0, 1).split(CLIPS_AT_ONCE)]
            return torch.cat(parts).unflatten(0, clips).mean(1).cpu().numpy()

        with torch.autocast("cuda", torch.bfloat16) if self.device == "cuda" else nullcontext():
            for name, network in networks.items():
                batch[name] = mapped(network)
        if self.pixels:
            network = next(iter(networks.values()))
            batch["raw_pixels"] = mapped(lambda some: raw_pixels(some, network.mean, network.std, self.pixels))
        return batch


@lru_cache(maxsize=1)
def loaded(networks: Any, device: str) -> Mapping[str, Backbone]:
    """The networks behind a reference, frozen and in eval mode, once a process."""
    import ray

    return {
        name: channels_last(network.eval().requires_grad_(False).to(device))
        for name, network in ray.get(networks).items()
    }


def central(images: Tensor, size: int) -> Tensor:
    """(..., H, W) -> the central (..., size, size)."""
    top, left = ((pixels - size) // 2 for pixels in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def raw_pixels(images: Tensor, mean: Tensor, std: Tensor, size: int) -> Tensor:
    """uint8 (B, C, H, W) -> float32 (B, C * size * size), channel-normalized; clips (B, T, C, H, W) -> T times that."""
    pixels = (images.float() - mean) / std
    if size != pixels.shape[-1]:
        pixels = F.interpolate(pixels.flatten(0, -4), size=(size, size), mode="area")
    return pixels.reshape(len(images), -1)


def extract(
    source: Source,
    data: Data,
    networks: Mapping[str, Backbone],
    *,
    limit: int | None,
    crop: int,
    stage: Stage | None = None,
    what: str,
    resources: Mapping[str, float],
    device: str,
    gpus: float = 1.0,
    raw: bool = True,
) -> Features:
    """Features of each network, and raw pixels, in one pass over (`limit` evenly spaced rows of) a source.

    `stage` decodes; None: images, whole.

    Raises:
        UserError: more broken rows than `data.max_bad` allows, or no row left.
    """
    import ray

    wanted = selected(source, limit)
    pieces = epoch_plan(source, wanted, Share(1), seed=0, epoch=0)
    cpus = max(int(resources.get("CPU", 1)), 1)
    videos = source.media == "video"
    fits = len(wanted) * len(data.mean) * crop**2 * 4 <= PIXEL_BYTES
    pixels = (min(crop, CLIP_PIXELS) if videos else crop if fits else min(crop, 32)) if raw else 0
    stage = stage or Decode(source, data.size, keep=True)
    decoded = piecewise(pieces, stage, task_cpus=min(1.0, cpus / 2), most=VIDEOS_OF_A_TASK if videos else 256)
    embed = Embed(ray.put(dict(networks)), crop, pixels, device)
    embedded = decoded.map_batches(
        embed, batch_size=None, num_cpus=min(1.0, cpus / 2), num_gpus=gpus if device == "cuda" else None
    )
    names = [*networks, *(["raw_pixels"] if pixels else [])]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("index", "label", *names)}
    bad: list[Bad] = []
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"features of {what}", total=len(wanted))
        for block in blocks_of(embedded):
            good = block["bad"] == ""
            bad += Decode.broken(block)
            check_bad(bad, len(wanted), data.max_bad)
            for name, kept in parts.items():
                kept.append(np.array(block[name])[good])
            progress.advance(bar, len(good))
    columns = {name: np.concatenate(kept) for name, kept in parts.items()}
    if not len(columns["index"]):
        raise UserError(f"{what} has no usable {NOUNS[source.media]}")
    order = columns["index"].argsort()
    tensors = {name: torch.from_numpy(column[order]) for name, column in columns.items()}
    return Features(tensors["index"], tensors["label"], {name: tensors[name] for name in names})

"""Where a run's time went, of its own metrics; and what to change."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.place import Place

MUCH = 0.3
"""Share of the time from which something is said of it."""
SHORT = 300.0
"""Seconds. The start of a shorter run may take much of it."""


@dataclass(frozen=True)
class Spent:
    """Seconds."""

    total: float
    stepping: float
    waiting: float
    """Rank 0's, for the next batch; with views that are made on the device, the time that making them takes too."""
    samples: int

    @property
    def rest(self) -> float:
        """Starting, what happens between epochs, checkpoints, and what was done twice after a fault."""
        return max(self.total - self.stepping - self.waiting, 0.0)


def spent(lines: Iterable[Mapping[str, Any]], since: int, batch_size: int, total: float) -> Spent:
    """Of the lines of metrics.jsonl behind step `since`, and the seconds that all took."""
    stepping = waiting = 0.0
    last = since
    for line in lines:
        if "images_per_second" not in line or line["step"] <= last:
            continue
        seconds = (line["step"] - last) * batch_size / line["images_per_second"]
        waiting += seconds * line["waiting_for_data"]
        stepping += seconds * (1 - line["waiting_for_data"])
        last = line["step"]
    return Spent(total, stepping, waiting, (last - since) * batch_size)


def told(it: Spent, place: Place, noun: str) -> list[str]:
    """A line, and another where something takes much of the time; none of a run that made no step."""
    if not it.samples:
        return []
    minutes, seconds = divmod(round(it.total), 60)
    shares = [f"{100 * part / it.total:.0f}%" for part in (it.stepping, it.waiting, it.rest)]
    lines = [
        f"{minutes} min {seconds} s: {shares[0]} in steps, {shares[1]} waiting for data, {shares[2]} for the start, "
        f"monitors and checkpoints; {it.samples / it.total:,.0f} {noun}/s in all"
    ]
    if it.waiting > MUCH * it.total:
        if place.feed == "resident":
            remedy = "views are made by the training processes: give them more --run.threads, or --run.feed stream"
        elif place.views_on == "device":
            remedy = "decoding is the limit: add CPUs for the data stages, or lower --run.cpus, a worker's own"
        elif noun == "images":
            remedy = "add CPUs for the data stages, lower --run.cpus, a worker's own, or give --run.views-on device"
        else:
            remedy = "add CPUs for the data stages, or decode once for all: python -m pipelines data frames"
        lines.append(f"data is the limit: {remedy}")
    elif it.rest > MUCH * it.total and it.total > SHORT:
        lines.append("much is not training: longer epochs, or fewer checkpoints (--run.checkpoint-epochs)")
    return lines

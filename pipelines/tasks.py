"""What a method says of its own task on test data, with intervals, and beside what the length alone would tell; its
pictures; and how well it does by the time between two images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from methods.method import Answers, Clock, Method
from methods.metrics.groups import balanced_interval, chance_by_length
from methods.takes import PARAMETERS, TakeView
from pipelines import labels
from pipelines.errors import UserError
from pipelines.feed import Piece, Views, add_views, inspection_of, stage_of
from pipelines.pictures import Result, grid, png, spaced_of
from pipelines.sources import NOUNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.evaluate import Ready

AT_ONCE = {"image": 256, "video": 8, "take": 64}  # samples


@dataclass(frozen=True)
class Task:
    """Of the protocol `task`: the method's own task on test data, in the run's views."""

    draws: int = 1
    """How often each sample is drawn anew; for intervals the draws of one belong together."""
    level: float = 0.95
    """Of the intervals: a share."""

    def __post_init__(self) -> None:
        if self.draws < 1 or not 0 < self.level < 1:
            raise ValueError(f"task.draws is at least 1 and task.level in (0, 1), got {self.draws} and {self.level}")


def batches(
    ready: "Ready", views: Views, draws: int = 1, index: Tensor | None = None
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The test data's batches of `views`, `draws` times, each with the number of its draw; broken samples are left out.
    `index`: of these samples alone, int64, ascending."""
    data, seed, source = ready.options.data, ready.options.seed, ready.source("test")
    index = ready.wanted("test") if index is None else index
    for epoch in range(draws):
        if data.media == "image":
            for rows, images in ready.read("test", index, most=AT_ONCE["image"]):
                yield epoch, add_views({"image": images, "index": rows}, views, seed, epoch)
            continue
        look, make = inspection_of(source, data, False, views), stage_of(source, data, views, seed, epoch)
        for number, offsets in ready.runs("test", index, most=AT_ONCE[data.media]):
            found = look([Piece(number, offsets)])
            good = found["index"][found["bad"] == ""] - source.groups[number].first
            if len(good):
                made = make([Piece(number, good)])
                yield epoch, {name: torch.from_numpy(column) for name, column in made.items()}


def own_task(ready: "Ready", method: Method, clock: Clock, views: Views) -> dict[str, Any]:
    """Figures of `Method.task`, means over the samples; and of `Method.answers` balanced accuracies."""
    figures: dict[str, Tensor] = {}
    said: dict[str, list[Answers]] = {}
    index, length, count = [], [], 0
    chosen = ready.options.task
    with torch.no_grad():
        for number, batch in batches(ready, views, chosen.draws):
            moment = replace(clock, epoch=clock.epoch + number)  # what the method draws differs too
            for name, mean in method.task(batch, moment).items():
                figures[name] = figures.get(name, 0) + len(batch["index"]) * mean.double()
            for name, answers in method.answers(batch, moment).items():
                said.setdefault(name, []).append(answers)
            index.append(batch["index"])
            length.append(batch.get("length", torch.zeros_like(batch["index"])))
            count += len(batch["index"])
    if not figures and not said:
        name = type(method).__module__.rpartition(".")[2]
        raise UserError(f"{name} has no figures of its own task: choose other protocols")
    out: dict[str, Any] = {name: (total / count).tolist() for name, total in figures.items()}
    of, frames = torch.cat(index), torch.cat(length)
    if ready.options.data.media == "take":  # whose moments are not independent
        of = torch.bucketize(of, torch.tensor([group.first for group in ready.source("test").groups]), right=True)
    for name, parts in said.items():
        out[f"{name}_balanced"] = balanced(Answers.joined(parts), of, frames, chosen.level)
    return {NOUNS[ready.options.data.media]: count, **out}


@torch.no_grad()
def run_generalization(ready: "Ready", of: str) -> Result:
    """A classifier's accuracy on the labels that it learned, on test data, and the gap between both; where the labels
    were noisy, that on the true ones too. Of whole images, without augmentation."""
    it = ready.subject
    if it.method is None or it.recipe is None:
        raise UserError("an exported backbone has no classifier: give a run")
    ready.labelled()
    noisy = labels.read(it.folder)
    right = {}
    for part, features in (("train", ready.train), ("test", ready.test)):
        said = torch.cat([it.method.eval().classify(some).argmax(1) for some in features.of["trained"].split(4096)])
        learned = features.label
        if part == "train" and noisy is not None:
            right["train_true_accuracy"] = (said == learned).double().mean().item()
            index, known = features.index, len(noisy)
            if index.max() >= known or (noisy[index] < 0).any() or it.recipe.data.train != ready.options.data.train:
                raise UserError(
                    "generalization is of the labels that the run learned, and it did not see all of these images: "
                    "leave out --data.train and --data.limit"
                )
            learned = noisy[index]
        right[f"{part}_accuracy"] = (said == learned).double().mean().item()
    return {**right, "gap": right["train_accuracy"] - right["test_accuracy"]}, {}


def balanced(answers: Answers, group: Tensor, length: Tensor, level: float) -> dict[str, Any]:
    """Balanced accuracy, its interval over `group` (N,), and that of the best guess by `length` (N,), where there is
    one: a tree fitted to these very answers, its depth cross-validated, so a high bar rather than a low one."""
    k = answers.said.shape[1]
    group, length = group.repeat_interleave(k), length.repeat_interleave(k)
    predicted, target = answers.said.flatten(), answers.true.flatten()
    figure, low, high = balanced_interval(predicted, target, group, answers.classes, level=level)
    out = {"accuracy": figure, "low": low, "high": high, "chance": 1 / len(target.unique())}
    if length.any():
        out["chance_by_length"] = chance_by_length(length, target, length, target, answers.classes, train_group=group)
    return out


def rows_of(figures: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Figures as rows of a table: a name and its cells."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {inner}", [cell]) for inner, cell in value.items())
        elif isinstance(value, list):
            yield from ((name, row if isinstance(row, list) else [row]) for row in value)
        else:
            yield name, [value]


def run_pictures(ready: "Ready", of: str) -> Result:
    """The method's own pictures, of test images in the run's views."""
    it = ready.subject
    if it.method is None or it.recipe is None or it.clock is None:
        raise UserError("an exported backbone has no method to draw pictures: give a run")
    rows = spaced_of(ready.wanted("test"), ready.options.pictures.images)
    parts = [batch for _, batch in batches(ready, it.recipe.views_used, index=rows)]
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    with torch.no_grad():
        drawn = it.method.eval().pictures(batch, it.clock)
    if not drawn:
        raise UserError(f"{it.recipe.method_name} draws no pictures of its own")
    return {"images": len(batch["index"])}, {f"_{name}": grid(images, columns=8) for name, images in drawn.items()}


@dataclass(frozen=True)
class Gaps:
    """Of the protocol `gaps`: synchronization of pairs by the time between them (S. Jenni's thesis, Figure 6.4)."""

    frames: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Time gaps, in frames; those that no take is long enough for are left out. The figure's are not printed."""
    less: int = 7
    """The gap of a pair is drawn from this much below (Figure 6.4: from [gap - 7, gap + 8])..."""
    more: int = 8
    """... to this much above."""

    def __post_init__(self) -> None:
        if not self.frames or min(self.frames) - self.less < 1 or min(self.less, self.more) < 0:
            raise ValueError(f"gaps.frames less gaps.less are at least 1, and both and gaps.more 0 or more; got {self}")


def run_gaps(ready: "Ready", of: str) -> Result:
    """How often pairs are told to be synchronized or not, by the time between their frames; of runs of takes."""
    it = ready.subject
    views = {} if it.recipe is None else {n: v for n, v in it.recipe.views_used.items() if isinstance(v, TakeView)}
    if it.method is None or it.clock is None or "unsynchronized" not in views:
        raise UserError("gaps is for runs that learn synchronization from takes, as multiview's")
    if views["unsynchronized"].cameras == "one":  # a synchronized pair is one picture twice, without its augmentation
        raise UserError("gaps compares two cameras, and this run learned from one: choose task or pose")
    method, column = it.method.eval(), PARAMETERS.index("frame")
    figures: dict[str, Any] = {}
    chosen = ready.options.gaps
    for gap in chosen.frames:
        least, most = gap - chosen.less, gap + chosen.more
        exact = {n: replace(view.plain(), least_gap=least - 1, greatest_gap=most + 1) for n, view in views.items()}
        found = []
        for _, batch in batches(ready, exact):
            first, second = (batch[f"{name}.parameters"][:, column] for name in ("anchor", "unsynchronized"))
            apart = ((first - second).abs() >= least) & ((first - second).abs() <= most)
            answers = method.answers(batch, it.clock)["synchronized"]
            found.append((answers.said == answers.true)[apart].float())
        right = torch.cat(found)  # (N, 2): of the synchronized pair, and of the other
        if len(right):
            figures[str(gap)] = {"accuracy": right.mean().item(), "pairs": right.numel()}
    if not figures:
        raise UserError("no take is long enough for any of --gaps.frames")
    return figures, {"": png(gap_figure({int(gap): found["accuracy"] for gap, found in figures.items()}))}


def gap_figure(accuracy: Mapping[int, float]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([*accuracy], [100 * value for value in accuracy.values()], marker="o")
    axes.axhline(50, color="0.6", linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks([*accuracy], [str(gap) for gap in accuracy])
    axes.set_xlabel("frames between the two images")
    axes.set_ylabel("synchronized or not, accuracy in %")
    axes.set_ylim(top=100)
    return figure

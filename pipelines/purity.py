"""How pure the clusters of a run are: those of `rcl` (relative contrastive loss), by level, over checkpoints."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from methods.clusters import purity, sizes
from methods.parts import draw
from pipelines.errors import UserError
from pipelines.pictures import Result, png
from pipelines.storage import Checkpoints

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.evaluate import Ready

BANK = "bank.labels"
"""Of a method's state: int64 (H, N), the label of every sample at every level."""
STARTED = "bank.started"
"""Whether there are clusters."""


def run_clusters(ready: "Ready", of: str) -> Result:
    """Of each kept checkpoint (`--run.keep`) that has clusters, and level: the share of samples whose class is the
    most frequent of their cluster, the same with the classes in a random order (`chance`), normalized mutual
    information, and sizes."""
    it = ready.subject
    if it.method is None or BANK not in it.method.state_dict():
        raise UserError("clusters is for runs that keep labels of their samples, as rcl's")
    levels, rows = it.method.state_dict()[BANK].shape
    if levels == 1:
        raise UserError("this run has one level, the samples themselves: there are no clusters (--method.levels 3)")
    classes = classes_of(ready, rows)
    checkpoints = Checkpoints(it.folder / "checkpoints")
    moments: list[float] = []
    series: dict[str, list[list[float]]] = {}
    for step in checkpoints.steps():
        state = checkpoints.load(step)
        if not state["method"][STARTED]:  # every sample alone: pure, and of no meaning
            continue
        moments.append(state["step"] / state["steps_per_epoch"])
        for name, values in described(state["method"][BANK], classes).items():
            series.setdefault(name, []).append(values)
    if not moments:
        raise UserError("none of this run's checkpoints has clusters yet: they begin after --method.warmup-epochs")
    figures: dict[str, Any] = {"epochs": moments}
    for name, rows in series.items():
        for level in range(1, len(rows[0])):
            figures[f"{name}.{level + 1}"] = [row[level] for row in rows]
    return figures, {"": png(drawn(figures))}


def classes_of(ready: "Ready", rows: int) -> Tensor:
    """int64 (rows,), of the training data by index; -1 where the run did not see a sample."""
    source = ready.source("train")
    if source.classes is None or source.rows != rows:
        told = "no labels" if source.classes is None else f"{source.rows:,} rows and the run has {rows:,}"
        raise UserError(f"clusters needs labels of the run's own training data: {ready.options.data.train} has {told}")
    found = torch.full((rows,), -1)
    for number, offsets in ready.runs("train", ready.wanted("train"), most=4096):
        label = source.read(source.groups[number], offsets).label
        if label is not None:
            found[source.groups[number].first + torch.from_numpy(offsets)] = torch.from_numpy(np.array(label))
    broken = json.loads(ready.subject.folder.read("run.json"))["found"]["broken"]
    found[[bad["index"] for bad in broken]] = -1  # in the run each was alone, whatever its label
    return found


def described(labels: Tensor, classes: Tensor) -> Mapping[str, list[float]]:
    """Figures of labels (H, N), a value a level; samples whose class is -1 are left out."""
    seen = classes >= 0
    labels, classes = labels[:, seen], classes[seen]
    mixed = classes[draw(0, 0, torch.arange(len(classes)), "chance", 1)[:, 0].argsort(stable=True)]
    named = torch.stack([row.unique(return_inverse=True)[1] for row in labels])
    found = sizes(named)
    return {
        "purity": purity(named, classes).tolist(),
        "chance": purity(named, mixed).tolist(),
        "mutual_information": [normalized_mutual_info_score(classes.numpy(), row.numpy()) for row in named],
        "clusters": found[0].tolist(),
        "largest": found[1].tolist(),
        "alone": found[2].tolist(),
    }


def drawn(figures: Mapping[str, Sequence[float]]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = dict(zip(("purity", "mutual_information", "clusters"), figure.subplots(1, 3), strict=True))
    for name, axes in panels.items():
        for key, values in figures.items():
            kind, _, level = key.partition(".")
            if kind == name:
                [line] = axes.plot(figures["epochs"], values, marker=".", label=f"level {level}")
                if name == "purity":
                    axes.plot(figures["epochs"], figures[f"chance.{level}"], "--", color=line.get_color(), linewidth=1)
        axes.set_xlabel("epoch")
        axes.set_title(name.replace("_", " ") + (" (dashed: classes mixed)" if name == "purity" else ""), fontsize=9)
    panels["clusters"].set_yscale("log")
    panels["purity"].legend(fontsize=8)
    return figure

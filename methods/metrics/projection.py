"""t-SNE (van der Maaten & Hinton, 2008) of features, and a picture of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tsne(features: Tensor, *, perplexity: float = 30.0, seed: int = 0) -> Tensor:
    """Features (N, D) -> points float32 (N, 2) on the CPU; Euclidean distances, Barnes-Hut, started from PCA.

    Raises:
        ValueError: a perplexity not below N.
    """
    from sklearn.manifold import TSNE  # here: it takes seconds to import

    if perplexity >= len(features):
        raise ValueError(f"t-SNE of {len(features)} samples needs a perplexity below that, got {perplexity:g}")
    reducer = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return torch.from_numpy(reducer.fit_transform(features.detach().float().cpu().numpy())).float()


def scatter_figure(
    points: Tensor,
    labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> "Figure":
    """Points (N, 2), coloured by label int64 (N,) where there is one; up to 20 classes are named in a legend."""
    from matplotlib import colormaps  # here: it takes a second to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    x, y = points.cpu().T.numpy()
    if labels is None:
        axis.scatter(x, y, s=6, linewidths=0)
    else:
        numbers = labels.cpu()
        present = numbers.unique().tolist()
        colours = colormaps["tab10" if len(present) <= 10 else "tab20" if len(present) <= 20 else "turbo"]
        for position, label in enumerate(present):
            # tab10 and tab20 are lists of colours, turbo a range
            colour = colours(position if len(present) <= 20 else position / (len(present) - 1))
            own = (numbers == label).numpy()
            axis.scatter(
                x[own], y[own], s=6, linewidths=0, color=colour, label=class_names[label] if class_names else str(label)
            )
        if len(present) <= 20:
            axis.legend(markerscale=3, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.set(xticks=[], yticks=[], title=title)
    axis.set_aspect("equal", "datalim")
    return figure

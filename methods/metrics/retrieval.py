"""Nearest neighbours by cosine similarity, how often they are of the right class, and pictures of them.

Legend: Q queries, N gallery, D features, K neighbours; of clips T frames.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELLS = 2**24  # similarities held at once, whatever the sizes


def _nearest(similarity: Tensor, k: int) -> Tensor:
    """(Q, N) -> int64 (Q, k): columns by similarity, then by the lower index; topk alone leaves ties open."""
    values, index = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    index = index[:, :k]
    tied = (values[:, k - 1 : k] == values[:, k:]).any(1)  # rows where a tie straddles the k-th place
    index[tied] = similarity[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
    index = index.sort(1).values
    return index.gather(1, similarity.gather(1, index).argsort(dim=1, descending=True, stable=True))


@torch.no_grad()
def neighbours(queries: Tensor, gallery: Tensor, *, k: int, same: bool = False) -> tuple[Tensor, Tensor]:
    """The k nearest rows of the gallery to each query, by cosine of the features as they are (not centred).

    Of equal similarities the lower index comes first, on every device. Memory is bounded: queries go in chunks.

    Args:
        queries: (Q, D), any float type; computed in float32.
        gallery: (N, D), on the same device.
        k: neighbours a query, at most N.
        same: the queries are the gallery; a row is not its own neighbour, and k is at most N - 1.

    Returns:
        index int64 (Q, k) into the gallery and cosine float32 (Q, k), nearest first.

    Raises:
        ValueError: k out of range, other widths, or features that are not finite.
    """
    available = len(gallery) - same
    if not 1 <= k <= available:
        raise ValueError(f"k = {k} neighbours of {available} samples: choose k from 1 to {available}")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"features of widths {queries.shape[1]} and {gallery.shape[1]} cannot be compared")
    if not (queries.isfinite().all() and gallery.isfinite().all()):
        raise ValueError("the features hold values that are not finite")
    with torch.autocast(gallery.device.type, enabled=False):
        columns = F.normalize(gallery.float(), dim=1).T  # (D, N)
        index, similarity = [], []
        for start in range(0, len(queries), rows := max(_CELLS // len(gallery), 1)):
            chunk = F.normalize(queries[start : start + rows].float(), dim=1) @ columns  # (rows, N)
            if same:
                chunk.diagonal(start).fill_(-torch.inf)
            nearest = _nearest(chunk, k)  # (rows, k)
            index.append(nearest)
            similarity.append(chunk.gather(1, nearest))
    return torch.cat(index), torch.cat(similarity)


def standardized(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Both, (Q, D) and (N, D), less the gallery's mean and over its standard deviation, of each dimension."""
    spread, mean = torch.std_mean(gallery.float(), 0, correction=0)
    scale = torch.where(spread > 0, spread, 1.0)  # a constant dimension is 0 in all of the gallery
    return (queries.float() - mean) / scale, (gallery.float() - mean) / scale


@torch.no_grad()
def topk_retrieval(
    query_features: Tensor,
    query_labels: Tensor,
    gallery_features: Tensor,
    gallery_labels: Tensor,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
) -> dict[str, float]:
    """Shares of queries with at least one of the k nearest of their class (S. Jenni's thesis on self-supervised
    learning, section 5.3, "Nearest-Neighbor Evaluation", Table 5.4).

    Features are first normalized by the training set's statistics, of which the gallery consists: the mean and the
    standard deviation of each dimension. Then cosine, as of `neighbours`.

    Args:
        query_features: (Q, D), one a video: the mean over its clips, 10 in the thesis.
        query_labels: int64 (Q,).
        gallery_features: (N, D), on the same device, at least two.
        gallery_labels: int64 (N,).
        ks: each at least 1; those above N are left out.

    Returns:
        "top1", "top5" and so on, fractions, by k.

    Raises:
        ValueError: no k from 1 to N, one below 1, a label missing, or as of `neighbours`.
    """
    if len(query_features) != len(query_labels) or len(gallery_features) != len(gallery_labels):
        raise ValueError("retrieval needs one label for each sample")
    fitting = sorted(k for k in set(ks) if k <= len(gallery_features))
    if not len(query_features) or not fitting or fitting[0] < 1:
        raise ValueError(f"retrieval of k = {tuple(ks)} for {len(query_features)} queries of {len(gallery_features)}")
    index, _ = neighbours(*standardized(query_features, gallery_features), k=fitting[-1])  # (Q, k)
    right = gallery_labels[index] == query_labels[:, None]
    return {f"top{k}": right[:, :k].any(1).double().mean().item() for k in fitting}


def retrieval_figure(
    query_images: Tensor,
    neighbour_images: Tensor,
    similarity: Tensor,
    *,
    query_labels: Tensor | None = None,
    neighbour_labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    inches: float = 1.0,
) -> "Figure":
    """A row a query: the query, then its neighbours, each with its cosine below it.

    Where both labels are known, a neighbour's frame is green for the query's class and red for another.

    Args:
        query_images: uint8 (Q, C, H, W), C = 1 or 3.
        neighbour_images: uint8 (Q, K, C, H, W), nearest first.
        similarity: (Q, K).
        query_labels: int64 (Q,).
        neighbour_labels: int64 (Q, K).
        class_names: names by label, written above the images.
        inches: the longer side of an image.
    """
    from matplotlib.figure import Figure  # here: training never draws, and it takes a second to import
    from matplotlib.patches import Rectangle

    q, k = similarity.shape
    images = torch.cat([query_images[:, None], neighbour_images], 1).permute(0, 1, 3, 4, 2).cpu().numpy()
    height, width = (inches * side / max(images.shape[2:4]) for side in images.shape[2:4])
    across, down = width + 0.12, height + 0.36
    figure = Figure(figsize=(across * (k + 1), down * q), dpi=120)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, across * (k + 1)), ylim=(down * q, 0))  # one: many axes take seconds
    axis.set_axis_off()
    for row in range(q):
        for column in range(k + 1):
            left, top = across * column + 0.06, down * row + 0.18
            below, label, colour = "query", None if query_labels is None else int(query_labels[row]), None
            if column:
                below = f"{float(similarity[row, column - 1]):.3f}"
                right = label
                label = None if neighbour_labels is None else int(neighbour_labels[row, column - 1])
                if right is not None and label is not None:
                    colour = "tab:green" if label == right else "tab:red"
            name = "" if label is None else class_names[label] if class_names else str(label)
            place = (left, left + width, top + height, top)
            axis.imshow(images[row, column], cmap="gray", vmin=0, vmax=255, extent=place, aspect="auto")
            if colour:
                axis.add_patch(Rectangle((left, top), width, height, fill=False, linewidth=3, edgecolor=colour))
            axis.text(left + width / 2, top - 0.02, name, fontsize=7, ha="center", va="bottom")
            axis.text(left + width / 2, top + height + 0.02, below, fontsize=7, ha="center", va="top")
    axis.set(xlim=(0, across * (k + 1)), ylim=(down * q, 0))
    return figure


def clip_retrieval_figure(
    query_clips: Tensor,
    neighbour_clips: Tensor,
    similarity: Tensor,
    *,
    query_labels: Tensor | None = None,
    neighbour_labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    frames: int = 3,
) -> "Figure":
    """`retrieval_figure` of clips, each as some of its frames side by side, as in Figure 5.5 of S. Jenni's thesis.

    Args:
        query_clips: uint8 (Q, T, C, H, W), C = 1 or 3.
        neighbour_clips: uint8 (Q, K, T, C, H, W), nearest first.
        similarity: (Q, K).
        query_labels, neighbour_labels, class_names: as of `retrieval_figure`.
        frames: of each clip, at most T: evenly from its first to its last one; of 1 the middle one.

    Raises:
        ValueError: `frames` out of range.
    """
    length, width = query_clips.shape[1], query_clips.shape[-1]
    if not 1 <= frames <= length:
        raise ValueError(f"{frames} frames of clips of {length}: choose 1 to {length}")
    places = torch.linspace(0, length - 1, frames).round().long() if frames > 1 else torch.tensor([length // 2])

    def strips(clips: Tensor) -> Tensor:
        """(..., T, C, H, W) -> (..., C, H, W of the frames and what is white between them)."""
        gap = max(width // 28, 1)
        spaced = F.pad(clips[..., places.to(clips.device), :, :, :], (0, gap), value=255)
        return spaced.movedim(-4, -2).flatten(-2)[..., :-gap]

    return retrieval_figure(
        strips(query_clips),
        strips(neighbour_clips),
        similarity,
        query_labels=query_labels,
        neighbour_labels=neighbour_labels,
        class_names=class_names,
        inches=0.8 * frames,
    )

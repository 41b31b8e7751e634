"""Protocols that draw: of features (t-SNE, nearest neighbours) or of the run alone (filters, Grad-CAM, its own)."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.io import encode_png
from torchvision.utils import make_grid

from methods.metrics.projection import scatter_figure, tsne
from methods.metrics.retrieval import clip_retrieval_figure, neighbours, retrieval_figure, standardized, topk_retrieval
from methods.metrics.visual import active_pixels_figure, first_filters, grad_cam, guided_backpropagation, overlaid
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.evaluate import Ready

Result = tuple[dict[str, Any], dict[str, bytes]]
"""Figures, and PNGs by what follows the protocol's name in that of the file: nothing, where there is one."""


@dataclass(frozen=True)
class TSNE:
    samples: int = 2000
    """Test samples, evenly spaced."""
    perplexity: float = 30.0


@dataclass(frozen=True)
class Retrieval:
    queries: int = 8
    """Test images in the picture, evenly spaced."""
    k: int = 8
    """Neighbours from the training set."""


@dataclass(frozen=True)
class GradCAM:
    images: int = 8
    """Test images, evenly spaced."""


@dataclass(frozen=True)
class Pictures:
    images: int = 32
    """Test images, evenly spaced; the method takes as many of them as it likes."""
    clips: int = 4
    """Of `active_pixels`: test clips, evenly spaced."""


def run_tsne(ready: "Ready", of: str) -> Result:
    """Picture of the test features in two dimensions."""
    rows = spaced(len(ready.test.index), ready.options.tsne.samples)
    perplexity = min(ready.options.tsne.perplexity, (len(rows) - 1) / 3)
    points = tsne(ready.test.of[of][rows], perplexity=perplexity, seed=ready.options.seed)
    labels = ready.test.label[rows] if ready.classes is not None else None
    figure = scatter_figure(points, labels, ready.class_names, title=of.replace("_", " "))
    return {"samples": len(rows), "perplexity": perplexity}, {"": png(figure)}


def run_retrieval(ready: "Ready", of: str) -> Result:
    """Picture of test queries with their nearest training images; precision of all queries at k, of videos top-k."""
    options = ready.options.retrieval
    videos = ready.options.data.media == "video"
    features = ready.test.of[of], ready.train.of[of]
    index, similarity = neighbours(*(standardized(*features) if videos else features), k=options.k)  # (M, k)
    labelled = ready.classes is not None
    labels = ready.train.label[index]
    rows = spaced(len(index), options.queries)
    figure = (clip_retrieval_figure if videos else retrieval_figure)(
        ready.images("test", ready.test.index[rows]),
        torch.stack([ready.images("train", ready.train.index[index[row]]) for row in rows]),
        similarity[rows],
        query_labels=ready.test.label[rows] if labelled else None,
        neighbour_labels=labels[rows] if labelled else None,
        class_names=ready.class_names,
    )
    figures: dict[str, Any] = {"k": options.k}
    if labelled:
        figures["precision"] = (labels == ready.test.label[:, None]).double().mean().item()
    if labelled and videos:
        figures |= topk_retrieval(features[0], ready.test.label, features[1], ready.train.label)
    return figures, {"": png(figure)}


def run_filters(ready: "Ready", of: str) -> Result:
    """Picture of the first convolution's filters."""
    found = first_filters(ready.subject.backbone)
    zoom = max(32 // found.shape[-1], 1)
    pixels = found.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return {"filters": len(found)}, {"": grid(pixels, columns=16)}


def run_gradcam(ready: "Ready", of: str) -> Result:
    """Picture of where the last layer speaks for the method's score, on test images (Grad-CAM)."""
    it = ready.subject
    if it.method is None or not it.method.backbone.layers:
        raise UserError("gradcam needs a run whose backbone names its layers, as alexnet and the ResNets do")
    backbone = it.method.backbone
    name, path = list(backbone.layers.items())[-1]
    images = ready.images("test", spaced_of(ready.wanted("test"), ready.options.gradcam.images))
    heat = grad_cam(it.method.eval().score, backbone.network.get_submodule(path), images)
    pairs = torch.cat([images.expand(-1, 3, -1, -1), overlaid(images, heat)])
    return {"layer": name, "images": len(images)}, {"": grid(pairs, columns=len(images))}


def run_active_pixels(ready: "Ready", of: str) -> Result:
    """Picture of the pixels that speak for what the run says of test clips (guided backpropagation)."""
    it = ready.subject
    if it.method is None or it.random is None or ready.options.data.media != "video":
        raise UserError("active_pixels is for runs of videos")
    clips = ready.images("test", spaced_of(ready.wanted("test"), ready.options.pictures.clips))
    random, method = it.random.eval(), it.method.eval()
    maps = {
        "this run": guided_backpropagation(method, clips, method.score),
        "random init": guided_backpropagation(random, clips, lambda some: random(some).norm(dim=1)),
    }
    return {"clips": len(clips)}, {"": png(active_pixels_figure(clips, maps))}


def spaced(count: int, most: int) -> Tensor:
    """int64: `most` (or all) of range(count), evenly spaced."""
    most = min(most, count)
    return torch.arange(most) * count // most


def spaced_of(index: Tensor, most: int) -> Tensor:
    return index[spaced(len(index), most)]


def grid(images: Tensor, columns: int) -> bytes:
    """uint8 (N, 1 or 3, H, W) as one PNG."""
    return encode_png(make_grid(images.cpu(), nrow=columns, pad_value=255)).numpy().tobytes()


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

"""What FID and inception score are taken with: an extractor; torchvision's Inception v3 as one, fetched or of a file.

Legend: B images, K classes.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from torch import Tensor, nn
from torchvision import models

from methods.backbones import Backbone
from pipelines.errors import UserError

console = Console(stderr=True)

PART = 64  # images that an extractor takes at once: Inception's activations are megabytes an image
WEIGHTS = models.Inception_V3_Weights.IMAGENET1K_V1
INCEPTION = f"torchvision inception_v3 {WEIGHTS.name}"
"""How the name of the extractor begins that is near the papers'."""
WEIGHTS_HASH = WEIGHTS.url.rpartition("-")[2].removesuffix(".pth")  # torch's names end in the file's first digits
REMEDY = (
    "give --generative.extractor FILE with torchvision's inception_v3 weights, or --generative.extractor RUN, a run of "
    "supervised_cifar10 or another of the method supervised"
)


class Extractor(nn.Module):
    """uint8 (B, C, H, W) -> float32 (B, dim + K): features, then the probabilities of K classes.

    In float32 whatever the autocast around it, since a distance of moments is taken.

    Args:
        backbone: images, resized to `size`, -> features.
        classifier: features -> logits.
        size: pixels.
        name: for people; the first digits of `sha256`, of its weights, are added.
    """

    def __init__(self, backbone: Backbone, classifier: nn.Module, *, size: int, name: str) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        self.size, self.dim = size, backbone.dim
        self.sha256 = digest(self.state_dict())
        self.name = f"{name}, weights' sha256 {self.sha256[:8]}"

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self._part(part.float()) for part in images.split(PART)])

    def _part(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        features = self.backbone(images)
        return torch.cat([features, self.classifier(features).softmax(1)], 1)


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, but for batch norm's counters, which older files lack."""
    sha256 = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if not name.endswith("num_batches_tracked"):
            sha256.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode() + value.numpy().tobytes())
    return sha256.hexdigest()


def fetched() -> Path:
    """torchvision's weights in the cache of torch.hub, fetched where they are not there yet."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS.url.rpartition("/")[2]
    if not path.exists():
        try:
            with urlopen(Request(WEIGHTS.url, method="HEAD"), timeout=10):  # torch.hub itself would wait without end
                path.parent.mkdir(parents=True, exist_ok=True)
            console.print(f"fetching {WEIGHTS.url} to {path}")
            torch.hub.download_url_to_file(WEIGHTS.url, str(path), hash_prefix=WEIGHTS_HASH)
        except (OSError, HTTPException, RuntimeError) as error:
            raise UserError(f"Inception's weights are not at {path}, nor to be fetched ({error}): {REMEDY}") from error
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(WEIGHTS_HASH):
        raise UserError(f"{path} is broken, its SHA-256 does not begin with {WEIGHTS_HASH}: delete it, or {REMEDY}")
    return path


def inception(path: Path) -> Extractor:
    """torchvision's Inception v3 with the weights of a file; those of its second classifier may be absent."""
    content = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            weights = safetensors_load(content)
        else:
            weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--generative.extractor {path} holds no weights ({reason}): {REMEDY}") from error
    with torch.device("meta"):
        network = models.inception_v3(weights=None, aux_logits=False, transform_input=True, init_weights=False)
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    weights = weights if isinstance(weights, dict) else {}
    weights = {k: v for k, v in weights.items() if isinstance(v, Tensor) and not k.startswith("AuxLogits.")}
    found = {k: tuple(v.shape) for k, v in weights.items()}
    counters = {k for k in shapes if k.endswith("num_batches_tracked")}  # older files have none
    differing = [k for k in {**shapes, **found} if found.get(k) != shapes.get(k) and k not in counters - found.keys()]
    if differing:
        has, wanted = (of.get(differing[0], "absent") for of in (found, shapes))
        raise UserError(
            f"--generative.extractor {path} does not fit torchvision's inception_v3 in {len(differing)} tensors; the "
            f"first, {differing[0]}, is {has} there and {wanted} here: {REMEDY}"
        )
    network.load_state_dict(weights, assign=True)
    network.float()
    classifier, network.fc = network.fc, nn.Identity()
    official = hashlib.sha256(content).hexdigest().startswith(WEIGHTS_HASH)
    return Extractor(
        Backbone(network, 2048, WEIGHTS.transforms().mean, WEIGHTS.transforms().std),
        classifier,
        size=299,
        name=INCEPTION if official else f"torchvision inception_v3 of {path.name}",
    )

"""Data-dependent rescaling before fine-tuning (Krähenbühl, Doersch, Donahue and Darrell, 2016, arXiv 1511.06856), which
S. Jenni's thesis on self-supervised learning uses in its transfers (section 3.4.2).

What of the paper is here, both as pure functions of a network and a batch of calibration images:
- within a layer (Algorithm 1), for layers that are new: each output channel gets unit variance, and mean 0 where the
  layer has a bias (the paper's beta is 0 here). The weights that are there are scaled; none are drawn anew;
- between layers (Algorithm 2), for all that learn: each is scaled so that all weights change at the same rate, and the
  scale is undone further up. A layer's rate is the root mean square of its gradient over that of its weights, of one
  random linear function of each image's outputs, as in the authors' code; their damping is 1.
Its initializations by PCA and k-means are not here.

The second leaves the function as it is where it can be undone: for convolutions, linear layers, ReLU and pooling in a
chain, of which each is positively homogeneous. Local response norm is not: there the rates become equal too, while the
outputs change a little, and `Rescaled.change` says by how much. Shortcuts add what is scaled differently: such networks
are refused, unless batch norm follows each convolution.

Not in the paper (the authors' code refuses batch norm): a layer directly followed by batch norm is scaled together with
its running statistics, which undoes it at once, in any network. Such a scale sets the rate alone; those of the layers
before it are handed on.

Legend: B images, D outputs.
"""

import math
import statistics
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from methods.parts import normal

Affine = nn.Conv2d | nn.Conv3d | nn.Linear
BatchNorm = nn.modules.batchnorm._BatchNorm
EQUAL = 1.05
"""Rates are equal where the highest is below so many times the lowest."""
MOST = 0.25
"""Change of the outputs above which the function is no longer the one that was learned."""


class Rescaled(NamedTuple):
    network: nn.Module
    """A copy, in eval mode."""
    before: dict[str, float]
    """Each layer that learns, by its name -> the rate at which it would have changed, above 0."""
    after: dict[str, float]
    change: float
    """How far the outputs are from those before the scaling between layers, beyond one factor: |z' - f z| / |z'|."""


@dataclass
class Layer:
    name: str
    module: Affine
    learns: bool
    norm: BatchNorm | None = None
    """The batch norm that takes its output."""


def rescale(
    network: nn.Module, images: Tensor, *, within: str | None = None, iterations: int = 10, seed: int = 0
) -> Rescaled:
    """The convolutions and linear layers of `network` that learn (whose weight requires a gradient), rescaled.

    Args:
        network: images -> outputs (B, D). It is run in eval mode, and left as it is.
        images: (B, ...), the calibration batch; some hundred are enough.
        within: a module of `network` by its name, whose layers are new: they are rescaled within first. Empty: the
            whole network; None: none.
        iterations: most steps of the scaling between layers; homogeneous networks need one.
        seed: of the random linear functions.

    Raises:
        ValueError: no layer learns, one does not move the outputs on these images, or the outputs would change by more
            than `MOST`, as in a residual network without batch norm.
    """
    copied = deepcopy(network).eval()
    layers = reaching(copied, images[:2])
    learning = [layer for layer in layers if layer.learns]
    if not learning:
        raise ValueError("rescaling needs a convolution or a linear layer that learns")
    if within is not None:
        inside = [layer for layer in learning if not within or f"{layer.name}.".startswith(f"{within}.")]
        rescale_within(copied, images, inside)
    outputs, rates = change_rates(copied, images, learning, seed)
    first, start = rates, outputs
    open_ones = [layer.name for layer in learning if layer.norm is None] or list(rates)
    for _ in range(iterations):
        if max(rates.values()) < EQUAL * min(rates.values()):
            break
        # scales that batch norm does not undo reach the outputs: about their geometric mean they multiply to one
        target = math.exp(statistics.fmean(math.log(rates[name]) for name in open_ones))
        scale_between(layers, {name: (rate / target) ** 0.5 for name, rate in rates.items()})
        outputs, rates = change_rates(copied, images, learning, seed)
    factor = (start * outputs).sum() / start.square().sum()
    change = ((outputs - factor * start).norm() / outputs.norm()).item()
    if not change <= MOST:
        raise ValueError(
            f"rescaling would change the outputs by {change:.0%}: it is for networks whose shortcuts, if any, are of "
            "layers with batch norm"
        )
    for mine, theirs in zip(copied.parameters(), network.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return Rescaled(copied, first, rates, change)


def reaching(network: nn.Module, images: Tensor) -> list[Layer]:
    """The layers on which the outputs depend, in the order in which they run. Lets every weight require a gradient."""
    found: list[Layer] = []
    made: list[Tensor] = []
    names = {module: name for name, module in network.named_modules() if isinstance(module, Affine)}

    def affine(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, Affine)
        found.append(Layer(names[module], module, learns[module]))
        made.append(output)

    def norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for layer, output in zip(found, made, strict=True):
            if output is inputs[0] and isinstance(module, BatchNorm):
                layer.norm = module

    learns = {module: module.weight.requires_grad for module in names}
    hooks = [module.register_forward_hook(affine) for module in names]
    hooks += [m.register_forward_pre_hook(norm) for m in network.modules() if isinstance(m, BatchNorm)]
    network.requires_grad_(True)
    with torch.enable_grad():
        outputs = network(images)
    for hook in hooks:
        hook.remove()
    weights = [layer.module.weight for layer in found]
    gradients = torch.autograd.grad(outputs.sum(), weights, allow_unused=True)
    return [layer for layer, gradient in zip(found, gradients, strict=True) if gradient is not None]


@torch.no_grad()
def rescale_within(network: nn.Module, images: Tensor, layers: list[Layer]) -> None:
    """Algorithm 1, in one pass: each layer sees the outputs of those rescaled before it. Dead channels are left."""

    def hook(layer: Layer) -> None:
        def scaled(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            weight, bias, norm = layer.module.weight, layer.module.bias, layer.norm
            axis = -1 if isinstance(module, nn.Linear) else 1
            sigma, mu = torch.std_mean(output.movedim(axis, 0).flatten(1), dim=1, correction=0)  # (channels,)
            sigma = torch.where(sigma > 1e-6 * sigma.max(), sigma, 1.0)
            mu = mu if bias is not None else torch.zeros_like(mu)
            weight.div_(sigma.view(-1, *[1] * (weight.dim() - 1)))
            if bias is not None:
                bias.sub_(mu).div_(sigma)
            if norm is not None:
                undo(norm, 1 / sigma, mu)
            return ((output.movedim(axis, -1) - mu) / sigma).movedim(-1, axis)

        hooks.append(layer.module.register_forward_hook(scaled))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for layer in layers:
        hook(layer)
    network(images)
    for handle in hooks:
        handle.remove()


def change_rates(network: nn.Module, images: Tensor, layers: list[Layer], seed: int) -> tuple[Tensor, dict[str, float]]:
    """The outputs (B, D), and each layer's rate of change.

    The loss is the sum over images of <eta, outputs>, eta ~ N(0, I) for each image: so the squared gradient is, in
    expectation, the sum over images of the squared gradient of each.
    """
    with torch.enable_grad():
        outputs = network(images)
        eta = normal(seed, 0, torch.arange(len(outputs)), "rescaling", outputs[0].numel()).to(outputs)
        loss = (outputs.flatten(1) * eta).sum()
        gradients = torch.autograd.grad(loss, [layer.module.weight for layer in layers])
    rates = {
        layer.name: (gradient.square().mean() / layer.module.weight.detach().square().mean()).sqrt().item()
        for layer, gradient in zip(layers, gradients, strict=True)
    }
    for name, rate in rates.items():
        if not 0 < rate < float("inf"):
            raise ValueError(f"rescaling: the weights of {name} do not move the outputs on these images (rate {rate})")
    return outputs.detach(), rates


@torch.no_grad()
def scale_between(layers: list[Layer], factors: dict[str, float]) -> None:
    """Weights by their layer's factor (1 where there is none), biases by all factors so far. Batch norm undoes that of
    its layer, and hands on those before it by its own scale and shift, if it has them."""
    carried = 1.0
    for layer in layers:
        factor, norm = factors.get(layer.name, 1.0), layer.norm
        layer.module.weight.mul_(factor)
        if layer.module.bias is not None:
            layer.module.bias.mul_(factor * carried)
        if norm is None:
            carried *= factor
            continue
        undo(norm, factor * carried, 0.0)
        if norm.affine:
            norm.weight.mul_(carried)
            norm.bias.mul_(carried)
        else:
            carried = 1.0


@torch.no_grad()
def undo(norm: BatchNorm, scale: Tensor | float, shift: Tensor | float) -> None:
    """Batch norm then makes of (x - shift) * scale what it has made of x; epsilon's part is its own scale's."""
    if norm.running_mean is None or norm.running_var is None:
        return
    norm.running_mean.sub_(shift).mul_(scale)
    if norm.affine:
        norm.weight.mul_(
            (norm.running_var * scale**2 + norm.eps).sqrt() / ((norm.running_var + norm.eps).sqrt() * scale)
        )
    norm.running_var.mul_(scale**2)

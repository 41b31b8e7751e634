"""What a network looks for and where: filters of its first convolution, and Grad-CAM.

Legend: B images, C channels, H x W pixels; c x h x w a layer's map.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def first_filters(network: nn.Module) -> Tensor:
    """The first convolution's filters, uint8 (N, C, k, k): in colour where it takes 3 channels, else one for each
    filter and channel, in gray (C = 1). Zero is the middle gray, and each filter's largest weight white or black.

    Raises:
        ValueError: it has no convolution of images.
    """
    convolution = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if convolution is None:
        raise ValueError("the network has no convolution whose filters could be shown")
    weight = convolution.weight.detach().float()
    if weight.shape[1] != 3:
        weight = weight.flatten(0, 1)[:, None]
    largest = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return (127.5 + 127.5 * weight / largest).round().to(torch.uint8)


def grad_cam(score: Callable[[Tensor], Tensor], layer: nn.Module, images: Tensor) -> Tensor:
    """Which parts of images speak for a score (Selvaraju et al., 2017, arXiv 1610.02391, Eq. 1 and 2).

    ReLU(sum_c alpha_c A_c), where A is the layer's map and alpha_c the mean over its positions of the gradient of the
    image's score. As the paper does for pictures, it is bilinearly enlarged to the image.

    Args:
        score: images -> (B,), in which `layer` runs, once; each image's score depends on that image alone (eval mode).
        layer: its output (B, c, h, w).
        images: (B, C, H, W).

    Returns:
        float32 (B, H, W), 0 or more, in the score's unit. All 0 where nothing speaks for the score.

    Raises:
        ValueError: the score does not depend on the layer.
    """
    maps: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        maps.append(output.detach().requires_grad_())
        return maps[-1]

    hook = layer.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            total = score(images).sum()
    finally:
        hook.remove()
    found = torch.autograd.grad(total, maps, allow_unused=True) if maps and total.requires_grad else ()
    if len(found) != 1 or found[0] is None:
        raise ValueError("Grad-CAM: the score does not depend on the layer, or runs it more than once")
    gradient = found[0]
    cam = (gradient.mean((2, 3), keepdim=True) * maps[0]).sum(1, keepdim=True).detach().float().relu()  # (B, 1, h, w)
    return F.interpolate(cam, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def overlaid(images: Tensor, heat: Tensor, share: float = 0.5) -> Tensor:
    """Images with heat over them, each image's largest in red and 0 in blue.

    Args:
        images: uint8 (B, C, H, W), C = 1 or 3.
        heat: (B, H, W), 0 or more.
        share: of the heat in the mixture, in [0, 1].

    Returns:
        uint8 (B, 3, H, W).
    """
    from matplotlib import colormaps  # here: it takes a second to import

    height = heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)  # in [0, 1]
    colours = torch.from_numpy(colormaps["jet"](height.cpu().numpy())[..., :3]).float().permute(0, 3, 1, 2)
    mixed = (1 - share) * images.cpu().float() + share * 255.0 * colours
    return mixed.round().to(torch.uint8)

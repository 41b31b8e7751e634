"""What a network looks for and where: filters of its first convolution, Grad-CAM, and the active pixels of clips.

Legend: B images or clips, T frames, C channels, H x W pixels; c x h x w a layer's map.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from methods.parts import evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * positive


class _Guided(TorchFunctionMode):
    """While it is entered every ReLU is guided: modules, functions, and those that work in place."""

    IN_PLACE = (torch.relu_, F.relu_, Tensor.relu_)
    RELUS = (torch.relu, F.relu, Tensor.relu, *IN_PLACE)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.RELUS:
            return func(*args, **kwargs)
        x: Tensor = args[0] if args else kwargs["input"]
        in_place = func in self.IN_PLACE or kwargs.get("inplace", False) or True in args[1:]
        out: Tensor = _GuidedReLU.apply(x)
        return x.copy_(out) if in_place else out


def guided_backpropagation(network: nn.Module, clips: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Which pixels of clips speak for a score: guided backpropagation (Springenberg et al., 2015, arXiv 1412.6806) as
    S. Jenni's thesis on self-supervised learning adapts it (section 5.3, "Visualization", Figure 5.4).

    On the way back a ReLU passes what is positive where its input was positive, and nothing else. Of the gradient video
    the median of every frame is subtracted, and the absolute value taken. Ours: the median is over the frame's pixels
    and channels (of two in the middle the lower), and the values of a pixel's channels are averaged.

    All ReLUs are meant: `nn.ReLU`, `F.relu`, `torch.relu` and the tensor's own, in place too; other activations pass
    their gradient as it is. Of networks compiled or scripted nothing is guided.

    Args:
        network: what runs in `score`; it is in eval mode meanwhile, so that no clip depends on another one.
        clips: uint8 (B, T, C, H, W), or float from 0 to 255.
        score: float clips (B, T, C, H, W) -> (B,), the decision to be explained, as `Method.score`.

    Returns:
        float32 (B, T, H, W), 0 or more, in the score's unit a grey level. Parameters get no gradient.

    Raises:
        ValueError: the score does not depend on the clips.
    """
    pixels = clips.detach().float().requires_grad_()
    with evaluating(network), torch.enable_grad(), _Guided():
        total = score(pixels).sum()
    gradient = torch.autograd.grad(total, pixels, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        raise ValueError("guided backpropagation: the score does not depend on the clips")
    median = gradient.flatten(2).median(2).values  # (B, T)
    return (gradient - median[:, :, None, None, None]).abs().mean(2)


def active_pixels_figure(
    clips: Tensor, maps: Mapping[str, Tensor], *, frames: int = 8, quantile: float = 0.995
) -> "Figure":
    """A block a clip, as in Figure 5.4: a row with its frames, and below one with the active pixels of each network.

    Args:
        clips: uint8 (B, T, C, H, W), C = 1 or 3.
        maps: a network's name -> (B, T, H, W), 0 or more, of `guided_backpropagation`.
        frames: shown of each clip: evenly from the first to the last, at most T.
        quantile: of a clip's values by one network, which is white, as is all above; 0 is black.

    Raises:
        ValueError: maps of other sizes than the clips'.
    """
    from matplotlib.figure import Figure  # here: training never draws, and it takes a second to import

    for name, values in maps.items():
        if values.shape != (*clips.shape[:2], *clips.shape[3:]):
            raise ValueError(f"maps of {name} of shape {tuple(values.shape)} for clips of {tuple(clips.shape)}")
    length, (height, width) = clips.shape[1], clips.shape[3:]
    places = torch.linspace(0, length - 1, min(frames, length)).round().long()
    rows = [("frames", clips[:, places].permute(0, 1, 3, 4, 2).cpu())]
    for name, values in maps.items():
        white = values.float().flatten(1).quantile(quantile, dim=1).clamp(min=1e-12)
        grey = 255 * (values.float() / white[:, None, None, None]).clamp(max=1)
        rows.append((name, grey.round().to(torch.uint8)[:, places, :, :, None].cpu()))
    side, gap, margin, block = 1 / max(height, width), 0.04, 0.25, 0.12  # inches: of a pixel, and between
    across, down = width * side + gap, height * side + gap
    size = (margin + across * len(places), len(clips) * (down * len(rows) + block))
    figure = Figure(figsize=size, dpi=120)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))  # one: many axes take seconds
    axis.set_axis_off()
    for clip in range(len(clips)):
        for row, (name, images) in enumerate(rows):
            top = clip * (down * len(rows) + block) + down * row + block / 2
            axis.text(margin / 2, top + height * side / 2, name, fontsize=7, rotation=90, ha="center", va="center")
            for column, image in enumerate(images[clip].numpy()):
                left = margin + across * column
                place = (left, left + width * side, top + height * side, top)
                axis.imshow(image, cmap="gray", vmin=0, vmax=255, extent=place, aspect="auto")
    axis.set(xlim=(0, size[0]), ylim=(size[1], 0))
    return figure

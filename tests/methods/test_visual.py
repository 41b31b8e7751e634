"""Filters, Grad-CAM and active pixels, against numbers by hand and naive twins."""

import io
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video import r3d_18

from methods import backbones
from methods.metrics.visual import active_pixels_figure, first_filters, grad_cam, guided_backpropagation, overlaid


def test_filters_of_colour() -> None:
    """Weights -2, 0, 1 with the largest 2: black, the middle, and 3/4; each filter by its own largest."""
    network = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 2, 3))
    network[1].weight.data = torch.tensor([[-2.0, 0.0, 1.0], [0.1, 0.1, -0.1]]).view(2, 3, 1, 1)
    found = first_filters(network)
    assert found.dtype == torch.uint8
    assert found.flatten(1).tolist() == [[0, 128, 191], [255, 255, 0]]


def test_filters_of_other_channels_are_gray_and_zeros_are_the_middle() -> None:
    network = nn.Conv2d(4, 6, 5, groups=2)
    network.weight.data[0] = 0
    found = first_filters(network)
    assert found.shape == (6 * 2, 1, 5, 5)
    assert (found[:2] == 128).all() and found[2:].flatten(1).max(1).values.max() == 255
    with pytest.raises(ValueError, match="no convolution"):
        first_filters(nn.Linear(3, 4))


class Scored(nn.Module):
    """A layer's maps A (B, 2, h, w), and the score sum over channels of w_c mean(A_c)^2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 2, 2, 2).double()
        self.weights = torch.tensor([1.0, -3.0]).double()

    def score(self, images: Tensor) -> Tensor:
        return (self.layer(images).mean((2, 3)).square() * self.weights).sum(1)


def test_grad_cam_by_hand() -> None:
    """d score / d A_c at each of h w places is 2 w_c mean(A_c) / (h w): that is alpha_c."""
    method = Scored()
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    maps = method.layer(images).detach()
    alpha = 2 * method.weights * maps.mean((2, 3)) / 16
    expected = (alpha[:, :, None, None] * maps).sum(1, keepdim=True).relu().float()
    found = grad_cam(method.score, method.layer, images)
    assert found.shape == (3, 8, 8) and (found >= 0).all() and not found.requires_grad
    torch.testing.assert_close(found, F.interpolate(expected, (8, 8), mode="bilinear", align_corners=False)[:, 0])
    assert not method.layer._forward_hooks
    assert all(p.grad is None for p in method.parameters())
    frozen = method.requires_grad_(False)
    assert torch.equal(grad_cam(frozen.score, method.layer, images), found)
    with torch.no_grad():
        assert torch.equal(grad_cam(frozen.score, method.layer, images), found)


def test_grad_cam_finds_the_bright_corner() -> None:
    """The score counts what the layer says of brightness: the heat lies where the light is."""
    layer = nn.Conv2d(3, 1, 4, 4, bias=False)
    nn.init.ones_(layer.weight)
    images = torch.zeros(2, 3, 16, 16)
    images[0, :, :4, :4] = images[1, :, -4:, -4:] = 1.0
    heat = grad_cam(lambda x: layer(x).sum((1, 2, 3)), layer, images)
    assert [divmod(int(each.argmax()), 16) for each in heat] == [(0, 0), (14, 14)]
    dark = grad_cam(lambda x: -layer(x).sum((1, 2, 3)), layer, images)
    assert (dark == 0).all()


def test_grad_cam_of_a_backbone() -> None:
    """As by hooks of one's own, of a layer whose output is worked on in place later."""
    torch.manual_seed(0)
    backbone = backbones.build("resnet18", image=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3).eval()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = backbone.maps(images)
    (gradient,) = torch.autograd.grad(maps["features"].norm(dim=1).sum(), maps["stage4"])
    cam = (gradient.mean((2, 3), keepdim=True) * maps["stage4"]).sum(1, keepdim=True).relu()
    expected = F.interpolate(cam, (32, 32), mode="bilinear", align_corners=False)[:, 0].detach()
    found = grad_cam(lambda x: backbone(x).norm(dim=1), backbone.network.get_submodule("layer4"), images)
    torch.testing.assert_close(found, expected)


def test_a_score_that_does_not_depend_on_the_layer() -> None:
    method = Scored()
    images = torch.zeros(1, 3, 4, 4).double()
    for score in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: 0 * method.score(x).detach() + method.weights.requires_grad_().sum(),
        lambda x: method.score(x) + method.score(x),
    ):
        with pytest.raises(ValueError, match="Grad-CAM"):
            grad_cam(score, method.layer, images)


def test_heat_over_images() -> None:
    """jet runs from (0, 0, .5) to (.5, 0, 0); half of it over half of the image; no heat at all is blue throughout."""
    images = torch.full((2, 1, 1, 2), 100, dtype=torch.uint8)
    heat = torch.tensor([[[0.0, 4.0]], [[0.0, 0.0]]])
    found = overlaid(images, heat)
    assert found.shape == (2, 3, 1, 2) and found.dtype == torch.uint8
    cold, hot = [50, 50, 114], [114, 50, 50]
    np.testing.assert_allclose(found[0, :, 0].T.numpy(), [cold, hot], atol=1)
    np.testing.assert_allclose(found[1, :, 0].T.numpy(), [cold, cold], atol=1)
    assert torch.equal(overlaid(images, heat, share=0.0), images.expand(-1, 3, -1, -1))


# -------------------------------------------------------------------------------------- active pixels


def frame_by_frame(gradient: Tensor) -> Tensor:
    """(B, T, C, H, W) -> |gradient - the frame's median|, mean over channels, by sorting."""
    found = torch.empty(*gradient.shape[:2], *gradient.shape[3:])
    for b, t in np.ndindex(*gradient.shape[:2]):
        ordered = gradient[b, t].flatten().sort().values
        found[b, t] = (gradient[b, t] - ordered[(len(ordered) - 1) // 2]).abs().mean(0)
    return found


def test_guided_backpropagation_by_hand() -> None:
    """One frame of four pixels (1, 2, 3, 4), hidden a = relu(x1 - x2) = 0, b = relu(x3) = 3, c = relu(x4) = 4, score
    -a + 2 b - 5 c. Back: a's is closed as its input is negative, c's as its gradient is; b passes 2. The gradient is
    (0, 0, 2, 0), its median 0. The plain one has -5 at x4."""
    weight = torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    last = torch.tensor([-1.0, 2, -5])
    clips = torch.tensor([1, 2, 3, 4], dtype=torch.uint8).view(1, 1, 1, 2, 2)
    found = guided_backpropagation(nn.Identity(), clips, lambda x: F.relu(x.flatten(1) @ weight.T) @ last)
    assert found.dtype == torch.float32 and found.tolist() == [[[[0, 0], [2, 0]]]]


def test_the_median_of_each_frame_is_subtracted() -> None:
    """Linear: the gradient is the weight. Frame 0 has (1, 2, 4, 9) with the lower median 2, frame 1 (-3, -3, 5, -3)."""
    weight = torch.tensor([[1.0, 2, 4, 9], [-3, -3, 5, -3]]).view(1, 2, 1, 2, 2)
    clips = torch.zeros(3, 2, 1, 2, 2, dtype=torch.uint8)
    found = guided_backpropagation(nn.Identity(), clips, lambda x: (x * weight).sum((1, 2, 3, 4)))
    assert found.tolist() == [[[[1, 0], [2, 7]], [[0, 0], [8, 0]]]] * 3
    colour = weight.expand(1, 2, 3, 2, 2) * torch.tensor([1.0, 1, 4]).view(3, 1, 1)  # channels count together
    found = guided_backpropagation(nn.Identity(), clips.expand(3, 2, 3, 2, 2), lambda x: (x * colour).sum((1, 2, 3, 4)))
    torch.testing.assert_close(found, frame_by_frame(colour.expand(3, -1, -1, -1, -1)))


class Plain(nn.Module):
    """Two layers of a small 3D network, with ReLU as it is given."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.second = nn.Conv3d(4, 5, 3, stride=2)
        self.norm.running_mean.uniform_(-50, 50)  # type: ignore[union-attr]
        self.relu = relu

    def forward(self, clips: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(clips.transpose(1, 2))))
        return self.relu(self.second(x) * 1.0)


def by_hand(network: Plain, clips: Tensor) -> Tensor:
    """The guided gradient of the sum of the maps' squares, layer by layer backwards, in float64."""
    network = deepcopy(network).double().eval()
    x = clips.double().transpose(1, 2)
    a = network.norm(network.first(x))
    b = network.second(a.relu())
    back = (2 * b.relu()).relu() * (b > 0)
    sizes = [int(n) for n in a.shape[2:]]
    padding = [n - (3 + 2 * (m - 1)) for n, m in zip(sizes, b.shape[2:], strict=True)]
    back = F.conv_transpose3d(back, network.second.weight, stride=2, output_padding=padding)
    back = back.relu() * (a > 0)
    scale = network.norm.weight / (network.norm.running_var + network.norm.eps).sqrt()  # type: ignore[operator, union-attr]
    back = F.conv_transpose3d(back * scale.view(1, -1, 1, 1, 1), network.first.weight, padding=1)
    return back.transpose(1, 2).detach()


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "function": F.relu,
    "function in place": lambda x: F.relu(x, inplace=True),
    "function in place, by position": lambda x: F.relu(x, True),
    "torch": torch.relu,
    "torch in place": torch.relu_,
    "by keyword": lambda x: F.relu(input=x),
    "tensor": lambda x: x.relu(),
    "tensor in place, result unused": lambda x: (x.relu_(), x)[1],
}


@pytest.mark.parametrize("name", RELUS)
def test_every_relu_is_guided(name: str) -> None:
    network = Plain(RELUS[name]).train()
    clips = torch.randint(256, (2, 5, 3, 9, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = deepcopy(network.state_dict())

    def score(x: Tensor) -> Tensor:
        return network(x).square().sum((1, 2, 3, 4))

    with torch.no_grad():
        found = guided_backpropagation(network, clips, score)
    expected = frame_by_frame(by_hand(network, clips))
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6 * float(expected.max()))
    assert found.shape == (2, 5, 9, 8) and (found >= 0).all() and not found.requires_grad
    assert network.training and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    frozen = network.requires_grad_(False)
    assert torch.equal(guided_backpropagation(frozen, clips, score), found)
    x = clips.float().requires_grad_()  # and ReLU is itself again: something negative comes back
    (plain,) = torch.autograd.grad(-score(x).sum(), x)
    assert plain.abs().sum() > 0
    assert (guided_backpropagation(frozen, clips, lambda x: -score(x)) == 0).all()


def test_guided_backpropagation_of_a_residual_network() -> None:
    """torchvision's, whose ReLUs work in place and are used twice, against hooks on ReLUs that don't."""
    torch.manual_seed(0)
    network = r3d_18(weights=None).eval()
    clips = torch.randint(256, (1, 4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    def run(network: nn.Module, x: Tensor) -> Tensor:
        return network((x - 127.5).transpose(1, 2) / 64).amax(1)

    found = guided_backpropagation(network, clips, lambda x: run(network, x))
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
            module.register_full_backward_hook(lambda module, into, out: (into[0].clamp(min=0),))  # type: ignore[index]
    x = clips.float().requires_grad_()
    (gradient,) = torch.autograd.grad(run(network, x).sum(), x)
    expected = frame_by_frame(gradient)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
    assert found.max() > 0


def test_what_moves_is_active() -> None:
    """A network that sees differences of frames alone: the square's way is active, the bright background is not."""
    clips = torch.zeros(1, 6, 3, 12, 12, dtype=torch.uint8)
    clips[:, :, :, 8:] = 200
    for t in range(6):
        clips[0, t, :, 2:4, 2 * t : 2 * t + 2] = 255
    heat = guided_backpropagation(nn.Identity(), clips, lambda x: F.relu(x[:, 1:] - x[:, :-1]).sum((1, 2, 3, 4)))
    assert (heat[0, :, 2:4] > 0).any() and (heat[0, :, 4:] == 0).all() and (heat[0, :, :2] == 0).all()


def test_a_score_that_does_not_depend_on_the_clips() -> None:
    clips, free = torch.zeros(1, 2, 1, 4, 4, dtype=torch.uint8), torch.ones(1, requires_grad=True)
    for score in (lambda x: torch.zeros(1), lambda x: 2 * free, lambda x: x.detach().sum((1, 2, 3, 4))):
        with pytest.raises(ValueError, match="does not depend on the clips"):
            guided_backpropagation(nn.Identity(), clips, score)


def test_active_pixels_figure() -> None:
    """A row of frames and one a network, in blocks; each clip and network has its own white."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(256, (2, 9, 3, 8, 12), dtype=torch.uint8, generator=generator)
    heat = torch.rand(2, 9, 8, 12, generator=generator)
    maps = {"own task": heat, "labels": 1e-6 * heat}
    figure = active_pixels_figure(clips, maps, frames=5, quantile=1.0)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    assert stream.getvalue()[1:4] == b"PNG"
    [axis] = figure.axes
    assert [text.get_text() for text in axis.texts] == ["frames", "own task", "labels"] * 2
    shown = [np.asarray(image.get_array()) for image in axis.images]
    assert len(shown) == 2 * 3 * 5
    assert (shown[1] == clips[0, 2].permute(1, 2, 0).numpy()).all()
    grey = (255 * heat[1] / heat[1].max()).round()
    assert (shown[20] == grey[0].numpy()).all()
    assert np.abs(shown[25].astype(int) - grey[0].numpy()).max() <= 1
    assert not np.isnan(np.asarray(active_pixels_figure(clips, {"none": 0 * heat}).axes[0].images[9].get_array())).any()
    with pytest.raises(ValueError, match="maps of labels of shape"):
        active_pixels_figure(clips[:, 1:], {"labels": heat})

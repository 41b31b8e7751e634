"""Filters and Grad-CAM, against numbers by hand and a naive twin."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods import backbones
from methods.metrics.visual import first_filters, grad_cam, overlaid


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

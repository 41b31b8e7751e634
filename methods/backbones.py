"""Backbones: uint8 images in, pooled features out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Backbone(nn.Module):
    """Normalizes images and maps them to features; whole in itself, so that an export needs nothing else.

    Args:
        network: normalized float (B, C, H, W) -> (B, dim).
        dim: width of the features.
        mean, std: of each channel, of images scaled to [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, dim: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.dim = dim
        self.register_buffer("mean", 255.0 * torch.tensor(mean).view(1, -1, 1, 1), persistent=True)
        self.register_buffer("std", 255.0 * torch.tensor(std).view(1, -1, 1, 1), persistent=True)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W), or float in the same range 0 to 255 -> (B, dim)."""
        return self.network((images - self.mean) / self.std)

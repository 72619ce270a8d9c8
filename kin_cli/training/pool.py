"""Earlier fakes, kept so that a discriminator does not forget them."""

from __future__ import annotations

import torch
from torch import Tensor


class ImagePool:
    """Up to ``size`` earlier fakes, so that a discriminator sees more than the last (Shrivastava et al., CVPR 2017).

    Kept on the CPU as 8-bit, as real patches are: a quarter of the memory and of the checkpoint.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, fakes: Tensor) -> Tensor:
        """Each fake of a batch, or half of the time, once the pool is full, an earlier one that it replaces."""
        if self.size == 0:
            return fakes
        return torch.stack([self._swap(fake) for fake in fakes])

    def _swap(self, fake: Tensor) -> Tensor:
        stored = _as_bytes(fake)
        if len(self.images) < self.size:
            self.images.append(stored)
            return fake
        if torch.rand(()) < 0.5:
            return fake
        index = int(torch.randint(self.size, ()))
        earlier, self.images[index] = self.images[index], stored
        return (earlier.to(fake) / 127.5) - 1.0


def _as_bytes(image: Tensor) -> Tensor:
    return ((image.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()

"""InceptionV3 as FID uses it: the 2048 features of the network that TensorFlow published in December 2015.

C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016. The names of the parts are
those of the public weight file. It differs from torchvision's network: averages over 3×3 leave the padding out, the
last block takes maxima in their place, and there are 1008 classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 2048


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU; padded with zeros to its input's size unless ``bare``.

    ``channels`` are those of input and output, ``kernel`` is a side or (height, width).
    """

    def __init__(
        self, channels: tuple[int, int], kernel: int | tuple[int, int], *, stride: int = 1, bare: bool = False
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if bare else (height // 2, width // 2)
        self.conv = nn.Conv2d(*channels, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels[1], eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels[1], H', W')."""
        return F.relu(self.bn(self.conv(x)))


def _mean3(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """Branches of 1×1, 5×5 and twice 3×3 pixels, and a mean."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit((inputs, 64), 1)
        self.branch5x5_1 = Unit((inputs, 48), 1)
        self.branch5x5_2 = Unit((48, 64), 5)
        self.branch3x3dbl_1 = Unit((inputs, 64), 1)
        self.branch3x3dbl_2 = Unit((64, 96), 3)
        self.branch3x3dbl_3 = Unit((96, 96), 3)
        self.branch_pool = Unit((inputs, pooled), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 224 + pooled, H, W)."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean3(x))], 1)


class BlockB(nn.Module):
    """Halves the size: 35 to 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Unit((inputs, 384), 3, stride=2, bare=True)
        self.branch3x3dbl_1 = Unit((inputs, 64), 1)
        self.branch3x3dbl_2 = Unit((64, 96), 3)
        self.branch3x3dbl_3 = Unit((96, 96), 3, stride=2, bare=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 480 + inputs, H', W')."""
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """Branches of 7×7 pixels, taken apart into rows and columns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Unit((768, 192), 1)
        self.branch7x7_1 = Unit((768, width), 1)
        self.branch7x7_2 = Unit((width, width), row)
        self.branch7x7_3 = Unit((width, 192), column)
        self.branch7x7dbl_1 = Unit((768, width), 1)
        self.branch7x7dbl_2 = Unit((width, width), column)
        self.branch7x7dbl_3 = Unit((width, width), row)
        self.branch7x7dbl_4 = Unit((width, width), column)
        self.branch7x7dbl_5 = Unit((width, 192), row)
        self.branch_pool = Unit((768, 192), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 768, H, W)."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), seven, twice, self.branch_pool(_mean3(x))], 1)


class BlockD(nn.Module):
    """Halves the size: 17 to 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Unit((768, 192), 1)
        self.branch3x3_2 = Unit((192, 320), 3, stride=2, bare=True)
        self.branch7x7x3_1 = Unit((768, 192), 1)
        self.branch7x7x3_2 = Unit((192, 192), (1, 7))
        self.branch7x7x3_3 = Unit((192, 192), (7, 1))
        self.branch7x7x3_4 = Unit((192, 192), 3, stride=2, bare=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 1280, H', W')."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """Branches that fork into a row and a column of three pixels."""

    def __init__(self, inputs: int, *, maximum: bool) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self._maximum = maximum
        self.branch1x1 = Unit((inputs, 320), 1)
        self.branch3x3_1 = Unit((inputs, 384), 1)
        self.branch3x3_2a = Unit((384, 384), row)
        self.branch3x3_2b = Unit((384, 384), column)
        self.branch3x3dbl_1 = Unit((inputs, 448), 1)
        self.branch3x3dbl_2 = Unit((448, 384), 3)
        self.branch3x3dbl_3a = Unit((384, 384), row)
        self.branch3x3dbl_3b = Unit((384, 384), column)
        self.branch_pool = Unit((inputs, 192), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 2048, H, W)."""
        three = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self._maximum else _mean3(x)
        forks = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        forks += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(pooled)], 1)


class InceptionV3(nn.Module):
    """The network up to its last mean; ``fc``, the classifier, is only there because the weight file has it."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit((3, 32), 3, stride=2, bare=True)
        self.Conv2d_2a_3x3 = Unit((32, 32), 3, bare=True)
        self.Conv2d_2b_3x3 = Unit((32, 64), 3)
        self.Conv2d_3b_1x1 = Unit((64, 80), 1, bare=True)
        self.Conv2d_4a_3x3 = Unit((80, 192), 3, bare=True)
        self.Mixed_5b = BlockA(192, pooled=32)
        self.Mixed_5c = BlockA(256, pooled=64)
        self.Mixed_5d = BlockA(288, pooled=64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, maximum=False)
        self.Mixed_7c = BlockE(2048, maximum=True)
        self.fc = nn.Linear(FEATURES, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 2048) of pictures (B, 3, H, W) from -1 to 1; H and W at least 75, 299 by convention."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))

"""Networks that kin does not know, with every way of normalizing by the image's own statistics; and bad ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Subclass(nn.InstanceNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.0


class Function(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=self.weight, bias=self.bias)


class Adain(Function):
    """Scale and shift of a style, behind the instance norm."""

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.weight[None, :, None, None], self.bias[None, :, None, None]
        return scale * F.instance_norm(x) + shift


class FoldedAdain(Function):
    """The published layer of MUNIT and its successors: batch norm of one sample with all channels of the batch."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.size(0), x.size(1)
        mean, var = self.running_mean.repeat(b), self.running_var.repeat(b)
        folded = x.contiguous().view(1, b * c, *x.size()[2:])
        out = F.batch_norm(folded, mean, var, self.weight.repeat(b), self.bias.repeat(b), True, 0.1, 1e-5)
        return out.view(b, c, *x.size()[2:])


def module(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def group(channels: int) -> nn.Module:
    return nn.GroupNorm(channels, channels)


NORMS = {
    "module": module,
    "subclass": Subclass,
    "function": Function,
    "group": group,
    "adain": Adain,
    "folded": FoldedAdain,
}


class Net(nn.Module):
    """Down, a residual part, up; ``unit`` 0: numbers of -1 to 1, 1: of 0 to 1. Needs contiguous maps: it flattens."""

    def __init__(self, norm: str = "module", width: int = 6, unit: int = 0, results: int = 1) -> None:
        super().__init__()
        make: Any = NORMS[norm]
        self.unit, self.results = unit, results
        self.first, self.n1 = nn.Conv2d(3, width, 7), make(width)
        self.down, self.n2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), make(2 * width)
        self.body, self.n3 = nn.Conv2d(2 * width, 2 * width, 3), make(2 * width)
        self.up, self.n4 = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), make(width)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.n1(self.first(F.pad(x, (3, 3, 3, 3), mode="reflect"))))
        x = F.relu(self.n2(self.down(x)))
        x = x + self.n3(self.body(F.pad(x, (1, 1, 1, 1), mode="reflect")))
        x = x.contiguous().view(x.shape)
        x = self.last(F.relu(self.n4(self.up(x))))
        out = torch.sigmoid(x) if self.unit else torch.tanh(x)
        return out if self.results == 1 else (x.mean((1, 2, 3)), out, x)


class SharedNet(Net):
    """One layer normalizes at two places."""

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.n1(self.first(F.pad(x, (3, 3, 3, 3), mode="reflect"))))
        x = F.relu(self.n2(self.down(x)))
        x = x + self.n2(self.body(F.pad(x, (1, 1, 1, 1), mode="reflect")))
        return torch.tanh(self.last(F.relu(self.n1(self.up(x)))))


class Bottleneck(nn.Module):
    """Layers that depend on the whole window: squeeze and excitation, a layer norm over the map, attention."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.InstanceNorm2d(width)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())
        self.few = nn.GroupNorm(1, width)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = self.few(x * self.squeeze(x))
        x = F.layer_norm(x, x.shape[1:])
        deep = F.avg_pool2d(x, 8)
        flat = deep.flatten(2)
        seen = (flat.mT @ flat).softmax(-1) @ flat.mT
        x = x + F.interpolate(seen.mT.reshape(deep.shape), scale_factor=8.0)
        return torch.tanh(self.last(x))


class Thirds(nn.Module):
    """Works on a third of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 4, 3, stride=3), nn.InstanceNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 3, 3, stride=3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(F.relu(self.norm(self.down(x)))))


class OneSize(nn.Module):
    """Takes images of one size alone, as networks with learnt positions do."""

    def __init__(self, side: int = 128) -> None:
        super().__init__()
        self.position = nn.Parameter(0.1 * torch.randn(1, 3, side, side))
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(x + self.position)))


class Coordinates(nn.Module):
    """Its input has the coordinates of the window."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 3, 3, padding=1), nn.InstanceNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        across = torch.linspace(-1, 1, x.shape[3]).expand(1, 1, *x.shape[2:])
        return torch.tanh(self.norm(self.conv(torch.cat([x, across], 1))))


class Inside(nn.Module):
    """Works at one size inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.norm(self.conv(F.interpolate(x, size=(64, 64), mode="bilinear"))))
        return F.interpolate(y, size=x.shape[2:], mode="bilinear")


class Scripted(nn.Module):
    """Its layers are TorchScript, whose calls nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)
        self.layers = torch.jit.script(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x))


class Precise(nn.Module):
    """Computes in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1).double(), nn.InstanceNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(x.double())))


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.LazyConv2d(3, 3, padding=1), nn.InstanceNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(x)))


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0)


class Grey(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).to(torch.uint8)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("style")


class Refusing(nn.Module):
    def __init__(self) -> None:
        raise RuntimeError("no licence")


class Restless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def no_module() -> dict[str, int]:
    return {}


number = 3


def net_and_twin(norm: str, *, seed: int = 0, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A network with random weights, and the same with InstanceNorm2d layers."""
    torch.manual_seed(seed)
    shared = norm == "shared"
    net = SharedNet("module", **options) if shared else Net(norm, **options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter)
            elif name.startswith("n") and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.2)
    twin = Net("module", **options)
    twin.load_state_dict(net.state_dict(), strict=False)
    if shared:
        twin.n3.load_state_dict(net.n2.state_dict())
        twin.n4.load_state_dict(net.n1.state_dict())
    return net.eval(), twin.eval()

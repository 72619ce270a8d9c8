"""The U-Net against a second forward, written as one recursion over the state dict with the official in-place steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kin_cli.models.unet import UnetGenerator, UnetSpec

State = dict[str, Tensor]


def convolve(state: State, name: str, x: Tensor, *, transposed: bool = False) -> Tensor:
    operator = F.conv_transpose2d if transposed else F.conv2d
    return operator(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride=2, padding=1)


def normalize(state: State, name: str, x: Tensor) -> Tensor:
    mean = x.mean(dim=(2, 3), keepdim=True)
    variance = (x - mean).square().mean(dim=(2, 3), keepdim=True)
    y = (x - mean) / (variance + 1e-5).sqrt()
    if f"{name}.weight" in state:
        y = y * state[f"{name}.weight"].view(-1, 1, 1) + state[f"{name}.bias"].view(-1, 1, 1)
    return y


def nested(state: State, prefix: str, x: Tensor) -> Tensor:
    """A skip block: the activation overwrites x, and so what the skip connection carries."""
    F.leaky_relu_(x, 0.2)
    down = convolve(state, f"{prefix}.1", x)
    if f"{prefix}.3.model.1.weight" in state:
        deep = nested(state, f"{prefix}.3.model", normalize(state, f"{prefix}.2", down))
        up = normalize(state, f"{prefix}.6", convolve(state, f"{prefix}.5", F.relu(deep), transposed=True))
    else:
        up = normalize(state, f"{prefix}.4", convolve(state, f"{prefix}.3", F.relu(down), transposed=True))
    return torch.cat([x, up], 1)


def forward(state: State, x: Tensor) -> Tensor:
    deep = nested(state, "model.model.1.model", convolve(state, "model.model.0", x))
    return convolve(state, "model.model.3", F.relu(deep), transposed=True).tanh()


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (UnetSpec(2, 5), (64, 96)),
        (UnetSpec(3, 7, affine=True), (128, 256)),
        (UnetSpec(2, 8, bias=False, dropout=True), (256, 256)),
    ],
)
def test_forward_equals_the_second_one(spec: UnetSpec, size: tuple[int, int]) -> None:
    generator = UnetGenerator(spec).eval()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(generator(x), forward(generator.state_dict(), x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "tensors", "norms"),
    [
        # a weight and a bias for each of two convolutions a level; no norm at the outermost, one at the innermost
        (UnetSpec(2, 8), 32, 13),
        (UnetSpec(2, 7), 28, 11),
        (UnetSpec(2, 8, affine=True), 32 + 26, 13),
        (UnetSpec(2, 8, bias=False), 17, 13),
    ],
)
def test_tensors_and_norm_layers_by_hand(spec: UnetSpec, tensors: int, norms: int) -> None:
    generator = UnetGenerator(spec)
    assert len(generator.state_dict()) == tensors
    assert sum(isinstance(layer, torch.nn.InstanceNorm2d) for layer in generator.modules()) == norms


def test_shapes_of_the_official_unet_256() -> None:
    with torch.device("meta"):
        state = UnetGenerator(UnetSpec()).state_dict()
    innermost = "model.model." + "1.model." + "3.model." * 6
    assert state["model.model.0.weight"].shape == (64, 3, 4, 4)
    assert state[f"{innermost}1.weight"].shape == (512, 512, 4, 4)
    assert state[f"{innermost}3.weight"].shape == (512, 512, 4, 4)
    assert state["model.model.1.model.3.model.5.weight"].shape == (512, 128, 4, 4)
    assert state["model.model.3.weight"].shape == (128, 3, 4, 4)
    # the official code prints 54.414 M for unet_256 with BatchNorm; InstanceNorm has biases instead of its parameters
    batchnorm, biases = 2 * (128 + 256 + 4 * 512 + 4 * 512 + 256 + 128 + 64), 64 + 128 + 256 + 5 * 512 + 4 * 512 + 448
    assert sum(tensor.numel() for tensor in state.values()) == pytest.approx(54.414e6 - batchnorm + biases, abs=500)


def test_the_patch_of_its_name_passes_in_training_mode() -> None:
    # InstanceNorm2d refuses a single pixel, so none may stand at the deepest level
    with torch.device("meta"):
        assert UnetGenerator(UnetSpec(2, 8)).train()(torch.empty(1, 3, 256, 512)).shape == (1, 3, 256, 512)


def test_sizes_that_do_not_halve_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        UnetGenerator(UnetSpec(1, 5))(torch.zeros(1, 3, 64, 48))


def test_too_shallow_a_unet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 5"):
        UnetSpec(4, 4)

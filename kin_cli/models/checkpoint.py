"""Generators in and out of files: strict, weights only, everything read off the keys and shapes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from kin_cli.errors import UsageError
from kin_cli.models.architectures import Spec, build, detect, halo_px
from kin_cli.models.unet import UnetSpec
from kin_cli.models.weights import Weights, listed, read_weights
from kin_cli.store.files import os_errors_as_output_errors, write_atomic

NOTICE = "no --model given: using the generator in the box, H&E to synaptophysin IHC; research only, not for diagnosis"


# FROM models.checkpoint: Generators in and out of files: strict, weights only, everything read off the keys and shapes.


@dataclass(frozen=True)
class Generator:
    """A generator from a file, and what its keys and shapes tell.

    ``module`` is on the CPU, in eval mode, float32, without gradients. ``blocks`` are residual blocks, or the halvings
    of a U-Net. ``channels`` is ΣC over the norm layers. Inputs must be multiples of ``stride`` px; ``halo`` is the
    radius of the receptive field in px. ``sha256`` is that of the whole file. ``notes`` says what was changed on
    loading, a line each; ``metadata`` is that of a safetensors file.
    """

    module: nn.Module
    architecture: str
    width: int
    blocks: int
    spec: Spec
    norm_layers: int
    channels: int
    stride: int
    halo: int
    sha256: str
    notes: tuple[str, ...]
    metadata: dict[str, str]


def load_generator(path: Path) -> Generator:
    """The generator in a PyTorch or safetensors file of a known architecture, whatever the file's suffix.

    Running statistics of InstanceNorm are dropped and half-precision weights converted, each with a note. A checkpoint
    without norm parameters is one of plain InstanceNorm: the authors' code loses affine ones when it trains on a GPU,
    and nothing in the file can tell.

    Raises ``ModelError`` for anything that is not exactly the weights of a known generator; no code is executed.
    """
    weights = read_weights(path)
    spec = detect(weights)
    # no memory for weights that are replaced, and no numbers drawn from the caller's random generator
    with torch.device("meta"):
        module = build(spec)
    state, converted = _as_float32(weights, {name: tensor.shape for name, tensor in module.state_dict().items()})
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)
    norms = [layer.num_features for layer in module.modules() if isinstance(layer, nn.InstanceNorm2d)]
    return Generator(
        module=module,
        architecture=spec.architecture,
        width=spec.width,
        blocks=spec.downs if isinstance(spec, UnetSpec) else spec.blocks,
        spec=spec,
        norm_layers=len(norms),
        channels=sum(norms),
        stride=spec.stride,
        halo=halo_px(spec),
        sha256=weights.sha256,
        notes=(*weights.notes, *converted),
        metadata=weights.metadata,
    )


def save_generator(module: nn.Module, path: Path, *, spec: Spec, metadata: Mapping[str, str] | None = None) -> None:
    """Write a generator so that ``load_generator`` and the project of its architecture can read it, whole or not at all.

    ``.safetensors`` carries ``metadata`` and the spec, as strings; ``.pth`` and ``.pt`` are a plain state dict. dtypes
    are kept.

    Raises ``ValueError`` where the module's keys are not those of ``spec``, ``UsageError`` for another suffix,
    ``OutputError`` where the file cannot be written.
    """
    # safetensors takes no channels_last tensors
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with torch.device("meta"):
        expected = build(spec).state_dict().keys()
    if differing := sorted(expected ^ state.keys()):
        raise ValueError(f"the module is no generator of {spec}: {listed(differing)} differ")
    if path.suffix == ".safetensors":
        described = {"format": "pt", "architecture": spec.architecture, **{k: str(v) for k, v in asdict(spec).items()}}
        content = safetensors.torch.save(state, metadata={**(metadata or {}), **described})
    elif path.suffix in (".pth", ".pt"):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
    else:
        raise UsageError(f"{path}: unknown suffix '{path.suffix}' of a checkpoint", "use .safetensors or .pth")
    with os_errors_as_output_errors(path):
        write_atomic(path, content)


def describe(generator: Generator) -> dict[str, object]:
    """What a user wants to know about a generator, as JSON can hold it; sizes in pixels."""
    return {
        "architecture": generator.architecture,
        "width": generator.width,
        "blocks": generator.blocks,
        "norm_layers": generator.norm_layers,
        "norm_channels": generator.channels,
        "parameters": sum(parameter.numel() for parameter in generator.module.parameters()),
        "stride_px": generator.stride,
        "receptive_field_radius_px": generator.halo,
        "sha256": generator.sha256,
        "notes": list(generator.notes),
        "metadata": dict(generator.metadata),
    }


def _as_float32(weights: Weights, shapes: Mapping[str, torch.Size]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in the shapes of the module, float32 and contiguous, and a note if they were of another dtype."""
    state: dict[str, Tensor] = {}
    other_dtypes = set()
    for name, tensor in weights.tensors.items():
        if tensor.dtype != torch.float32:
            other_dtypes.add(str(tensor.dtype).removeprefix("torch."))
        state[name] = tensor.to(torch.float32).reshape(shapes[name]).contiguous()
        if not torch.isfinite(state[name]).all():
            weights.refuse(
                f"has weights that are NaN or infinite in {name}", "take an earlier checkpoint of the training"
            )
    notes = [f"converted weights from {' and '.join(sorted(other_dtypes))} to float32"] if other_dtypes else []
    return state, notes


# FROM models.box: The generator in the box: what ``kin translate`` uses when no checkpoint is named.


def bundled_model() -> Path:
    """The checkpoint that is installed with the package."""
    return Path(__file__).parents[1] / "weights" / "he2syn.safetensors"

"""Load and save generators: weights only, every setting derived from keys and shapes, no mismatch tolerated."""

from __future__ import annotations

import io
import json
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

_MPP_RANGE = (0.001, 10_000.0)  # µm per pixel, wider than any microscope
NOTICE = "no --model given: using the bundled generator, H&E to synaptophysin IHC; research only, not for diagnosis"


@dataclass(frozen=True)
class Generator:
    """A generator loaded from a file, and what its keys and shapes say about it.

    ``module`` is on the CPU, in eval mode, float32, without gradients. ``blocks`` counts residual blocks, or the
    downsamplings of a U-Net. ``channels`` is ΣC over all norm layers. Height and width of inputs must be multiples of
    ``stride`` px; ``halo`` is the radius of the receptive field in px. ``sha256`` is the checksum of the file.
    ``notes`` lists what loading changed; ``metadata`` is empty unless the file is a safetensors file.
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

    @property
    def trained_mpp(self) -> float | None:
        """Pixel size of the images that it was trained on, in µm; None if the file says nothing usable."""
        return _pixel_size(self.metadata.get("mpp", ""))


def load_generator(path: Path) -> Generator:
    """Load a generator of a known architecture from a PyTorch or safetensors file, whatever its suffix.

    Running statistics of InstanceNorm are dropped and other dtypes converted to float32, each with a note. A checkpoint
    without norm parameters is taken for InstanceNorm without them: the authors' code loses γ and β when it trains on a
    GPU, and the file does not show it.

    Raises ``ModelError`` unless the file holds exactly the weights of a known generator. No code in it is executed.
    """
    weights = read_weights(path)
    spec = detect(weights)
    # on meta: no memory for weights that are replaced, no numbers drawn from the caller's random generator
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
        notes=(*weights.notes, *converted, *_unusable(weights.metadata)),
        metadata=weights.metadata,
    )


def save_generator(module: nn.Module, path: Path, *, spec: Spec, metadata: Mapping[str, str] | None = None) -> None:
    """Write a generator atomically, in the keys that ``load_generator`` and the project of its architecture read.

    ``.safetensors`` also holds ``metadata`` and the spec, as strings; ``.pth`` and ``.pt`` are a plain state dict.
    Dtypes are kept.

    Raises ``ValueError`` if the module's keys are not those of ``spec``, ``UsageError`` for another suffix,
    ``OutputError`` if the file cannot be written.
    """
    # contiguous, because safetensors refuses channels_last tensors
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with torch.device("meta"):
        expected = build(spec).state_dict().keys()
    if differing := sorted(expected ^ state.keys()):
        raise ValueError(f"the module is no generator of {spec}: {listed(differing)} differ")
    if path.suffix == ".safetensors":
        described = {"format": "pt", "architecture": spec.architecture, **{k: str(v) for k, v in asdict(spec).items()}}
        content = _in_order(safetensors.torch.save(state, metadata={**(metadata or {}), **described}))
    elif path.suffix in (".pth", ".pt"):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
    else:
        raise UsageError(f"{path}: unknown suffix '{path.suffix}' of a checkpoint", "use .safetensors or .pth")
    with os_errors_as_output_errors(path):
        write_atomic(path, content)


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in the order of the keys; safetensors itself writes them in random order."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def describe(generator: Generator) -> dict[str, object]:
    """The properties of a generator as a JSON object, sizes in pixels."""
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
    """The tensors as contiguous float32 in the shapes of the module, and a note if their dtype was another."""
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


def _pixel_size(text: str) -> float | None:
    """A number of µm in a text; None if it is none, or not within what any microscope gives."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if _MPP_RANGE[0] <= value <= _MPP_RANGE[1] else None


def _unusable(metadata: Mapping[str, str]) -> list[str]:
    """A note if the metadata names a pixel size that is none."""
    mpp = metadata.get("mpp")
    if mpp is None or _pixel_size(mpp) is not None:
        return []
    return [f"ignored its pixel size '{listed([mpp[:40]])}', which is not a number of µm"]


def bundled_model() -> Path:
    """Path of the bundled generator, which ``kin translate`` uses without ``--model``."""
    return Path(__file__).parents[1] / "weights" / "he2syn.safetensors"

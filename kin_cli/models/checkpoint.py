"""Load and save generators: weights only, every setting derived from keys and shapes, no mismatch tolerated."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kin_cli.errors import ModelError, UsageError
from kin_cli.models.architectures import Spec, build, halo_px, recognise
from kin_cli.models.bundles import core, names_average, names_generator, names_other
from kin_cli.models.named import FULL_RANGE
from kin_cli.models.named import bundled_model as bundled_model
from kin_cli.models.resnet import Norm
from kin_cli.models.unet import FlatUnetSpec, UnetSpec
from kin_cli.models.weights import Weights, listed, read_networks, split_weights
from kin_cli.store.files import os_errors_as_output_errors, write_atomic

_MAX_PREFIXES = 3  # prefixes in front of a network's keys, one after the other
_UNKNOWN = "; keys seen: "  # in the message about a network of no known architecture
_SHOWN = 3  # reasons in a message
_NO_STATISTICS = "it has no InstanceNorm: --method and --kernel change nothing, and --seamless is exact"
_MPP_RANGE = (0.001, 10_000.0)  # µm per pixel, wider than any microscope
_OF_VARIANTS = ("norm", "padding", "halvings", "resize", "up_bias")
Reading = Callable[[Weights], tuple[Weights, Any]]
"""Recognises a network: returns it under the right keys with its spec, or raises ``ModelError``."""
NOTICE = "no --model given: using the bundled generator, H&E to PAS; research only, not for diagnosis"


@dataclass(frozen=True)
class Generator:
    """A generator loaded from a file, and what its keys and shapes say about it.

    ``module`` is on the CPU, in eval mode, float32, without gradients. ``blocks`` counts residual blocks, or the
    downsamplings of a U-Net. ``channels`` is ΣC over all norm layers. Height and width of inputs must be multiples of
    ``stride`` px; ``halo`` is the radius of the receptive field in px. ``sha256`` is the checksum of the file.
    ``notes`` lists what loading changed; ``metadata`` is empty unless the file is a safetensors file.

    The rest is of networks of one's own, which have no spec, width or blocks: ``facts`` is what identifies the code,
    ``sites`` are the calls of a norm (name, channels) if these are to be exchanged and not the layers, ``side`` a side
    in px that it takes, ``bytes_per_px`` the memory of its feature maps. ``input_range`` are the numbers of black and
    white in its input and output.
    """

    module: nn.Module
    architecture: str
    width: int | None
    blocks: int | None
    spec: Spec | None
    norm_layers: int
    channels: int
    stride: int
    halo: int
    sha256: str
    notes: tuple[str, ...]
    metadata: dict[str, str]
    facts: dict[str, object] = field(default_factory=dict)
    sites: list[tuple[str, int]] | None = None
    side: int | None = None
    bytes_per_px: float | None = None
    input_range: tuple[float, float] = FULL_RANGE

    @property
    def trained_mpp(self) -> float | None:
        """Pixel size of the images that it was trained on, in µm; None if the file says nothing usable."""
        return _pixel_size(self.metadata.get("mpp", ""))


def load_generator(path: Path, *, entry: str | None = None, norm: Norm | None = None) -> Generator:
    """Load a generator of a known architecture from a PyTorch or safetensors file, whatever its suffix.

    In a training bundle the one network that is a generator is taken, and a moving average of weights rather than the
    weights; ``entry`` names one of several generators.

    Running statistics of InstanceNorm are dropped and other dtypes converted to float32, each with a note. A checkpoint
    without norm parameters is taken for InstanceNorm without them: the authors' code loses γ and β when it trains on a
    GPU, and the file does not show it. ``norm`` is the kind of the norm layers, needed where the file does not tell it.

    Raises ``ModelError`` unless the file holds exactly the weights of a known generator. No code in it is executed.
    """
    weights, spec = choose(path, entry, norm)
    # on meta: no memory for weights that are replaced, no numbers drawn from the caller's random generator
    with torch.device("meta"):
        module = build(spec)
    _check_pixel_size(path, weights.metadata)
    state, converted = _as_float32(weights, {name: tensor.shape for name, tensor in module.state_dict().items()})
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)
    norms = [layer.num_features for layer in module.modules() if isinstance(layer, nn.InstanceNorm2d)]
    return Generator(
        module=module,
        architecture=spec.architecture,
        width=spec.width,
        blocks=spec.downs if isinstance(spec, UnetSpec | FlatUnetSpec) else spec.blocks,
        spec=spec,
        norm_layers=len(norms),
        channels=sum(norms),
        stride=spec.stride,
        halo=halo_px(spec),
        sha256=weights.sha256,
        notes=(*weights.notes, *converted, *([] if norms else [_NO_STATISTICS])),
        metadata=weights.metadata,
    )


@dataclass(frozen=True)
class _Candidate:
    """A network in a file: a generator if it has a spec, else refused with an error."""

    weights: Weights
    spec: Any
    error: ModelError | None = None

    @property
    def name(self) -> str:
        return self.weights.entry

    @property
    def may_be_generator(self) -> bool:
        """Whether a refused network is named as a generator, or is one that kin cannot take as it is."""
        if names_average(self.name) or names_other(self.name):
            return False
        return names_generator(self.name) or (self.error is not None and _UNKNOWN not in self.error.message)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {key: tensor.shape for key, tensor in self.weights.tensors.items()}


def choose(path: Path, entry: str | None = None, norm: Norm | None = None) -> tuple[Weights, Spec]:
    """The generator in a file and its spec. Raises ``ModelError`` if there is none, or several and no ``entry``."""
    return pick(path, entry, lambda weights: recognise(weights, norm))


def pick(path: Path, entry: str | None, reading: Reading) -> tuple[Weights, Any]:
    """The network in a file that ``reading`` accepts, as ``reading`` returns it; it raises ``ModelError`` for others.

    Raises ``ModelError`` if there is none, or several and no ``entry``.
    """
    found = [candidate for weights in read_networks(path) for candidate in _candidates(weights, reading)]
    if entry is not None:
        found = _named(path, found, entry)
    kept, averages = _averages_first(found)
    generators = _distinct([candidate for candidate in kept if candidate.spec is not None])
    refused = [candidate for candidate in kept if candidate.spec is None]
    doubtful = [candidate for candidate in refused if candidate.may_be_generator]
    if len(generators) + len(doubtful) > 1 and (generators or entry is None):
        names = [candidate.name for candidate in (*generators, *doubtful)]
        raise ModelError(
            f"{path} holds {len(names)} generators: {listed(names, 20)}", f"choose one: --entry {listed(names[:1])}"
        )
    if not generators:
        raise _none_known(path, doubtful or refused)
    chosen = generators[0]
    assert chosen.spec is not None
    notes = averages.get(chosen.name, [])
    if not names_average(chosen.name) and entry is None:
        lost = [c.name for c in refused if names_average(c.name) and not names_other(c.name)]
        for name in (*chosen.weights.left_out, *lost):
            notes = [*notes, f"left out its moving average '{listed([name])}', which is no state dict of this network"]
    return replace(chosen.weights, notes=(*chosen.weights.notes, *notes)), chosen.spec


def _candidates(weights: Weights, reading: Reading, depth: int = 0) -> list[_Candidate]:
    """The network, or the networks under its prefixes if it is no generator as a whole, or has its keys behind them."""
    try:
        found, spec = reading(weights)
        whole = _Candidate(found, spec)
        if found.tensors.keys() == weights.tensors.keys():
            return [whole]
    except ModelError as error:
        whole = _Candidate(weights, None, error)
    parts = split_weights(weights) if depth < _MAX_PREFIXES else []
    inner = [candidate for part in parts for candidate in _candidates(part, reading, depth + 1)]
    fitting = any(candidate.spec is not None for candidate in inner)
    named = any(names_generator(candidate.name.removeprefix(weights.entry)) for candidate in inner)
    return inner if fitting or (named and whole.spec is None) else [whole]


def _named(path: Path, found: list[_Candidate], entry: str) -> list[_Candidate]:
    """The candidates in the entry: with that very name, below it, or with that last part of their name."""
    exact = [candidate for candidate in found if candidate.name == entry]
    below = [candidate for candidate in found if candidate.name.startswith(f"{entry}.")]
    last = [candidate for candidate in found if candidate.name.endswith(f".{entry}")]
    if chosen := exact or below or last:
        return chosen
    names = [candidate.name for candidate in found if candidate.name]
    known = [candidate.name for candidate in found if candidate.name and candidate.spec is not None] or names
    hint = f"entries: {listed(known, 20)}" if known else "it holds one network alone: leave out --entry"
    raise ModelError(f"{path} has no network in an entry '{listed([entry])}'", hint)


def _averages_first(found: list[_Candidate]) -> tuple[list[_Candidate], dict[str, list[str]]]:
    """The candidates without those whose moving average is there, too, and notes by the name of the average."""
    dropped: set[str] = set()
    notes: dict[str, list[str]] = {}
    raws = [c for c in found if not names_average(c.name) and c.name]
    for average in found:
        if not names_average(average.name) or average.spec is None:
            continue
        alike = [raw for raw in raws if raw.shapes == average.shapes]
        same = [raw for raw in alike if core(raw.name) == core(average.name)]
        replaced = same or (alike if len(alike) == 1 else [])
        for raw in replaced:
            dropped.add(raw.name)
            notes.setdefault(average.name, []).append(
                f"took the moving average '{listed([average.name])}' instead of '{listed([raw.name])}'"
            )
    return [candidate for candidate in found if candidate.name not in dropped], notes


def _distinct(generators: list[_Candidate]) -> list[_Candidate]:
    """The generators without those whose tensors are all equal to an earlier one's."""
    kept: list[_Candidate] = []
    for one in generators:
        tensors = one.weights.tensors
        if not any(
            one.shapes == other.shapes and all(torch.equal(tensors[k], t) for k, t in other.weights.tensors.items())
            for other in kept
        ):
            kept.append(one)
    return kept


def _none_known(path: Path, refused: list[_Candidate]) -> ModelError:
    """Why none of the networks in a file is a generator."""
    first = refused[0].error
    assert first is not None
    if len(refused) == 1:
        return first
    whys = [str(c.error.message).removeprefix(f"{path} ") for c in refused[:_SHOWN] if c.error is not None]
    more = f"; … ({len(refused)} in all)" if len(refused) > _SHOWN else ""
    return ModelError(f"{path} holds no generator that kin knows: {'; '.join(whys)}{more}", first.hint)


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
        described = {"format": "pt", "architecture": spec.architecture, **_described(spec)}
        content = in_order(safetensors.torch.save(state, metadata={**(metadata or {}), **described}))
    elif path.suffix in (".pth", ".pt"):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
    else:
        raise UsageError(f"{path}: unknown suffix '{path.suffix}' of a checkpoint", "use .safetensors or .pth")
    with os_errors_as_output_errors(path):
        write_atomic(path, content)


def _described(spec: Spec) -> dict[str, str]:
    """The parameters of a spec as strings; those that only variants of the official generators have, if they differ."""
    defaults = {f.name: f.default for f in fields(spec)}
    return {k: str(v) for k, v in asdict(spec).items() if k not in _OF_VARIANTS or v != defaults[k]}


def in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in the order of the keys; safetensors itself writes them in random order."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if "__metadata__" not in header:
        return content
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def describe(generator: Generator) -> dict[str, object]:
    """The properties of a generator as a JSON object, sizes in pixels."""
    return {
        "architecture": generator.architecture,
        **generator.facts,
        **({} if generator.spec is None else {"width": generator.width, "blocks": generator.blocks}),
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


def _check_pixel_size(path: Path, metadata: Mapping[str, str]) -> None:
    """Raise ``ModelError`` if the metadata names a pixel size that is none: it decides which slides fit."""
    mpp = metadata.get("mpp", "")
    if mpp.strip() and _pixel_size(mpp) is None:
        raise ModelError(
            f"{path}: the pixel size in its metadata, '{listed([mpp[:40]])}', is not a number of µm",
            "correct the entry mpp, such as 0.5, or remove it",
        )

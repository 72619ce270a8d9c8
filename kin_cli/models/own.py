"""Networks of one's own: found by name, made, filled with weights that are read safely, and examined.

The code of such a network runs because the user names it. Everything that ``kin`` knows of its own architectures is
measured in ``examine``.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kin_cli.errors import ModelError, UsageError
from kin_cli.models.checkpoint import Generator, pick
from kin_cli.models.examine import OwnNetwork, examined, materialised, own_code
from kin_cli.models.named import FULL_RANGE, NetworkChoice
from kin_cli.models.weights import Weights, listed

GROUP = "kin_cli.generators"
"""Entry points of this group, in any installed package, are names for ``--network``."""
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
_COUNTER = "num_batches_tracked"
_MAX_PREFIX = 3


def load_network(
    choice: NetworkChoice | nn.Module,
    weights: Path | None = None,
    *,
    entry: str | None = None,
    input_range: tuple[float, float] = FULL_RANGE,
    patch_px: int = 512,
) -> Generator:
    """Make and examine a network of the user's own; the weights in the file ``weights`` are read without running code.

    ``input_range`` are the numbers that black and white have in its input and output. The module that is given is left
    as it is.

    Raises ``ModelError`` if there is no such network, if making or running it fails, if it is no translation from RGB
    to RGB of the same size, and if the weights are not those of this network.
    """
    if isinstance(choice, NetworkChoice):
        module, facts = _made(choice)
        name = choice.target
    else:
        module, name = _copied(choice), type(choice).__name__
        facts = {"network": name, "network sha256": _classes_sha256(choice)}
    if input_range != FULL_RANGE:
        facts["input range"] = list(input_range)
    module = getattr(module, "_orig_mod", module)  # of torch.compile, which would compile for every size
    net = materialised(OwnNetwork(module.eval(), name), patch_px)
    net.requires_grad_(False)
    notes: list[str] = []
    sha256, metadata = "", {}
    if weights is not None:
        found, _ = pick(weights, entry, lambda read: (_fitting(read, net), True))
        _fill(net, found)
        sha256, metadata, notes = found.sha256, found.metadata, list(found.notes)
    elif entry is not None:
        raise UsageError(f"--entry {entry} has no meaning without --model")
    elif isinstance(choice, NetworkChoice):
        notes.append("no --model given: its weights are those that its constructor made")
    found_out = examined(net, patch_px)
    return Generator(
        module=net,
        architecture=f"{name} (own network)",
        width=None,
        blocks=None,
        spec=None,
        norm_layers=len(found_out.sites),
        channels=sum(channels for _, channels in found_out.sites),
        stride=found_out.stride,
        halo=found_out.halo,
        sha256=sha256 or _state_sha256(module),
        notes=(*notes, *found_out.notes),
        metadata=metadata,
        facts=facts,
        sites=None if found_out.fused else found_out.sites,
        side=found_out.side,
        bytes_per_px=found_out.bytes_per_px,
        input_range=input_range,
    )


# Finding and making


def _made(choice: NetworkChoice) -> tuple[nn.Module, dict[str, object]]:
    """The network that the user names, and what identifies it."""
    values = choice.values
    with own_code():
        found, file = _found(choice.target)
        if isinstance(found, nn.Module):
            if values:
                raise UsageError(f"{choice.target} is a network already, which takes no --network-args")
            module = found
        elif not callable(found):
            raise ModelError(f"{choice.target} is a {type(found).__name__}, not a class of torch.nn.Module")
        else:
            try:
                module = found(**values)
            except (Exception, SystemExit) as error:
                hint = _parameters(found) if isinstance(error, TypeError) else None
                raise ModelError(f"{choice.target} {_raised(error, file)}", hint) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{choice.target} makes a {type(module).__name__}, not a torch.nn.Module", "name the class of the network"
        )
    return module, {
        "network": choice.target if choice.file is None else choice.target.rpartition("/")[2],
        "network sha256": _files_sha256(module, file),
        "network args": values,
    }


def _found(target: str) -> tuple[Any, Path | None]:
    """The object of that name, and the file that it is defined in."""
    place, colon, name = target.rpartition(":")
    if not colon:
        place, name = (target, "") if target.endswith(".py") else ("", target)
    if place.endswith(".py"):
        module = _module_of_file(Path(place))
    elif place:
        module = _imported(place)
    else:
        return _entry_point(name)
    source = getattr(module, "__file__", None)
    file = Path(source) if source else None
    found: Any = module
    try:
        if not name:
            raise AttributeError
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        known = sorted(
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.__name__
        )
        hint = f"networks in it: {listed(known, 20)}" if known else "it defines no class of torch.nn.Module"
        why = f"has no '{name}'" if name else "holds the code of networks: which of them?"
        raise ModelError(f"{place} {why}", hint if name else f"{hint}; write --network {place}:NAME") from None
    return found, file


def _module_of_file(path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: {what}", "--network takes FILE.py:NAME or package.module:NAME")
    path = path.resolve()
    root, names = path.parent, [path.stem]
    while (root / "__init__.py").is_file():  # a module of a package, which may import its neighbours
        names.insert(0, root.name)
        root = root.parent
    with _first_on_path(root):
        if len(names) > 1:
            return _imported(".".join(names))
        name = f"kin_network_{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise ModelError(f"{path} {_raised(error, path, 'cannot be imported:')}", _absent(error)) from error
        return module


def _imported(name: str) -> ModuleType:
    with _first_on_path(Path.cwd()):
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{name} {_raised(error, None, 'cannot be imported:')}", _absent(error)) from error


def _entry_point(name: str) -> tuple[Any, Path | None]:
    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if name not in points:
        known = f"names of installed packages: {listed(sorted(points), 20)}" if points else "no package brings names"
        raise ModelError(
            f"there is no network '{name}'", f"{known}; --network takes FILE.py:NAME or package.module:NAME"
        )
    try:
        found = points[name].load()
    except (Exception, SystemExit) as error:
        raise ModelError(f"{name} ({points[name].value}) {_raised(error, None, 'cannot be imported:')}") from error
    source = getattr(sys.modules.get(points[name].module), "__file__", None)
    return found, Path(source) if source else None


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Let imports look into ``folder`` first; afterwards last, since code may import when it runs."""
    name = str(folder)
    sys.path.insert(0, name)
    try:
        yield
    finally:
        sys.path.remove(name)
        if name not in sys.path:
            sys.path.append(name)


def _raised(error: BaseException, file: Path | None, verb: str = "raises") -> str:
    """The error in words, with the line of the user's file that it comes from."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if file is not None and trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.lineno is not None:
        line = error.lineno
    text = " ".join(str(error).split())[:300]
    where = f" (line {line})" if line is not None else ""
    return f"{verb} {type(error).__name__}{f': {text}' if text else ''}{where}"


def _absent(error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError):
        return f"install '{error.name}' beside kin, or run kin in the folder that it lies in"
    return None


def _parameters(found: Any) -> str | None:
    try:
        return f"""its parameters are {inspect.signature(found)}: --network-args '{{"name": value}}'"""
    except (TypeError, ValueError):
        return None


# Identity


def _files_sha256(module: nn.Module, file: Path | None) -> str:
    """Digest of the files that the network and its layers are defined in, torch's own aside."""
    files = {file} if file is not None else set()
    for kind in _classes(module):
        with contextlib.suppress(TypeError, OSError):
            if source := inspect.getsourcefile(kind):
                files.add(Path(source))
    digest = hashlib.sha256()
    for content in sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()):
        digest.update(content.encode())
    return digest.hexdigest()


def _classes_sha256(module: nn.Module) -> str:
    """Digest of the source of the network's classes, torch's own aside; of their code where there is no source."""
    digest = hashlib.sha256()
    for kind in sorted(_classes(module), key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        try:
            digest.update(inspect.getsource(kind).encode())
        except (TypeError, OSError):
            for name, value in sorted(vars(kind).items()):
                if inspect.isfunction(value):
                    digest.update(name.encode() + value.__code__.co_code + repr(value.__code__.co_consts).encode())
    return digest.hexdigest()


def _classes(module: nn.Module) -> set[type]:
    kinds = {type(layer) for layer in module.modules()}
    return {kind for kind in kinds if kind.__module__.partition(".")[0] != "torch"}


def _state_sha256(module: nn.Module) -> str:
    """Digest of all parameters and buffers with their names."""
    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _copied(module: object) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise UsageError(f"generator is a {type(module).__name__}, not a torch.nn.Module")
    try:
        with torch.no_grad():
            return copy.deepcopy(module).cpu()
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} cannot be copied: {error}", "call it once under torch.no_grad(), or make it anew"
        ) from error


# Weights


def _fitting(weights: Weights, net: OwnNetwork) -> Weights:
    """The weights under the network's own keys. Raises ``ModelError``, listing the keys, if they are another's."""
    expected = {name: tuple(tensor.shape) for name, tensor in net.net.state_dict().items()}
    running = {name: tensor for name, tensor in weights.stored.items() if name.endswith(_RUNNING)}
    dropped = ("folded ", "dropped running statistics")
    for state, gone in ((weights.stored, dropped), ({**weights.tensors, **running}, dropped[1:])):
        for named in _other_prefixes(state, expected):
            extra = [name for name in named if name not in expected]
            absent = [name for name in expected if name not in named and not name.endswith(_COUNTER)]
            if absent or any(not name.endswith(_RUNNING) for name in extra):
                continue
            for name in expected:
                if name in named and tuple(named[name].shape) != expected[name]:
                    weights.refuse(
                        f"has a {name} of shape {tuple(named[name].shape)} where {net.name} needs {expected[name]}",
                        "check --network-args",
                    )
            notes = [note for note in weights.notes if not note.startswith(gone)]
            if layers := {name.rpartition(".")[0] for name in extra}:
                notes.append(f"dropped running statistics of {len(layers)} norm layers")
            tensors = {name: tensor for name, tensor in named.items() if name in expected}
            return replace(weights, tensors=tensors, notes=tuple(notes))
    _refuse_keys(weights, expected, net.name)
    raise AssertionError


def _other_prefixes(state: Mapping[str, Tensor], expected: Mapping[str, object]) -> Iterator[dict[str, Tensor]]:
    """The state, and the same without the prefix that all its keys have, or with that which the network's keys have."""
    yield dict(state)
    short = dict(state)
    for _ in range(_MAX_PREFIX):
        fronts = {name.partition(".")[0] for name in short}
        if len(fronts) != 1 or not all("." in name for name in short):
            break
        short = {name.partition(".")[2]: tensor for name, tensor in short.items()}
        yield short
    fronts = {name.partition(".")[0] for name in expected}
    if len(fronts) == 1:
        (front,) = fronts
        yield {f"{front}.{name}": tensor for name, tensor in state.items()}


def _refuse_keys(weights: Weights, expected: Mapping[str, object], name: str) -> None:
    missing = [key for key in expected if key not in weights.stored and not key.endswith(_COUNTER)]
    unexpected = [key for key in weights.stored if key not in expected]
    problems = [f"lacks {listed(missing)}"] if missing else []
    problems += [f"has unexpected keys: {listed(unexpected)}"] if unexpected else []
    strange = 2 * len(missing) > len(expected)  # another network: not to be listed among the generators of a bundle
    seen = f"; keys seen: {listed(list(weights.stored))}" if strange else ""
    weights.refuse(
        f"does not fit the network {name}: it {' and '.join(problems)}{seen}",
        "check --network and --network-args, or name another --entry",
    )


def _fill(net: OwnNetwork, weights: Weights) -> None:
    """Copy the weights into the network, which keeps its precision."""
    state = {}
    for name, tensor in weights.tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            weights.refuse(f"holds no plain weights in {name}: {tensor.dtype}, {tensor.layout}, {tensor.device}")
        state[name] = tensor.float() if tensor.is_floating_point() else tensor
        if tensor.is_floating_point() and not torch.isfinite(state[name]).all():
            weights.refuse(
                f"has weights that are NaN or infinite in {name}", "take an earlier checkpoint of the training"
            )
    try:
        net.net.load_state_dict(state, strict=False)
    except Exception as error:
        raise ModelError(f"{weights.path} cannot be loaded into {net.name}: {' '.join(str(error).split())}") from error

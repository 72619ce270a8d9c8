"""Read the tensors of a checkpoint file without executing code in it."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kin_cli.errors import ModelError
from kin_cli.models.bundles import (
    Network,
    by_prefix,
    find_networks,
    fold,
    is_optimizer,
    unread_averages,
    without_wrappers,
)
from kin_cli.store.files import file_sha256, open_regular, utf8_name

_RUNNING_STATS = re.compile(r"(?:^|\.)(?:running_mean|running_var|num_batches_tracked)$")
_RESAVE = "re-save the generator alone: torch.save(net.state_dict(), file)"
_SAVE = "torch.save(net.state_dict(), 'weights.pth')"
_ENTRIES_SOUGHT = "a training bundle has the generator's state dict in an entry such as netG, generator or state_dict"
_READABLE = "kin reads .pth, .pt and .safetensors files"
_FROM_TRAINING = "give the PyTorch checkpoint that its training wrote"
_UNPACK = "unpack it and give the file in it"
_HEAD_BYTES = 512
REFERENCE_PREFIX = "kin.trust."
"""Tensors of a safetensors file that are no weights but statistics of the training patches; see ``reference``."""
_JSON_NEXT = (b'"', b"}", b" ", b"")  # what follows the opening brace of a header
_ONNX = re.compile(rb"\x08[\x03-\x14](?:\x12[\x01-\x40]|\x3a[\x80-\xff])", re.DOTALL)  # version, then producer or graph
_OTHER_KINDS = (
    (b"\x1f\x8b", "a gzip file", _UNPACK),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, as Keras writes", _FROM_TRAINING),
    (b"\x93NUMPY", "a NumPy array", _FROM_TRAINING),
    (b"GGUF", "a GGUF language model", _FROM_TRAINING),
    (b"\x89PNG", "a PNG image", _READABLE),
    (b"\xff\xd8\xff", "a JPEG image", _READABLE),
    (b"II*\0", "a TIFF image", _READABLE),
    (b"MM\0*", "a TIFF image", _READABLE),
    (b"II+\0", "a TIFF image", _READABLE),
    (b"{", "a JSON file", _READABLE),
    (b"<?xml", "an XML file", _READABLE),
)
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_BUILTINS = ("bool", "dict", "float", "int", "list", "str", "tuple")  # what a defaultdict makes
_INERT = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,  # Python 3.13
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
}  # by module
_DICTIONARIES = {
    "collections": ("defaultdict",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
}


class _Inert:
    """Stands for an object of a known type beside the weights: takes whatever it is built from, and keeps nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        """Make an object of nothing."""
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _Dictionary:
    """Stands for a known kind of dictionary: becomes a plain one."""

    def __new__(cls, *_: object) -> dict[object, object]:  # type: ignore[misc]
        """Make a dictionary, which is filled afterwards."""
        return {}


def _stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Types that torch's reader of weights makes in place of those of the same name; they run none of their code."""
    return [
        type(name, (base,), {"__module__": module, "__qualname__": name})
        for base, modules in ((_Inert, _INERT), (_Dictionary, _DICTIONARIES))
        for module, names in modules.items()
        for name in names
    ]


_STAND_INS = _stand_ins()


@dataclass(frozen=True)
class Weights:
    """The tensors of one network as stored in its file, of any shape and dtype, on the CPU, without key prefixes.

    ``running_stats`` names the layers whose running statistics were dropped. ``notes`` lists what reading changed.
    ``entry`` is the dotted name of the entry that the network is stored under; empty: the file holds nothing else.
    ``stored`` is the state dict before norms were folded and running statistics dropped. ``left_out`` names entries of
    the file that hold a moving average which kin cannot read.
    """

    path: Path
    tensors: dict[str, Tensor]
    sha256: str
    metadata: dict[str, str]
    running_stats: tuple[str, ...]
    notes: tuple[str, ...]
    entry: str = ""
    stored: dict[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def refuse(self, why: str, hint: str | None = None) -> NoReturn:
        """Raise a ``ModelError`` that begins with the path of the file, and the entry if there is one."""
        where = f" (entry '{listed([self.entry])}')" if self.entry else ""
        raise ModelError(f"{self.path}{where} {why}", hint)


def read_weights(path: Path) -> Weights:
    """Read the first state dict from a file written by ``torch.save`` (zip or legacy format) or by safetensors.

    Raises ``ModelError`` for all other files. A pickle that contains code is refused; nothing in it is executed.
    """
    return read_networks(path)[0]


def read_networks(path: Path) -> list[Weights]:
    """Read every network in a file, in its order; at least one. Raises as ``read_weights`` does.

    Several networks in one flat state dict are not told apart: see ``split_weights``.
    """
    sha256 = _sha256(path)
    content, metadata = _read(path)
    left_out = tuple(unread_averages(content))
    networks = list(find_networks(content))
    if not networks:
        raise _no_state_dict(path, content)
    return [_weights(Weights(path, {}, sha256, metadata, (), (), left_out=left_out), network) for network in networks]


def split_weights(weights: Weights) -> list[Weights]:
    """The networks in one flat state dict that its prefixes tell apart; an empty list if they do not."""
    return [_weights(weights, network) for network in by_prefix(Network(weights.entry, weights.stored))]


def _weights(file: Weights, network: Network) -> Weights:
    """One network of the file that ``file`` describes."""
    state, notes = without_wrappers(network.state)
    stored = state
    state, folded = fold(state)
    running = {name.rpartition(".")[0]: None for name in state if _RUNNING_STATS.search(name)}
    tensors = {name: tensor for name, tensor in state.items() if not _RUNNING_STATS.search(name)}
    notes += folded
    if network.name:
        notes.insert(0, f"taken from the entry '{listed([network.name])}'")
    if running:
        notes.append(f"dropped running statistics of {len(running)} norm layers")
    return replace(
        file, tensors=tensors, stored=stored, running_stats=tuple(running), notes=tuple(notes), entry=network.name
    )


def _no_state_dict(path: Path, content: object) -> ModelError:
    """Why the content of a file is no state dict."""
    if is_optimizer(content):
        return ModelError(f"{path} is the state of an optimizer, not of a generator", "give the generator's file")
    if not isinstance(content, Mapping):
        return ModelError(f"{path} holds a {type(content).__name__}, not a state dict", _RESAVE)
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    nested = any(isinstance(value, Mapping) for value in content.values())
    if tensors and (not nested or any(tensor.dim() > 1 for tensor in tensors)):
        wrong = {k: v for k, v in content.items() if not (isinstance(k, str) and isinstance(v, Tensor))}
        name, value = next(iter(wrong.items()))
        return ModelError(
            f"{path} has an entry '{listed([str(name)])}' that is no tensor ({type(value).__name__})", _RESAVE
        )
    seen = listed([str(name) for name in content]) or "none"
    return ModelError(f"{path} holds no state dict; entries seen: {seen}", _ENTRIES_SOUGHT)


def _sha256(path: Path) -> str:
    try:
        sha256, size = file_sha256(path), path.stat().st_size
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file", "give the path of a generator checkpoint") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder", "give the checkpoint file in it, such as latest_net_G.pth") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from error
    except ValueError as error:  # a NUL in the name
        raise ModelError(f"{str(path)!r} is no possible name of a file: {error}", "check the path") from None
    if size == 0:
        raise ModelError(f"{path} is empty", "copy or download it again")
    return sha256


def _read(path: Path) -> tuple[object, dict[str, str]]:
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(path), {}
    # safetensors: 8 bytes with the length of the header, which may look like a pickle's opcode, then the header
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and (length <= path.stat().st_size or head[9:10] in _JSON_NEXT):
        return _read_safetensors(path)
    # first opcode of a pickle of protocol 2 or later: PyTorch before 1.6 wrote it without a zip archive
    if head.startswith(b"\x80"):
        return _read_pickle(path), {}
    raise _no_checkpoint(path, head)


def _no_checkpoint(path: Path, head: bytes) -> ModelError:
    """What a file is that is no checkpoint, as far as its first bytes tell, and what to do about it."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"version https://git-lfs"):
        return ModelError(f"{path} is a Git LFS pointer, not the file that it points to", "fetch it with git lfs pull")
    if text.startswith((b"<!doctype html", b"<html")) or b"<html" in text:
        hint = "download it again; the page may ask for a login or a confirmation"
        return ModelError(f"{path} is a web page, not the file that was to be downloaded", hint)
    if not head.strip(b"\0"):
        return ModelError(f"{path} holds nothing but zeros", "copy or download it again")
    for start, kind, hint in _OTHER_KINDS:
        if head.startswith(start):
            return ModelError(f"{path} is not a checkpoint but {kind}", hint)
    if head[257:262] == b"ustar":
        return ModelError(f"{path} is not a checkpoint but a tar archive", _UNPACK)
    if path.suffix.lower() == ".onnx" or _ONNX.match(head) or (head[:1] == b"\x08" and b"pytorch" in head):
        why = f"{path} is not a checkpoint but an ONNX model, whose layers may be merged and renamed"
        return ModelError(why, f"{_FROM_TRAINING}; where net was exported to ONNX: {_SAVE}")
    return ModelError(f"{path} is not a checkpoint: it is neither a PyTorch nor a safetensors file", _READABLE)


def _read_zip(path: Path) -> object:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # a changed byte raises NotImplementedError or UnicodeDecodeError, too
        raise _damaged(path) from None
    if any("/code/" in name for name in names):
        hint = _export(f"net = torch.jit.load({path.name!r}, map_location='cpu')")
        raise ModelError(f"{path} is a TorchScript archive, which is code and not only weights; not loaded", hint)
    if any(
        name.endswith(("serialized_exported_program.json", "/archive_format", "models/model.json")) for name in names
    ):
        hint = _export(f"net = torch.export.load({path.name!r}).module()")
        raise ModelError(f"{path} is a program of torch.export, which is code and not only weights; not loaded", hint)
    if any(name.endswith((".npy", ".h5")) or name == "config.json" for name in names):
        raise ModelError(f"{path} is an archive of NumPy or Keras, not of PyTorch", _FROM_TRAINING)
    if not any(name.endswith("/data.pkl") for name in names):
        raise ModelError(f"{path} is a zip archive, but no PyTorch checkpoint", "unpack it and give the file in it")
    return _read_pickle(path)


def _read_pickle(path: Path) -> object:
    try:
        with (
            warnings.catch_warnings(),
            _known_types(),
            open_regular(path) as file,
        ):  # by a file: torch takes no name that is not UTF-8
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are refused anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        code = f" ({named[1]})" if named else ""
        hint = _export(f"net = torch.load({path.name!r}, map_location='cpu', weights_only=False)")
        raise ModelError(f"{path} contains code{code}, not only weights; not loaded", hint) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files make the reader raise IndexError, KeyError, EOFError and others
        if "allocate memory" in str(error):
            raise MemoryError from error
        raise _damaged(path) from None


@contextmanager
def _known_types() -> Iterator[None]:
    """Let torch read the types of ``_STAND_INS``, and afterwards what it let in before."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # other allowed types may run code
    torch.serialization.add_safe_globals(_STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _read_safetensors(path: Path) -> tuple[object, dict[str, str]]:
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt", device="cpu") as file:
            keys = [key for key in file.keys() if not key.startswith(REFERENCE_PREFIX)]  # noqa: SIM118
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except SafetensorError:
        raise _damaged(path) from None
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # a dtype that torch or this kin lacks
        raise ModelError(f"{path} holds tensors that cannot be read: {error}", "save them as float32") from None


def _export(net: str) -> str:
    """The lines of Python that save the state dict of a network, for a hint."""
    return f"if you trust the file, run in the project that wrote it: import torch; {net}; {_SAVE}"


def _damaged(path: Path) -> ModelError:
    return ModelError(f"{path} is truncated or damaged", "copy or download it again")


def listed(names: list[str], limit: int = 3) -> str:
    """The first ``limit`` names for a message; if there are more, also an ellipsis and the total number."""
    # names come from the file: its line breaks and escape sequences must not reach the terminal
    shown = "".join(c if c.isprintable() else "?" for c in ", ".join(names[:limit]))
    return shown if len(names) <= limit else f"{shown}, … ({len(names)} in all)"

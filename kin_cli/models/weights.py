"""Read the tensors of a checkpoint file without executing code in it."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kin_cli.errors import ModelError
from kin_cli.store.files import open_regular, utf8_name

ENVELOPES = ("state_dict", "model", "netG", "net_G", "generator", "params", "G")
"""Entries of a training checkpoint under which projects keep the generator's state dict."""

_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DataParallel and of torch.compile
_MAX_NESTING = 4
_RUNNING_STATS = re.compile(r"(?:^|\.)(?:running_mean|running_var|num_batches_tracked)$")
_RESAVE = "re-save the generator alone: torch.save(net.state_dict(), file)"
_READABLE = "kin reads .pth, .pt and .safetensors files"
_FROM_TRAINING = "give the PyTorch checkpoint that its training wrote"
_UNPACK = "unpack it and give the file in it"
_HEAD_BYTES = 512
_JSON_NEXT = (b'"', b"}", b" ", b"")  # what follows the opening brace of a header
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


@dataclass(frozen=True)
class Weights:
    """The tensors of one network as stored in its file, of any shape and dtype, on the CPU, without key prefixes.

    ``running_stats`` names the layers whose running statistics were dropped. ``notes`` lists what reading changed.
    """

    path: Path
    tensors: dict[str, Tensor]
    sha256: str
    metadata: dict[str, str]
    running_stats: tuple[str, ...]
    notes: tuple[str, ...]

    def refuse(self, why: str, hint: str | None = None) -> NoReturn:
        """Raise a ``ModelError`` that begins with the path of the file."""
        raise ModelError(f"{self.path} {why}", hint)


def read_weights(path: Path) -> Weights:
    """Read the state dict from a file written by ``torch.save`` (zip or legacy format) or by safetensors.

    Raises ``ModelError`` for all other files. A pickle that contains code is refused; nothing in it is executed.
    """
    sha256 = _sha256(path)
    content, metadata = _read(path)
    state, notes = _unwrap(path, content)
    state, stripped = _without_wrappers(state)
    running = {name.rpartition(".")[0]: None for name in state if _RUNNING_STATS.search(name)}
    tensors = {name: tensor for name, tensor in state.items() if not _RUNNING_STATS.search(name)}
    notes += stripped
    if running:
        notes.append(f"dropped running statistics of {len(running)} norm layers")
    return Weights(path, tensors, sha256, metadata, tuple(running), tuple(notes))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    size = 0
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
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
    return digest.hexdigest()


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
    if path.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head):
        return ModelError(f"{path} is not a checkpoint but an ONNX model", _FROM_TRAINING)
    return ModelError(f"{path} is not a checkpoint: it is neither a PyTorch nor a safetensors file", _READABLE)


def _read_zip(path: Path) -> object:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # a changed byte raises NotImplementedError or UnicodeDecodeError, too
        raise _damaged(path) from None
    if any("/code/" in name for name in names):
        raise ModelError(f"{path} is a TorchScript archive, which is code and not only weights; not loaded", _RESAVE)
    if any(name.endswith((".npy", ".h5")) or name == "config.json" for name in names):
        raise ModelError(f"{path} is an archive of NumPy or Keras, not of PyTorch", _FROM_TRAINING)
    if not any(name.endswith("/data.pkl") for name in names):
        raise ModelError(f"{path} is a zip archive, but no PyTorch checkpoint", "unpack it and give the file in it")
    return _read_pickle(path)


def _read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings(), open_regular(path) as file:  # by a file: torch takes no name that is not UTF-8
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are refused anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        code = f" ({named[1]})" if named else ""
        raise ModelError(f"{path} contains code{code}, not only weights; not loaded", _RESAVE) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files make the reader raise IndexError, KeyError, EOFError and others
        if "allocate memory" in str(error):
            raise MemoryError from error
        raise _damaged(path) from None


def _read_safetensors(path: Path) -> tuple[object, dict[str, str]]:
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError:
        raise _damaged(path) from None
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # a dtype that torch or this kin lacks
        raise ModelError(f"{path} holds tensors that cannot be read: {error}", "save them as float32") from None


def _damaged(path: Path) -> ModelError:
    return ModelError(f"{path} is truncated or damaged", "copy or download it again")


def _unwrap(path: Path, content: object) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict inside known envelopes, and a note with the names of the entries."""
    trail: list[str] = []
    # a pickle can hold a dictionary that contains itself
    while (
        len(trail) < _MAX_NESTING
        and isinstance(content, Mapping)
        and (entry := next((name for name in ENVELOPES if isinstance(content.get(name), Mapping)), None))
    ):
        trail.append(entry)
        content = content[entry]
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}, not a state dict", _RESAVE)
    if content.keys() >= {"state", "param_groups"}:
        raise ModelError(f"{path} is the state of an optimizer, not of a generator", "give the generator's file")
    if not any(isinstance(value, Tensor) for value in content.values()):
        seen = listed([str(name) for name in content]) or "none"
        raise ModelError(
            f"{path} holds no state dict; entries seen: {seen}", f"entries looked for: {', '.join(ENVELOPES)}"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            entry = listed([str(name)])
            raise ModelError(f"{path} has an entry '{entry}' that is no tensor ({type(value).__name__})", _RESAVE)
    return dict(content), [f"taken from the entry '{'.'.join(trail)}'"] if trail else []


def _without_wrappers(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict without the prefixes of ``_WRAPPERS``, and a note for each that was removed."""
    notes = []
    while prefix := next((w for w in _WRAPPERS if all(name.startswith(w) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        notes.append(f"removed the prefix '{prefix}' from the keys")
    return state, notes


def listed(names: list[str], limit: int = 3) -> str:
    """The first ``limit`` names for a message; if there are more, also an ellipsis and the total number."""
    # names come from the file: its line breaks and escape sequences must not reach the terminal
    shown = "".join(c if c.isprintable() else "?" for c in ", ".join(names[:limit]))
    return shown if len(names) <= limit else f"{shown}, … ({len(names)} in all)"

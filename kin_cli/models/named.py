"""What users call a generator: the name of a file on the shelf, or the code of a network of their own. Without torch.

The shelf is the bundled generators and the checkpoints in the folders that ``KIN_MODELS`` lists. A generator's card is
the metadata of its safetensors file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kin_cli.errors import ModelError, UsageError
from kin_cli.store.files import file_sha256, open_regular

VARIABLE = "KIN_MODELS"
"""Environment variable with the folders of generators, separated as in PATH."""
MODEL_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt")
_MAX_CARD_BYTES = 100 << 20  # the limit of safetensors itself

FULL_RANGE = (-1.0, 1.0)
"""Numbers of black and white in the input and output of most generators."""


@dataclass(frozen=True)
class NetworkChoice:
    """What the user names: ``target`` is ``nets.py:Generator``, ``package.module:Generator``, or an entry point.

    ``args`` are the keyword arguments of its constructor, as a JSON object.
    """

    target: str
    args: str = "{}"

    @property
    def file(self) -> Path | None:
        """The file of Python code that is named; None if a module or an entry point is."""
        place = self.target.rpartition(":")[0] or self.target
        return Path(place).expanduser() if place.endswith(".py") else None

    @property
    def values(self) -> dict[str, Any]:
        """The arguments. Raises ``UsageError`` if they are no JSON object."""
        hint = """write an object in quotes: --network-args '{"ngf": 64}'"""
        try:
            values = json.loads(self.args)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--network-args is not JSON: {error}", hint) from None
        if not isinstance(values, dict):
            raise UsageError(f"--network-args is not a JSON object: {self.args}", hint)
        return values


def bundled_model() -> Path:
    """Path of the bundled generator, which ``kin translate`` uses without ``--model``."""
    return Path(__file__).parents[1] / "weights" / "he2pas.safetensors"


def shelf(environment: Mapping[str, str] = os.environ) -> tuple[dict[str, Path], list[str]]:
    """Every generator with a name, the file's without its ending, and a line for each folder that cannot be read.

    A name that stands twice is the first one's; the others have their file names.
    """
    first = bundled_model()
    files, unread = [first, *sorted(file for file in first.parent.glob("*.safetensors") if file != first)], []
    for folder in filter(None, environment.get(VARIABLE, "").split(os.pathsep)):
        try:
            found = sorted(Path(folder).expanduser().iterdir())
        except OSError as error:
            unread.append(f"{VARIABLE}: {folder}: {error.strerror}")
            continue
        files += [file for file in found if file.suffix.lower() in MODEL_ENDINGS and file.is_file()]
    named: dict[str, Path] = {}
    for file in files:
        name = file.stem if file.stem not in named else file.name
        named.setdefault(name if name not in named else str(file), file)
    return named, unread


def find_generator(given: Path) -> Path:
    """The file of a generator that the user names: a path, or a name of the shelf.

    Raises ``ModelError`` for a bare name that is neither.
    """
    if given.exists() or len(given.parts) != 1:
        return given
    known, _ = shelf()
    if given.name in known:
        return known[given.name]
    named_so = [file for file in known.values() if file.name == given.name]
    if named_so or given.suffix:
        return named_so[0] if named_so else given
    names = ", ".join(sorted(known))
    raise ModelError(f"{given}: no such file, and no generator of that name", f"kin models lists them: {names}")


def card(file: Path) -> dict[str, str]:
    """The card of a generator; empty if its file has none, as a PyTorch file. Raises ``OSError``."""
    with open_regular(file) as content:
        head = content.read(9)
        length = int.from_bytes(head[:8], "little")
        if head[8:] != b"{" or length > _MAX_CARD_BYTES:
            return {}
        header = head[8:] + content.read(length - 1)
    try:
        found = json.loads(header).get("__metadata__", {})
    except (ValueError, RecursionError, AttributeError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def description(name: str, file: Path) -> dict[str, object]:
    """What ``kin models`` says of a generator: stains, mpp, licence, data and digest from its card; None: not there."""
    try:
        found, digest = card(file), file_sha256(file)
    except OSError as error:
        return {"name": name, "file": str(file), "unreadable": error.strerror or type(error).__name__}
    return {
        "name": name,
        "file": str(file),
        "source_stain": found.get("source_stain"),
        "target_stain": found.get("target_stain"),
        "mpp": found.get("mpp"),
        "licence": found.get("licence") or found.get("license"),
        "data": found.get("data") or found.get("credit"),
        "use": found.get("use"),
        "sha256": digest,
        "card": found,
    }

"""Fingerprints: everything that decides some result, as JSON, and how two of them differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kin_cli.errors import OutputError


def as_text(state: Mapping[str, object]) -> bytes:
    """The mapping as JSON with its keys in order."""
    return json.dumps(dict(state), sort_keys=True, ensure_ascii=False, indent=1).encode()


def as_json(state: Mapping[str, object]) -> dict[str, Any]:
    """The mapping as it will be read back, tuples as lists."""
    result: dict[str, Any] = json.loads(as_text(state))
    return result


def parsed(path: Path, content: bytes, *, hint: str) -> dict[str, Any]:
    """The JSON object that ``path`` held; ``OutputError`` with ``hint`` where it is none."""
    try:
        state = json.loads(content)
    except ValueError:
        state = None
    if not isinstance(state, dict):
        raise OutputError(f"{path}: is damaged (not a JSON object)", hint)
    return state


def differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """``name: old → new`` for every entry that differs, in one line; "" where none does."""
    return "; ".join(
        f"{name}: {_shown(found, name)} → {_shown(wanted, name)}"
        for name in sorted(found.keys() | wanted.keys())
        if name not in found or name not in wanted or found[name] != wanted[name]
    )


def _shown(settings: Mapping[str, object], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "(not set)"

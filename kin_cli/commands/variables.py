"""Environment variables as options: ``KIN_TRANSLATE_PATCH_SIZE`` is ``--patch-size`` of ``kin translate``.

Variables are named after flags, and a variable that no option has is refused like an unknown key in a TOML file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import click

from kin_cli.errors import UsageError

PREFIX = "KIN_"
# read by kin itself, by its scripts and by its job templates
OTHERS = (
    "KIN_DEBUG",
    "KIN_MODELS",
    "KIN_VENV",
    "KIN_CHROMIUM",
    "KIN_SHARDS",
    "KIN_REQUEUE_SECONDS",
    "KIN_OPENSEADRAGON",
)


def name_variables(group: click.Group, prefix: str = PREFIX) -> None:
    """Give each option of all commands the variable that its long flags name, besides one that it already has."""
    for name, command in group.commands.items():
        own = f"{prefix}{_upper(name)}_"
        for option in command.params:
            if isinstance(option, click.Option):
                option.envvar = [*_listed(option.envvar), *(own + _upper(flag) for flag in _flags(option))]
                option.allow_from_autoenv = False
        if isinstance(command, click.Group):
            name_variables(command, own)


def refuse_unknown(group: click.Group, environment: Mapping[str, str]) -> None:
    """Raise ``UsageError`` for the first variable that begins with ``KIN_`` and belongs to nothing."""
    known = {*OTHERS, *_variables(group)}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "kin COMMAND --help lists the options; unset it"
            raise UsageError(f"{name}: no option has this environment variable", hint)


def _variables(group: click.Group) -> Iterator[str]:
    for command in group.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                yield from _listed(option.envvar)
        if isinstance(command, click.Group):
            yield from _variables(command)


def _listed(envvar: object) -> list[str]:
    if envvar is None:
        return []
    return [envvar] if isinstance(envvar, str) else [str(name) for name in envvar]  # type: ignore[attr-defined]


def _flags(option: click.Option) -> list[str]:
    return [flag.removeprefix("--") for flag in option.opts if flag.startswith("--")]


def _upper(text: str) -> str:
    return text.upper().replace("-", "_")

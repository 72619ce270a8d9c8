"""Option values as people type them, turned into values before a command runs; and the ``--config`` file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from kin_cli.errors import UsageError
from kin_cli.geometry import Box, Size


class KernelType(click.ParamType):
    """``1``, ``constant:3``, ``gaussian:7``, ``gaussian:7:1.5`` or ``global``."""

    name = "kernel"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Parse a kernel specification."""
        from kin_cli.norm.kernel import Kernel

        return value if isinstance(value, Kernel) else Kernel.parse(str(value))


class RegionType(click.ParamType):
    """``x,y,w,h`` in pixels of the image that is read."""

    name = "x,y,w,h"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a region; its extents must be at least 1."""
        try:
            x, y, width, height = (int(number) for number in str(value).split(","))
            Size(width, height)
        except ValueError:
            self.fail(f"'{value}' is not a region; write four whole numbers such as 1024,2048,512,512", param, ctx)
        return Box(x, y, width, height)


class SizeType(click.ParamType):
    """``8192`` or ``8192x4096``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a size in pixels."""
        try:
            width, _, height = str(value).lower().partition("x")
            return Size(int(width), int(height or width))
        except ValueError:
            return self.fail(f"'{value}' is not a size in pixels; write 8192 or 8192x4096", param, ctx)


class AutoInt(click.ParamType):
    """A whole number from 0 upwards, or the word ``auto``."""

    name = "n|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the number, keep the word."""
        if str(value).lower() == "auto":
            return "auto"
        if not str(value).isdecimal():
            self.fail(f"'{value}' is neither a whole number from 0 upwards nor auto", param, ctx)
        return int(value)


def auto_as_none(value: int | str | None) -> int | None:
    """The number that ``AutoInt`` read, None for ``auto`` and where nothing was given."""
    return value if isinstance(value, int) else None


class TissueType(click.ParamType):
    """``auto``, ``none``, or a mask file."""

    name = "auto|none|mask"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Leave the two words, make a path of anything else."""
        return value if value in ("auto", "none") else Path(value)


def config_option(command: Any) -> Any:
    """Add ``--config FILE``: a TOML file whose keys are the command's own option names."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_load_config,
        help="TOML file with defaults for these options (see configs/).",
    )(command)


def _load_config(ctx: click.Context, _param: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file", "--config needs a TOML file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: not a readable TOML file: {error}") from None
    known = {p.name for p in ctx.command.params if isinstance(p, click.Option) and p.name not in ("config", "help")}
    given = {key.replace("-", "_"): value for key, value in values.items()}
    if unknown := sorted(given.keys() - known):
        options = ", ".join(sorted(name.replace("_", "-") for name in known if name))
        raise UsageError(f"{file}: unknown key '{unknown[0]}'", f"known keys: {options}")
    ctx.default_map = {**(ctx.default_map or {}), **given}

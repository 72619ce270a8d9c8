"""Types of option values, options that several commands share, and the ``--config`` file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from kin_cli.errors import UsageError
from kin_cli.geometry import Box, Size

CONFIG_FILE = "kin_cli.config"  # key of a click context's ``meta`` under which the file of --config is kept
FILE = click.Path(path_type=Path)


class KernelType(click.ParamType):
    """``1``, ``constant:3``, ``gaussian:7``, ``gaussian:7:1.5`` or ``global``."""

    name = "kernel"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Parse a kernel specification."""
        from kin_cli.norm.kernel import Kernel

        return value if isinstance(value, Kernel) else Kernel.parse(str(value))


class RegionType(click.ParamType):
    """``x,y,w,h``: corner, width and height of a rectangle, in pixels of the image that is read."""

    name = "x,y,w,h"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a region; width and height are at least 1."""
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
        """Return the number as an int, the word as it is."""
        if str(value).lower() == "auto":
            return "auto"
        if not str(value).isdecimal():
            self.fail(f"'{value}' is neither a whole number from 0 upwards nor auto", param, ctx)
        return int(value)


def auto_as_none(value: int | str | None) -> int | None:
    """Return the number that ``AutoInt`` parsed, or None for ``auto`` and for an option that was not given."""
    return value if isinstance(value, int) else None


class TissueType(click.ParamType):
    """``auto``, ``none``, or a mask file."""

    name = "auto|none|mask"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Return the two words as they are, anything else as a path."""
        return value if value in ("auto", "none") else Path(value)


# Decorators for the options that several commands have.
workers_option = click.option(
    "-j", "--workers", type=click.IntRange(1), help="Number of threads.  [default: all cores]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
csv_option = click.option("--csv", "csv_file", type=FILE, help="Also write the results to this CSV file.")
inception_option = click.option(
    "--inception", type=FILE, envvar="KIN_INCEPTION", help="File with the Inception weights for FID."
)
tissue_option = click.option(
    "--tissue",
    type=TissueType(),
    default="auto",
    show_default=True,
    help="Where tissue is: auto (detected), none (all patches count), or a mask file (PNG, GeoJSON).",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Floating-point format of the network; auto: fp32 on a CPU, bf16 or fp16 on a GPU.",
)
compile_option = click.option(
    "--compile",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Fuse operations with torch.compile; auto: on a GPU, for 256 patches or more.",
)
batch_size_option = click.option(
    "-b",
    "--batch-size",
    type=AutoInt(),
    help="Windows per batch, or auto: as many as fit the device's memory.  [default: auto]",
)


def config_option(command: Any) -> Any:
    """Add ``--config FILE``: a TOML file whose keys are the command's own option names."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_load_config,
        help="TOML file with values for these options (see configs/).",
    )(command)


def config_file() -> Path | None:
    """The file given by ``--config`` to the command that runs, if any."""
    context = click.get_current_context(silent=True)
    found: Path | None = None if context is None else context.meta.get(CONFIG_FILE)
    return found


def _load_config(ctx: click.Context, _param: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    ctx.meta[CONFIG_FILE] = file
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

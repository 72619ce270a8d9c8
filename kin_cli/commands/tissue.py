"""``kin tissue``: write where the tissue is, for QuPath, for a look, and for --tissue."""

from __future__ import annotations

import io
from pathlib import Path

import click
import cloup

from kin_cli.commands.parameters import FILE, examples, overwrite_option, series_option, tissue_option
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import tell_output
from kin_cli.errors import NoTissueError, UsageError


@cloup.command(
    short_help="Write the tissue mask, for QuPath.",
    epilog=examples("kin tissue slide.svs -o tissue.geojson", "kin tissue slide.svs -o tissue.png"),
)
@click.argument("slide", type=FILE)
@cloup.option("-o", "--output", type=FILE, required=True, help="Output: .geojson (outlines) or .png (a mask).")
@tissue_option
@series_option
@overwrite_option
def tissue(slide: Path, output: Path, tissue: Path | str, series: int | None, overwrite: bool) -> None:
    """Write the tissue of SLIDE that kin detects, or the tissue of a mask as kin understands it.

    GeoJSON holds one outline for each piece of tissue, in pixels of the slide: QuPath imports it, and --tissue reads it
    after a correction. PNG is a picture of the whole slide, white where tissue is.
    """
    from kin_cli.outputs import check_files, file_inputs, slide_inputs, write_outputs
    from kin_cli.slide.geojson import encoded, tissue_outlines
    from kin_cli.slide.open import open_source
    from kin_cli.slide.tissue import tissue_mask

    if output.suffix.lower() not in (".geojson", ".json", ".png"):
        raise UsageError(f"{output}: no known ending of a mask", "write .geojson or .png")
    inputs = [*slide_inputs(slide, "the slide"), *file_inputs((tissue, "the tissue mask"))]
    check_files([("-o", output)], inputs, overwrite=overwrite)
    view = open_source(slide, series=series)
    with view.slide:
        mask = tissue_mask(view, tissue)
        for note in mask.notes:
            ConsoleProgress().note(note)
        if not mask.mask.any():
            raise NoTissueError(f"{slide}: no tissue in it", "draw a mask, or use --tissue none")
        if output.suffix.lower() == ".png":
            from PIL import Image

            file = io.BytesIO()
            Image.fromarray(mask.mask).save(file, "PNG")
            content = file.getvalue()
        else:
            content = encoded(tissue_outlines(mask, view))
    write_outputs({output: content}, overwrite=overwrite)
    tell_output(str(output))

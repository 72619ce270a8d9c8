"""``kin models learn``: put into a generator's file what its training patches are like, for the trust map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from kin_cli.commands.options import entry_option, norm_option
from kin_cli.commands.parameters import FILE, ModelType, RegionType, examples, overwrite_option
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import tell_output
from kin_cli.errors import UsageError


@cloup.command(
    short_help="Put what a generator was trained on into its file.",
    epilog=examples(
        "kin models learn generator.safetensors --from training-slides/",
        "kin models learn generator.pth --from a.svs --from b.svs --patches 800 -o known.safetensors",
    ),
)
@click.argument("model", type=ModelType())
@cloup.option(
    "--from",
    "slides",
    type=FILE,
    multiple=True,
    required=True,
    help="Training slide or patch, or a folder of them; may be given several times.",
)
@cloup.option(
    "-o", "--output", type=FILE, help="File to write, .safetensors.  [default: MODEL itself, or MODEL.safetensors]"
)
@cloup.option(
    "--patches", type=click.IntRange(40), default=400, show_default=True, help="Number of patches to learn from."
)
@cloup.option(
    "--patch-size",
    type=click.IntRange(32),
    default=512,
    show_default=True,
    help="Side of the patches, px; the same as in the translations to be judged.",
)
@cloup.option("--mpp", type=float, help="Resample slides to this many µm per pixel, as in the training.")
@cloup.option("--region", type=RegionType(), help="Only this rectangle of each slide, such as that of the training.")
@cloup.option(
    "--min-tissue", type=click.FloatRange(0, 1), default=0.25, show_default=True, help="Least tissue fraction."
)
@cloup.option(
    "--stain-jitter",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.15,
    show_default=True,
    help="Change of the strength of stains that is normal: that of other slides of the same laboratory.",
)
@cloup.option(
    "--rescans",
    type=click.FloatRange(0, 1),
    default=0.75,
    show_default=True,
    help="Fraction of patches that are measured once more, changed as another scanner or day would: focus, white"
    " balance, gamma, pixel size, stains, compression. Such changes are normal then. 0 if the slides are of several"
    " scanners.",
)
@cloup.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of the patches.")
@cloup.option("--device", default="auto", show_default=True, help="Device of the network: auto, cpu, cuda.")
@entry_option
@norm_option
@overwrite_option
def learn(model: Path, slides: tuple[Path, ...], output: Path | None, overwrite: bool, **options: Any) -> None:
    """Measure patches of the slides that the generator MODEL was trained on, and keep what they are like in its file.

    `kin translate` then says, for every patch of a slide, how far it lies from them (OUTPUT.trust.png). The weights
    stay as they are; the checksum of the file changes, so tables and outputs made before count as those of another
    generator.
    """
    from kin_cli.models.checkpoint import load_generator
    from kin_cli.outputs import check_files, slide_inputs
    from kin_cli.slide.open import find_images
    from kin_cli.trust.learn import LearnSettings, learn_into

    named = model if model.suffix.lower() == ".safetensors" else model.with_suffix(".safetensors")
    output = output or named
    if output.suffix.lower() != ".safetensors":
        raise UsageError(f"{output}: a reference is kept in a .safetensors file", "name one with -o")
    found = (image for slide in slides for image in find_images(slide))
    images = list({image.resolve(): image for image in found}.values())  # one that is named twice counts once
    inputs = [entry for image in images for entry in slide_inputs(image, "a training slide")]
    same = output.exists() and output.samefile(model)
    if not same:
        inputs.append((model, "the generator"))
    check_files([("-o", output)], inputs, overwrite=overwrite or same)
    load_generator(model, entry=options["entry"], norm=options["model_norm"])  # before slides are read
    chosen = {"entry": options.pop("entry"), "norm": options.pop("model_norm")}
    options["patch_px"] = options.pop("patch_size")
    progress = ConsoleProgress()
    reference = learn_into(model, output, images, LearnSettings(**options), progress, **chosen)
    card = reference.card
    progress.note(f"learned from {card.patches} patches of {card.patch_px} px")
    tell_output(str(output))

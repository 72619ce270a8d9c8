"""``kin train``: from two folders of slides to a generator."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kin_cli.commands.parameters import RegionType, config_option
from kin_cli.commands.progress import ConsoleProgress

if TYPE_CHECKING:
    from kin_cli.training.settings import Losses

_PATH = click.Path(path_type=Path)
Command = Callable[..., Any]


class IntegersType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """Whole numbers with commas between them: ``0,4,8``."""

    name = "n,n,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the numbers; an empty text is none."""
        if isinstance(value, (tuple, list)):
            return tuple(value)
        try:
            return tuple(int(number) for number in str(value).split(",") if number.strip())
        except ValueError:
            self.fail(f"'{value}' is not a list of whole numbers such as 0,4,8", param, ctx)


@click.group()
def train() -> None:
    """Train a generator on slides of two stains that need not show the same tissue.

    A run that was interrupted is continued by the same command. Several GPUs: torchrun --nproc-per-node N -m kin_cli
    train …
    """


def _patches(command: Command) -> Command:
    options = (
        click.option("--source", type=_PATH, required=True, help="Slides to translate: a file or a folder."),
        click.option("--target", type=_PATH, required=True, help="Slides of the wanted stain: a file or a folder."),
        click.option("-o", "--output", type=_PATH, required=True, help="Folder of the run."),
        click.option("--patch-size", type=int, default=512, show_default=True, help="Side of a patch in pixels."),
        click.option("--mpp", type=float, help="Resample slides to this many µm per pixel.  [default: level 0]"),
        click.option("--min-tissue", type=float, default=0.5, show_default=True, help="Share of a patch."),
        click.option("--border-fraction", type=float, default=0.0, show_default=True, help="Patches with less tissue."),
        click.option(
            "--background-fraction", type=float, default=0.0, show_default=True, help="Patches without tissue."
        ),
        click.option("--source-region", type=RegionType(), help="Use only this part of every source slide."),
        click.option("--target-region", type=RegionType(), help="Use only this part of every target slide."),
        click.option("--flip/--no-flip", default=True, show_default=True),
        click.option("--rotate/--no-rotate", default=False, show_default=True, help="By multiples of 90°."),
        click.option("--scale", type=float, default=0.0, show_default=True, help="Largest relative change of size."),
        click.option("--jitter", type=float, default=0.0, show_default=True, help="Largest relative change of stain."),
    )
    return _with(command, options)


def _schedule(*, epochs: int) -> Callable[[Command], Command]:
    options = (
        click.option("--epochs", type=int, default=epochs, show_default=True),
        click.option("--epoch-patches", type=int, help="Patches per epoch.  [default: as many as fit the tissue]"),
        click.option("--steps", type=int, help="Steps, instead of epochs."),
        click.option("-b", "--batch-size", type=int, default=1, show_default=True, help="Patches at a time."),
        click.option("--accumulate", type=int, default=1, show_default=True, help="Batches per step."),
        click.option("--lr", type=float, default=2e-4, show_default=True, help="Learning rate."),
        click.option("--decay-fraction", type=float, default=0.5, show_default=True, help="Steps with falling rate."),
        click.option("--ema", type=float, default=0.999, show_default=True, help="Memory of the moving average."),
        click.option("--warm-steps", type=int, default=0, show_default=True, help="H&E: begin with blue nuclei."),
        click.option("--disc-steps", type=int, default=1, show_default=True, help="Of the discriminator, per step."),
        click.option("--seed", type=int, default=0, show_default=True),
    )
    return lambda command: _with(command, options)


def _networks(*, antialias: bool, init: str) -> Callable[[Command], Command]:
    options = (
        click.option("--width", type=int, default=64, show_default=True, help="Channels of the generator."),
        click.option("--blocks", type=int, default=9, show_default=True, help="Residual blocks."),
        click.option("--antialias/--no-antialias", default=antialias, show_default=True),
        click.option("--disc-width", type=int, default=64, show_default=True, help="Channels of the discriminator."),
        click.option("--disc-layers", type=int, default=3, show_default=True, help="Its halvings."),
        click.option("--init", type=click.Choice(["normal", "xavier"]), default=init, show_default=True),
        click.option("--init-gain", type=float, default=0.02, show_default=True),
        click.option("--start", type=_PATH, help="Begin with this generator: .pth or .safetensors."),
    )
    return lambda command: _with(command, options)


def _running(command: Command) -> Command:
    options = (
        click.option("--source-stain", default="", help="For the checkpoint's card, as the next ones."),
        click.option("--target-stain", default=""),
        click.option("--credit", default="", help="Where the slides come from."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …"),
        click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True),
        click.option("-j", "--workers", type=int, default=2, show_default=True, help="Threads that read patches."),
        click.option("--checkpoint-every", type=int, default=500, show_default=True, help="Steps."),
        click.option("--sample-every", type=int, default=500, show_default=True, help="Steps."),
        click.option("--log-every", type=int, default=50, show_default=True, help="Steps."),
        click.option("--half", is_flag=True, help="Store the generator's file in float16."),
        click.option("--overwrite", is_flag=True, help="Forget an earlier run in the folder."),
        config_option,
    )
    return _with(command, options)


def _evaluation(command: Command) -> Command:
    options = (
        click.option("--evaluate-every", type=click.IntRange(1), help="Steps.  [default: at the end, if at all]"),
        click.option("--evaluation", type=_PATH, help="Slides to evaluate on.  [default: a source, held out]"),
        click.option("--evaluation-region", type=RegionType(), help="Part of them.  [default: 8 × 8 patches]"),
        click.option("--inception", type=_PATH, envvar="KIN_INCEPTION", help="Weights for FID in evaluations."),
    )
    return _with(command, options)


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    # click shows the options of stacked decorators from the top downwards
    for option in reversed(options):
        command = option(command)
    return command


@train.command()
@_patches
@click.option("--cycle", type=float, default=10.0, show_default=True, help="Weight of the cycle.")
@click.option("--identity", type=float, default=0.5, show_default=True, help="Of the identity, relative to it.")
@click.option("--pool", type=click.IntRange(0), default=50, show_default=True, help="Earlier fakes to judge.")
@_schedule(epochs=50)
@_networks(antialias=False, init="normal")
@_evaluation
@_running
def cyclegan(**options: Any) -> None:
    """CycleGAN (Zhu et al., 2017)."""
    from kin_cli.training.settings import CycleGanLosses

    _run(CycleGanLosses(**_taken(CycleGanLosses, options)), options)


@train.command()
@_patches
@click.option("--gan", type=float, default=1.0, show_default=True, help="Weight of the GAN loss.")
@click.option("--nce", type=float, default=1.0, show_default=True, help="Weight of PatchNCE.")
@click.option("--identity/--no-identity", default=True, show_default=True, help="PatchNCE of the identity, too.")
@click.option("--layers", type=IntegersType(), default="", help="Layers to compare.  [default: the official five]")
@click.option("--locations", type=int, default=256, show_default=True, help="Places to compare.")
@click.option("--projection", type=int, default=256, show_default=True, help="Channels of the projection head.")
@click.option("--tau", type=float, default=0.07, show_default=True, help="Temperature.")
@click.option("--pool", type=click.IntRange(0), default=0, show_default=True, help="Earlier fakes to judge.")
@click.option("--nuclei", type=float, default=0.0, show_default=True, help="H&E to cytoplasmic DAB: blue nuclei.")
@click.option("--painted", type=float, default=0.0, show_default=True, help="Weight of the warm start's loss, later.")
@click.option("--guide", type=_PATH, help="H&E to DAB: a serial section registered to the source slide.")
@click.option("--guide-aligned", is_flag=True, help="The guide was made from the source slide: pixels agree.")
@click.option("--guided", type=float, default=2.0, show_default=True, help="Weight of the guide: brown in its place.")
@_schedule(epochs=100)
@_networks(antialias=True, init="xavier")
@_evaluation
@_running
def cut(**options: Any) -> None:
    """CUT: contrastive unpaired translation (Park et al., 2020)."""
    from kin_cli.training.settings import CutLosses

    _run(CutLosses(**_taken(CutLosses, options)), options)


@train.command()
@_patches
@click.option("--learned/--fixed", default=True, show_default=True, help="L-LSeSim or F-LSeSim.")
@click.option("--vgg", type=_PATH, help="VGG16 weights, torchvision's file.")
@click.option("--random-features", is_flag=True, help="Do without VGG16 weights.")
@click.option("--spatial", type=float, default=10.0, show_default=True, help="Weight of the spatial loss.")
@click.option("--layers", type=IntegersType(), default="4,7", show_default=True, help="ReLUs of VGG16, from 0.")
@click.option("--locations", type=int, default=256, show_default=True, help="Places to compare.")
@click.option("--window", type=int, default=32, show_default=True, help="Side of a local map.")
@click.option("--tau", type=float, default=0.07, show_default=True, help="Temperature.")
@click.option("--disc-rate", type=float, default=2.0, show_default=True, help="Discriminator's learning rate / --lr.")
@click.option("--pool", type=click.IntRange(0), default=50, show_default=True, help="Earlier fakes to judge.")
@_schedule(epochs=100)
@_networks(antialias=True, init="xavier")
@_evaluation
@_running
def lsesim(**options: Any) -> None:
    """LSeSim: spatially-correlative loss (Zheng et al., 2021)."""
    from kin_cli.training.settings import LsesimLosses

    _run(LsesimLosses(**_taken(LsesimLosses, options)), options)


def _taken(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Remove from the options those that are fields of a dataclass, and return them."""
    return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}


def _run(losses: Losses, options: dict[str, Any]) -> None:
    from kin_cli.training.settings import Card, HeldOut, NetworkSettings, PatchSettings, Schedule, TrainSettings

    options["patch_px"], options["batch"] = options.pop("patch_size"), options.pop("batch_size")
    evaluation = HeldOut(
        every=options.pop("evaluate_every"),
        slides=options.pop("evaluation"),
        region=options.pop("evaluation_region"),
        inception=options.pop("inception"),
    )
    settings = TrainSettings(
        evaluation=evaluation,
        losses=losses,
        patches=PatchSettings(**_taken(PatchSettings, options)),
        network=NetworkSettings(**_taken(NetworkSettings, options)),
        schedule=Schedule(**_taken(Schedule, options)),
        card=Card(**_taken(Card, options)),
        **options,
    )
    from kin_cli.training.run import train as carry_out

    generator = carry_out(settings, ConsoleProgress())
    if os.environ.get("RANK", "0") == "0":  # of several processes only one says it
        click.echo(str(generator))

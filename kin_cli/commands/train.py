"""``kin train``: from two folders of slides to a generator."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.parameters import ModelType, RegionType, config_option, examples
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import tell_output

if TYPE_CHECKING:
    from kin_cli.training.settings import Losses

_PATH = click.Path(path_type=Path)
_EXAMPLE = "--source he_slides/ --target ihc_slides/ -o run/"
_CARD_KEYS = ("source-stain", "target-stain", "mpp", "data", "credit", "licence", "figures", "use")
Command = Callable[..., Any]


class IntegersType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """Whole numbers separated by commas, such as ``0,4,8``; in a settings file a list."""

    name = "n,n,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the numbers into a tuple; an empty text gives an empty one."""
        if isinstance(value, (tuple, list)):
            return tuple(value)
        try:
            return tuple(int(number) for number in str(value).split(",") if number.strip())
        except ValueError:
            self.fail(f"'{value}' is not a list of whole numbers such as 0,4,8", param, ctx)


class CardOption(cloup.Option):
    """``--card KEY=VALUE``, repeatable; in a settings file a table, whose entries the command line overrides."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Put the entries of the settings file before those of the command line, in the same form."""
        table = ctx.lookup_default(self.name or "")
        entries = [f"{key}={text}" for key, text in table.items()] if isinstance(table, Mapping) else []
        given = value if isinstance(value, (tuple, list)) else ()
        return super().type_cast_value(ctx, (*entries, *given))


def _parse_augmentation(ctx: click.Context, param: click.Parameter, text: str) -> dict[str, Any]:
    """The fields of ``PatchSettings`` that ``flip,rotate,scale:0.1,jitter:0.1`` or ``none`` stands for."""
    values: dict[str, Any] = {"flip": False, "rotate": False, "scale": 0.0, "jitter": 0.0, "source_jitter": 0.0}
    for part in text.split(",") if text != "none" else ():
        name, _, amount = part.strip().replace("-", "_").partition(":")
        try:
            values[name] = float(amount) if amount else {"flip": True, "rotate": True}[name]
            if bool(amount) != (name in ("scale", "jitter", "source_jitter")):
                raise ValueError
        except (KeyError, ValueError):
            message = f"'{part}' is none of flip, rotate, scale:AMOUNT, jitter:AMOUNT, source-jitter:AMOUNT"
            raise click.BadParameter(message, ctx=ctx, param=param) from None
    return values


def _parse_init(ctx: click.Context, param: click.Parameter, text: str) -> dict[str, Any]:
    """The fields of ``NetworkSettings`` that ``normal:0.02`` or ``xavier:0.02`` stands for."""
    kind, _, gain = text.partition(":")
    try:
        if kind not in ("normal", "xavier"):
            raise ValueError
        return {"init": kind, "init_gain": float(gain)}
    except ValueError:
        message = f"'{text}' is neither normal:DEVIATION nor xavier:GAIN"
        raise click.BadParameter(message, ctx=ctx, param=param) from None


def _parse_card(ctx: click.Context, param: click.Parameter, entries: tuple[str, ...]) -> dict[str, str]:
    """The fields of ``Card`` that entries ``KEY=VALUE`` stand for; of equal keys the last counts."""
    values = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals or key not in _CARD_KEYS:
            message = f"'{entry}' is not KEY=VALUE with one of the keys {', '.join(_CARD_KEYS)}"
            raise click.BadParameter(message, ctx=ctx, param=param)
        values[key.replace("-", "_")] = value
    return values


@cloup.group(
    short_help="Train a generator on slides of two stains.",
    epilog=examples(f"kin train cut {_EXAMPLE} --config cut"),
)
def train() -> None:
    """Train a generator on slides of two stains that need not show the same tissue.

    The same command continues an interrupted run. For several GPUs: torchrun --nproc-per-node N -m kin_cli train …
    """


def _patches(command: Command) -> Command:
    options = (
        cloup.option("--source", type=_PATH, required=True, help="Slides to translate: a file or a folder."),
        cloup.option("--target", type=_PATH, required=True, help="Slides of the target stain: a file or a folder."),
        cloup.option("-o", "--output", type=_PATH, required=True, help="Folder of the run."),
        cloup.option("--patch-size", type=int, default=512, show_default=True, help="Side of a patch in pixels."),
        cloup.option("--mpp", type=float, help="Resample slides to this many µm per pixel.  [default: level 0]"),
        cloup.option(
            "--min-tissue", type=float, default=0.5, show_default=True, help="Least tissue fraction of a patch."
        ),
        cloup.option(
            "--edge-fraction",
            type=float,
            default=0.0,
            show_default=True,
            help="Fraction of patches at the edge of the tissue: some tissue, but less than --min-tissue.",
        ),
        cloup.option(
            "--background-fraction",
            type=float,
            default=0.0,
            show_default=True,
            help="Fraction of patches without tissue.",
        ),
        cloup.option("--source-region", type=RegionType(), help="Train on this part of every source slide only."),
        cloup.option("--target-region", type=RegionType(), help="Train on this part of every target slide only."),
        cloup.option(
            "--augment",
            default="flip",
            show_default=True,
            callback=_parse_augmentation,
            metavar="LIST",
            help="Random changes of patches: any of flip, rotate (by multiples of 90°), scale:0.1 (size ±10 %), "
            "jitter:0.1 (optical density ±10 %), source-jitter:0.1 (the source's), separated by commas; or none.",
        ),
        cloup.option(
            "--stain-jitter",
            type=float,
            default=0.0,
            show_default=True,
            help="Random change of the strength of each stain of the source, as a fraction: makes the generator robust"
            " against other laboratories.",
        ),
    )
    return cloup.option_group("Slides and patches", *options)(command)


def _guidance(command: Command) -> Command:
    options = (
        cloup.option(
            "--guide",
            type=_PATH,
            help="Sections in the target stain registered to the source slides (kin register): a file or a folder.",
        ),
        cloup.option(
            "--guide-weight",
            type=float,
            default=2.0,
            show_default=True,
            help="Weight of the guide's densities, place by place.",
        ),
        cloup.option(
            "--guide-colours",
            type=float,
            default=10.0,
            show_default=True,
            help="Weight of the guide's colours, wherever in a patch they are.",
        ),
        cloup.option(
            "--guide-cell", type=int, default=16, show_default=True, help="Side of the cells compared, in pixels."
        ),
        cloup.option(
            "--guide-shift", type=int, default=64, show_default=True, help="Largest misregistration, in pixels."
        ),
        cloup.option(
            "--background-weight",
            type=float,
            default=0.0,
            show_default=True,
            help="Weight of the L1 distance between background and its translation.",
        ),
        cloup.option(
            "--pigment-weight",
            type=float,
            default=0.0,
            show_default=True,
            help="Weight of the L1 distance between brown or black pigment in H&E and its translation.",
        ),
    )
    return cloup.option_group("Guide and background", *options)(command)


def _schedule(*, epochs: int) -> Callable[[Command], Command]:
    options = (
        cloup.option("--epochs", type=int, default=epochs, show_default=True, help="Passes over the source's tissue."),
        cloup.option("--epoch-patches", type=int, help="Patches per epoch.  [default: as many as fit into the tissue]"),
        cloup.option("--steps", type=int, help="Number of steps; replaces --epochs."),
        cloup.option("-b", "--batch-size", type=int, default=1, show_default=True, help="Patches per batch."),
        cloup.option("--accumulate", type=int, default=1, show_default=True, help="Batches per step."),
        cloup.option("--lr", type=float, default=2e-4, show_default=True, help="Learning rate."),
        cloup.option(
            "--decay-fraction",
            type=float,
            default=0.5,
            show_default=True,
            help="Fraction of steps, at the end, over which the learning rate falls to 0.",
        ),
        cloup.option("--ema", type=float, default=0.999, show_default=True, help="EMA decay."),
        cloup.option("--seed", type=int, default=0, show_default=True, help="Random seed."),
    )
    return lambda command: cloup.option_group("Schedule", *options)(command)


def _networks(*, antialias: bool, init: str) -> Callable[[Command], Command]:
    options = (
        cloup.option("--width", type=int, default=64, show_default=True, help="Generator channels at full resolution."),
        cloup.option("--blocks", type=int, default=9, show_default=True, help="Residual blocks of the generator."),
        cloup.option(
            "--antialias/--no-antialias",
            default=antialias,
            show_default=True,
            help="Blur filters in down- and upsampling layers.",
        ),
        cloup.option(
            "--disc-width", type=int, default=64, show_default=True, help="Channels of PatchGAN's first layer."
        ),
        cloup.option("--disc-layers", type=int, default=3, show_default=True, help="PatchGAN downsampling layers."),
        cloup.option(
            "--init",
            default=init,
            show_default=True,
            callback=_parse_init,
            metavar="KIND:VALUE",
            help="Initial weights: normal:DEVIATION or xavier:GAIN.",
        ),
        cloup.option(
            "--smooth-norm/--no-smooth-norm",
            default=False,
            show_default=True,
            help="Normalize patches by mixtures of their own statistics and the slides', as KIN does.",
        ),
        cloup.option(
            "--start",
            type=ModelType(),
            help="Start from the weights of this generator: .pth, .safetensors or a name of kin models.",
        ),
        cloup.option(
            "--entry", "start_entry", help="Entry of a training bundle that holds the generator to start from."
        ),
    )
    return lambda command: cloup.option_group("Networks", *options)(command)


def _evaluation(command: Command) -> Command:
    options = (
        cloup.option(
            "--evaluate-every",
            type=click.IntRange(1),
            help="Steps between evaluations."
            "  [default: none; one at the end if --evaluation, --evaluation-region or --inception is given]",
        ),
        cloup.option(
            "--evaluation",
            type=_PATH,
            help="Slides to evaluate on: a file or a folder.  [default: first source slide, outside --source-region]",
        ),
        cloup.option(
            "--evaluation-region",
            type=RegionType(),
            help="Rectangle of the evaluation slides to evaluate on.  [default: 8 × 8 patches]",
        ),
        cloup.option("--inception", type=_PATH, envvar="KIN_INCEPTION", help="Weights of InceptionV3: measure FID."),
    )
    return cloup.option_group("Evaluation", *options)(command)


def _running(command: Command) -> Command:
    options = (
        cloup.option(
            "--card",
            cls=CardOption,
            multiple=True,
            callback=_parse_card,
            metavar="KEY=VALUE",
            help="Note in the generator's file; keys: source-stain, target-stain, mpp (µm per pixel, if the slides do "
            "not tell it), data, credit, licence, figures (how well it does), use. A finished run takes a new card.",
        ),
        cloup.option(
            "--device", default="auto", show_default=True, help="Device of the networks: auto, cpu, cuda, or cuda:1."
        ),
        cloup.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16"]),
            default="auto",
            show_default=True,
            help="auto: bf16 on GPUs that support it.",
        ),
        cloup.option("-j", "--workers", type=int, default=2, show_default=True, help="Threads that read patches."),
        cloup.option(
            "--save-every", type=int, default=500, show_default=True, help="Steps between checkpoints and samples."
        ),
        cloup.option("--log-every", type=int, default=50, show_default=True, help="Steps between rows of log.csv."),
        cloup.option("--half", is_flag=True, help="Store the generator's file in float16."),
        cloup.option(
            "--reference",
            type=click.IntRange(0),
            default=300,
            show_default=True,
            help="Patches that tell the finished generator's file what it was trained on, for the trust map; 0: none.",
        ),
        cloup.option("--overwrite", is_flag=True, help="Discard an earlier run in the output folder."),
        config_option,
    )
    return cloup.option_group("Run", *options)(command)


_POOL = cloup.option(
    "--pool",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="Size of the image pool of the discriminator; 0: none.",
)


@train.command(epilog=examples(f"kin train cyclegan {_EXAMPLE}"))
@_patches
@_guidance
@cloup.option("--cycle", type=float, default=10.0, show_default=True, help="Weight of the cycle loss.")
@cloup.option(
    "--identity", type=float, default=0.5, show_default=True, help="Weight of the identity loss, relative to --cycle."
)
@_POOL
@_schedule(epochs=50)
@_networks(antialias=False, init="normal:0.02")
@_evaluation
@_running
def cyclegan(**options: Any) -> None:
    """CycleGAN (Zhu et al., 2017)."""
    from kin_cli.training.settings import CycleGanLosses

    _run(CycleGanLosses(**_taken(CycleGanLosses, options)), options)


@train.command(epilog=examples(f"kin train cut {_EXAMPLE}"))
@_patches
@_guidance
@cloup.option("--gan", type=float, default=1.0, show_default=True, help="Weight of the adversarial loss.")
@cloup.option("--nce", type=float, default=1.0, show_default=True, help="Weight of PatchNCE.")
@cloup.option(
    "--identity/--no-identity",
    default=True,
    show_default=True,
    help="Also apply PatchNCE to target patches passed through the generator (identity loss).",
)
@cloup.option(
    "--layers", type=IntegersType(), default="", help="Generator layers that PatchNCE compares.  [default: the paper's]"
)
@_schedule(epochs=100)
@_networks(antialias=True, init="xavier:0.02")
@_evaluation
@_running
def cut(**options: Any) -> None:
    """CUT: contrastive unpaired translation (Park et al., 2020)."""
    from kin_cli.training.settings import CutLosses

    _run(CutLosses(**_taken(CutLosses, options)), options)


@train.command(epilog=examples(f"kin train lsesim {_EXAMPLE}"))
@_patches
@_guidance
@cloup.option("--learned/--fixed", default=True, show_default=True, help="Learned (L-LSeSim) or fixed features.")
@cloup.option("--vgg", type=_PATH, help="VGG16 weights, torchvision's file.")
@cloup.option("--random-features", is_flag=True, help="Train without VGG16 weights, on random features.")
@cloup.option("--spatial", type=float, default=10.0, show_default=True, help="Weight of the spatial loss.")
@cloup.option(
    "--layers",
    type=IntegersType(),
    default="4,7",
    show_default=True,
    help="Indices of the VGG16 ReLU layers to compare, counted from 0.",
)
@cloup.option("--map-size", type=int, default=32, show_default=True, help="Side of a self-similarity map.")
@_POOL
@_schedule(epochs=100)
@_networks(antialias=True, init="xavier:0.02")
@_evaluation
@_running
def lsesim(**options: Any) -> None:
    """LSeSim: spatially-correlative loss (Zheng et al., 2021)."""
    from kin_cli.training.settings import LsesimLosses

    options["window"] = options.pop("map_size")  # the field's name is in the states of trainings
    _run(LsesimLosses(**_taken(LsesimLosses, options)), options)


def _taken(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options that are fields of a dataclass, and return them."""
    return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}


def _run(losses: Losses, options: dict[str, Any]) -> None:
    from kin_cli.training.settings import (
        Card,
        GuidanceSettings,
        HeldOut,
        NetworkSettings,
        PatchSettings,
        Schedule,
        TrainSettings,
    )

    options["patch_px"], options["batch"] = options.pop("patch_size"), options.pop("batch_size")
    options["border_fraction"] = options.pop("edge_fraction")  # the field's name is in the states of trainings
    options.update(**options.pop("augment"), **options.pop("init"))
    guidance = GuidanceSettings(
        options.pop("guide_weight"),
        options.pop("guide_colours"),
        options.pop("guide_cell"),
        options.pop("background_weight"),
        options.pop("pigment_weight"),
    )
    options["guide_shift_px"] = options.pop("guide_shift")
    evaluation = HeldOut(
        every=options.pop("evaluate_every"),
        slides=options.pop("evaluation"),
        region=options.pop("evaluation_region"),
        inception=options.pop("inception"),
    )
    settings = TrainSettings(
        evaluation=evaluation,
        losses=losses,
        guidance=guidance,
        patches=PatchSettings(**_taken(PatchSettings, options)),
        network=NetworkSettings(**_taken(NetworkSettings, options)),
        schedule=Schedule(**_taken(Schedule, options)),
        card=Card(**options.pop("card")),
        **options,
    )
    from kin_cli.training.run import train as carry_out

    generator = carry_out(settings, ConsoleProgress())
    if os.environ.get("RANK", "0") == "0":  # of several processes, only the first prints
        tell_output(str(generator))

"""``kin models``: the generators that have a name, each with its card."""

from __future__ import annotations

import click
import cloup

from kin_cli.commands.info import mpp_text, table_text
from kin_cli.commands.models_learn import learn
from kin_cli.commands.parameters import examples, json_option
from kin_cli.commands.streams import json_text, show

_NO_CARD = "none: only .safetensors files have one"


@cloup.group(
    invoke_without_command=True,
    short_help="List the generators that have a name.",
    epilog=examples("kin models --json", "kin models learn generator.safetensors --from training-slides/"),
)
@json_option
def models(as_json: bool) -> None:
    """List the bundled generator and those in the folders of KIN_MODELS, each with its card.

    Every name can stand for a file after -m. KIN_MODELS lists folders, separated as in PATH; the name of a generator is
    that of its file without the ending.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    from kin_cli.models.named import description, shelf

    known, unread = shelf()
    for line in unread:
        click.echo(f"kin: {line}", err=True)
    found = [description(name, file) for name, file in known.items()]
    if as_json:
        show(json_text({"models": found}))
        return
    show("\n\n".join(table_text(_rows(one)) for one in found))


models.add_command(learn)


def _rows(one: dict[str, object]) -> list[tuple[str, str]]:
    rows = [("name", str(one["name"])), ("file", str(one["file"]))]
    if "unreadable" in one:
        return [*rows, ("unreadable", str(one["unreadable"]))]
    if not one["card"]:
        rows.append(("card", _NO_CARD))
    else:
        stains = (str(one[f"{side}_stain"] or "unknown") for side in ("source", "target"))
        rows += [("stains", " → ".join(stains)), ("mpp", _mpp(one["mpp"]))]
        rows += [(name, str(one[name] or "unknown")) for name in ("licence", "data", "use")]
    return [*rows, ("sha256", str(one["sha256"]))]


def _mpp(text: object) -> str:
    try:
        return mpp_text(float(str(text)))
    except ValueError:
        return "unknown"

"""``kin study``: reader studies of translations: make one, serve it, export it, score it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.parameters import FILE, csv_option, examples, json_option, overwrite_option, workers_option
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show
from kin_cli.errors import UsageError

if TYPE_CHECKING:
    from kin_cli.study.plan import Item, Study
    from kin_cli.study.score import Answer, Scores

_COLUMNS = (
    "reader", "trial", "challenge", "item", "dataset", "method", "shown", "chosen", "missed", "seconds", "practice",
    "repeat_of", "at",
)  # fmt: skip
_TITLES = {"quality": "chosen as the best", "fidelity": "taken for the real one"}
_HEAD = (
    f"  {'data set':<16}{'method':<14}{'share':>7}  {'95 % interval':<16}{'chance':>7}{'p':>9}{'Holm':>9}"
    f"{'answers':>9}{'missed':>8}{'median s':>10}"
)


@cloup.group(short_help="Let readers judge translations.")
def study() -> None:
    """Reader studies: which translation is best, and which image is real.

    \b
    kin study make STUDY --config study.toml   choose slides, methods, readers
    kin study serve STUDY                      readers answer by personal links
    kin study score STUDY                      shares, tests, ranks, agreement
    """


@study.command(
    short_help="Make a study from slides and translations.",
    epilog=examples("kin study make reading --config study.toml"),
)
@click.argument("folder", metavar="STUDY", type=FILE)
@cloup.option("--config", type=FILE, required=True, help="TOML file that describes the study, see docs/study.md.")
def make(folder: Path, config: Path) -> None:
    """Make a study in the new folder STUDY: items, and the trials of every reader in an order of their own.

    The slides stay where they are and must not be changed. The folder holds the key and the readers' links: keep it
    to yourself.
    """
    from kin_cli.study.make import made_items
    from kin_cli.study.plan import check_new, planned, save_study
    from kin_cli.study.settings import read_settings

    check_new(folder)
    settings, progress = read_settings(config), ConsoleProgress()
    items: list[Item] = []
    with progress.stage("items", len(settings.items), "entries") as advance:
        for entry in settings.items:
            items += made_items(entry, settings.seed)
            advance(1)
    made = planned(settings, items)
    save_study(made, folder)
    trials = sum(len(reader.trials) for reader in made.readers)
    show(f"{folder}: {len(items)} items, {len(made.readers)} readers, {trials} trials")


@study.command(
    short_help="Serve a study to its readers.",
    epilog=examples("kin study serve reading --port 8700 --address https://study.example.org"),
)
@click.argument("folder", metavar="STUDY", type=FILE)
@cloup.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0: all networks.")
@cloup.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to listen at.  [default: any free one]")
@cloup.option("--address", help="How readers reach the server, such as https://study.example.org.")
def serve(folder: Path, host: str, port: int, address: str | None) -> None:
    """Serve the study in the folder STUDY until Ctrl-C, and print the personal link of each reader.

    Every answer is on the disk before its reader goes on. After an interruption the same command continues, and a
    reader's link leads to where they were. With --host other than this computer the connection is not encrypted:
    put a web server with HTTPS before it, and name it by --address.
    """
    from kin_cli.study.app import StudyApp
    from kin_cli.study.plan import load_study
    from kin_cli.view.http import WebServer, served

    made = load_study(folder)
    base = None if address is None else _base(address)
    app = StudyApp(made, folder)
    try:
        server = WebServer(app, host=host, port=port, secrets=tuple(reader.secret for reader in made.readers))
        if base is not None:
            server.welcome([base.partition("://")[2].partition("/")[0]])
        elif host == "0.0.0.0":
            server.welcome(f"{name}:{server.port}" for name in _own_names())
            base = f"http://{_own_address()}:{server.port}"
        done = {name: f"{answered} of {trials}" for name, answered, trials in app.progress()}
        links = [
            f"{reader.name} ({done[reader.name]}): {_link(server, base, reader.secret)}" for reader in made.readers
        ]
        show("\n".join(links))
        click.echo("kin: serving until Ctrl-C", err=True)
        served(server)
    finally:
        app.close()


@study.command(
    short_help="Write a static version of a study.",
    epilog=examples("kin study export reading for-readers"),
)
@click.argument("folder", metavar="STUDY", type=FILE)
@click.argument("output", type=FILE)
@workers_option
def export(folder: Path, output: Path, workers: int | None) -> None:
    """Write the study in the folder STUDY to the new folder OUTPUT, which needs no server.

    Copy it to where readers can open it, on a disk or a web server, and give each one their link. At the end a reader
    saves a file of answers and sends it back; kin study score STUDY FILE … takes it.
    """
    from kin_cli.study.export import export_study
    from kin_cli.study.plan import load_study, reader_key

    made = load_study(folder)
    tiles = export_study(made, output, progress=ConsoleProgress(), workers=workers)
    links = [f"{reader.name}: {output / 'index.html'}#{reader_key(reader.secret)}" for reader in made.readers]
    show("\n".join([*links, f"{output}: {tiles} tiles"]))


@study.command(
    short_help="Score the answers of a study.",
    epilog=examples("kin study score reading --figure figure.pdf --csv answers.csv"),
)
@click.argument("folder", metavar="STUDY", type=FILE)
@click.argument("returned", metavar="[ANSWERS]...", type=FILE, nargs=-1)
@cloup.option("--figure", type=FILE, help="Also draw the shares, like the paper's Figure 8: .png, .pdf or .svg.")
@csv_option
@json_option
@overwrite_option
def score(
    folder: Path, returned: tuple[Path, ...], figure: Path | None, csv_file: Path | None, as_json: bool, overwrite: bool
) -> None:
    """Score the answers in the folder STUDY, and those in files that readers of a static version returned.

    Shares with exact 95 % intervals, binomial tests against chance with Holm's correction, Bradley-Terry ranks,
    Fleiss' kappa between readers, Cohen's kappa within them, times. --csv writes every answer with its key.
    """
    from kin_cli.outputs import check_files, write_outputs
    from kin_cli.study.answers import answers_of, read_events, returned_answers
    from kin_cli.study.plan import ANSWERS_FILE, PLAN_FILE, load_study
    from kin_cli.study.score import scored

    inputs = [(folder / PLAN_FILE, "the study"), (folder / ANSWERS_FILE, "the answers")]
    inputs += [(file, "a file of answers") for file in returned]
    if figure is not None:
        from kin_cli.figures.plots import check_figure_file, encoded_figure
        from kin_cli.study.figure import study_figure

        check_figure_file(figure)
    check_files([("--figure", figure), ("--csv", csv_file)], inputs, overwrite=overwrite)
    made = load_study(folder)
    events = read_events(folder / ANSWERS_FILE)
    for file in returned:
        events += returned_answers(file, made)
    found = scored(made, answers_of(events))
    contents = {} if csv_file is None else {csv_file: _csv(found.answers)}
    if figure is not None:
        contents[figure] = encoded_figure(study_figure(made, found), figure)
    write_outputs(contents, overwrite=overwrite)
    show(json_text(found.as_dict()) if as_json else _text(made, found))


def _base(address: str) -> str:
    """The beginning of every link. Raises ``UsageError`` unless it is the address of a web site."""
    from urllib.parse import urlsplit

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"'{address}' is no address of a web site", "write one such as https://study.example.org")
    return address.rstrip("/")


def _link(server: Any, base: str | None, secret: str) -> str:
    return str(server.address(secret)) if base is None else f"{base}/{secret}/"


def _own_names() -> set[str]:
    """The names and addresses of this computer that readers in its network may use."""
    import socket

    names = {"127.0.0.1", "localhost", socket.gethostname(), socket.getfqdn()}
    with suppress(OSError):
        names |= {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    return names | {_own_address()}


def _own_address() -> str:
    """The address of this computer in its network; 127.0.0.1 if it is in none."""
    import socket

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: chooses a network, sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _csv(answers: tuple[Answer, ...]) -> bytes:
    from kin_cli.commands.variants import csv_bytes

    rows: list[list[object]] = [list(_COLUMNS)]
    for answer in answers:
        values = {**answer.__dict__, "shown": " | ".join(answer.shown)}
        rows.append([values[name] for name in _COLUMNS])
    return csv_bytes(rows)


def _text(made: Study, found: Scores) -> str:
    """The scores as tables."""
    lines = []
    for challenge in made.challenges:
        lines += [*_shares(found, challenge), *_agreement(found, challenge)]
    if found.ranks:
        lines.append("Bradley-Terry (quality): log strength, 95 % interval")
    for rank in found.ranks:
        interval = f"{rank.low:.2f} to {rank.high:.2f}"
        lines.append(f"  {rank.dataset:<16}{rank.rank}. {rank.method:<14}{rank.strength:>7.2f}  {interval}")
    lines.append("readers")
    for name, reader in found.readers.items():
        median = _number(reader["seconds"], 1)
        lines.append(f"  {name:<16}{reader['answers']} answers, {reader['missed']} missed, median {median} s")
    return "\n".join(lines)


def _shares(found: Scores, challenge: str) -> list[str]:
    shares = [share for share in found.shares if share.challenge == challenge]
    if not shares:
        return []
    lines = [f"{challenge}: {_TITLES[challenge]}", _HEAD]
    for share in shares:
        interval = "–" if share.low is None or share.high is None else f"{share.low:.3f} to {share.high:.3f}"
        numbers = f"{_number(share.share, 3):>7}  {interval:<16}{share.chance:>7.3f}{_number(share.p, 4):>9}"
        counts = f"{share.of:>9}{share.missed:>8}{_number(share.seconds, 1):>10}"
        lines.append(f"  {share.dataset:<16}{share.method:<14}{numbers}{_number(share.p_holm, 4):>9}{counts}")
    return lines


def _agreement(found: Scores, challenge: str) -> list[str]:
    between = found.between[challenge]
    what = f"{between['questions']} questions that all {between['readers']} readers answered"
    lines = [f"  between readers: Fleiss' kappa {_number(between['kappa'], 3)} ({what})"]
    for name, within in found.within[challenge].items():
        what = f"{within['same']} of {within['pairs']} repeated answers the same"
        lines.append(f"  within {name}: Cohen's kappa {_number(within['kappa'], 3)} ({what})")
    return lines


def _number(value: float | int | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"

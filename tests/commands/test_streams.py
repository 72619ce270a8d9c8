"""Closed, full and broken standard streams, in real processes; texts and names that an encoding lacks."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kin_cli.commands.streams import json_text, printable
from tests.helpers.translations import SMALL, digest

FULL = Path("/dev/full")
STREAMS = [
    "2>&-",
    "<&- >&- 2>&-",
    "| true",
    "2>&1 >/dev/null | true",
    pytest.param(">/dev/full 2>&1", marks=pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")),
]


def shell(*arguments: object, streams: str = "", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command line of kin in a shell of its own, with redirections."""
    line = shlex.join(os.fsdecode(os.fsencode(str(argument))) for argument in arguments)
    script = f"set -o pipefail; {shlex.quote(sys.executable)} -m kin_cli {line} {streams}"
    environment = {**os.environ, **variables}
    return subprocess.run(["bash", "-c", script], capture_output=True, env=environment, timeout=120, check=False)


@pytest.mark.parametrize("streams", STREAMS)
def test_no_stream_ends_a_translation(
    slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path, streams: str
) -> None:
    output = tmp_path / "out.ome.tif"
    done = shell("translate", slide, "-m", tiny_generator, "-o", output, *SMALL, streams=streams)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stdout + done.stderr
    assert digest(output) == digest(wanted)
    assert {path.name for path in tmp_path.iterdir()} == {"out.ome.tif", "out.ome.tif.json"}


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>&1 >/dev/null | true"])
def test_a_failure_keeps_its_exit_code(tmp_path: Path, streams: str) -> None:
    done = shell("translate", tmp_path / "absent.svs", "-m", "absent.pth", streams=streams)
    assert done.returncode == 1
    assert b"Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "streams", "reason"),
    [
        (("info", "SLIDE"), ">&-", b"it is closed"),
        (("info", "SLIDE", "--json"), "| (exec <&-; sleep 3)", b"its reader has ended"),
        (("--version",), ">/dev/full", b"no space left"),
    ],
)
def test_a_result_that_nobody_gets_is_a_failure(
    slide: Path, command: tuple[str, ...], streams: str, reason: bytes
) -> None:
    if "full" in streams and not FULL.exists():
        pytest.skip("no /dev/full")
    done = shell(*(slide if word == "SLIDE" else word for word in command), streams=streams)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(b"kin: standard output could not be written: ")
    assert reason in lines[0]


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1"])
def test_texts_that_an_encoding_lacks_raise_nothing(slide: Path, tmp_path: Path, encoding: str) -> None:
    named = tmp_path / "µΔE→.tif"
    named.symlink_to(slide)
    for options in ((), ("--json",)):
        done = shell("info", named, *options, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert not done.stderr
    refused = shell("info", tmp_path / "Δ→.svs", PYTHONIOENCODING=encoding)
    assert refused.returncode == 1
    assert b"Traceback" not in refused.stderr


def test_json_is_json_whatever_a_name_holds() -> None:
    value = {"name": "x\udcff µ\n", "mean": float("nan"), "far": [float("inf"), 1.5]}
    text = json_text(value)
    assert json.loads(text.encode()) == {"name": "x\udcff µ\n", "mean": None, "far": [None, 1.5]}


def test_a_message_is_one_line_without_control_characters() -> None:
    assert printable("a\nb\t \x1b[31mc\x00 µ\udcff") == "a b ?[31mc? µ\udcff"

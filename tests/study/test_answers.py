"""Answers: none is lost by a kill, none is taken twice, damage is told; files that readers return."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from kin_cli.errors import InputError, OutputError
from kin_cli.study.answers import Event, Journal, answers_of, read_events, returned_answers
from kin_cli.study.plan import Study, reader_key
from tests.helpers.studies import paper_study


def event(trial: int, choice: int | None = 0) -> Event:
    return Event("answer", "r0", trial, "2026-01-01T00:00:00.000+00:00", choice, 1.25, run="x")


def test_events_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for trial in range(5):
        journal.append(event(trial))
        assert read_events(tmp_path / "answers.jsonl") == journal.events  # on the disk at once
    journal.close()
    again = Journal(tmp_path)
    assert again.events == [event(trial) for trial in range(5)]
    again.close()


def test_a_torn_line_is_cut_off_at_every_length(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    journal = Journal(tmp_path)
    journal.append(event(0))
    whole = file.stat().st_size
    journal.append(event(1))
    journal.close()
    content = file.read_bytes()
    for end in range(whole, len(content)):
        file.write_bytes(content[:end])
        journal = Journal(tmp_path)
        assert journal.events == [event(0)]
        journal.append(event(2))
        journal.close()
        assert read_events(file) == [event(0), event(2)]


def test_a_flipped_byte_is_told_with_its_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for trial in range(3):
        journal.append(event(trial))
    journal.close()
    file = tmp_path / "answers.jsonl"
    content = bytearray(file.read_bytes())
    content[content.index(b'"trial":1') + 8] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="line 2 is damaged"):
        Journal(tmp_path)


def test_one_server_has_the_answers(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(OutputError, match="another kin study serve"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_the_first_answer_counts() -> None:
    assert answers_of([event(0, 1), event(0, 0), event(1)]) == {("r0", 0): event(0, 1), ("r0", 1): event(1)}


def returned(folder: Path, made: Study, answers: list[object], **changes: object) -> Path:
    text = json.dumps({"study": made.id, "reader": reader_key(made.readers[1].secret), "answers": answers} | changes)
    file = folder / "answers.json"
    file.write_text(json.dumps({"answers": text, "crc": f"{zlib.crc32(text.encode()):08x}"}))
    return file


def test_a_returned_file_is_read_and_late_answers_are_missed(tmp_path: Path) -> None:
    study = paper_study()
    given = [
        {"trial": 0, "choice": 1, "seconds": 3, "at": "t"},
        {"trial": 1, "choice": None, "seconds": None, "at": "t"},
        {"trial": 2, "choice": 0, "seconds": 10.01, "at": "t"},
    ]
    found = returned_answers(returned(tmp_path, study, given), study)
    assert [(one.reader, one.trial, one.missed) for one in found] == [
        ("r1", 0, False),
        ("r1", 1, True),
        ("r1", 2, True),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        {"trial": -1},
        {"trial": 10**6},
        {"trial": True},
        {"choice": 5},
        {"choice": -1},
        {"choice": "0"},
        {"seconds": "x"},
        7,
    ],
)
def test_answers_that_no_trial_can_have_are_refused(tmp_path: Path, answer: object) -> None:
    study = paper_study()
    entry = {"trial": 0, "choice": 0, "seconds": 1, "at": "t", **answer} if isinstance(answer, dict) else answer
    with pytest.raises(InputError, match="not a file of answers"):
        returned_answers(returned(tmp_path, study, [entry]), study)


def test_files_of_others_or_changed_ones_are_refused(tmp_path: Path) -> None:
    study = paper_study()
    with pytest.raises(InputError, match="another study"):
        returned_answers(returned(tmp_path, study, [], study="other"), study)
    with pytest.raises(InputError, match="no reader"):
        returned_answers(returned(tmp_path, study, [], reader="nobody"), study)
    file = returned(tmp_path, study, [])
    file.write_text(file.read_text().replace("[]", "[1]"))
    with pytest.raises(InputError, match="changed after it was saved"):
        returned_answers(file, study)
    for content in ("", "{}", "[]", '{"answers": 3, "crc": 1}'):
        file.write_text(content)
        with pytest.raises(InputError):
            returned_answers(file, study)

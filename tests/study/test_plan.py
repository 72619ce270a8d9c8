"""Settings and plans: what is refused, the orders of readers, and the folder of a study."""

from __future__ import annotations

import stat
from collections import Counter
from pathlib import Path

import pytest

from kin_cli.errors import InputError, OutputError
from kin_cli.study.plan import REFERENCE, load_study, reader_trials, save_study
from kin_cli.study.settings import read_settings
from tests.helpers.processes import assert_refused, kin
from tests.helpers.studies import METHODS, paper_study, write_study


def test_every_reader_sees_everything_once_in_an_order_of_their_own() -> None:
    study = paper_study(items=20, readers=4)
    orders = []
    for reader in study.readers:
        counted = [t for t in reader.trials if not t.practice and t.repeat_of is None]
        quality = [t.item for t in counted if t.challenge == "quality"]
        assert sorted(quality) == list(range(20))
        fidelity = Counter(
            (t.item, next(n for n in t.slots if n != REFERENCE)) for t in counted if t.challenge == "fidelity"
        )
        assert fidelity == {(item, method): 1 for item in range(20) for method in METHODS}
        assert [t.practice for t in reader.trials if t.challenge == "quality"][:3] == [True, True, False]
        assert reader.trials[0].challenge == "fidelity"
        orders.append(quality)
    assert len({tuple(order) for order in orders}) == 4


def test_every_tenth_is_repeated_later_in_another_place() -> None:
    for reader in paper_study(items=20, readers=6).readers:
        for challenge, count in (("quality", 2), ("fidelity", 6)):
            repeats = [
                (n, t) for n, t in enumerate(reader.trials) if t.repeat_of is not None and t.challenge == challenge
            ]
            assert len(repeats) == count
            for number, trial in repeats:
                first = reader.trials[trial.repeat_of]
                assert trial.repeat_of < number
                assert (first.item, sorted(first.slots), first.practice) == (trial.item, sorted(trial.slots), False)


def test_sides_are_random_and_seeded() -> None:
    sides = Counter(
        (t.challenge, t.slots.index("KIN"))
        for r in paper_study(items=60, readers=10).readers
        for t in r.trials
        if "KIN" in t.slots
    )
    for place in range(3):
        assert 150 < sides["quality", place] < 280
    assert abs(sides["fidelity", 0] - sides["fidelity", 1]) < 140
    one, same, other = (paper_study(seed=seed) for seed in (1, 1, 2))
    trials = [[reader.trials for reader in study.readers] for study in (one, same, other)]
    assert trials[0] == trials[1] != trials[2]
    assert one.readers[0].secret != same.readers[0].secret


def test_one_method_per_item_is_shared_out_evenly(tmp_path: Path) -> None:
    settings = read_settings(write_study(tmp_path, readers=6))
    items = paper_study(items=9).items
    shared = type(settings)(**{**settings.__dict__, "one_method": True, "practice": 0, "repeat_every": 0})
    seen = Counter(
        (t.item, next(n for n in t.slots if n != REFERENCE))
        for reader in range(6)
        for t in reader_trials(shared, items, reader)
        if t.challenge == "fidelity"
    )
    assert set(seen.values()) == {2}
    assert len(seen) == 27


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seed = 5", "sed = 5"), "unknown key 'sed'"),
        (("seed = 5", "seed = -1"), "'seed' is not a whole number"),
        (("seed = 5", 'challenges = ["beauty"]'), "names other challenges"),
        (("readers = 3", "readers = 0"), "neither a number from 1 to 500"),
        (("readers = 3", 'readers = ["a", "a"]'), "list of different names"),
        (("readers = 3", 'readers = ["../x"]'), "other signs"),
        (("seconds = 20", "seconds = 0"), "'seconds' is not a positive number"),
        (("seconds = 20", "seconds = inf"), "'seconds' is not a positive number"),
        (('name = "two"', 'name = "one"'), "two items have the name 'one'"),
        (("[[300, 40, 600, 600]]", "[[300, 40, 600]]"), "neither a number nor a list"),
        (("[[300, 40, 600, 600]]", "[[600, 40, 600, 600]]"), "reaches outside"),
        (('TIN = "TIN.tif"', "TIN = 3"), "does not give a file"),
        (('source = "source.tif"', 'source = "none.tif"'), "none.tif"),
        (("title =", "title ="), ""),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    file = write_study(tmp_path)
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    result = kin("study", "make", tmp_path / "made", "--config", file)
    if words:
        assert_refused(result, words)
        assert not (tmp_path / "made").exists()
    else:
        assert result.code == 0, result.err


def test_a_study_comes_back_and_is_for_its_owner_only(tmp_path: Path) -> None:
    study = paper_study()
    save_study(study, tmp_path / "study")
    assert load_study(tmp_path / "study") == study
    assert stat.S_IMODE((tmp_path / "study" / "study.json").stat().st_mode) == 0o600
    with pytest.raises(OutputError, match="not empty"):
        save_study(study, tmp_path / "study")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": 9, "kin": "x"}', b"\xff", b"[" * 100000])
def test_a_damaged_study_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.json").write_bytes(content)
    with pytest.raises(InputError, match=r"study\.json"):
        load_study(tmp_path)


def test_images_of_an_item_have_one_size_and_field_of_view(tmp_path: Path) -> None:
    kin("study", "make", tmp_path / "made", "--config", write_study(tmp_path))
    for item in load_study(tmp_path / "made").items:
        images = [item.source, item.reference, *item.methods.values()]
        assert {image.size for image in images} == {(600, 600)}
        assert {image.part for image in images} == {item.source.part}


def test_slides_must_not_change_afterwards(tmp_path: Path) -> None:
    kin("study", "make", tmp_path / "made", "--config", write_study(tmp_path))
    (tmp_path / "KIN.tif").touch()
    assert_refused(kin("study", "serve", tmp_path / "made"), "KIN.tif", "was changed since the study was made")
    (tmp_path / "KIN.tif").unlink()
    assert_refused(kin("study", "export", tmp_path / "made", tmp_path / "out"), "KIN.tif", "put it back")
    assert not (tmp_path / "out").exists()


def test_where_a_study_cannot_be_made_is_told_before_any_work(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    assert_refused(kin("study", "make", tmp_path / "no" / "x", "--config", file), "no such folder")
    assert_refused(kin("study", "make", tmp_path, "--config", file), "is not empty")
    assert_refused(kin("study", "make", file, "--config", file), "is a file")

"""One slide by many jobs: their shards make the file of a single process."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.processes import kin
from tests.helpers.translations import SMALL, digest, made


def test_rows_in_many_jobs_make_the_same_file(slide: Path, tiny_generator: Path, wanted: Path, tmp_path: Path) -> None:
    common = (slide, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif", *SMALL)
    refused = kin("translate", *common, "--pass", "apply", "--shard", "1/2")
    assert refused.code == 1
    assert "45 of 45 patches are not measured yet" in refused.err
    for part in ("3/3", "1/3", "2/3"):
        assert kin("translate", *common, "--pass", "measure", "--shard", part).code == 0
    assert kin("translate", *common, "--pass", "apply", "--shard", "2/2").code == 0
    refused = kin("assemble", *common)
    assert refused.code == 1
    assert "tiles are not there yet" in refused.err
    assert kin("translate", *common, "--pass", "apply", "--shard", "1/2").code == 0
    result = kin("assemble", *common)
    assert result.code == 0, result.err
    assert digest(tmp_path / "out.ome.tif") == digest(wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ome.tif", "out.ome.tif.json"]
    assert kin("assemble", *common, "--skip-existing").code == 0


def test_senseless_rows_are_refused(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    common = (slide, "-m", tiny_generator, "-o", tmp_path / "out.ome.tif")
    assert kin("translate", *common, "--shard", "1/2").code == 2
    assert kin("translate", *common, "--shard", "3/2", "--pass", "apply").code == 2
    assert kin("translate", *common, "--shard", "1/2", "--pass", "apply", "--overwrite").code == 2
    assert kin("assemble", *common, "--overwrite").code == 2
    assert list(tmp_path.iterdir()) == []


def test_jobs_fill_it_together(slide: Path, tiny_generator: Path, tmp_path: Path) -> None:
    shared = ("-m", tiny_generator, "-o", tmp_path / "out.ome.tif", *SMALL)
    keeping = (*shared, "--table", tmp_path / "t")
    for part in ("1/2", "2/2"):
        done = kin("translate", slide, *keeping, "--pass", "measure", "--shard", part)
        assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "t").glob("*.dat")} == {
        f"table-measure-{part}-of-2.dat" for part in (1, 2)
    }
    for part in ("1/2", "2/2"):
        done = kin("translate", slide, *keeping, "--pass", "apply", "--shard", part)
        assert done.code == 0, done.err
    done = kin("assemble", slide, *shared)
    assert done.code == 0, done.err
    assert digest(tmp_path / "out.ome.tif") == made(slide, tiny_generator, tmp_path / "plain")

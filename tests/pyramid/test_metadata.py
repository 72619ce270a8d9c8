"""Descriptions of outputs against tifffile and an XML parser; checksums find the damaged tile."""

from __future__ import annotations

import json
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from kin_cli.geometry import Size
from kin_cli.pyramid.metadata import Digest, ImageInfo, ome_description, parse_description, plain_description

CRCS = np.random.default_rng(0).integers(0, 2**32, (3, 5), np.uint32)
SIZE = Size(501, 333)


def info(**changes: object) -> ImageInfo:
    given = {"mpp": 0.25, "icc": None, "software": "kin 1", "name": "a slide", "settings": {"kernel": "gaussian:7"}}
    return ImageInfo(**{**given, **changes})  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    st.floats(0.001, 1000),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=20)), max_size=4),
)
def test_both_kinds_say_what_they_were_told_whatever_the_text(mpp: float, name: str, values: dict[str, object]) -> None:
    about, digests = info(mpp=mpp, name=name, settings=values), (Digest.of(CRCS), Digest.of(CRCS[:1, :2]))
    for description, ome in ((ome_description(about, SIZE, digests), True), (plain_description(about, digests), False)):
        found = parse_description(description + b"\0")
        assert found is not None
        assert (found.ome, found.digests) == (ome, digests)
        assert found.mpp == pytest.approx(mpp)
    assert json.loads(plain_description(about, digests))["settings"] == values


def test_tifffile_reads_the_ome_xml() -> None:
    xml = ome_description(info(mpp=0.2525), SIZE, ()).decode()
    pixels = tifffile.xml2dict(xml)["OME"]["Image"]["Pixels"]
    assert (pixels["SizeX"], pixels["SizeY"], pixels["SizeC"]) == (501, 333, 3)
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (0.2525, 0.2525)
    root = ElementTree.fromstring(xml)
    assert root.tag == "{http://www.openmicroscopy.org/Schemas/OME/2016-06}OME"
    assert [entry.text for entry in root.iter() if entry.get("K") == "kernel"] == ["gaussian:7"]
    assert "PhysicalSize" not in ome_description(info(mpp=None), SIZE, ()).decode()


def test_a_digest_is_the_crc_of_the_crcs_and_finds_the_damage() -> None:
    digest = Digest.of(CRCS)
    assert digest.rows == tuple(zlib.crc32(b"".join(int(crc).to_bytes(4, "little") for crc in row)) for row in CRCS)
    assert len(digest.cols) == 5
    assert Digest.parsed(str(digest)) == digest
    damaged = CRCS.copy()
    damaged[2, 3] ^= 1
    other = Digest.of(damaged)
    assert [row for row in range(3) if other.rows[row] != digest.rows[row]] == [2]
    assert [col for col in range(5) if other.cols[col] != digest.cols[col]] == [3]


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"Aperio Image Library",
        b'{"a":' * 100_000,
        b"{}",
        b"{",
        b"[1]",
        b"<OME/>",
        b'{"kin:crc32:0": "xyz"}',
        b"\xff\xfe<",
    ],
)
def test_descriptions_of_others_are_nothing(description: bytes) -> None:
    assert parse_description(description) is None


def test_the_ome_xml_is_valid_with_and_without_an_objective() -> None:
    ome_types = pytest.importorskip("ome_types", reason="the OME schema comes with ome-types")
    for power in (None, 20.0, 2.5):
        xml = ome_description(info(objective=power), SIZE, (Digest.of(CRCS),)).decode()
        ome_types.validate_xml(xml)
        told = ome_types.from_xml(xml)
        lenses = [lens for instrument in told.instruments for lens in instrument.objectives]
        assert [lens.nominal_magnification for lens in lenses] == ([] if power is None else [power])
        used = told.images[0].objective_settings
        assert (used and used.id) == (lenses[0].id if lenses else None)


def test_settings_are_read_back_as_text() -> None:
    about = info(settings={"kernel": "1", "patch size": 256, "region": [0, 0, 5, 5], "mpp": None})
    for description in (ome_description(about, SIZE, (Digest.of(CRCS),)), plain_description(about, (Digest.of(CRCS),))):
        found = parse_description(description)
        assert found is not None
        assert found.software == "kin 1"
        assert found.settings == {"kernel": "1", "patch size": "256", "region": "[0, 0, 5, 5]", "mpp": "null"}

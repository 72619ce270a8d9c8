"""Every command of README and docs runs as it stands there, in the order of its page; the links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import kin_cli.face
from kin_cli.commands.main import cli
from tests.helpers.generators import write_generator
from tests.helpers.processes import kin
from tests.helpers.slides import write_slide

ROOT = Path(__file__).resolve().parents[1]
# these two record experiments, on slides that do not ship
RECORDS = ("quality.md", "performance.md")
# servers, and commands on whole studies and pairs of slides: their own tests run them
PARSED = ("view.md", "study.md", "trust.md", "validation.md")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# small patches and networks, so that commands meant for slides run in seconds
SMALL = {
    **{f"KIN_{name}_PATCH_SIZE": "64" for name in ("TRANSLATE", "BATCH", "ASSEMBLE", "COMPARE", "SWEEP", "ANALYSE")},
    "KIN_TRAIN_CUT_PATCH_SIZE": "64",
    "KIN_TRAIN_CUT_STEPS": "1",
    "KIN_TRAIN_CUT_WIDTH": "4",
    "KIN_TRAIN_CUT_BLOCKS": "1",
    "KIN_TRAIN_CUT_DISC_WIDTH": "4",
    "KIN_TRAIN_CUT_MIN_TISSUE": "0",
    "KIN_TRANSLATE_TISSUE": "none",
    "KIN_BATCH_TISSUE": "none",
    "KIN_ASSEMBLE_TISSUE": "none",
    "KIN_COMPARE_TILES": "4",
    "KIN_SWEEP_TILES": "4",
    "KIN_ANALYSE_PATCHES": "4",
    "KIN_SEAMS_TISSUE": "none",
    "KIN_TISSUE_TISSUE": "none",
}


NETWORK = """
from torch import nn

class Generator(nn.Sequential):
    def __init__(self, ngf):
        layers = nn.Conv2d(3, ngf, 3, padding=1), nn.InstanceNorm2d(ngf), nn.ReLU(), nn.Conv2d(ngf, 3, 3, padding=1)
        super().__init__(*layers, nn.Tanh())
"""


def commands(page: Path) -> list[str]:
    """The lines of a page's indented and fenced blocks that call kin, without their comments."""
    lines = [line.strip() for line in page.read_text().splitlines() if re.match(r"(    )?kin [a-z]", line)]
    return [re.sub(r"\s+#.*", "", line) for line in lines]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with all the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    write_slide(Path("slide.svs"), width=256, height=192)
    write_generator(Path("latest_net_G.pth"))
    Path("nets.py").write_text(NETWORK)
    namespace: dict[str, Any] = {}
    exec(NETWORK, namespace)
    torch.save(namespace["Generator"](64).state_dict(), "weights.pth")
    for name in ("HE.tif", "PAS.tif", "PAS_registered.tif"):
        shutil.copy("slide.svs", name)
    for name in ("slides", "he_slides", "ihc_slides"):
        Path(name).mkdir()
        for number in range(2):
            write_slide(Path(name) / f"{number}.tif", width=256, height=192, seed=number)
    Path("slides.csv").write_text("wsi\nslides/0.tif\n")
    ring = [[10, 10], [240, 10], [240, 180], [10, 180], [10, 10]]
    Path("mask.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if commands(page) and page.name not in (*RECORDS, *PARSED)],
    ids=lambda page: page.name,
)
def test_the_commands_of_a_page_run_one_after_another(folder: Path, page: Path) -> None:
    for line in commands(page):
        if "slide.kin.ome.tif" in line and not Path("slide.kin.ome.tif").exists():
            assert kin("translate", "slide.svs", "-m", "latest_net_G.pth", **SMALL).code == 0
        if line.startswith("kin view"):
            continue  # a server; its own tests run it
        run = kin(*shlex.split(line)[1:], **SMALL)
        assert run.code == 0, f"{page.name}: {line}\n{run.err}"


def test_the_blocks_of_python_run_one_after_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) == 5
    settings_of = kin_cli.face.settings_of
    small = {"patch_size": 64, "tissue": "none"}
    monkeypatch.setattr(kin_cli.face, "settings_of", lambda *files, **options: settings_of(*files, **small, **options))
    exec("\n".join(blocks).replace('"slide.svs")\nprint(found', '"slide.svs", tissue="none")\nprint(found'), {})
    shown = capsys.readouterr().out
    assert "(64, 64, 3)" in shown
    assert "absent.svs: no such file" in shown


@pytest.mark.parametrize("name", PARSED)
def test_the_commands_of_other_pages_are_understood(name: str) -> None:
    lines = commands(ROOT / "docs" / name)
    assert lines
    for line in lines:
        command: Any = cli
        words = shlex.split(line)[1:]
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        command.make_context(line, words)  # raises for an unknown option or a bad value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is not installed: scripts/setup dev")
    config = pytest.importorskip("mkdocs.config").load_config(
        str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True
    )
    build.build(config)
    assert (tmp_path / "site" / "cli" / "index.html").read_text().count("--kernel") > 3
    shutil.rmtree(tmp_path / "site")

"""Digests of a fixed set of translations, to see that a change moves no byte: python scripts/digests.py FILE

Writes FILE (JSON) where it is missing, otherwise compares with it and exits 1 where anything differs. Run it before and
after a change on the same machine: another processor adds in another order. Every output has two digests, one of the
whole file and one of its encoded tiles alone, since a file also states the program's own words.

Inputs are the slides and generators of --shared (default: the folder beside the checkout), which is not part of the
project; kin is called as a command, one process each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tifffile

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
PLAIN = ("--paper", "--device", "cpu", "--precision", "fp32", "-j", "2")
SEAMLESS = ("--seamless", "--device", "cpu", "--precision", "fp32", "-j", "2")
SMALL = ("--region", "512,1024,1100,900", "--patch-size", "256")


class Set:
    """Runs of kin in a folder of their own, and the digests of what they write."""

    def __init__(self, shared: Path, folder: Path) -> None:
        data = shared / "data"
        self.svs, self.tif = data / "CMU-1-Small-Region.svs", data / "CMU-1-Small-Region.pyramid.tif"
        self.dicom = sorted((data / "CMU-1-Small-Region-dicom").glob("*.dcm"))[0]
        self.crops = sorted(path for path in (data / "os_crops").iterdir() if path.suffix in (".tif", ".tiff", ".svs"))
        self.models = {name: shared / "reference" / f"{name}.pth" for name in ("cut", "cyclegan", "urust")}
        self.photo, self.thumbnail = shared / "reference" / "input.png", shared / "reference" / "thumbnail.png"
        self.folder, self.found = folder, {}

    def kin(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "kin_cli", *map(str, arguments)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")

    def add(self, name: str, output: Path) -> None:
        whole = hashlib.sha256(output.read_bytes()).hexdigest()
        self.found[name] = {"file": whole, "tiles": tiles_digest(output) if "tif" in output.suffix else whole}
        print(name, whole[:12], flush=True)

    def translate(self, name: str, slide: Path, *options: object, kind: str = ".ome.tif", model: str = "cut") -> None:
        output = self.folder / f"{name}{kind}"
        self.kin("translate", slide, "-m", self.models[model], "-o", output, *options)
        self.add(name, output)

    def methods(self) -> None:
        self.translate("plain", self.svs, *PLAIN)
        self.translate("seamless", self.svs, *SEAMLESS, *SMALL)
        for method in ("in", "dn"):
            self.translate(method, self.svs, *PLAIN, *SMALL, "--method", method)
        self.translate("tin", self.svs, *PLAIN, *SMALL, "--method", "tin", "--thumbnail", self.thumbnail)
        self.translate("authors", self.svs, *PLAIN, *SMALL, "--authors", "--kernel", "constant:3", model="urust")
        self.translate("bf16", self.svs, *PLAIN, *SMALL, "--precision", "bf16", model="cyclegan")
        self.translate("measure-size", self.svs, *PLAIN, *SMALL, "--measure-size", "128", "--kernel", "global")

    def formats(self) -> None:
        self.translate("deflate", self.tif, *PLAIN, *SMALL, "--compression", "deflate")
        self.translate("tif", self.tif, *PLAIN, *SMALL, "--background", "keep", kind=".tif")
        self.translate("png", self.photo, *PLAIN, "--patch-size", "256", kind=".png", model="cyclegan")
        self.translate("jpg", self.photo, *PLAIN, "--patch-size", "256", "--background", "white", kind=".jpg")
        self.translate("dicom", self.dicom, *PLAIN, *SMALL, "--quality", "95", "--subsampling", "444")
        self.translate("mpp", self.svs, *SEAMLESS, "--mpp", "1.5", "--patch-size", "128", model="urust")
        for crop in self.crops:
            self.translate(f"crop-{crop.stem}", crop, *PLAIN, "--patch-size", "256", "--tissue", "none")

    def several(self) -> None:
        table = self.folder / "table"
        self.translate("table-1", self.svs, *PLAIN, *SMALL, "--table", table)
        self.translate("table-2", self.svs, *SEAMLESS, *SMALL, "--table", table, "--kernel", "constant:3")
        output = self.folder / "shards.ome.tif"
        common = (self.svs, "-m", self.models["cut"], "-o", output, *PLAIN, *SMALL)
        for name in ("measure", "apply"):
            for part in (2, 1):
                self.kin("translate", *common, "--pass", name, "--shard", f"{part}/2")
        self.kin("assemble", *common)
        self.add("shards", output)
        folder = self.folder / "batch"
        self.kin("batch", self.svs, self.tif, "-m", self.models["cut"], "-o", folder, *PLAIN, *SMALL)
        for output in sorted(folder.glob("*.ome.tif")):
            self.add(f"batch-{output.name}", output)

    def killed(self) -> None:
        output = self.folder / "killed.ome.tif"
        arguments = ("translate", self.svs, "-m", self.models["cut"], "-o", output, *PLAIN)
        for stage in ("table", "tiles"):
            process = subprocess.Popen(
                [sys.executable, "-m", "kin_cli", *map(str, arguments)], env=ENVIRONMENT, stderr=subprocess.DEVNULL
            )
            store = output.with_name(f"{output.name}.kin-work") / f"{stage}-0.dat"
            while process.poll() is None and not (store.exists() and store.stat().st_size):
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.kin(*arguments)
        self.add("killed", output)
        plain = self.found["plain"]["tiles"]
        if self.found["killed"]["tiles"] != plain:
            raise SystemExit("killed: differs from the uninterrupted run")


def tiles_digest(file: Path) -> str:
    """SHA-256 of the encoded tiles of all levels, in the file's order."""
    digest = hashlib.sha256()
    with tifffile.TiffFile(file) as tiff, file.open("rb") as raw:
        for page in tiff.series[0].levels:
            page = page.keyframe if hasattr(page, "keyframe") else page.pages[0]
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                raw.seek(offset)
                digest.update(raw.read(size))
    return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--shared",
        type=Path,
        default=ROOT.parent / "shared",
        help="folder with the slides (data/) and generators (reference/)",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Set(options.shared, Path(temporary))
        for part in (run.methods, run.formats, run.several, run.killed):
            part()
    if not options.file.exists():
        options.file.write_text(json.dumps(run.found, indent=1) + "\n")
        print(f"{options.file}: {len(run.found)} outputs recorded")
        return 0
    wanted, wrong = json.loads(options.file.read_text()), 0
    for name in sorted(wanted.keys() | run.found.keys()):
        old, new = wanted.get(name), run.found.get(name)
        if old != new:
            same_tiles = old and new and old["tiles"] == new["tiles"]
            print(f"{name}: {'the tiles are the same, the words differ' if same_tiles else 'DIFFERS'}")
            wrong += not same_tiles
    print(f"{len(wanted)} outputs compared, {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Sound files that hostile inputs are made from, and interrupted work; made once for a run of the fuzzer."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors.torch
import tifffile
import torch
from PIL import Image, ImageFilter

import kin_cli.commands.progress
from kin_cli.commands.main import main
from kin_cli.models.resnet import ResnetGenerator, ResnetSpec
from kin_cli.progress import Advance

SMALL = ("--patch-size", "64", "--window", "64", "--device", "cpu", "-j", "2")
STAGES = ("measure", "apply", "pyramid", "write")


class Stock:
    """A folder with a slide, photographs, checkpoints, finished outputs, a kept table and interrupted work."""

    def __init__(self, folder: Path, slides: Path | None) -> None:
        self.folder = folder
        self.slides = [] if slides is None else sorted(p for p in slides.rglob("*") if _is_small_slide(p))
        folder.mkdir()
        torch.set_num_threads(1)
        self.model, self.slide = folder / "tiny.pth", folder / "slide.tif"
        self._pictures()
        self._checkpoints()
        self.translate = ("-m", str(self.model), *SMALL)
        for ending in (".ome.tif", ".tif", ".png", ".jpg"):
            self._kin(["translate", str(self.slide), "-o", str(folder / f"done{ending}"), *self.translate])
        kept = ("-o", str(folder / "kept.ome.tif"), "--table", str(folder / "table"))
        self._kin(["translate", str(self.slide), *kept, *self.translate])
        for stage in STAGES:
            place = folder / "work" / stage
            place.mkdir(parents=True)
            shutil.copy2(folder / "wide.tif", place / "slide.tif")
            command = ["translate", str(place / "slide.tif"), "-o", str(place / "out.ome.tif"), *self.translate]
            self._kin(command, kill_in=stage)
        self.reference = self._reference(self.slide)
        self.wide_reference = self._reference(folder / "wide.tif")

    def _reference(self, slide: Path) -> str:
        """Digest of the output of an uninterrupted run, which has the same names as those of the cases."""
        place = self.folder / f"reference-{slide.stem}"
        place.mkdir()
        shutil.copy2(slide, place / "slide.tif")
        self._kin(["translate", str(place / "slide.tif"), "-o", str(place / "out.ome.tif"), *self.translate])
        return digest(place / "out.ome.tif")

    def copy(self, name: str, to: Path) -> Path:
        return Path(shutil.copyfile(self.folder / name, to))

    def _pictures(self) -> None:
        self.pixels = picture(256, 320)
        options = {"photometric": "rgb", "tile": (128, 128), "resolution": (20000, 20000), "resolutionunit": 3}
        with tifffile.TiffWriter(self.slide) as tiff:
            tiff.write(self.pixels, subifds=0, compression="deflate", metadata=None, **options)
            tiff.write(self.pixels[::2, ::2].copy(), subfiletype=1, compression="deflate", metadata=None, **options)
        wide = {"compression": "deflate", "metadata": None, **options}
        tifffile.imwrite(self.folder / "wide.tif", picture(560, 640), **wide)  # gives four tiles
        tifffile.imwrite(self.folder / "plain.tif", self.pixels, photometric="rgb", rowsperstrip=32, metadata=None)
        tifffile.imwrite(self.folder / "jpeg.svs", self.pixels, compression="jpeg", metadata=None, **options)
        tifffile.imwrite(
            self.folder / "big.tif", self.pixels, bigtiff=True, compression="lzw", metadata=None, **options
        )
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        tifffile.imwrite(self.folder / "slide.ome.tif", self.pixels, ome=True, metadata=metadata, **options)
        photo = Image.fromarray(self.pixels)
        for ending, more in (
            (".png", {}),
            (".jpg", {"quality": 90}),
            (".jp2", {}),
            (".webp", {}),
            (".bmp", {}),
            (".gif", {}),
        ):
            photo.save(self.folder / f"photo{ending}", **more)
        flags = np.zeros((256, 320), np.uint8)
        flags[:, :128] = 255
        Image.fromarray(flags).save(self.folder / "mask.png")

    def _checkpoints(self) -> None:
        torch.manual_seed(0)
        self.spec = ResnetSpec(width=2, blocks=1, antialias_down=False, antialias_up=False)
        self.state = ResnetGenerator(self.spec).state_dict()
        torch.save(self.state, self.model)
        torch.save(self.state, self.folder / "legacy.pth", _use_new_zipfile_serialization=False)
        safetensors.torch.save_file(self.state, self.folder / "tiny.safetensors")

    def _kin(self, arguments: list[str], *, kill_in: str | None = None) -> None:
        pid = os.fork()
        if pid == 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            kin_cli.commands.progress.ConsoleProgress.stage = _killing("")  # type: ignore[method-assign,assignment]
            if kill_in:
                kin_cli.commands.progress.ConsoleProgress.stage = _killing(kill_in)  # type: ignore[method-assign,assignment]
            sys.argv[1:] = arguments
            main()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != (-9 if kill_in else 0):
            raise SystemExit(f"the fuzzer's own {' '.join(arguments)} ended with {code}")


def _killing(stage_to_end: str):  # type: ignore[no-untyped-def]
    @contextmanager
    def stage(_self: object, name: str, _total: int, _unit: str = "") -> Iterator[Advance]:
        seen = 0

        def advance(*_: object) -> None:
            nonlocal seen
            seen += 1
            if name == stage_to_end and seen == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        yield advance
        if name == stage_to_end:
            os.kill(os.getpid(), signal.SIGKILL)

    return stage


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth random colours that a detector takes for tissue, on white at the right side; shape (height, width, c)."""
    rng = np.random.default_rng(seed)
    planes = []
    for _ in range(channels):
        small = Image.fromarray(rng.integers(0, 255, (max(1, height // 6), max(1, width // 6)), dtype=np.uint8))
        planes.append(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.BLUR)))
    pixels = np.stack(planes, -1)
    pixels[:, int(width * 0.85) :] = 245
    return pixels


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _is_small_slide(path: Path) -> bool:
    return path.suffix.lower() in (".svs", ".tif", ".tiff", ".dcm", ".ndpi", ".scn") and path.stat().st_size < 8 << 20

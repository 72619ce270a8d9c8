"""Peak memory of whole translations by size of the slide: python benchmarks/memory.py [--sides 8192,32768,102400]

Makes synthetic slides with ``kin sample``, translates each in a process of its own with a random generator (by default
a very small one), and prints the peak resident set and, with a GPU, its peak memory. Exits with 1 if the largest peak
exceeds the smallest by more than 10 % or, without a GPU (whose libraries alone take more), if it exceeds 1 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from kin_cli.models.resnet import ResnetGenerator, ResnetSpec


def kin(*arguments: object) -> str:
    command = [sys.executable, "-m", "kin_cli", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def peak_child_rss(*arguments: object) -> tuple[str, int]:
    """Run ``kin`` and return its standard output and peak resident set in bytes, as the kernel counts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kin_cli", *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"kin {' '.join(map(str, arguments))} failed")
    return output, usage.ru_maxrss * 1024


def translated(slide: Path, output: Path, model: Path, *, tissue: str) -> tuple[int, int | None]:
    """Translate a slide, print a line about it, and return the peak memory of process and device in bytes."""
    start = time.perf_counter()
    text, rss = peak_child_rss("translate", slide, "-m", model, "-o", output, "--tissue", tissue, "--json")
    seconds, record = time.perf_counter() - start, json.loads(text)
    device = record["peak_device_bytes"]
    mib = [rss, device or 0, record["plan"]["table_bytes"], record["output_bytes"]]
    columns = [f"{value / 2**20:.1f}" for value in mib]
    print(slide.stem, record["plan"]["patches_with_tissue"], f"{seconds:.0f}", *columns, sep="  ", flush=True)
    return rss, device


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", default="8192,32768,102400", help="sides of the slides in px, separated by commas")
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder with the slides")
    parser.add_argument("--width", type=int, default=2, help="width of the random generator")
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks of the random generator")
    parser.add_argument("--tissue", default="none", help="none: translate every patch; auto: only tissue")
    options = parser.parse_args()
    peaks, device_peaks = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        spec = ResnetSpec(width=options.width, blocks=options.blocks, antialias_down=False, antialias_up=False)
        torch.save(ResnetGenerator(spec).state_dict(), folder / "tiny.pth")
        print("side_px  patches  seconds  peak_rss_MiB  peak_device_MiB  table_MiB  output_MiB")
        for side in map(int, options.sides.split(",")):
            slide, output = folder / f"{side}.tif", folder / f"{side}.kin.ome.tif"
            kin("sample", slide, "--size", side)
            rss, device = translated(slide, output, folder / "tiny.pth", tissue=options.tissue)
            peaks.append(rss)
            if device is not None:
                device_peaks.append(device)
            slide.unlink()
            output.unlink()
    growth = max(peaks) / min(peaks)
    print(f"largest / smallest peak: {growth:.3f} (allowed 1.100); largest {max(peaks) / 2**20:.0f} MiB", end="")
    if device_peaks:
        device_growth = max(device_peaks) / max(1, min(device_peaks))
        print(f"\nlargest / smallest peak of the device: {device_growth:.3f} (allowed 1.100)")
        return 0 if max(growth, device_growth) <= 1.1 else 1
    print(" (allowed 1024)")
    return 0 if growth <= 1.1 and max(peaks) < 1 << 30 else 1


if __name__ == "__main__":
    sys.exit(main())

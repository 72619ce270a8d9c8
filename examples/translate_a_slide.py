"""Translate a slide, show how it goes, and tell whether borders are visible.

python examples/translate_a_slide.py slide.svs latest_net_G.pth out.ome.tif
"""

import sys

from tqdm import tqdm

import kin_cli
from kin_cli.progress import SilentProgress


class Bars(SilentProgress):
    """Progress as bars of tqdm; everything else stays silent."""

    def stage(self, name, total, unit):
        """A bar for each stage."""
        return _Bar(total=total, desc=name, unit=f" {unit}")


class _Bar(tqdm):
    def __enter__(self):
        super().__enter__()
        return lambda count, _detail="": self.update(count)


slide, model, output = sys.argv[1:]
try:
    result = kin_cli.translate(slide, output, model=model, kernel="gaussian:7", skip_existing=True, progress=Bars())
except kin_cli.KinError as error:
    sys.exit(f"{error.message} ({error.hint})")
print(result.path, result.record["plan"]["patches_with_tissue"], "patches with tissue")

borders = kin_cli.seams(result.path, slide).result
print(f"the borders between patches add {borders.excess:.2f} ΔE; below 0.5 they are invisible")

with kin_cli.open_slide(result.path) as translated:
    print(translated.levels[0], "px,", translated.mpp, "µm per pixel,", len(translated.levels), "levels")

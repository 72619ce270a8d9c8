"""Translate a whole slide with two networks of one's own: python examples/own_generator.py slide.svs translated/.

The weights here are random; load yours before. Run it again after an interruption: it continues where it stopped.
"""

import sys
from pathlib import Path

import torch
from networks import GlobalGenerator, StyledGenerator

import kin_cli

slide, folder = Path(sys.argv[1]), Path(sys.argv[2])
for network in (GlobalGenerator, StyledGenerator):
    torch.manual_seed(0)
    generator = network()  # generator.load_state_dict(torch.load("weights.pth", weights_only=True))
    output = folder / f"{network.__name__}.ome.tif"
    record = kin_cli.translate(slide, output, generator=generator, seamless=True, skip_existing=True).record
    print(output, "exists" if record.get("skipped") else f"{record['plan']['patches_with_tissue']} patches")

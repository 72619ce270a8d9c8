"""The bundled generator in another architecture: python research/distil_architectures.py cyclegan|urust SLIDE -o OUTPUT

Seams depend on the architecture as much as on the weights: on how a network pads and changes resolution. To compare
architectures on one translation, a small network learns to reproduce the bundled generator's output, patch by patch
(L1, InstanceNorm in both). 1,500 steps take a quarter of an hour on one core. OUTPUT is a .safetensors file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from kin_cli.models.architectures import Spec, build
from kin_cli.models.checkpoint import bundled_model, load_generator, save_generator
from kin_cli.models.resnet import ResnetSpec, UrustSpec
from kin_cli.training.patches import PatchSource, to_tensor
from kin_cli.training.settings import PatchSettings

SPECS: dict[str, Spec] = {"cyclegan": ResnetSpec(width=16, blocks=6), "urust": UrustSpec(width=16, blocks=6)}


def distil(teacher: nn.Module, student: nn.Module, source: PatchSource, *, steps: int) -> None:
    """Train the student on one patch per step, and print its L1 distance from the teacher."""
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    losses = []
    for step in range(steps):
        x = to_tensor([source.draw(step)])
        with torch.no_grad():
            wanted = teacher(x)
        loss = F.l1_loss(student(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            mean = 127.5 * sum(losses[-50:]) / 50
            print(f"step {step + 1}: {mean:.1f} grey levels from the bundled generator", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", choices=SPECS)
    parser.add_argument("slide", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--patch-size", type=int, default=256)
    given = parser.parse_args()
    torch.manual_seed(0)
    spec = SPECS[given.architecture]
    teacher, student = load_generator(bundled_model()).module, build(spec)
    patches = PatchSettings(
        given.slide,
        given.slide,
        patch_px=given.patch_size,
        border_fraction=0.2,
        background_fraction=0.03,
        rotate=True,
    )
    source = PatchSource([given.slide], patches, stain="source", seed=0)
    distil(teacher, student, source, steps=given.steps)
    save_generator(student, given.output, spec=spec, metadata={"taught_by": bundled_model().name})


if __name__ == "__main__":
    main()

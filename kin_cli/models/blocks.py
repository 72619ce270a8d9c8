"""The norm layers of a generator in the blocks that its authors speak of: conv, down, residual, up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

_RESIDUAL = ("conv_block", "resnetblocks")
_UNET_DOWN = ".2"  # in each of a U-Net's blocks the norm on the way down is layer 2, that on the way up 6 or 4


@dataclass(frozen=True)
class LayerBlock:
    """Consecutive norm layers, and the channels of the table that are theirs."""

    name: str
    layers: int
    channels: slice


def layer_blocks(layers: Sequence[tuple[str, int]]) -> list[LayerBlock]:
    """The blocks of ``PatchedNetwork.layers``, (name, channels) in the order in which they run.

    A ResNet has ``conv``, ``down 1``, ``down 2``, ``residual`` (all of them), ``up 1``, ``up 2``, as in the paper's
    Figure S1; a U-Net has one block for every norm layer. Names are those of the known layouts.
    """
    starts = [0, *accumulate(channels for _, channels in layers)]
    blocks: list[LayerBlock] = []
    numbered = enumerate(_kinds([name for name, _ in layers]))
    for kind, group in groupby(numbered, key=lambda pair: pair[1] if pair[1] == "residual" else pair):
        members = [number for number, _ in group]
        name = kind if isinstance(kind, str) else kind[1]
        if name in ("down", "up"):
            name = f"{name} {1 + sum(block.name.startswith(name) for block in blocks)}"
        channels = slice(starts[members[0]], starts[members[-1] + 1])
        blocks.append(LayerBlock(name, len(members), channels))
    return blocks


def _kinds(names: list[str]) -> list[str]:
    residual = [number for number, name in enumerate(names) if any(part in name for part in _RESIDUAL)]
    if not residual:
        return ["down" if name.endswith(_UNET_DOWN) else "up" for name in names]
    kinds = []
    for number in range(len(names)):
        before = "conv" if number == 0 else "down"
        kinds.append("residual" if number in residual else before if number < residual[0] else "up")
    return kinds

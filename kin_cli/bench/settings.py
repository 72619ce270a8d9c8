"""What ``kin bench`` measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kin_cli.errors import UsageError
from kin_cli.geometry import Size
from kin_cli.models.layouts import Spec
from kin_cli.models.resnet import ResnetSpec
from kin_cli.models.urust import UrustSpec
from kin_cli.settings import ComputeSettings

Layout = Literal["cut", "cyclegan", "urust"]


@dataclass(frozen=True)
class RandomGenerator:
    """A generator with random weights: it is as fast as a trained one of its layout."""

    layout: Layout = "cut"
    width: int = 64
    blocks: int = 9

    def __post_init__(self) -> None:
        if min(self.width, self.blocks) < 1:
            raise UsageError(
                f"a generator of width {self.width} with {self.blocks} blocks cannot be", "at least 1 each"
            )

    @property
    def spec(self) -> Spec:
        """The spec of its network."""
        if self.layout == "urust":
            return UrustSpec(width=self.width, blocks=self.blocks)
        blurs = self.layout == "cut"
        return ResnetSpec(width=self.width, blocks=self.blocks, antialias_down=blurs, antialias_up=blurs)


@dataclass(frozen=True)
class BenchSettings:
    """One benchmark.

    Attributes:
        model: a checkpoint, or a generator to be made.
        slide: a slide whose middle part is used; None for a made-up one.
        size: of that part, in pixels.
        measure_px: the middle of a patch that pass 1 looks at; None for all of it.
        repeats: how often everything is timed; the median counts.
        quick: one short repeat, without the seamless windows.
    """

    model: Path | RandomGenerator
    slide: Path | None = None
    size: Size = field(default_factory=lambda: Size(1536, 1536))
    patch_px: int = 512
    measure_px: int | None = None
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    repeats: int = 3
    quick: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UsageError(f"{self.repeats} repeats measure nothing", "at least 1")

    @property
    def runs(self) -> int:
        """Repeats that are made."""
        return 1 if self.quick else self.repeats

    @property
    def at_least_s(self) -> float:
        """Shortest time that a repeat of a stage takes: short calls are repeated within it."""
        return 0.1 if self.quick else 0.5

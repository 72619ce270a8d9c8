"""What is to be compared, and by which figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kin_cli.errors import UsageError
from kin_cli.settings import NormSettings, Settings


@dataclass(frozen=True)
class Variant:
    """One way to normalise: ``name`` for files, ``title`` for people."""

    name: str
    title: str
    norm: NormSettings


@dataclass(frozen=True)
class Look:
    """What is shown: ``close_ups`` places, squares of ``close_up_px`` pixels (None: as large as a patch)."""

    close_ups: int = 3
    close_up_px: int | None = None
    overview_px: int = 800


@dataclass(frozen=True)
class Yardstick:
    """What is measured beside the seams, over ``patches`` tiles with tissue drawn with ``seed``.

    ``metrics`` are names for ``EvaluationSettings``; None takes SSIM, Sobel and PIQE, with a ``reference`` (a real
    slide of the target stain) the histogram too, and with ``inception`` weights FID.
    """

    metrics: tuple[str, ...] | None = None
    reference: Path | None = None
    inception: Path | None = None
    patches: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.inception is not None and self.reference is None:
            raise UsageError("--inception alone measures nothing", "FID compares with a --reference slide")

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, without the seams, which are always measured."""
        if self.metrics is not None:
            return tuple(name for name in self.metrics if name != "seams")
        further = () if self.reference is None else ("histogram",)
        return ("ssim", "sobel", "piqe", *further, *(() if self.inception is None else ("fid",)))


@dataclass(frozen=True)
class CompareSettings:
    """A comparison of variants of one translation.

    Attributes:
        base: the translation; its norm settings and output path are those of each variant in turn.
        variants: in the order in which they are made; the first decides which places are shown.
        folder: where translations lie while they are needed, and the table unless ``base.table`` says where.
        keep: leave folder, translations and table there for another time.
    """

    base: Settings
    variants: tuple[Variant, ...]
    folder: Path
    keep: bool = False
    look: Look = Look()
    yardstick: Yardstick = Yardstick()

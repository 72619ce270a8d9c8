"""kin: seam-aware stain translation of whole-slide images (Kernelized Instance Normalization).

The names below are the package's face for Python. Each is loaded when it is first used, so that ``import kin_cli`` is
quick and loads neither torch nor an image library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kin_cli.errors import KinError
    from kin_cli.evaluation.run import evaluate
    from kin_cli.face import Result, seams, translate
    from kin_cli.models.checkpoint import load_generator
    from kin_cli.models.exchange import exchange_norms
    from kin_cli.norm.kernel import Kernel
    from kin_cli.settings import Settings
    from kin_cli.slide.open import open_slide

__version__ = "0.1.0"
__all__ = [
    "Kernel",
    "KinError",
    "Result",
    "Settings",
    "__version__",
    "evaluate",
    "exchange_norms",
    "load_generator",
    "open_slide",
    "seams",
    "translate",
]

_HOMES = {
    "Kernel": "norm.kernel",
    "KinError": "errors",
    "Result": "face",
    "Settings": "settings",
    "evaluate": "evaluation.run",
    "exchange_norms": "models.exchange",
    "load_generator": "models.checkpoint",
    "open_slide": "slide.open",
    "seams": "face",
    "translate": "face",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kin_cli' has no attribute '{name}'")
    return getattr(import_module(f"kin_cli.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)

"""What a generator's file tells of its training, as far as a translation needs it: for trust map and colours."""

from __future__ import annotations

from kin_cli.errors import UsageError
from kin_cli.models.named import FULL_RANGE
from kin_cli.models.reference import Reference, read_reference
from kin_cli.outputs import check_trust_outputs
from kin_cli.settings import Settings
from kin_cli.slide.stain import StainMatch, match_to
from kin_cli.slide.view import SlideView

_LEARN = "kin models learn makes them from its training slides"


def reference_of(settings: Settings, *, channels: int) -> Reference | None:
    """The statistics of the generator's training patches, if they are needed and its file holds them.

    ``channels`` is ΣC of the generator. Also checks that the files of a trust map can be written, if one is made.

    Raises ``UsageError`` if they were asked for and are missing; ``OutputError`` as ``check_trust_outputs`` does.
    """
    trust, matching = settings.trust, settings.source.stain_match is not None
    asked = trust.enabled or trust.below is not None
    with_map = settings.makes_trust_map and channels > 0
    # learned with the usual range of inputs
    usable = settings.model is not None and settings.input_range == FULL_RANGE and (with_map or matching)
    reference = read_reference(settings.model, channels) if usable and settings.model is not None else None
    if reference is None and matching:
        raise UsageError(
            f"{settings.model_name} does not tell which colours it knows, which --stain-match needs", _LEARN
        )
    if asked and (reference is None or not with_map):
        raise UsageError(f"{settings.model_name} holds no reference statistics for a trust map", _LEARN)
    if reference is not None and with_map:
        check_trust_outputs(settings)
    return reference


def stain_match_of(view: SlideView, settings: Settings, reference: Reference | None) -> StainMatch | None:
    """The change of colours that ``--stain-match`` asks for, fitted to the slide of the view; None without it.

    Raises ``UsageError`` if the generator's colours are not known, ``InputError`` if the slide's cannot be fitted.
    """
    method = settings.source.stain_match
    if method is None or reference is None:
        return None
    target = reference.card.stains.get(method)
    if target is None:
        raise UsageError(
            f"{settings.model_name} does not tell which colours it knows: torchstain was missing when it was made",
            "pip install 'kin-cli[stain]', then kin models learn",
        )
    return match_to(view, method, target)

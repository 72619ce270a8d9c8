"""What statistics a generator knows: a compact model of those of its training patches, kept in its file.

Pass 1 leaves the mean and the standard deviation of every norm layer for every patch. ``Reference`` says how far they
lie from those of the training patches. They are looked at in four groups, because a change of colour or a compression
moves the first layer by little in all, but far in directions in which training patches hardly vary at all; one score
over thousands of channels of later layers would drown it.

    x   = features of the group (``features``), each divided by its spread over the training patches
    d²  = Σ_k (v_k·x)² / λ_k + |x - Σ_k (v_k·x) v_k|² / ρ      Mahalanobis distance, v and λ of a principal component
                                                               analysis, ρ the mean variance outside of its directions
    p_g = fraction of held-out training patches whose d² is at least as large; beyond the last tenth an exponential
          tail of log d²
    p   = min_g p_g / w_g, calibrated once more on held-out training patches, and on the same as each kind of other
          scan would show them (``fit_reference``): the largest p of these, so that no kind is flagged more than chance

The first layer is a convolution of the picture. Its means are linear in the mean colour, and its variances are linear
in the picture's autocovariance, of which tissue has few kinds: between the channels' *variances* there are linear
relations that hold in every patch of a slide, and that compression and a second layer of tissue break. Between their
logarithms there are none. The next layers are nearly so.

So p, the *trust percentile*, is a fraction of training patches: 0.01 means that one in a hundred lies as far out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kin_cli.errors import ModelError
from kin_cli.geometry import Doubles, Floats, Indices, Mask
from kin_cli.models.weights import REFERENCE_PREFIX
from kin_cli.store.files import utf8_name

GROUPS = ("colour", "grain", "sharpness", "structure")
"""Means and contrast of the first norm layer; the variances of its channels; those of the layers after it up to the
first of the deepest resolution; all others."""
_SHARES = {"colour": 0.2, "grain": 0.4, "sharpness": 0.3, "structure": 0.1}  # of the false alarms of each group
_DIRECTIONS = {"colour": 128, "grain": 128, "sharpness": 100, "structure": 32}  # at most
_PATCHES_PER_DIRECTION = {"colour": 2, "grain": 2, "sharpness": 5, "structure": 5}  # at least
_MAX_BYTES = 420_000  # of the directions of one group
# Least variance of a direction, relative to 1 of a feature. Of the grain, compression shows in directions in which
# training patches vary by less than 10⁻⁴; of colours, what varies by less than 10⁻³ is the patch's edge, no colour.
_LEAST_VARIANCE = {"colour": 1e-3, "grain": 1e-5, "sharpness": 1e-5, "structure": 1e-5}
# Added to them in matched colours: small errors of the match, which are no other grain, lie in the finest directions.
_MATCHED_VARIANCE = {"grain": 1e-3}
_TINY = 1e-6
_TAIL = 0.1  # the outermost tenth of the training patches, whose scores give the tail
_QUANTILES = 201
_LEAST_OF_A_KIND = 20  # patches of a kind of other scan that has a distribution of its own
_FORMAT = 3
_CARD = f"{REFERENCE_PREFIX}card"


@dataclass(frozen=True, eq=False)
class Tail:
    """The distribution of a score over held-out training patches; ``points`` are its quantiles, evenly spaced."""

    points: Doubles

    @classmethod
    def of(cls, scores: Doubles) -> Tail:
        """The distribution of the given scores (n,), larger ones farther from normal."""
        return cls(np.quantile(scores, np.linspace(0, 1, _QUANTILES)))

    def fraction_beyond(self, scores: Doubles) -> Doubles:
        """The fraction of training patches with at least this score, > 0; beyond the last tenth an exponential tail."""
        points, levels = self.points, np.linspace(0, 1, len(self.points))
        body = 1 - np.interp(scores, points, levels)
        start = np.interp(1 - _TAIL, levels, points)
        spread = max(float(points[levels >= 1 - _TAIL].mean() - start), 1e-9)
        beyond = _TAIL * np.exp(-((scores - start) / spread).clip(0, 600))
        found: Doubles = np.where(scores > start, beyond, body)
        return found


@dataclass(frozen=True, eq=False)
class LayerGroup:
    """A model of the statistics of some layers.

    ``first`` and ``last`` bound its channels within ΣC; ``mean`` and ``scale`` are (D,), D the number of features;
    ``directions`` (k, D) are orthonormal, ``variances`` (k,) those along them, ``rest`` that of any other direction.
    ``offsets`` (D,) is by how much a network in another precision than float32 moves the features, by precision.
    """

    name: str
    first: int
    last: int
    mean: Floats
    scale: Floats
    directions: Floats
    variances: Floats
    rest: float
    offsets: Mapping[str, Floats] = field(default_factory=dict)

    def features(self, stats: Floats) -> Doubles:
        """The features of this group: (n, 2, ΣC) to (n, D)."""
        return features(stats, self.name, self.first, self.last)

    def score(self, stats: Floats, *, precision: str = "fp32", matched: bool = False) -> Doubles:
        """Logarithm of the distance d² of statistics (n, 2, ΣC) from the training patches: (n,).

        matched: the colours were brought to those of the training by ``--stain-match``.
        """
        more = _MATCHED_VARIANCE.get(self.name, 0.0) if matched else 0.0
        x = (self.features(stats) - self.mean) / self.scale
        if precision in self.offsets:
            x -= self.offsets[precision]
        along = x @ self.directions.T.astype(np.float64)
        squared = (along**2 / (self.variances + more)).sum(axis=1)
        if len(self.directions) < x.shape[1]:
            squared += np.maximum((x**2).sum(axis=1) - (along**2).sum(axis=1), 0) / (self.rest + more)
        score: Doubles = np.log(squared + _TINY)
        return score


@dataclass(frozen=True, eq=False)
class Scores:
    """Trust percentiles of patches: ``percentile`` (n,) of all layers, ``by_group`` (n, 4) of each group."""

    percentile: Doubles
    by_group: Doubles

    @property
    def group(self) -> Indices:
        """Index into ``GROUPS`` of the group that says so most strongly, (n,)."""
        shares = np.array([_SHARES[name] for name in GROUPS[: self.by_group.shape[1]]])
        found: Indices = np.argmin(self.by_group / shares, axis=1)
        return found


@dataclass(frozen=True)
class ReferenceCard:
    """What a reference was learned from.

    ``patch_px`` is the side of the patches, ``mpp`` their µm per pixel, ``min_tissue`` their least tissue fraction;
    ``rescans`` the fraction of them that was measured again as another scan would show it, ``stain_jitter`` the largest
    change of stain strength among these. ``stains`` holds the slides' colours for ``--stain-match``, by method.
    """

    patch_px: int
    patches: int
    images: tuple[str, ...]
    min_tissue: float
    mpp: float | None = None
    stain_jitter: float = 0.0
    rescans: float = 0.0
    stains: Mapping[str, Any] = field(default_factory=dict)
    software: str = ""


@dataclass(frozen=True, eq=False)
class Ruler:
    """What makes percentiles of scores.

    ``tails`` are the distributions of each group's scores, ``combined`` those of all together: of the patches as they
    are, and of each kind of other scan.
    """

    tails: tuple[Tail, ...]
    combined: tuple[Tail, ...]

    def scores(self, found: Sequence[Doubles]) -> Scores:
        """Percentiles of the scores (n,) of each group."""
        by_group = np.stack([tail.fraction_beyond(score) for tail, score in zip(self.tails, found, strict=True)], 1)
        together = joined(by_group)
        return Scores(np.max([tail.fraction_beyond(together) for tail in self.combined], axis=0), by_group)


@dataclass(frozen=True, eq=False)
class Reference:
    """The statistics of a generator's training patches. ``channels`` are those of each norm layer, in running order.

    ``plain`` makes percentiles of slides in their own colours, ``matched`` of those in matched colours.
    """

    card: ReferenceCard
    channels: tuple[int, ...]
    groups: tuple[LayerGroup, ...]
    plain: Ruler
    matched: Ruler

    def scores(self, stats: Floats, *, precision: str = "fp32", matched: bool = False) -> Scores:
        """Trust percentiles of statistics (n, 2, ΣC) that are finite; ``matched`` if colours were matched."""
        found = [group.score(stats, precision=precision, matched=matched) for group in self.groups]
        return (self.matched if matched else self.plain).scores(found)


def features(stats: Floats, name: str, first: int, last: int) -> Doubles:
    """What a group looks at, of channels ``first`` to ``last``: (n, 2, ΣC) to (n, D).

    colour: their means, and the logarithm of their total variance; grain and sharpness: their variances; structure:
    their means and log standard deviations.
    """
    part = stats[:, :, first:last].astype(np.float64)
    means, deviations = part[:, 0], np.maximum(part[:, 1], _TINY)
    if name == "colour":
        return np.concatenate([means, np.log((deviations**2).sum(axis=1, keepdims=True))], axis=1)
    if name in ("grain", "sharpness"):
        variances: Doubles = deviations**2
        return variances
    return np.concatenate([means, np.log(deviations)], axis=1)


def joined(by_group: Doubles) -> Doubles:
    """One score for the fractions (n, groups) of each group, larger ones farther from normal: -log min p/w."""
    shares = np.array([_SHARES[name] for name in GROUPS[: by_group.shape[1]]])
    found: Doubles = -np.log(np.maximum(by_group, 1e-300) / shares).min(axis=1)
    return found


def group_bounds(channels: Sequence[int]) -> list[tuple[str, int, int]]:
    """Name and bounds within ΣC of each group of a network whose norm layers have these channels.

    Networks whose first layers do not widen have their second and third layer in the second group.
    """
    ends = np.cumsum(channels).tolist()
    widest = next((i for i in range(1, len(channels)) if channels[i] >= max(channels)), 1)
    early = min(max(widest, 1), len(channels) - 1, 6)
    layers = {"colour": (0, 1), "grain": (0, 1), "sharpness": (1, early + 1), "structure": (early + 1, len(channels))}
    bounds = [0, *(int(end) for end in ends)]
    return [(name, bounds[first], bounds[last]) for name, (first, last) in layers.items() if last > first]


def fit_group(stats: Floats, name: str, first: int, last: int, *, patches: int | None = None) -> LayerGroup:
    """A model of the statistics (n, 2, ΣC) of some layers, with as many directions as so many ``patches`` allow."""
    x = features(stats, name, first, last)
    mean, scale = x.mean(axis=0), x.std(axis=0) + _TINY
    z = (x - mean) / scale
    count, width = z.shape
    variances, rows = _principal(z)
    allowed = min(_DIRECTIONS[name], (patches or count) // _PATCHES_PER_DIRECTION[name], _MAX_BYTES // (4 * width))
    kept = max(1, min(allowed, len(rows)))
    rest = float((width * 1.0 - variances[:kept].sum()) / max(1, width - kept))
    return LayerGroup(
        name,
        first,
        last,
        mean.astype(np.float32),
        scale.astype(np.float32),
        rows[:kept].astype(np.float32),
        (variances[:kept] + _LEAST_VARIANCE[name]).astype(np.float32),
        max(rest, 0.0) + _LEAST_VARIANCE[name],
    )


def _principal(z: Doubles) -> tuple[Doubles, Doubles]:
    """Variances and directions (k, D) of the principal components of centred features (n, D), largest first."""
    count, width = z.shape
    if width <= count:
        _, singular, rows = np.linalg.svd(z, full_matrices=False)
        return singular**2 / (count - 1), rows
    values, vectors = np.linalg.eigh(z @ z.T)  # of the smaller matrix: the same components
    values, vectors = values[:0:-1], vectors[:, :0:-1]
    return values.clip(0) / (count - 1), (z.T @ vectors).T / np.sqrt(values.clip(1e-12))[:, None]


def fit_reference(
    stats: Floats,
    folds: Indices,
    channels: Sequence[int],
    card: ReferenceCard,
    *,
    kinds: Indices | None = None,
    rounded: Mapping[str, tuple[Floats, Floats]] | None = None,
) -> Reference:
    """Learn a reference from the statistics (n, 2, ΣC) of training patches.

    folds: number (n,) of the part of the training data that each patch lies in. Scores are calibrated on patches of
    one part with models of all others, so that neighbours of a patch do not tell what it looks like.
    kinds: 0 (n,) for a patch as it was trained on, else the number of a kind of change that is normal, but was not
    trained on, such as other scans. They say how far is far, but not in which directions training patches vary: they
    would hide what lies in the same direction, farther.
    rounded: statistics of the same few patches in float32 and in another precision, by that precision.
    """
    bounds = group_bounds(channels)
    plain = np.ones(len(stats), bool) if kinds is None else kinds == 0
    # With more directions than the models that calibrate it, the last model would call every patch unusual
    patches = min(int((plain & (folds != fold)).sum()) for fold in np.unique(folds))
    held = np.full((2, len(stats), len(bounds)), np.nan)
    for fold in np.unique(folds):
        inside = folds == fold
        for column, (name, first, last) in enumerate(bounds):
            model = fit_group(stats[~inside & plain], name, first, last, patches=patches)
            for matched in (False, True):
                held[int(matched), inside, column] = model.score(stats[inside], matched=matched)
    groups = []
    for name, first, last in bounds:
        group = fit_group(stats[plain], name, first, last, patches=patches)
        offsets = {
            precision: ((group.features(other) - group.features(exact)) / group.scale).mean(axis=0).astype(np.float32)
            for precision, (exact, other) in (rounded or {}).items()
        }
        groups.append(LayerGroup(**{**vars(group), "offsets": offsets}))
    alike = _alike(plain, kinds)
    return Reference(card, tuple(channels), tuple(groups), _ruler(held[0], alike), _ruler(held[1], alike))


def _ruler(held: Doubles, alike: Sequence[Mask]) -> Ruler:
    """What the scores (n, groups) of held-out patches say; the first of the kinds that are ``alike`` is as trained."""
    tails = tuple(Tail.of(column[alike[0]]) for column in held.T)
    by_group = np.stack([tail.fraction_beyond(column) for tail, column in zip(tails, held.T, strict=True)], 1)
    return Ruler(tails, tuple(Tail.of(joined(by_group[those])) for those in alike))


def _alike(plain: Mask, kinds: Indices | None) -> list[Mask]:
    """The patches (n,) as they are, and those of each other kind; all others together if there are few of a kind."""
    if kinds is None or plain.all():
        return [plain]
    others = [kinds == kind for kind in np.unique(kinds) if kind != 0]
    return [plain, *others] if min(int(those.sum()) for those in others) >= _LEAST_OF_A_KIND else [plain, ~plain]


# In the generator's file


def to_tensors(reference: Reference) -> dict[str, Tensor]:
    """A reference as tensors for a safetensors file, named so that ``read_weights`` leaves them out."""
    facts = {
        "format": _FORMAT,
        "channels": list(reference.channels),
        "groups": [{"name": g.name, "first": g.first, "last": g.last, "rest": g.rest} for g in reference.groups],
        "card": asdict(reference.card),
    }
    text = json.dumps(facts, ensure_ascii=True, sort_keys=True).encode()
    arrays: dict[str, Any] = {"card": np.frombuffer(text, np.uint8).copy()}
    for name, ruler in (("plain", reference.plain), ("matched", reference.matched)):
        arrays[f"{name}.tails"], arrays[f"{name}.combined"] = (
            np.stack([tail.points for tail in tails]) for tails in (ruler.tails, ruler.combined)
        )
    for group in reference.groups:
        for part in ("mean", "scale", "directions", "variances"):
            arrays[f"{group.name}.{part}"] = getattr(group, part)
        for precision, offset in group.offsets.items():
            arrays[f"{group.name}.offset.{precision}"] = offset
    return {f"{REFERENCE_PREFIX}{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def read_reference(path: Path, channels: int | None = None) -> Reference | None:
    """The reference in a generator's file; None if it is no safetensors file or holds none.

    Raises ``ModelError`` if it is damaged, of a newer kin, or of a network with another number of ``channels``, ΣC.
    """
    hint = "kin models learn makes them again; --no-trust does without"
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt", device="cpu") as file:
            keys = [key for key in file.keys() if key.startswith(REFERENCE_PREFIX)]  # noqa: SIM118
            arrays = {key.removeprefix(REFERENCE_PREFIX): file.get_tensor(key).numpy() for key in keys}
    except (SafetensorError, OSError):
        return None  # a PyTorch file; what is wrong with it is told where its weights are read
    if not arrays:
        return None
    try:
        found = _from_arrays(arrays)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, IndexError):
        raise ModelError(f"{path}: its reference statistics are damaged or of another version of kin", hint) from None
    if channels is not None and channels and sum(found.channels) != channels:
        raise ModelError(f"{path}: its reference statistics are those of another network", hint)
    return found


def _from_arrays(arrays: Mapping[str, Any]) -> Reference:
    facts = json.loads(arrays["card"].tobytes())
    if facts["format"] != _FORMAT:
        raise ValueError(facts["format"])
    card = ReferenceCard(**{**facts["card"], "images": tuple(facts["card"]["images"])})
    groups = []
    for entry in facts["groups"]:
        name = str(entry["name"])
        offset = f"{name}.offset."
        offsets = {key.removeprefix(offset): array for key, array in arrays.items() if key.startswith(offset)}
        parts = {part: arrays[f"{name}.{part}"] for part in ("mean", "scale", "directions", "variances")}
        group = LayerGroup(name, int(entry["first"]), int(entry["last"]), **parts, rest=entry["rest"], offsets=offsets)
        width = features(np.ones((1, 2, group.last), np.float32), name, group.first, group.last).shape[1]
        shapes = [group.mean.shape, group.scale.shape, group.directions.shape[1:], *(a.shape for a in offsets.values())]
        numbers = [*parts.values(), *offsets.values(), np.array(group.rest)]
        if any(shape != (width,) for shape in shapes) or not all(np.isfinite(array).all() for array in numbers):
            raise ValueError(name)
        if (group.scale <= 0).any() or (group.variances <= 0).any() or group.rest <= 0:
            raise ValueError(name)
        groups.append(group)
    plain, matched = (_read_ruler(arrays, name, len(groups)) for name in ("plain", "matched"))
    return Reference(card, tuple(facts["channels"]), tuple(groups), plain, matched)


def _read_ruler(arrays: Mapping[str, Any], name: str, groups: int) -> Ruler:
    tails, combined = (arrays[f"{name}.{part}"].astype(np.float64) for part in ("tails", "combined"))
    for points in (tails, combined):
        if points.ndim != 2 or not len(points) or points.shape[1] != _QUANTILES or not np.isfinite(points).all():
            raise ValueError(name)
    if len(tails) != groups:
        raise ValueError(name)
    return Ruler(tuple(Tail(points) for points in tails), tuple(Tail(points) for points in combined))


def with_reference(source: Path, reference: Reference) -> bytes:
    """The content of the safetensors file ``source`` with ``reference`` in place of the one it may hold.

    Weights and metadata are kept as they are. Raises ``ModelError`` if the file cannot be read.
    """
    from kin_cli.models.checkpoint import in_order

    try:
        with utf8_name(source) as name, safe_open(name, framework="pt", device="cpu") as file:
            kept = {k: file.get_tensor(k) for k in file.keys() if not k.startswith(REFERENCE_PREFIX)}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError:
        raise ModelError(f"{source} is truncated or damaged", "copy or download it again") from None
    return in_order(safetensors.torch.save({**kept, **to_tensors(reference)}, metadata=metadata))

"""Find the networks in the content of a checkpoint: training bundles, key prefixes, moving averages, folded norms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DataParallel and of torch.compile
_MAX_NESTING = 5
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_GENERATOR_WORDS = {"g", "gen", "gens", "generator", "generators", "netg", "translator"}
_OTHER_WORDS = {"d", "dis", "disc", "discriminator", "discriminators", "netd", "critic", "f", "netf", "e", "nete"}
_AVERAGE_WORDS = {"ema", "emas", "average", "averaged", "avg", "swa", "shadow"}
_FILLING_WORDS = {"state", "dict", "net", "model", "params", "weights", "online", "raw", "current", "module"}
_SPECTRAL = re.compile(r"(.*\.|)weight_orig")
_SPECTRAL_PARAMETRIZED = re.compile(r"(.*\.|)parametrizations\.weight\.original")
_WEIGHT_NORM = re.compile(r"(.*\.|)weight_g")
_WEIGHT_NORM_PARAMETRIZED = re.compile(r"(.*\.|)parametrizations\.weight\.original0")


@dataclass(frozen=True)
class Network:
    """A state dict in a file, under the entry ``name`` (dotted; empty: the file itself)."""

    name: str
    state: dict[str, Tensor]


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def names_generator(name: str) -> bool:
    """Whether an entry is named as a generator, such as ``netG_A2B`` or ``gen_state_dict``."""
    return bool(_GENERATOR_WORDS & set(_words(name)))


def names_other(name: str) -> bool:
    """Whether an entry is named as another network of a training: a discriminator, a projection head, an encoder."""
    words = set(_words(name))
    return bool(_OTHER_WORDS & words) and not _GENERATOR_WORDS & words


def names_average(name: str) -> bool:
    """Whether an entry is named as a moving average of weights, such as ``params_ema``."""
    return bool(_AVERAGE_WORDS & set(_words(name)))


def core(name: str) -> list[str]:
    """What a name says besides "average" and words such as "state dict": equal for a network and its average."""
    return [word for word in _words(name) if word not in _AVERAGE_WORDS | _FILLING_WORDS]


def is_optimizer(content: object) -> bool:
    """Whether the content is the state of an optimizer."""
    return isinstance(content, Mapping) and content.keys() >= {"state", "param_groups"}


def find_networks(content: object, name: str = "", depth: int = 0) -> Iterator[Network]:
    """Every mapping of names to tensors, however deep in dictionaries and lists; optimizers are left out."""
    if depth > _MAX_NESTING or is_optimizer(content):  # a pickle can hold a dictionary that contains itself
        return
    if isinstance(content, Mapping) and _is_state(content):
        if not name or any(tensor.dim() > 1 for tensor in content.values()):
            yield Network(name, dict(content))
        return
    for entry, value in _entries(content):
        yield from find_networks(value, f"{name}.{entry}" if name else entry, depth + 1)


def unread_averages(content: object, name: str = "", depth: int = 0) -> Iterator[str]:
    """Names of entries that hold a moving average in a form other than a state dict, such as a list of tensors."""
    if depth > _MAX_NESTING or is_optimizer(content):
        return
    for entry, value in _entries(content):
        inner = f"{name}.{entry}" if name else entry
        if not names_average(entry):
            yield from unread_averages(value, inner, depth + 1)
        elif not names_other(inner) and next(find_networks(value, inner), None) is None and _holds_tensors(value):
            yield inner


def _entries(content: object) -> Iterator[tuple[str, object]]:
    """The entries of a dictionary or list that are dictionaries or lists, with their names."""
    pairs = content.items() if isinstance(content, Mapping) else enumerate(content) if _is_list(content) else ()  # type: ignore[arg-type,var-annotated]
    for entry, value in pairs:
        if isinstance(value, Mapping) or _is_list(value):
            yield str(entry), value


def _is_list(content: object) -> bool:
    return type(content) in (list, tuple)


def _is_state(content: Mapping[object, object]) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _holds_tensors(content: object, depth: int = 0) -> bool:
    values = list(content.values()) if isinstance(content, Mapping) else content if _is_list(content) else ()
    assert isinstance(values, (list, tuple))
    if any(isinstance(value, Tensor) and value.dim() > 1 for value in values):
        return True
    return depth < _MAX_NESTING and any(_holds_tensors(value, depth + 1) for value in values)


def by_prefix(network: Network) -> list[Network]:
    """The networks in one flat state dict, as Lightning writes it: the keys of one prefix are one network.

    A state dict is split only if all keys have one prefix, or a prefix is the name of a generator, a discriminator or
    an average: other prefixes are parts of one network. Returns an empty list if nothing is to be split.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in network.state.items():
        prefix, dot, rest = key.partition(".")
        groups.setdefault(prefix if dot else "", {})[rest if dot else key] = tensor
    rest_of_file = groups.pop("", {})
    roles = any(names_generator(p) or names_other(p) or names_average(p) for p in groups)
    if not groups or not (roles or (len(groups) == 1 and not rest_of_file)):
        return []
    return [Network(f"{network.name}.{prefix}".lstrip("."), state) for prefix, state in groups.items()]


def without_wrappers(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict without the prefixes of ``_WRAPPERS``, and a note for each that was removed.

    The counter of torch's ``AveragedModel`` is removed, too.
    """
    notes = []
    counter = state.get("n_averaged")
    if counter is not None and all(name.startswith("module.") for name in state if name != "n_averaged"):
        state = {name: tensor for name, tensor in state.items() if name != "n_averaged"}
        notes.append("the weights are the moving average of torch's AveragedModel")
    while state and (prefix := next((w for w in _WRAPPERS if all(name.startswith(w) for name in state)), None)):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        notes.append(f"removed the prefix '{prefix}' from the keys")
    return state, notes


def fold(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict with spectral norm and weight norm computed into the plain weights, and a note for each of them.

    The weights are those that the layers use in eval mode: the stored vectors of spectral norm are not updated. Both
    the hooks of ``torch.nn.utils`` and its parametrizations are known; what does not fit them stays as it is.
    """
    folded: dict[str, Tensor] = {}  # by the prefix of the layer's keys
    gone: set[str] = set()
    counts = {"spectral norm": 0, "weight norm": 0}
    for key in state:
        for kind, pattern, suffixes in (
            ("spectral norm", _SPECTRAL, ("weight_orig", "weight_u", "weight_v")),
            ("spectral norm", _SPECTRAL_PARAMETRIZED, _parametrized("original", "0._u", "0._v")),
            ("weight norm", _WEIGHT_NORM, ("weight_g", "weight_v")),
            ("weight norm", _WEIGHT_NORM_PARAMETRIZED, _parametrized("original0", "original1")),
        ):
            if not (match := pattern.fullmatch(key)):
                continue
            names = [match[1] + suffix for suffix in suffixes]
            if (weight := _plain_weight(state, match[1] + "weight", names)) is not None:
                folded[match[1]] = weight
                gone.update(names)
                counts[kind] += 1
    if not folded:
        return state, []
    return _in_place(state, folded, gone), [f"folded {kind} of {n} layers" for kind, n in counts.items() if n]


def _parametrized(*names: str) -> tuple[str, ...]:
    return tuple(f"parametrizations.weight.{name}" for name in names)


def _in_place(state: dict[str, Tensor], folded: dict[str, Tensor], gone: set[str]) -> dict[str, Tensor]:
    """The state dict with every folded weight in front of its layer's other keys, as an ordinary layer has it."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer = re.sub(r"parametrizations\.weight\.[^.]+(\._[uv])?$|[^.]*$", "", key)
        if layer in folded:
            result.setdefault(layer + "weight", folded[layer])
        if key not in gone:
            result.setdefault(key, tensor)
    return result


def _plain_weight(state: dict[str, Tensor], plain: str, names: list[str]) -> Tensor | None:
    """The weight that the tensors ``names`` stand for; None if it cannot be computed."""
    if plain in state and names[-1] not in state:  # torch before 1.1 stored the normalized weight, but no weight_v
        return state[plain]
    tensors = [state[name] for name in names if name in state]
    usable = all(t.layout == torch.strided and not t.is_meta and t.dtype.is_floating_point for t in tensors)
    if len(tensors) < len(names) or not usable or plain in state:
        return None
    wide = [tensor.double() for tensor in tensors]
    weight = _spectral_norm(*wide) if len(wide) == 3 else _weight_norm(*wide)
    return None if weight is None else weight.to(torch.promote_types(tensors[0].dtype, torch.float32))


_ALIGNED = 0.9  # cosine between u and W v; one iteration after another brings it to 1


def _spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor | None:
    """``weight / σ`` with σ = uᵀ W v, where the rows of W are the output channels.

    These are axis 0 of a convolution's weight and axis 1 of a transposed one's. Sizes tell the two apart; if both fit,
    the stored vectors do, since training leaves u in the direction of W v. Before any training they tell nothing, and
    such a layer is taken for an ordinary convolution, as those of the residual blocks are.
    """
    fitting: list[tuple[float, Tensor]] = []
    for axis in range(min(2, weight.dim())):
        matrix = weight.movedim(axis, 0).flatten(1) if weight.dim() > 1 else weight[:, None]
        if matrix.shape == (u.numel(), v.numel()):
            image = matrix @ v.flatten()
            sigma = u.flatten() @ image
            fitting.append((float(sigma.abs() / image.norm().clamp_min(1e-300)), sigma))
    if not fitting:
        return None
    surest = max(fitting, key=lambda pair: pair[0])
    return weight / (surest if surest[0] > _ALIGNED else fitting[0])[1]


def _weight_norm(g: Tensor, v: Tensor) -> Tensor | None:
    """``g · v / |v|``, the norm taken over the axes that ``g`` lacks."""
    axes = [axis for axis in range(v.dim()) if g.dim() == 0 or (g.dim() == v.dim() and g.shape[axis] == 1)]
    if g.dim() not in (0, v.dim()) or any(g.dim() and g.shape[a] not in (1, v.shape[a]) for a in range(v.dim())):
        return None
    return v * (g / v.pow(2).sum(dim=axes, keepdim=True).sqrt()) if axes else None

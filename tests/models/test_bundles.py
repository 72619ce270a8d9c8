"""Training bundles, averages, folded norms: the one generator in a file is found, and is the one that was trained."""

from __future__ import annotations

import argparse
import datetime
import pathlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from kin_cli.errors import ModelError
from kin_cli.models.bundles import fold
from kin_cli.models.checkpoint import load_generator
from tests.helpers.networks_resnet import critic, under, written, written_state
from tests.helpers.processes import assert_refused, kin, succeed

State = dict[str, Tensor]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"


ONE, OTHER, THIRD = (written_state(seed) for seed in (1, 2, 3))


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def assert_is(file: Path, state: State, *notes: str, entry: str | None = None) -> None:
    generator = load_generator(file, entry=entry)
    loaded = generator.module.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert generator.notes == notes


ENTRIES = (
    *("state_dict", "model", "netG", "net_G", "generator", "params", "G", "netG_A2B", "netG_B2A", "G_AB", "G_BA"),
    *("genA2B", "genB2A", "gen", "gen_state_dict", "model_state_dict", "netG_state_dict", "generator_state_dict"),
    *("G_state_dict", "a", "b", "G_A", "weights of my network"),
)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_one_generator_of_a_training_is_taken_and_named(entry: str, tmp_path: Path) -> None:
    adam = torch.optim.Adam(written().parameters())
    adam.step()
    content = {
        "epoch": 3,
        "netD": critic(),
        "opt_G": adam.state_dict(),
        entry: ONE,
        "net_F": {"mlp_0.0.weight": Tensor()},
    }
    assert_is(saved(content, tmp_path / "latest.pth"), ONE, f"taken from the entry '{entry}'")


BUNDLES: dict[str, tuple[Callable[[], object], str]] = {
    "tutorial": (
        lambda: {"epoch": 5, "model_state_dict": ONE, "optimizer_state_dict": {}, "loss": 0.3},
        "model_state_dict",
    ),
    "lightning": (
        lambda: {"epoch": 3, "state_dict": {**under("netG.", ONE), **under("netD.", critic())}, "lr_schedulers": []},
        "state_dict.netG",
    ),
    "lightning generator": (lambda: {**under("discriminator.", critic()), **under("generator.", ONE)}, "generator"),
    "lightning model": (
        lambda: {"state_dict": {**under("model.", ONE), **under("netD.", critic())}},
        "state_dict.model",
    ),
    "lightning alone": (lambda: {"state_dict": under("gen.", ONE)}, "state_dict.gen"),
    "two prefixes": (lambda: {**under("gan.G.", ONE), **under("gan.D.", critic())}, "gan.G"),
    "a loss beside": (
        lambda: {**under("G.", ONE), **under("D.", critic()), "vgg.features.0.weight": torch.zeros(4, 3, 3, 3)},
        "G",
    ),
    "nested": (
        lambda: {"networks": {"generator": {"state_dict": ONE}, "critic": critic()}},
        "networks.generator.state_dict",
    ),
    "a list": (lambda: [ONE, critic()], "0"),
    "the same twice": (lambda: {"state_dict": ONE, "model": dict(ONE)}, "state_dict"),
}


@pytest.mark.parametrize("kind", BUNDLES)
def test_bundles_with_one_generator(kind: str, tmp_path: Path) -> None:
    make, entry = BUNDLES[kind]
    assert_is(saved(make(), tmp_path / "last.ckpt"), ONE, f"taken from the entry '{entry}'")


SEVERAL: dict[str, tuple[Callable[[], object], str, str]] = {
    "both directions": (lambda: {"netG_A2B": ONE, "netG_B2A": OTHER, "epoch": 4}, "netG_A2B", "netG_B2A"),
    "g_ab": (lambda: {"G_AB": ONE, "G_BA": OTHER}, "G_AB", "G_BA"),
    "a and b": (lambda: {"a": ONE, "b": OTHER}, "a", "b"),
    "lightning": (
        lambda: {"state_dict": {**under("G_A.", ONE), **under("G_B.", OTHER), **under("D_A.", critic())}},
        "state_dict.G_A",
        "state_dict.G_B",
    ),
    "one is damaged": (
        lambda: {"to_b": ONE, "to_a": {k: v for k, v in OTHER.items() if k != "model.4.bias"}},
        "to_b",
        "to_a",
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_generators_need_an_entry(kind: str, tmp_path: Path) -> None:
    make, first, second = SEVERAL[kind]
    file = saved(make(), tmp_path / "G.pth")
    with pytest.raises(ModelError, match=f"holds 2 generators: {first}, {second} ") as caught:
        load_generator(file)
    assert caught.value.hint == f"choose one: --entry {first}"
    assert_is(file, ONE, f"taken from the entry '{first}'", entry=first)
    assert_is(file, ONE, f"taken from the entry '{first}'", entry=first.rpartition(".")[2])
    with pytest.raises(ModelError, match="has no network in an entry 'netX'") as caught:
        load_generator(file, entry="netX")
    assert first in (caught.value.hint or "")


def test_an_entry_of_a_plain_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no network in an entry 'netG'"):
        load_generator(saved(ONE, tmp_path / "G.pth"), entry="netG")


def test_a_network_inside_another_is_not_taken_for_it(tmp_path: Path) -> None:
    """``model`` fits alone, but ``head`` would be left out."""
    content = {**under("model.", ONE), "head.weight": torch.zeros(3, 3, 1, 1), "head.bias": torch.zeros(3)}
    with pytest.raises(ModelError):
        load_generator(saved(content, tmp_path / "G.pth"))


def test_a_bundle_without_a_generator_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"no generator that kin knows: .*'netD_A'.*PatchGAN.*'net_F'.*projection head"
    ):
        load_generator(saved({"netD_A": critic(), "net_F": {"mlp_0.0.weight": torch.zeros(4, 3)}}, tmp_path / "G.pth"))
    broken = {k: v for k, v in ONE.items() if k != "model.4.bias"}
    with pytest.raises(ModelError, match=r"\(entry 'netG'\) .*lacks model\.4\.bias"):
        load_generator(saved({"netD": critic(), "netG": broken}, tmp_path / "G.pth"))


AVERAGES: dict[str, tuple[Callable[[], object], str, str]] = {
    "BasicSR": (lambda: {"params": OTHER, "params_ema": ONE}, "params_ema", "params"),
    "StyleGAN": (lambda: {"g": OTHER, "d": critic(), "g_ema": ONE}, "g_ema", "g"),
    "before": (lambda: {"ema_state_dict": ONE, "state_dict": OTHER}, "ema_state_dict", "state_dict"),
    "timm": (lambda: {"state_dict": OTHER, "state_dict_ema": ONE}, "state_dict_ema", "state_dict"),
    "alone": (lambda: {"ema": ONE, "model": OTHER}, "ema", "model"),
    "another name": (lambda: {"netG": OTHER, "netD": critic(), "ema": {"state_dict": ONE}}, "ema.state_dict", "netG"),
    "prefixes": (
        lambda: {**under("netG.", OTHER), **under("netG_ema.", ONE), **under("netD.", critic())},
        "netG_ema",
        "netG",
    ),
    "ema_pytorch": (
        lambda: {**under("online_model.", OTHER), **under("ema_model.", ONE), "initted": torch.tensor(True)},
        "ema_model",
        "online_model",
    ),
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_the_average_is_taken_instead_of_the_weights(kind: str, tmp_path: Path) -> None:
    make, average, raw = AVERAGES[kind]
    file = saved(make(), tmp_path / "G.pth")
    taken = f"took the moving average '{average}' instead of '{raw}'"
    assert_is(file, ONE, f"taken from the entry '{average}'", taken)
    assert_is(file, OTHER, f"taken from the entry '{raw}'", entry=raw)


def test_averages_of_both_directions(tmp_path: Path) -> None:
    content = {"G_A": OTHER, "G_B": THIRD, "G_A_ema": ONE, "G_B_ema": written_state(4)}
    with pytest.raises(ModelError, match=r"holds 2 generators: G_A_ema, G_B_ema "):
        load_generator(saved(content, tmp_path / "G.pth"))


def test_an_average_without_a_clear_counterpart_is_not_guessed(tmp_path: Path) -> None:
    content = {"G_A": ONE, "G_B": OTHER, "ema": THIRD}
    with pytest.raises(ModelError, match=r"holds 3 generators: G_A, G_B, ema "):
        load_generator(saved(content, tmp_path / "G.pth"))


def test_torchs_averaged_model(tmp_path: Path) -> None:
    network = written(1)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    averaged.update_parameters(network)
    file = saved(averaged.state_dict(), tmp_path / "G.pth")
    average = "the weights are the moving average of torch's AveragedModel"
    assert_is(file, ONE, average, "removed the prefix 'module.' from the keys")


@pytest.mark.parametrize(
    ("ema", "name"),
    [
        ({"decay": 0.99, "shadow_params": list(ONE.values())}, "ema"),
        ({"shadow": {"x" + name.replace(".", ""): tensor for name, tensor in ONE.items()}}, "ema.shadow"),
    ],
)
def test_an_average_that_cannot_be_read_is_told(ema: object, name: str, tmp_path: Path) -> None:
    note = f"left out its moving average '{name}', which is no state dict of this network"
    assert_is(saved({"netG": ONE, "ema": ema}, tmp_path / "G.pth"), ONE, "taken from the entry 'netG'", note)


BESIDE = {
    "a namespace": argparse.Namespace(lr=1e-4, name="x", where=Path("here"), more=argparse.Namespace(a=[1])),
    "a NumPy scalar": np.float64(0.3),
    "others": [np.int32(3), np.bool_(True), np.float32(2.5)],
    "a dtype": np.dtype("float32"),
    "an array": np.arange(6.0).reshape(2, 3),
    "a random state": np.random.RandomState(3).get_state(),
    "paths": [Path("/data/a"), PurePosixPath("b"), PureWindowsPath("c:\\d")],
    "dictionaries": [OrderedDict(a=1), defaultdict(list, a=[1.0]), defaultdict(dict)],
    "dates": [datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(3), datetime.date(2024, 1, 2)],
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", BESIDE)
def test_known_types_beside_the_weights(kind: str, legacy: bool, tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    content = {"best": BESIDE[kind], "state_dict": ONE}
    torch.save(content, tmp_path / "G.pth", _use_new_zipfile_serialization=not legacy)
    assert_is(tmp_path / "G.pth", ONE, "taken from the entry 'state_dict'")
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_path_written_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python on Linux refuses to make a WindowsPath."""

    class WindowsPath:
        def __reduce__(self) -> Any:
            return type(self), ("c:\\", "data")

    WindowsPath.__module__, WindowsPath.__qualname__ = "pathlib", "WindowsPath"
    with monkeypatch.context() as patched:
        patched.setattr(pathlib, "WindowsPath", WindowsPath)
        file = saved({"opt": argparse.Namespace(root=WindowsPath()), "netG": ONE}, tmp_path / "G.pth")
    assert_is(file, ONE, "taken from the entry 'netG'")


def test_weights_in_a_defaultdict(tmp_path: Path) -> None:
    assert_is(saved(defaultdict(dict, netG=ONE), tmp_path / "G.pth"), ONE, "taken from the entry 'netG'")


WRAPS: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "spectral hook": (nn.utils.spectral_norm, "spectral norm"),
    "spectral parametrization": (parametrizations.spectral_norm, "spectral norm"),
    "weight hook": (nn.utils.weight_norm, "weight norm"),
    "weight parametrization": (parametrizations.weight_norm, "weight norm"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", WRAPS)
def test_norms_of_weights_are_folded(kind: str, tmp_path: Path) -> None:
    wrap, what = WRAPS[kind]
    network = written(5, wrap=wrap)
    generator = load_generator(saved({"netG": network.state_dict()}, tmp_path / "G.pth"))
    assert generator.notes == ("taken from the entry 'netG'", f"folded {what} of 9 layers")
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(generator.module(x), network(x), rtol=1e-4, atol=1e-5)
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            found = generator.module.get_parameter(f"{name}.weight")
            torch.testing.assert_close(found, layer.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)])
@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_a_square_kernel_is_folded_along_the_right_axis(layer: nn.Module, wrap: Callable[[Any], nn.Module]) -> None:
    """Sizes do not tell a transposed convolution from another if it keeps the number of channels."""
    torch.manual_seed(0)
    fresh = type(layer)(4, 4, 3)  # type: ignore[call-arg]
    wrapped = wrap(fresh)
    for _ in range(20):
        wrapped(torch.randn(1, 4, 8, 8))
    wrapped.eval()(torch.randn(1, 4, 8, 8))
    folded, _ = fold(dict(wrapped.state_dict()))
    torch.testing.assert_close(folded["weight"], wrapped.weight.detach(), rtol=1e-6, atol=1e-7)
    assert list(folded) == ["weight", "bias"]


def test_folding_is_exact_to_float32() -> None:
    """Against NumPy in float64, for one layer."""
    torch.manual_seed(1)
    layer = nn.utils.spectral_norm(nn.Conv2d(3, 5, 3))
    layer(torch.randn(1, 3, 8, 8))
    state = dict(layer.state_dict())
    weight, u, v = (state[f"weight_{part}"].double().numpy() for part in ("orig", "u", "v"))
    expected = (weight / (u @ weight.reshape(5, -1) @ v)).astype(np.float32)
    assert np.array_equal(fold(state)[0]["weight"].numpy(), expected)


def test_other_parametrizations_are_refused(tmp_path: Path) -> None:
    network = written()
    parametrize.register_parametrization(network.model[1], "weight", nn.Tanh())
    with pytest.raises(ModelError):
        load_generator(saved(network.state_dict(), tmp_path / "G.pth"))


def test_translate_tells_what_loading_changed(picture: Path, tmp_path: Path) -> None:
    file = saved({"netG_A2B": ONE, "netG_B2A": OTHER, "ema_netG_B2A": THIRD}, tmp_path / "G.pth")
    command = ("translate", picture, "-m", file, "--patch-size", 32, "--tissue", "none", "-o", tmp_path / "o.png")
    assert_refused(kin(*command), "netG_A2B, ema_netG_B2A", code=1)
    done = kin(*command, "--entry", "netG_B2A", "--json")
    assert (done.code, "taken from the entry 'netG_B2A'" in done.err) == (0, True)
    assert '"entry": "netG_B2A"' in done.out
    assert "netG_A2B" in succeed("info", file, "--entry", "netG_A2B")


def test_translate_tells_of_running_statistics(picture: Path, tmp_path: Path) -> None:
    state = written_state(norm=lambda width: nn.InstanceNorm2d(width, track_running_stats=True))
    file = saved({"params": OTHER, "params_ema": state}, tmp_path / "G.pth")
    command = ("translate", picture, "-m", file, "--patch-size", 32, "--tissue", "none", "-o", tmp_path / "o.png")
    done = kin(*command)
    assert (done.code, "dropped running statistics of 9 norm layers" in done.err) == (0, True)
    assert "took the moving average 'params_ema' instead of 'params'" in done.err

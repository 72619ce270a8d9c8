"""Networks of one's own against their own forward, against a KIN of hooks, and with what can be wrong with them."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kin_cli.errors import KinError, ModelError, UsageError
from kin_cli.models.named import NetworkChoice
from kin_cli.models.own import GROUP, load_network
from kin_cli.translation import translate
from tests.helpers import networks_own
from tests.helpers.networks_own import Net, net_and_twin
from tests.helpers.networks_published import hooked_kin, patchwise
from tests.helpers.progress import Watcher
from tests.helpers.translations import command_settings

FILE = networks_own.__file__
KINDS = ["module", "subclass", "function", "group", "adain", "folded", "shared"]


class Unit(nn.Module):
    """A network of 0 to 1 as one of -1 to 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((x + 1) / 2) * 2 - 1


def picture_file(folder: Path, width: int = 384, height: int = 256) -> tuple[Path, np.ndarray[Any, Any]]:
    small = np.random.default_rng(1).integers(0, 256, (17, 25, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    Image.fromarray(picture).save(folder / "slide.png")
    return folder / "slide.png", picture


def made(slide: Path, model: Path, name: str, *options: object) -> np.ndarray[Any, Any]:
    output = slide.with_name("out.png")
    given = command_settings(slide, model, output, "--network", f"{FILE}:{name}", "--overwrite", *options)
    translate(given, Watcher())
    return np.asarray(Image.open(output)).astype(int)


@pytest.mark.parametrize("kind", [*KINDS, "unit"])
def test_every_kind_of_norm_is_exchanged(tmp_path: Path, kind: str) -> None:
    unit = {"unit": 1} if kind == "unit" else {}
    net, twin = net_and_twin("function" if unit else kind, **unit)
    torch.save(net.state_dict(), tmp_path / "G.pth")
    slide, picture = picture_file(tmp_path)
    name = "SharedNet" if kind == "shared" else "Net"
    arguments = {} if kind == "shared" else {"norm": "function" if unit else kind, **unit}
    options = ["--network-args", json.dumps(arguments)]
    if unit:
        options += ["--input-range", "0,1"]
        net, twin = Unit(net), Unit(twin)
    own = patchwise(net, picture, 128)
    assert own.std() > 20, "a pale output would hide differences"
    slide_made = [slide, tmp_path / "G.pth", name, *options]
    assert np.abs(made(*slide_made, "--method", "in") - own).max() <= 1
    by_hooks = hooked_kin(twin, picture, 128)
    assert np.abs(by_hooks - own).max() > 1, "the kernel must matter"
    assert np.abs(made(*slide_made, "--kernel", "constant:3") - by_hooks).max() <= 1
    windows = [made(*slide_made, "--seamless", "--window", side) for side in (128, 256, 384)]
    assert max(np.abs(window - windows[0]).max() for window in windows) <= 1


@pytest.mark.parametrize(("kind", "fused"), [("module", True), ("function", False), ("folded", False)])
def test_layers_are_exchanged_where_that_does_the_same_as_calls(kind: str, fused: bool) -> None:
    loaded = load_network(net_and_twin(kind)[0])
    assert (loaded.sites is None) == fused
    assert (loaded.norm_layers, loaded.channels, loaded.stride) == (4, 6 + 12 + 12 + 6, 2)


def test_the_given_module_is_left_as_it_was() -> None:
    net = Net().train()
    load_network(net)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert isinstance(net.n1, nn.InstanceNorm2d)


def test_layers_that_depend_on_the_window_are_named(tmp_path: Path) -> None:
    (note,) = load_network(networks_own.Bottleneck(), patch_px=128).notes
    assert "3 layers keep their own statistics: borders may remain" in note
    for name in ("squeeze.0 (adaptive_avg_pool2d)", "few (group_norm)", "net (layer_norm, softmax"):
        assert name in note


@pytest.mark.parametrize("kind", [networks_own.Coordinates, networks_own.Inside, networks_own.Scripted])
def test_what_no_call_shows_is_seen_in_the_output(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    notes = load_network(kind(), patch_px=128).notes
    assert any("depends on the size and place of the window, by up to" in note for note in notes)


@pytest.mark.parametrize("kind", [networks_own.Precise, networks_own.Lazy])
def test_precision_and_lazy_layers_are_kept_as_they_are(tmp_path: Path, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = kind().eval()
    net(torch.rand(1, 3, 64, 64))
    torch.save(net.state_dict(), tmp_path / "G.pth")
    slide, picture = picture_file(tmp_path)
    found = made(slide, tmp_path / "G.pth", kind.__name__, "--method", "in")
    assert np.abs(found - patchwise(net, picture, 128)).max() <= 1


def test_its_receptive_field_without_them_is_measured() -> None:
    # the pooled cells of 8 px are attention's, which is left out; two convolutions of 3 px reach 2 px
    assert 2 <= load_network(networks_own.Bottleneck(), patch_px=128).halo < 2 + 2 * 8


def test_odd_strides_are_found_and_a_patch_size_is_proposed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = networks_own.Thirds().eval()
    torch.save(net.state_dict(), tmp_path / "G.pth")
    slide, picture = picture_file(tmp_path, 360, 240)
    with pytest.raises(UsageError, match="128 is not a multiple of 3") as caught:
        made(slide, tmp_path / "G.pth", "Thirds")
    assert "--patch-size 132" in str(caught.value)
    found = made(slide, tmp_path / "G.pth", "Thirds", "--method", "in", "--patch-size", "120")
    assert np.abs(found - patchwise(net, picture, 120)).max() <= 1


def test_a_network_of_one_size_runs_without_a_halo(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = networks_own.OneSize().eval()
    torch.save(net.state_dict(), tmp_path / "G.pth")
    slide, picture = picture_file(tmp_path)
    assert "128×128 px alone" in load_network(net, patch_px=128).notes[0]
    found = made(slide, tmp_path / "G.pth", "OneSize", "--method", "in")
    assert np.abs(found - patchwise(net, picture, 128)).max() <= 1
    with pytest.raises(ModelError, match="OneSize fails on 640×512 px: RuntimeError"):
        made(slide, tmp_path / "G.pth", "OneSize", "--halo", "16")


def test_the_image_among_several_results_is_taken(tmp_path: Path) -> None:
    net, _ = net_and_twin("module", results=3)
    loaded = load_network(net)
    assert "its forward returns 3 results, of which the first image is taken" in loaded.notes
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded.module(x), net(x)[1])


def test_a_sigmoid_asks_for_the_range() -> None:
    assert any("--input-range 0,1" in note for note in load_network(net_and_twin("module", unit=1)[0]).notes)


def test_results_that_change_are_told() -> None:
    assert any("another result each time" in note for note in load_network(networks_own.Restless()).notes)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("absent.py:Net", "absent.py: no such file"),
        (f"{FILE}:Absent", "has no 'Absent' (networks in it: Adain, Bottleneck"),
        (FILE, "which of them?"),
        (f"{FILE}:number", "is a int, not a class"),
        (f"{FILE}:no_module", "makes a dict, not a torch.nn.Module"),
        (f"{FILE}:Refusing", "raises RuntimeError: no licence (line "),
        ("kin_absent.nets:Net", "cannot be imported: ModuleNotFoundError"),
        ("absent", "there is no network 'absent'"),
        (f"{FILE}:Doubled", "changes the size: 1024×1024 px for 512×512 px"),
        (f"{FILE}:Grey", "returns a tensor of shape (1, 1, 512, 512)"),
        (f"{FILE}:Rounded", "returns torch.uint8, not floating-point"),
        (f"{FILE}:Nothing", "returns a NoneType, not an image"),
        (f"{FILE}:Raising", "fails on 512×512 px: KeyError: 'style'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(target: str, message: str) -> None:
    with pytest.raises(KinError) as caught:
        load_network(NetworkChoice(target))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_imported_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("import torch\n\nclass Net(\n")
    with pytest.raises(ModelError, match=r"nets\.py cannot be imported: SyntaxError.*\(line 3\)"):
        load_network(NetworkChoice(f"{tmp_path}/nets.py:Net"))
    (tmp_path / "more.py").write_text("import torch\nimport kin_absent_library\n")
    with pytest.raises(ModelError, match=r"install 'kin_absent_library' beside kin"):
        load_network(NetworkChoice(f"{tmp_path}/more.py:Net"))


def test_arguments_are_checked() -> None:
    with pytest.raises(UsageError, match="is not JSON"):
        load_network(NetworkChoice(f"{FILE}:Net", "{width: 3}"))
    with pytest.raises(UsageError, match="not a JSON object"):
        load_network(NetworkChoice(f"{FILE}:Net", "[3]"))
    with pytest.raises(ModelError, match=r"unexpected keyword argument 'ngf'.*its parameters are \(norm: 'str'"):
        load_network(NetworkChoice(f"{FILE}:Net", '{"ngf": 3}'))


def _bundle(net: nn.Module) -> object:
    return {"netG": net.state_dict(), "netD": nn.Conv2d(3, 4, 3).state_dict(), "epoch": 3}


def _parallel(net: nn.Module) -> object:
    return {f"module.{name}": tensor for name, tensor in net.state_dict().items()}


def _half(net: nn.Module) -> object:
    return {name: tensor.half().float() for name, tensor in net.state_dict().items()}


def _ema(net: nn.Module) -> object:
    raw = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    return {"params": raw, "params_ema": net.state_dict()}


@pytest.mark.parametrize("saved", [_bundle, _parallel, _half, _ema])
def test_weights_are_found_however_they_were_saved(tmp_path: Path, saved: Callable[[nn.Module], object]) -> None:
    net, _ = net_and_twin("adain")
    torch.save(saved(net), tmp_path / "G.pth")
    loaded = load_network(NetworkChoice(f"{FILE}:Net", '{"norm": "adain"}'), tmp_path / "G.pth")
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.module(x), net(x).detach(), atol=2e-2 if saved is _half else 0, rtol=0)


def test_spectral_norm_of_the_network_and_of_the_file_may_differ(tmp_path: Path) -> None:
    net, _ = net_and_twin("function")
    nn.utils.spectral_norm(net.body)
    net.train()(torch.rand(1, 3, 64, 64))
    net.eval()
    torch.save(net.state_dict(), tmp_path / "G.pth")
    loaded = load_network(NetworkChoice(f"{FILE}:Net", '{"norm": "function"}'), tmp_path / "G.pth")
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.module(x), net(x).detach(), atol=1e-5, rtol=0)
    assert "folded spectral norm of 1 layers" in loaded.notes


def test_weights_of_another_network_are_refused_by_key(tmp_path: Path) -> None:
    choice = NetworkChoice(f"{FILE}:Net")
    state = Net().state_dict()
    torch.save({name: tensor for name, tensor in state.items() if name != "up.bias"}, tmp_path / "G.pth")
    with pytest.raises(ModelError, match=r"does not fit the network .*: it lacks up\.bias"):
        load_network(choice, tmp_path / "G.pth")
    torch.save(Net(width=8).state_dict(), tmp_path / "G.pth")
    with pytest.raises(ModelError, match=r"has a first\.weight of shape \(8, 3, 7, 7\) where .* needs \(6, 3, 7, 7\)"):
        load_network(choice, tmp_path / "G.pth")
    torch.save({**state, "style.weight": torch.ones(3)}, tmp_path / "G.pth")
    with pytest.raises(ModelError, match=r"unexpected keys: style\.weight"):
        load_network(choice, tmp_path / "G.pth")
    torch.save({**state, "up.bias": state["up.bias"] * float("nan")}, tmp_path / "G.pth")
    with pytest.raises(ModelError, match=r"NaN or infinite in up\.bias"):
        load_network(choice, tmp_path / "G.pth")


def test_entry_points_are_names_of_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("stain-net", "tests.helpers.networks_own:Net", GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == GROUP else [])
    assert load_network(NetworkChoice("stain-net", '{"width": 4}')).channels == 4 + 8 + 8 + 4
    with pytest.raises(ModelError, match="names of installed packages: stain-net"):
        load_network(NetworkChoice("stain"))


def test_the_code_and_its_arguments_are_part_of_the_identity(tmp_path: Path) -> None:
    code = Path(FILE).read_text()
    (tmp_path / "nets.py").write_text(code)
    choice = NetworkChoice(f"{tmp_path}/nets.py:Net")
    before = load_network(choice).facts
    assert load_network(choice).facts == before
    assert before["network"] == "nets.py:Net"
    (tmp_path / "nets.py").write_text(code.replace("F.relu(self.n1", "F.elu(self.n1"))
    after = load_network(choice).facts
    assert {name for name in after if after[name] != before[name]} == {"network sha256"}
    other = load_network(NetworkChoice(f"{tmp_path}/nets.py:Net", '{"width": 4}')).facts
    assert other["network args"] == {"width": 4}


def test_what_it_prints_does_not_reach_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loud.py").write_text(
        "from torch import nn\nprint('hello')\n\nclass Net(nn.Module):\n"
        "    def forward(self, x):\n        print('ran')\n        return x\n"
    )
    load_network(NetworkChoice(f"{tmp_path}/loud.py:Net"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "hello" in shown.err

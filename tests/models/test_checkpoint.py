"""Round trips: every layout is recognised from its file alone, and comes back tensor for tensor."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from kin_cli.errors import ModelError, OutputError, UsageError
from kin_cli.models.architectures import Spec, build
from kin_cli.models.checkpoint import describe, load_generator, save_generator
from kin_cli.models.resnet import ResnetSpec, UrustSpec
from kin_cli.models.unet import UnetSpec

CUT = ResnetSpec(4, 6, antialias_down=True, antialias_up=True)

RESNETS = [
    ResnetSpec(width, blocks, down, up, affine=affine, dropout=dropout, bias=bias)
    for (width, blocks), down, up, affine, dropout, bias in itertools.product(
        [(4, 9), (12, 6), (3, 1)], *[[False, True]] * 4, [True]
    )
    if width == 4 or affine == dropout
] + [ResnetSpec(4, 6, affine=True, bias=False), CUT]
URUSTS = [UrustSpec(width, blocks, affine) for width, blocks in [(4, 9), (12, 6)] for affine in (False, True)]
UNETS = [UnetSpec(4, 8), UnetSpec(3, 7, affine=True), UnetSpec(2, 5), UnetSpec(2, 6, affine=True)]


def random_generator(spec: Spec) -> nn.Module:
    generator = build(spec)
    for parameter in generator.parameters():
        nn.init.normal_(parameter)
    return generator


def random_state(spec: Spec = CUT) -> dict[str, Tensor]:
    return random_generator(spec).state_dict()


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def assert_same(module: nn.Module, state: dict[str, Tensor]) -> None:
    loaded = module.state_dict()
    assert loaded.keys() == state.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("spec", [*RESNETS, *URUSTS, *UNETS], ids=str)
def test_every_spec_is_recognised_from_plain_keys(spec: Spec, tmp_path: Path) -> None:
    module = random_generator(spec)
    save_generator(module, tmp_path / "latest_net_G.pth", spec=spec)
    assert torch.load(tmp_path / "latest_net_G.pth", weights_only=True).keys() == module.state_dict().keys()
    generator = load_generator(tmp_path / "latest_net_G.pth")
    assert (generator.spec, generator.architecture, generator.notes, generator.metadata) == (
        spec,
        spec.architecture,
        (),
        {},
    )
    assert_same(generator.module, module.state_dict())


def test_generator_is_ready_for_inference(tmp_path: Path) -> None:
    module = random_generator(UrustSpec(4, 2))
    path = saved(module.state_dict(), tmp_path / "G.pth")
    generator = load_generator(path)
    assert not generator.module.training
    assert not any(parameter.requires_grad for parameter in generator.module.parameters())
    assert generator.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    x = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        torch.testing.assert_close(generator.module(x), module.eval()(x))


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    path = saved(random_state(), tmp_path / "G.pth")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_generator(path)
    assert torch.equal(torch.rand(3), expected)


def test_safetensors_carry_metadata_that_detection_does_not_need(tmp_path: Path) -> None:
    module = random_generator(CUT).to(memory_format=torch.channels_last)
    save_generator(module, tmp_path / "G.safetensors", spec=CUT, metadata={"steps": "900", "architecture": "mine"})
    with safe_open(tmp_path / "G.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["steps"] == "900"
    assert (metadata["architecture"], metadata["width"], metadata["blocks"]) == ("resnet-cut", "4", "6")
    (tmp_path / "G.safetensors").rename(tmp_path / "renamed.pth")
    generator = load_generator(tmp_path / "renamed.pth")
    assert generator.metadata == metadata
    assert generator.spec == CUT
    assert_same(generator.module, module.state_dict())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_saving_replaces_a_file_and_leaves_nothing_else(tmp_path: Path, suffix: str) -> None:
    for width in (2, 3):
        spec = ResnetSpec(width, 1)
        save_generator(random_generator(spec), tmp_path / f"G{suffix}", spec=spec)
    assert [path.name for path in tmp_path.iterdir()] == [f"G{suffix}"]
    assert load_generator(tmp_path / f"G{suffix}").width == 3


def test_saving_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    module = random_generator(CUT)
    with pytest.raises(UsageError, match=r"\.onnx"):
        save_generator(module, tmp_path / "G.onnx", spec=CUT)
    with pytest.raises(ValueError, match="no generator of"):
        save_generator(module, tmp_path / "G.pth", spec=ResnetSpec(4, 9))
    with pytest.raises(OutputError, match=r"G\.pth"):
        save_generator(module, tmp_path / "nowhere" / "G.pth", spec=CUT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("entry", ["state_dict", "model", "netG", "net_G", "generator", "params", "G"])
def test_envelopes_are_opened(entry: str, tmp_path: Path) -> None:
    state = random_state()
    envelope = {"epoch": 3, "optimizer": {"state": {}, "param_groups": []}, entry: state, "loss": torch.tensor(0.5)}
    generator = load_generator(saved(envelope, tmp_path / "G.pth"))
    assert generator.notes == (f"taken from the entry '{entry}'",)
    assert_same(generator.module, state)


def test_wrappers_inside_an_envelope_are_removed(tmp_path: Path) -> None:
    state = random_state()
    wrapped = OrderedDict((f"module._orig_mod.{name}", tensor) for name, tensor in state.items())
    generator = load_generator(saved({"model": {"state_dict": wrapped}}, tmp_path / "G.pth"))
    assert "model.state_dict" in generator.notes[0]
    assert_same(generator.module, state)


def test_legacy_file_format_is_read(tmp_path: Path) -> None:
    state = random_state()
    torch.save(state, tmp_path / "G.pth", _use_new_zipfile_serialization=False)
    assert_same(load_generator(tmp_path / "G.pth").module, state)


@pytest.mark.parametrize("affine", [False, True])
def test_running_statistics_of_instance_norm_are_dropped(affine: bool, tmp_path: Path) -> None:
    spec = ResnetSpec(4, 9, affine=affine)
    module = random_generator(spec)
    state = dict(module.state_dict())
    for name, layer in module.named_modules():
        if isinstance(layer, nn.InstanceNorm2d):
            state[f"{name}.running_mean"] = torch.zeros(layer.num_features)
            state[f"{name}.running_var"] = torch.ones(layer.num_features)
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    generator = load_generator(saved(state, tmp_path / "G.pth"), norm="instance" if affine else None)
    assert generator.notes == ("dropped running statistics of 23 norm layers",)
    assert generator.spec == spec
    assert_same(generator.module, module.state_dict())


def test_affine_parameters_may_have_the_authors_shape(tmp_path: Path) -> None:
    state = random_state(UrustSpec(4, 2, affine=True))
    norms = [name for name, tensor in state.items() if "instancenorm" in name or ".model.2." in name]
    authors = {name: tensor.view(1, -1, 1, 1) if name in norms else tensor for name, tensor in state.items()}
    assert len(norms) == 12
    assert_same(load_generator(saved(authors, tmp_path / "G.pth")).module, state)


def test_norm_parameters_lost_on_a_gpu_make_a_plain_norm(tmp_path: Path) -> None:
    whole = random_state(UrustSpec(4, 2, affine=True))
    plain = {name: tensor for name, tensor in whole.items() if name in build(UrustSpec(4, 2)).state_dict()}
    assert load_generator(saved(plain, tmp_path / "G.pth")).spec == UrustSpec(4, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_precisions_become_float32_with_a_note(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    module = random_generator(CUT).to(dtype)
    save_generator(module, tmp_path / f"G{suffix}", spec=CUT)
    generator = load_generator(tmp_path / f"G{suffix}")
    assert generator.notes == (f"converted weights from {str(dtype)[6:]} to float32",)
    assert_same(generator.module, {name: tensor.float() for name, tensor in module.state_dict().items()})


def test_description_is_json_and_says_what_a_user_asks(shared_reference: Path) -> None:
    described: dict[str, Any] = json.loads(json.dumps(describe(load_generator(shared_reference / "cut.pth"))))
    assert described["architecture"] == "resnet-cut"
    assert (described["norm_layers"], described["norm_channels"]) == (23, 984)
    assert (described["stride_px"], described["receptive_field_radius_px"]) == (4, 93)
    state = torch.load(shared_reference / "cut.pth", weights_only=True)
    learned = sum(tensor.numel() for name, tensor in state.items() if not name.endswith("filt"))
    assert described["parameters"] == learned


def test_the_same_generator_gives_the_same_file(tmp_path: Path) -> None:
    module, words = random_generator(CUT), {f"word {n}": f'"{n}" µ\n' for n in range(20)}
    for name in ("a", "b"):
        save_generator(module, tmp_path / f"{name}.safetensors", spec=CUT, metadata=words)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert {key: file.metadata()[key] for key in words} == words
        assert_same(module, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


@pytest.mark.parametrize("text", ["abc", "0", "-1", "nan", "inf", "1e999", "0.5 µm", "x" * 5000 + "\x1b[31m\n"])
def test_a_pixel_size_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    save_generator(build(CUT), tmp_path / "G.safetensors", spec=CUT, metadata={"mpp": text})
    with pytest.raises(ModelError, match="pixel size in its metadata, '") as caught:
        load_generator(tmp_path / "G.safetensors")
    assert caught.value.message.isprintable()
    assert "entry mpp" in (caught.value.hint or "")


def test_an_empty_pixel_size_is_an_unknown_one(tmp_path: Path) -> None:
    save_generator(build(CUT), tmp_path / "G.safetensors", spec=CUT, metadata={"mpp": " "})
    assert load_generator(tmp_path / "G.safetensors").trained_mpp is None


def test_a_pixel_size_is_read(tmp_path: Path) -> None:
    save_generator(build(CUT), tmp_path / "G.safetensors", spec=CUT, metadata={"mpp": "0.25"})
    generator = load_generator(tmp_path / "G.safetensors")
    assert (generator.trained_mpp, generator.notes) == (0.25, ())

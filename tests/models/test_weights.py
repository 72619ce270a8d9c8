"""The zoo of files that are no generator: each refused in one line that names the file, and nothing in it is run."""

from __future__ import annotations

import contextlib
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from kin_cli.errors import ModelError
from kin_cli.models.architectures import build
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.resnet import ResnetSpec, UrustSpec
from kin_cli.models.unet import UnetSpec
from kin_cli.models.weights import read_weights

CUT = ResnetSpec(2, 2, antialias_down=True, antialias_up=True)
State = dict[str, Tensor]


def state_of(spec: ResnetSpec | UrustSpec | UnetSpec = CUT) -> State:
    return dict(build(spec).state_dict())


def changed(change: Callable[[State], object], spec: ResnetSpec | UrustSpec | UnetSpec = CUT) -> State:
    state = state_of(spec)
    change(state)
    return state


def with_batchnorm(spec: ResnetSpec | UnetSpec) -> State:
    """What the official code saves with ``--norm batch``: no bias in front of a norm."""
    module = build(spec)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.InstanceNorm2d):
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, nn.BatchNorm2d(layer.num_features))
    return dict(module.state_dict())


class Code:
    """Unpickles by creating a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.path,)


def discriminator() -> State:
    layers = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 8, 4, 2, 1), nn.InstanceNorm2d(8))
    return {f"model.{name}": tensor for name, tensor in layers.state_dict().items()}


NAN = torch.tensor(float("nan"))

STATES: dict[str, tuple[Callable[[], object], str]] = {
    "a key missing": (lambda: changed(lambda s: s.pop("model.15.weight")), r"resnet-cut: it lacks model\.15\.weight$"),
    "the first key missing": (lambda: changed(lambda s: s.pop("model.1.weight")), r"lacks the key model\.1\.weight"),
    "the tail missing": (lambda: changed(lambda s: s.pop("model.23.weight")), r"lacks the key model\.23\.weight"),
    "many keys missing": (
        lambda: {k: v for k, v in state_of().items() if not k.endswith("bias")} | {"model.1.bias": torch.zeros(2)},
        r"lacks model\.4\.bias, model\.8\.bias, model\.12\.conv_block\.1\.bias, … \(9 in all\)$",
    ),
    "a blur missing": (lambda: changed(lambda s: s.pop("model.7.filt")), r"lacks model\.7\.filt$"),
    "a transposed convolution missing": (
        lambda: changed(lambda s: s.pop("model.12.weight"), ResnetSpec(2, 2)),
        r"resnet-cyclegan: it lacks model\.12\.weight$",
    ),
    "a block missing": (
        lambda: {k: v for k, v in state_of(ResnetSpec(2, 9)).items() if not k.startswith("model.14.")},
        r"lacks the residual block model\.14\.conv_block$",
    ),
    "a urust block missing": (
        lambda: {k: v for k, v in state_of(UrustSpec(2, 9)).items() if not k.startswith("resnetblocks4.3.")},
        r"lacks the residual block resnetblocks4\.3$",
    ),
    "the first urust block missing": (
        lambda: {k: v for k, v in state_of(UrustSpec(2, 9)).items() if not k.startswith("resnetblocks4.0.")},
        r"urust: it lacks resnetblocks4\.0\.model\.1\.weight",
    ),
    "norm parameters of one layer missing": (
        lambda: changed(lambda s: s.pop("downsampleblock2.instancenorm.bias"), UrustSpec(2, 1, affine=True)),
        r"lacks downsampleblock2\.instancenorm\.bias$",
    ),
    "a U-Net key missing": (
        lambda: changed(lambda s: s.pop("model.model.1.model.3.model.1.bias"), UnetSpec(2, 5)),
        r"unet_32: it lacks model\.model\.1\.model\.3\.model\.1\.bias$",
    ),
    "an unexpected key": (
        lambda: changed(lambda s: s.update({"model.1.extra": torch.zeros(2)})),
        r"unexpected keys: model\.1\.extra$",
    ),
    "both": (
        lambda: changed(lambda s: s.update({"model.1.scale": s.pop("model.1.bias")})),
        r"lacks model\.1\.bias and has unexpected keys: model\.1\.scale$",
    ),
    "another shape": (
        lambda: changed(lambda s: s.update({"model.4.weight": torch.zeros(4, 2, 5, 5)})),
        r"model\.4\.weight of shape \(4, 2, 5, 5\) where resnet-cut needs \(4, 2, 3, 3\)$",
    ),
    "an empty convolution": (
        lambda: changed(lambda s: s.update({"model.1.weight": torch.zeros(0, 3, 7, 7)})),
        r"which no convolution has$",
    ),
    "another blur": (lambda: changed(lambda s: s["model.7.filt"].add_(0.1)), r"blur filter model\.7\.filt"),
    "grey images": (lambda: state_of(ResnetSpec(2, 1, in_channels=1)), r"translates 1 channels to 3$"),
    "two outputs": (lambda: state_of(UnetSpec(2, 5, out_channels=2)), r"translates 3 channels to 2$"),
    "BatchNorm after biases": (lambda: with_batchnorm(ResnetSpec(2, 3)), r"does not tell which$"),
    "a U-Net with BatchNorm after biases": (lambda: with_batchnorm(UnetSpec(2, 5)), r"does not tell which$"),
    "no norm layers": (
        lambda: state_of(ResnetSpec(2, 3, norm="none", bias=False)),
        r"as networks without norm layers$",
    ),
    "a discriminator": (discriminator, r"looks like a PatchGAN discriminator, .*keys seen: model\.0\.weight"),
    "a VGG": (lambda: {"features.0.weight": torch.zeros(4, 3, 3, 3)}, r"looks like a VGG"),
    "a classifier": (lambda: {"layer1.0.conv1.weight": torch.zeros(4, 3, 3, 3)}, r"looks like a ResNet classifier"),
    "net_F": (lambda: {"mlp_0.0.weight": torch.zeros(4, 3)}, r"looks like the projection head"),
    "an unknown network": (
        lambda: {f"encoder.{i}.w": torch.zeros(1) for i in range(5)},
        r"unknown network; keys seen: encoder\.0\.w, encoder\.1\.w, encoder\.2\.w, … \(5 in all\)$",
    ),
    "a detector": (lambda: {"model.model.0.conv.weight": torch.zeros(4, 3, 3, 3)}, r"unknown network"),
    "NaN": (lambda: changed(lambda s: s["model.8.bias"][1:2].copy_(NAN)), r"NaN or infinite in model\.8\.bias$"),
    "integers": (
        lambda: {k: v.to(torch.int64) if k == "model.4.weight" else v for k, v in state_of().items()},
        r"no plain floating-point weights in model\.4\.weight",
    ),
    "sparse weights": (
        lambda: {k: v.to_sparse() if k == "model.4.weight" else v for k, v in state_of().items()},
        r"no plain floating-point weights in model\.4\.weight",
    ),
    "no values": (lambda: dict(build(CUT).to("meta").state_dict()), r"no plain floating-point weights"),
    "an optimizer": (
        lambda: torch.optim.Adam(build(CUT).parameters()).state_dict(),
        r"the state of an optimizer, not of a generator$",
    ),
    "two generators": (lambda: {"netG_A": state_of(), "netG_B": state_of()}, r"holds 2 generators: netG_A, netG_B$"),
    "an empty state dict": (dict, r"entries seen: none$"),
    "a list": (lambda: [torch.zeros(3)], r"holds a list, not a state dict$"),
    "a tensor": (lambda: torch.zeros(3), r"holds a Tensor, not a state dict$"),
    "an entry that is no tensor": (lambda: state_of() | {"epoch": 3}, r"entry 'epoch' that is no tensor \(int\)$"),
    "numbered entries": (lambda: {0: torch.zeros(3)}, r"entry '0' that is no tensor"),
    "a whole module": (lambda: build(CUT), r"contains code \([\w.]*ResnetGenerator\), not only weights; not loaded$"),
    "another class beside it": (
        lambda: {"netG": state_of(), "opt": Fraction(1, 2)},
        r"contains code \(fractions\.Fraction\), not only weights; not loaded$",
    ),
}


def assert_no_checkpoint(path: Path, expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_generator(path)
    error = caught.value
    assert error.message.startswith(str(path))
    assert re.search(expected, error.message), error.message
    assert "\n" not in str(error)
    assert error.hint


@pytest.mark.parametrize("kind", STATES)
def test_wrong_content(kind: str, tmp_path: Path) -> None:
    make, expected = STATES[kind]
    torch.save(make(), tmp_path / "latest_net_G.pth")
    assert_no_checkpoint(tmp_path / "latest_net_G.pth", expected)


@pytest.mark.parametrize("writer", ["torch", "torch legacy", "pickle"])
def test_code_is_named_and_not_run(writer: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "G.pth", tmp_path / "trace"
    content = state_of() | {"more": Code(trace)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    assert_no_checkpoint(path, r"contains code.*, not only weights; not loaded$")
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Conv2d(3, 3, 3)).save(str(tmp_path / "G.pt"))
    assert_no_checkpoint(tmp_path / "G.pt", r"is a TorchScript archive")
    with pytest.raises(ModelError) as caught:
        load_generator(tmp_path / "G.pt")
    lines = (caught.value.hint or "").partition(": ")[2]
    exported = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(lines.split("; "))], cwd=tmp_path, check=True
    )
    assert exported.returncode == 0
    assert torch.load(tmp_path / "weights.pth", weights_only=True).keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", r"is empty$"),
        (b"x", r"is not a checkpoint"),
        (b"epoch 1\nepoch 2\n", r"is not a checkpoint"),
        (b"PK\x03\x04 and then nothing", r"is truncated or damaged$"),
        (b"\x80\x02", r"is truncated or damaged$"),
        (b"\xff\xff\x00\x00\x00\x00\x00\x00{", r"is truncated or damaged$"),
    ],
)
def test_files_that_are_no_checkpoint(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "G.pth").write_bytes(content)
    assert_no_checkpoint(tmp_path / "G.pth", expected)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    assert_no_checkpoint(tmp_path / "G.pth", r"no such file$")
    assert_no_checkpoint(tmp_path, r"is a folder$")
    (tmp_path / "file").touch()
    assert_no_checkpoint(tmp_path / "file" / "G.pth", r"cannot be read: ")


def test_names_in_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    torch.save({"a\nb\x1b[2J": torch.zeros(1)}, tmp_path / "G.pth")
    assert_no_checkpoint(tmp_path / "G.pth", r"keys seen: a\?b\?\[2J$")


def test_a_dictionary_inside_itself(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, tmp_path / "G.pth")
    assert_no_checkpoint(tmp_path / "G.pth", r"holds no state dict; entries seen: model$")


def test_zip_archive_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "G.pth", "w") as archive:
        archive.writestr("notes/readme.txt", "hello")
    assert_no_checkpoint(tmp_path / "G.pth", r"is a zip archive, but no PyTorch checkpoint$")


@pytest.fixture(scope="module", params=["zip", "legacy", "safetensors"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "G"
    if request.param == "safetensors":
        save_file(state_of(), path)
    else:
        torch.save(state_of(), path, _use_new_zipfile_serialization=request.param == "zip")
    return path


FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_refused(sound: Path, fraction: float, tmp_path: Path) -> None:
    content = sound.read_bytes()
    (tmp_path / "G.pth").write_bytes(content[: int(fraction * len(content))])
    # cut inside a name, a bare pickle seems to ask for a function that is not on the list
    assert_no_checkpoint(tmp_path / "G.pth", r"is (empty|not a checkpoint|truncated or damaged)|contains code \(")


@FUZZ
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_changed_byte_never_ends_in_another_error(sound: Path, place: float, byte: int, tmp_path: Path) -> None:
    content = bytearray(sound.read_bytes())
    content[int(place * len(content))] = byte
    (tmp_path / "G.pth").write_bytes(content)
    # a bit of a weight may change unnoticed in formats without a checksum
    with contextlib.suppress(ModelError):
        assert load_generator(tmp_path / "G.pth").spec == CUT


def test_a_header_whose_length_looks_like_a_pickle_keeps_its_metadata(tmp_path: Path) -> None:
    """The first byte is the low byte of the header's length; 0x80 is also a pickle's first opcode."""
    from safetensors.torch import save_file

    file, tensors = tmp_path / "G.safetensors", {"a": torch.zeros(2)}
    for padding in range(300):
        save_file(tensors, file, metadata={"mpp": "0.5", "filling": "x" * padding})
        if file.read_bytes()[0] == 0x80:
            break
    assert file.read_bytes()[0] == 0x80
    assert read_weights(file).metadata["mpp"] == "0.5"


@pytest.mark.parametrize(
    ("content", "words", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "is a Git LFS pointer", "git lfs pull"),
        (b"\n <!DOCTYPE html><html></html>", "is a web page", "download it again"),
        (b"<script></script><HTML>", "is a web page", "download it again"),
        (bytes(1000), "nothing but zeros", "again"),
        (b"\x1f\x8b\x08rest", "a gzip file", "unpack"),
        (bytes(257).replace(b"\0", b"a") + b"ustar", "a tar archive", "unpack"),
        (b"\x89HDF\r\n", "an HDF5 file", "PyTorch"),
        (b"\x93NUMPY\x01", "a NumPy array", "PyTorch"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX model", "torch.save(net.state_dict()"),
        (b"\x08\x07\x12\x07tf2onnx\x1a\x01", "an ONNX model", "PyTorch"),
        (b"II*\0\x08\0\0\0", "a TIFF image", "kin reads"),
        (b'{"a": 1}', "a JSON file", "kin reads"),
        (b"\xff\xff\xff\x0f\0\0\0\0" + b'{"a"', "truncated or damaged", "again"),
    ],
)
def test_what_else_a_file_is(tmp_path: Path, content: bytes, words: str, hint: str) -> None:
    file = tmp_path / "G.pth"
    file.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_generator(file)
    assert words in caught.value.message
    assert hint in (caught.value.hint or "")


def test_archives_of_others_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(ModelError, match="NumPy or Keras"):
        load_generator(tmp_path / "a.npz")


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_a_truncated_file_says_so(tmp_path: Path, kind: str, cut: float) -> None:
    file = tmp_path / "G.pth"
    if kind == "torch":
        torch.save(state_of(), file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state_of().items()}, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(ModelError, match="truncated or damaged"):
        load_generator(file)

"""Devices and precisions by name; GPUs are made up where a name needs one."""

from __future__ import annotations

import pytest
import torch

from kin_cli.errors import DeviceError
from kin_cli.passes.devices import resolve_devices, resolve_precision


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs without bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)


@pytest.mark.parametrize(
    ("names", "what"),
    [("cpu,tpu", "'tpu'"), ("cpu,", "''"), ("cuda:99", "'cuda:99'"), ("cuda:all", "'cuda"), ("mps", "mps")],
)
def test_devices_that_are_not_there_are_named(names: str, what: str) -> None:
    if names == "cuda:all" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match=what):
        resolve_devices(names)


def test_lists_keep_their_order(gpus: None) -> None:
    assert resolve_devices("cuda:1, cuda:0") == (torch.device("cuda:1"), torch.device("cuda:0"))
    assert resolve_devices("cuda:all") == (torch.device("cuda:0"), torch.device("cuda:1"))
    assert resolve_devices("auto") == (torch.device("cuda"),)
    assert resolve_devices("cpu,cpu") == (torch.device("cpu"),) * 2


def test_kinds_are_not_mixed(gpus: None) -> None:
    with pytest.raises(DeviceError, match="different kinds"):
        resolve_devices("cpu,cuda")
    with pytest.raises(DeviceError, match="'cuda:2' is not there") as caught:
        resolve_devices("cuda:0,cuda:2")
    assert caught.value.hint == "known here: cpu, cuda:0, cuda:1"


def test_precision_follows_the_device(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (resolve_precision("auto", cpu), resolve_precision("auto", cuda)) == ("fp32", "fp16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert resolve_precision("auto", cuda) == "bf16"
    for name in ("fp32", "bf16", "fp16"):
        assert resolve_precision(name, cpu) == resolve_precision(name, cuda) == name


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_plain_devices_compute_in_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    (device,) = resolve_devices(kind)
    assert (device.type, resolve_precision("auto", device), resolve_precision("fp32", device)) == (kind, "fp32", "fp32")
    with pytest.raises(DeviceError, match="float32 alone"):
        resolve_precision("bf16", device)
    with pytest.raises(DeviceError) as caught:
        resolve_devices("warp")
    assert str(caught.value.hint).endswith("mps, xpu")

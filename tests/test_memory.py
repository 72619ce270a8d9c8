"""Memory limits of the machine and of control groups, in trees as Linux, Docker and Slurm show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kin_cli.memory import free_memory, memory_limit

GIB = 1 << 30
V2 = "30 23 0:27 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"


def machine(root: Path, mounts: str, group: str) -> Path:
    """A machine with 64 GiB, of which 40 GiB are available."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal:       {64 << 20} kB\nMemFree:  1 kB\nMemAvailable:   {40 << 20} kB\n"
    )
    (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)
    (root / "proc/self/cgroup").write_text(group)
    return root


def group(root: Path, path: str, **files: object) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("memory_", "memory.")).write_text(f"{value}\n")


def test_without_control_groups_it_is_the_machine(tmp_path: Path) -> None:
    machine(tmp_path, "", "")
    assert (memory_limit(tmp_path), free_memory(tmp_path)) == (64 * GIB, 40 * GIB)


def test_a_slurm_job_under_version_2(tmp_path: Path) -> None:
    """The limit is on the job, the process three groups below it."""
    job = "system.slice/slurmstepd.scope/job_7"
    machine(tmp_path, V2.format(root="/"), f"0::/{job}/step_0/user/task_0\n")
    group(tmp_path, job, memory_max=8 * GIB, memory_current=6 * GIB, memory_stat=f"anon 5\ninactive_file {GIB}")
    group(tmp_path, f"{job}/step_0", memory_max="max", memory_current=6 * GIB)
    group(tmp_path, f"{job}/step_0/user/task_0", memory_max="max", memory_current=5 * GIB)
    assert (memory_limit(tmp_path), free_memory(tmp_path)) == (8 * GIB, 3 * GIB)


def test_a_container_under_version_2_that_sees_only_its_own_group(tmp_path: Path) -> None:
    machine(tmp_path, V2.format(root="/../../../docker/abc"), "0::/\n")
    group(tmp_path, ".", memory_max=2 * GIB, memory_current=GIB // 2)
    assert (memory_limit(tmp_path), free_memory(tmp_path)) == (2 * GIB, 3 * GIB // 2)


@pytest.mark.parametrize(("root", "path"), [("/", "/docker/abc"), ("/docker/abc", "/docker/abc")])
def test_version_1_with_and_without_the_groups_above(tmp_path: Path, root: str, path: str) -> None:
    machine(tmp_path, V1.format(root=root), f"5:cpu,cpuacct:/x\n4:memory:{path}\n0::/\n")
    group(tmp_path, "memory", memory_limit_in_bytes=9223372036854771712, memory_usage_in_bytes=50 * GIB)
    own = "memory/docker/abc" if root == "/" else "memory"
    group(tmp_path, own, memory_limit_in_bytes=4 * GIB, memory_usage_in_bytes=4 * GIB)
    group(tmp_path, own, memory_stat=f"cache 9\ninactive_file 7\ntotal_inactive_file {3 * GIB}")
    assert (memory_limit(tmp_path), free_memory(tmp_path)) == (4 * GIB, 3 * GIB)


def test_a_full_group_leaves_nothing_and_odd_files_are_no_limit(tmp_path: Path) -> None:
    machine(tmp_path, V2.format(root="/"), "garbage\n0::/a\n")
    group(tmp_path, "a", memory_max=GIB, memory_current=2 * GIB)
    assert free_memory(tmp_path) == 0
    group(tmp_path, "a", memory_max="-5", memory_current="x")
    assert memory_limit(tmp_path) == 64 * GIB


def test_this_machine() -> None:
    assert 0 < free_memory() <= memory_limit()

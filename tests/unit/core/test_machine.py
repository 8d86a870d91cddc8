"""Cores and memory the process may use, on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from vecmill.core import machine


def put(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_affinity", lambda: set(range(8)))


def test_without_control_groups_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert machine.usable_cores(tmp_path) == 8


@pytest.mark.parametrize(
    ("content", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 8)]
)
def test_quota_of_version_2_rounds_up(tmp_path: Path, content: str, cores: int) -> None:
    put(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": content})
    assert machine.usable_cores(tmp_path) == cores


def test_quota_of_a_group_above_counts_too(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/cpu.max": "300000 100000",
            "sys/fs/cgroup/pod/box/cpu.max": "500000 100000",
        },
    )
    assert machine.usable_cores(tmp_path) == 3


def test_quota_of_version_1_counts(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000",
        },
    )
    assert machine.usable_cores(tmp_path) == 3


def test_quota_at_the_mount_counts_where_the_path_is_the_hosts(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/not-here\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert machine.usable_cores(tmp_path) == 1


def test_no_quota_of_version_1_is_minus_one(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/self/cgroup": "1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert machine.usable_cores(tmp_path) == 8


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}\n"
            for i in range(8)
        },
    )
    assert machine.physical_cores(tmp_path) == 4


def test_physical_cores_stay_within_the_quota(tmp_path: Path) -> None:
    put(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000"})
    assert machine.physical_cores(tmp_path) == 2


def test_unknown_topology_counts_every_core(tmp_path: Path) -> None:
    assert machine.physical_cores(tmp_path) == 8


def test_memory_is_the_least_limit(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:        1000 kB\nMemFree: 1 kB\n",
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": "300000\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
    )
    assert machine.memory_limit_bytes(tmp_path) == 300_000


def test_no_limit_of_version_1_leaves_the_machines_memory(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:        1000 kB\n",
            "proc/self/cgroup": "3:memory:/a\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert machine.memory_limit_bytes(tmp_path) == 1_024_000


def test_cpu_has_name_and_flags(tmp_path: Path) -> None:
    put(
        tmp_path,
        {"proc/cpuinfo": "model name\t: Test CPU\nflags\t\t: sse avx512_vnni\n\nmodel name: Other\n"},
    )
    assert machine.cpu(tmp_path) == machine.Cpu("Test CPU", frozenset({"sse", "avx512_vnni"}))


def test_this_machine_has_at_least_one_core() -> None:
    assert machine.usable_cores() >= 1
    assert machine.cpu().name

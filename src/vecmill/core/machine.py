"""The machine as this process may use it: cores, memory, the processor's name and flags.

Cores honour the affinity mask and the CPU quotas of control groups, version 1 and 2; memory honours their
limits. Nothing here is cached: a quota can change while a server runs. A call costs a few small file reads.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED_BYTES = 1 << 60
"""Control groups version 1 write "no limit" as a huge number just below 2**63."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """A processor's name and feature flags, empty where the system does not tell."""

    name: str
    flags: frozenset[str]


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many logical cores the process may keep busy, at least 1.

    The least of: cores of the machine, cores of the affinity mask, the quota of every control group above the
    process, rounded up.

    Args:
        root: Where `proc` and `sys` lie; tests give a folder.
    """
    cores = len(_affinity())
    for quota in _quotas(root):
        cores = min(cores, math.ceil(quota))
    return max(cores, 1)


def physical_cores(root: Path = _ROOT) -> int:
    """Return how many physical cores the process may keep busy: two threads of one core count once.

    Where the topology is unknown every logical core counts.
    """
    return max(min(_distinct_cores(root, _affinity()), usable_cores(root)), 1)


def memory_limit_bytes(root: Path = _ROOT) -> int | None:
    """Return the memory the process may use: the machine's, or less where a control group limits it."""
    limits = [limit for limit in _memory_limits(root) if limit < _UNLIMITED_BYTES]
    total = _total_memory(root)
    if total is not None:
        limits.append(total)
    return min(limits, default=None)


def cpu(root: Path = _ROOT) -> Cpu:
    """Return the processor's name and flags."""
    name, flags = "", frozenset[str]()
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and not name:
            name = value.strip()
        elif key.strip() in {"flags", "Features"} and not flags:
            flags = frozenset(value.split())
    return Cpu(name or platform.processor() or platform.machine(), flags)


def is_running(pid: int) -> bool:
    """Whether a process of this machine is alive; on Windows the answer is always yes."""
    if os.name == "nt":
        return True  # signal 0 would end it there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _affinity() -> set[int]:
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _distinct_cores(root: Path, cores: set[int]) -> int:
    seen = set()
    for core in cores:
        siblings = _read(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").strip()
        seen.add(siblings or f"alone {core}")
    return len(seen)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas in cores of the process's control groups and of those above them."""
    for folder in _groups(root, "cpu", "cpu"):
        words = _read(folder / "cpu.max").split()  # version 2: "200000 100000" or "max 100000"
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
            yield int(words[0]) / int(words[1])
        quota = _integer(folder / "cpu.cfs_quota_us")  # version 1: -1 for none
        period = _integer(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and quota > 0 and period > 0:
            yield quota / period


def _memory_limits(root: Path) -> Iterator[int]:
    for folder in _groups(root, "memory", "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _integer(folder / name)
            if limit is not None and limit > 0:
                yield limit


def _groups(root: Path, controller: str, mount: str) -> Iterator[Path]:
    """Yield the folders of the process's control groups, from its own up to the mount.

    Inside a container the path in /proc/self/cgroup may be the host's and absent here; the mount itself is
    then the container's group and is always yielded.
    """
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            tops = [base, base / "unified"]
        elif controller in controllers.split(","):
            tops = [base / mount, base / controllers]
        else:
            continue
        for top in tops:
            folder = top / path.lstrip("/")
            while folder != top and top in folder.parents:
                yield folder
                folder = folder.parent
            yield top


def _total_memory(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _integer(path: Path) -> int | None:
    text = _read(path).strip()
    try:
        return int(text)
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""

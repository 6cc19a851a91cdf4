"""The CPUs of this process: number, share, name and instruction sets. Standard library only."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

# the instruction sets that decide how fast we are
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def available_cpus() -> int:
    """CPUs this process may use."""
    if sys.platform == "linux":  # elsewhere there is no such call
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of_quota() -> int | None:
    """The threads that this process's quota of CPU time can keep busy. None if it limits nothing."""
    quota = cpu_quota()
    return math.ceil(quota) if quota is not None and quota < available_cpus() else None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Seconds of CPU time per second that Linux's control groups grant: 1.5 in a container with `--cpus=1.5`.

    None without a limit, and elsewhere. root: where `proc` and the control groups' file system are.
    Source: Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cpu.cfs_quota_us) of Linux.
    """
    try:
        limits = [limit for group in _control_groups(root) if (limit := _limit(group)) is not None]
    except ValueError:  # files of another form: the quota is a hint, and no load fails for it
        return None
    return min(limits, default=None)


def _control_groups(root: Path) -> Iterator[Path]:
    """The groups that bound this process's CPU time, each with all groups around it."""
    entries = (line.split(":", 2) for line in _lines(root / "proc/self/cgroup"))
    groups = [(controllers.split(","), path) for _, controllers, path in entries]
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        mount_root, mount_point = mount.split(" ")[3:5]
        kind, _, options = system.split(" ", 2)  # the second may be empty. Spaces in names are written as \040
        named = {"cgroup2": "", "cgroup": "cpu"}.get(kind)  # a group of version 2 has no controller's name
        if named is None or (named and named not in options.split(",")):
            continue
        for path in (path for controllers, path in groups if named in controllers):
            inner = Path(path).relative_to(mount_root) if Path(path).is_relative_to(mount_root) else Path()
            top = root / mount_point.lstrip("/")
            yield from (top / part for part in (inner, *inner.parents))


def _limit(group: Path) -> float | None:
    """The quota of one group, None without one."""
    quota, period = [*" ".join(_lines(group / "cpu.max")).split(), "", ""][:2]
    if not period:
        quota, period = ("".join(_lines(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    if not (quota.isdigit() and period.isdigit()):
        return None  # "max", -1
    return int(quota) / int(period) if int(quota) and int(period) else None


def cpu_name() -> str:
    return proc_field("/proc/cpuinfo", "model name") or platform.processor() or "unknown"


def cpu_flags() -> str:
    """Instruction sets of this CPU as Linux lists them. Empty elsewhere."""
    return proc_field("/proc/cpuinfo", "flags", "Features")


def cpu_features() -> list[str]:
    """Those of `FEATURES` that this CPU has."""
    flags = set(cpu_flags().split())
    return [name for name in FEATURES if name in flags]


def proc_field(path: str, *names: str) -> str:
    """The first field of one of these names in a file of Linux's /proc. Empty without one."""
    lines = (line.partition(":") for line in _lines(Path(path)))
    return next((value.strip() for key, _, value in lines if key.strip() in names), "")


def _lines(path: Path) -> list[str]:
    """The lines of a file of Linux. None where there is no such file."""
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")  # names of mounts may be of any bytes
    except OSError:
        return []
    return text.removesuffix("\n").split("\n") if text else []

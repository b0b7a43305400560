"""What this process may use of the machine: cores and memory, by the smallest limit that holds.

The system's own figures, every control group that the process is in or below (cgroup v1 and v2),
and ``ulimit``. Linux tells all of them in text files; elsewhere there are fewer limits, and none of
the files.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC, SYS = Path("/proc"), Path("/sys")
# What `ulimit` restricts, as /proc names it, with what is used of it in /proc/self/status.
ULIMITS = {"Max address space": "VmSize", "Max data size": "VmData"}
SPARE = 0.8  # share of the free memory that is taken unless somebody asks for more
UNITS = {"mb": 1e6, "gb": 1e9, "mib": 2.0**20, "gib": 2.0**30}


@dataclass(frozen=True)
class _Group:
    """A control group's folder, in the files of version 1 or 2."""

    folder: Path
    version: int

    def cores(self) -> float:
        """That its quota grants; infinite where it has none."""
        if self.version == 2:
            quota, _, period = _text(self.folder / "cpu.max").partition(" ")
        else:
            quota = _text(self.folder / "cpu.cfs_quota_us")
            period = _text(self.folder / "cpu.cfs_period_us")
        granted, every = _number(quota), _number(period or "100000")
        return granted / every if granted > 0 and 0 < every < math.inf else math.inf

    def room(self) -> float:
        """Bytes until its limit, what the kernel would give back included."""
        pages = _table(self.folder / "memory.stat", r"(\w+) (\d+)")
        spare: tuple[str, ...]
        if self.version == 2:
            limit = min(_number(_text(self.folder / f"memory.{name}")) for name in ("max", "high"))
            used = _text(self.folder / "memory.current")
            spare = ("inactive_file", "active_file", "slab_reclaimable")
        else:
            # That of groups above, whose folders a container does not see, is in the second.
            limit = min(
                _number(_text(self.folder / "memory.limit_in_bytes")),
                pages.get("hierarchical_memory_limit", math.inf),
            )
            used = _text(self.folder / "memory.usage_in_bytes")
            total = "total_" if "total_inactive_file" in pages else ""
            spare = (f"{total}inactive_file", f"{total}active_file")
        if not used.isdigit():
            return limit
        kept = max(0.0, float(used) - sum(pages.get(name, 0.0) for name in spare))
        return max(0.0, limit - kept)


def cores(proc: Path = PROC, sys: Path = SYS) -> int:
    """Cores that this process may keep busy: by its affinity, and by the quotas of its groups.

    A part of a core counts as none, as threads that wait for each other gain nothing from it, but
    one core is the least.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    own = len(affinity(0)) if affinity else os.cpu_count() or 1
    granted = min((group.cores() for group in _groups("cpu", proc, sys)), default=math.inf)
    return max(1, int(min(own, granted)))


def free_memory(proc: Path = PROC, sys: Path = SYS) -> float:
    """Bytes that the processes started from here can still have, all of them together."""
    pages = _table(proc / "meminfo", r"(\w+):\s+(\d+)(?: kB)?")
    rooms = [group.room() for group in _groups("memory", proc, sys)]
    if "MemAvailable" in pages:
        rooms.append(pages["MemAvailable"] * 1024)
    elif "MemFree" in pages:  # Linux before 3.14, and imitations of /proc
        rooms.append((pages["MemFree"] + pages.get("Cached", 0.0)) * 1024)
    else:
        rooms.append(_physical_memory())
    return min(rooms)


def address_space(proc: Path = PROC) -> float:
    """Bytes that ``ulimit -v`` and ``ulimit -d`` leave this process; infinite without them."""
    limits = _table(proc / "self" / "limits", r"(Max [a-z ]+?)\s{2,}(\w+)")
    used = _table(proc / "self" / "status", r"(Vm\w+):\s+(\d+) kB")
    return min(
        max(0.0, limits.get(name, math.inf) - 1024 * used.get(size, 0.0))
        for name, size in ULIMITS.items()
    )


def allowed_memory(proc: Path = PROC, sys: Path = SYS) -> float:
    """Bytes that this process may come to: what it has, and a large part of what is free."""
    resident = _table(proc / "self" / "status", r"(VmRSS):\s+(\d+) kB").get("VmRSS", 0.0)
    return 1024 * resident + SPARE * min(free_memory(proc, sys), address_space(proc))


def parse_memory(text: str) -> int | None:
    """Bytes of "8GB", "512 MiB" and the like; None where it is no such amount."""
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    return int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else None


def memory_text(amount: float) -> str:
    """Bytes as they are typed, rounded up to a tenth of a GB, or to a MB below one."""
    if amount < 1e9:
        return f"{math.ceil(amount / 1e6)}MB"
    return f"{math.ceil(amount / 1e8) / 10:g}GB"


def memory_hint(proc: Path = PROC) -> str:
    """What to add to the message of a failure where ``ulimit`` may be its cause; else nothing."""
    left = address_space(proc)
    if math.isinf(left):
        return ""
    return (
        f"; ulimit leaves this process {left / 2**20:.0f} MiB of address space: "
        "raise ulimit -v, or choose a smaller --size and fewer --threads"
    )


def _groups(controller: str, proc: Path, sys: Path) -> Iterator[_Group]:
    """The groups whose limits for ``controller`` hold: the process's own and those above it."""
    mounts = list(_mounts(proc, sys))
    found = False
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        version = 2 if number == "0" and not names else 1
        if version == 1 and controller not in names.split(","):
            continue
        for kind, controllers, root, top in mounts:
            if kind != version or (version == 1 and controller not in controllers):
                continue
            found = True
            yield from (_Group(folder, version) for folder in _upwards(top, root, path))
    if not found:  # imitations of /proc that leave these files out
        yield _Group(sys / "fs" / "cgroup", 2)
        for folder in (controller, "cpu,cpuacct"):
            yield _Group(sys / "fs" / "cgroup" / folder, 1)


def _mounts(proc: Path, sys: Path) -> Iterator[tuple[int, frozenset[str], str, Path]]:
    """Where control groups are mounted: version, controllers, the group at the top, its folder."""
    for line in _text(proc / "self" / "mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or not kinds or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        top = PurePosixPath(_unescaped(fields[4]))
        below = top.relative_to("/sys") if top.is_relative_to("/sys") else None
        folder = Path(top) if below is None else sys / below
        yield (
            2 if kinds[0] == "cgroup2" else 1,
            frozenset(kinds[-1].split(",")),
            _unescaped(fields[3]),
            folder,
        )


def _upwards(top: Path, root: str, path: str) -> Iterator[Path]:
    """Folders of a group and of those above it, as far as this mount shows them.

    ``root`` is the group at the mount's top. Without a namespace of its own a container is told its
    group's path on the host, and sees that group at the top; so it is where the path leads nowhere.
    """
    group = PurePosixPath(path)
    below = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
    folder = top
    yield folder
    for part in below.parts:
        folder = folder / part
        if part == ".." or not folder.is_dir():  # beside the namespace: not shown
            return
        yield folder


def _unescaped(name: str) -> str:
    """A path of mountinfo, where blanks are octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), name)


def _text(path: Path) -> str:
    """The stripped content of a small file; empty where there is none."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _table(path: Path, pattern: str) -> dict[str, float]:
    """Numbers by name, of the lines of a file that match ``pattern``."""
    return {name: _number(value) for name, value in re.findall(f"(?m)^{pattern}", _text(path))}


def _number(text: str) -> float:
    """A limit; infinite in every spelling of "none": "max", "unlimited", -1, an empty file."""
    try:
        value = float(text)
    except ValueError:
        return math.inf
    return value if value >= 0 else math.inf


def _physical_memory() -> float:
    """Bytes of the machine, where the system tells; else infinite."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return math.inf

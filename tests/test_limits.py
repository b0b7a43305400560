"""Limits of containers, read from folders of text for machines that are not at hand."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nst_fast import limits
from nst_fast.limits import SPARE, address_space, allowed_memory, cores, free_memory, memory_hint

MIB = 2**20
V2_MOUNT = "31 23 0:28 {root} {top} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "32 31 0:29 {root} {top} rw,relatime - cgroup cgroup rw,{controllers}\n"
# As kernels, docker and systemd write that there is none.
NO_LIMITS = ["max", "9223372036854771712", "9223372036854775807", "-1", "18446744073709551615", ""]


@pytest.fixture(autouse=True)
def sixty_four_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


class Machine:
    """Roots of /proc and /sys to fill; 100,000 MiB are available."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        self.write("proc/meminfo", "MemTotal: 200000000 kB\nMemAvailable: 102400000 kB\n")

    def write(self, name: str, text: object) -> None:
        path = self.proc.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def group(self, folder: str, **values: object) -> None:
        """Files of a control group below /sys/fs/cgroup, with _ for the first dot."""
        (self.sys / "fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            self.write(f"sys/fs/cgroup/{folder}/{name.replace('_', '.', 1)}", value)

    def belongs(self, cgroup: str, *mounts: str) -> None:
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", "".join(mounts))

    @property
    def cores(self) -> int:
        return cores(self.proc, self.sys)

    @property
    def free(self) -> float:
        """In MiB."""
        return free_memory(self.proc, self.sys) / MIB


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def v2(root: str = "/", top: str = "/sys/fs/cgroup") -> str:
    return V2_MOUNT.format(root=root, top=top)


def v1(controllers: str, root: str = "/") -> str:
    return V1_MOUNT.format(root=root, top=f"/sys/fs/cgroup/{controllers}", controllers=controllers)


def test_without_groups_it_is_the_machine(machine):
    assert (machine.cores, machine.free) == (64, 100_000)


def test_version_2_in_a_namespace(machine):
    machine.belongs("0::/", v2())
    machine.group("", memory_max=600 * MIB, memory_current=100 * MIB, cpu_max="250000 100000")
    assert (machine.cores, machine.free) == (2, 500)


def test_version_2_on_the_host_where_a_group_above_is_the_smallest(machine):
    machine.belongs("0::/kube.slice/pod.slice/box.scope", v2())
    machine.group("", memory_stat="")  # the top has no limits
    machine.group(
        "kube.slice", memory_max=8000 * MIB, memory_current=7000 * MIB, cpu_max="max 100000"
    )
    machine.group("kube.slice/pod.slice", memory_max="max", cpu_max="400000 100000")
    machine.group(
        "kube.slice/pod.slice/box.scope",
        memory_max=4000 * MIB,
        memory_current=500 * MIB,
        cpu_max="max 100000",
    )
    assert (machine.cores, machine.free) == (4, 1000)


def test_version_2_the_throttle_counts_like_the_limit(machine):
    machine.belongs("0::/", v2())
    machine.group("", memory_max=900 * MIB, memory_high=600 * MIB, memory_current=200 * MIB)
    assert machine.free == 400


def test_version_1_in_a_container_without_a_namespace(machine):
    """It is told its path on the host, and sees its own group at the top of the mount."""
    path = "/docker/4f5e"
    machine.belongs(
        f"5:memory:{path}\n4:cpu,cpuacct:{path}\n0::{path}\n",
        v1("memory", path),
        v1("cpu,cpuacct", path),
    )
    machine.group("memory", memory_limit_in_bytes=600 * MIB, memory_usage_in_bytes=50 * MIB)
    machine.group("cpu,cpuacct", cpu_cfs_quota_us=50_000, cpu_cfs_period_us=100_000)
    assert (machine.cores, machine.free) == (1, 550)


def test_version_1_nested_on_the_host(machine):
    machine.belongs("4:memory:/a/b/c\n1:cpu:/a/b\n", v1("memory"), v1("cpu"))
    machine.group("memory", memory_limit_in_bytes=NO_LIMITS[1], memory_usage_in_bytes=9000 * MIB)
    machine.group("memory/a", memory_limit_in_bytes=700 * MIB, memory_usage_in_bytes=600 * MIB)
    machine.group("memory/a/b", memory_limit_in_bytes=NO_LIMITS[1])
    machine.group("memory/a/b/c", memory_limit_in_bytes=500 * MIB, memory_usage_in_bytes=100 * MIB)
    machine.group("cpu/a", cpu_cfs_quota_us=300_000, cpu_cfs_period_us=100_000)
    machine.group("cpu/a/b", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100_000)
    assert (machine.cores, machine.free) == (3, 100)


def test_version_1_tells_of_groups_above_that_a_container_does_not_see(machine):
    machine.belongs("4:memory:/", v1("memory"))
    stat = f"cache 1\nhierarchical_memory_limit {300 * MIB}"
    machine.group(
        "memory",
        memory_limit_in_bytes=NO_LIMITS[1],
        memory_usage_in_bytes=100 * MIB,
        memory_stat=stat,
    )
    assert machine.free == 200


def test_both_versions_at_once(machine):
    """As systemd mounts them in hybrid mode: the controllers are those of version 1."""
    machine.belongs(
        "4:memory:/job\n2:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/job\n",
        v2(top="/sys/fs/cgroup/unified"),
        v1("memory"),
        v1("cpu,cpuacct"),
    )
    machine.group("unified/job")
    machine.group("memory/job", memory_limit_in_bytes=400 * MIB, memory_usage_in_bytes=0)
    machine.group("cpu,cpuacct/job", cpu_cfs_quota_us=700_000, cpu_cfs_period_us=100_000)
    assert (machine.cores, machine.free) == (7, 400)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("none", NO_LIMITS)
def test_every_spelling_of_no_limit(machine, version, none):
    if version == 2:
        machine.belongs("0::/", v2())
        machine.group(
            "", memory_max=none, memory_current=5 * MIB, cpu_max=none and f"{none} 100000"
        )
    else:
        machine.belongs("4:memory:/\n3:cpu:/\n", v1("memory"), v1("cpu"))
        machine.group("memory", memory_limit_in_bytes=none, memory_usage_in_bytes=5 * MIB)
        machine.group("cpu", cpu_cfs_quota_us=none, cpu_cfs_period_us=100_000)
    assert (machine.cores, machine.free) == (64, 100_000)


def test_cached_pages_are_not_used(machine):
    machine.belongs("0::/", v2())
    pages = {"anon": 1, "inactive_file": 300, "active_file": 100, "slab_reclaimable": 50}
    stat = "\n".join(f"{name} {count * MIB}" for name, count in pages.items())
    machine.group("", memory_max=600 * MIB, memory_current=550 * MIB, memory_stat=stat)
    assert machine.free == 500
    machine.belongs("4:memory:/\n", v1("memory"))
    stat = f"inactive_file 0\ntotal_inactive_file {200 * MIB}\ntotal_active_file {10 * MIB}"
    machine.group(
        "memory",
        memory_limit_in_bytes=300 * MIB,
        memory_usage_in_bytes=300 * MIB,
        memory_stat=stat,
    )
    assert machine.free == 210


def test_a_mount_with_a_blank_and_a_group_beside_the_namespace(machine):
    machine.belongs("0::/../other", v2(top="/sys/fs/c\\040group"))
    (machine.sys / "fs/c group").mkdir(parents=True)
    (machine.sys / "fs/c group/memory.max").write_text(str(300 * MIB))
    assert machine.free == 300


def test_files_that_a_sandbox_leaves_out(machine):
    """gVisor and old runtimes: no mountinfo; the files are where they usually are."""
    machine.group("memory", memory_limit_in_bytes=200 * MIB, memory_usage_in_bytes=MIB)
    machine.group("cpu,cpuacct", cpu_cfs_quota_us=150_000, cpu_cfs_period_us=100_000)
    assert (machine.cores, machine.free) == (1, 199)


def test_the_affinity_counts_where_it_is_smaller(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    machine.belongs("0::/", v2())
    machine.group("", cpu_max="800000 100000")
    assert machine.cores == 2


def test_a_process_may_come_to_what_it_has_and_most_of_what_is_free(machine):
    """What is smallest counts: the machine, its group, ulimit."""

    def allowed() -> float:
        return allowed_memory(machine.proc, machine.sys) / MIB

    machine.write("proc/self/status", f"VmRSS: {300 * 1024} kB\nVmSize: {1000 * 1024} kB")
    assert allowed() == pytest.approx(300 + SPARE * 100_000)
    machine.belongs("0::/", v2())
    machine.group("", memory_max=8000 * MIB, memory_current=1000 * MIB)
    assert allowed() == pytest.approx(300 + SPARE * 7000)
    machine.write(
        "proc/self/limits", f"Max address space         {3000 * MIB}      unlimited  bytes"
    )
    assert allowed() == pytest.approx(300 + SPARE * 2000)


def test_ulimit_is_told_where_there_is_one(machine):
    head = "Limit                     Soft Limit           Hard Limit           Units     \n"
    line = "Max address space         {0:<20} unlimited            bytes     \n"
    machine.write("proc/self/status", "Name:\tx\nVmSize:\t  102400 kB\nVmData:\t 1024 kB\n")
    machine.write("proc/self/limits", head + line.format("unlimited"))
    assert address_space(machine.proc) == math.inf
    assert memory_hint(machine.proc) == ""
    machine.write("proc/self/limits", head + line.format(1000 * MIB))
    assert address_space(machine.proc) == 900 * MIB
    assert "900 MiB" in memory_hint(machine.proc)
    assert "ulimit -v" in memory_hint(machine.proc)
    data = line.replace("Max address space", "Max data size    ").format(500 * MIB)
    machine.write("proc/self/limits", head + line.format("unlimited") + data)
    assert address_space(machine.proc) == 499 * MIB


@given(
    st.dictionaries(
        st.sampled_from(
            ["proc/self/cgroup", "proc/self/mountinfo", "proc/self/limits", "proc/meminfo"]
            + [f"sys/fs/cgroup/{n}" for n in ("memory.max", "memory.stat", "cpu.max", "cpu/cpu.x")]
        ),
        st.text("0:/.-m axcpugroeys\n2\\", max_size=60),
    )
)
def test_any_text_gives_numbers(tmp_path_factory, texts):
    machine = Machine(tmp_path_factory.mktemp("machine"))
    for name, text in texts.items():
        machine.write(name, text)
    assert 1 <= machine.cores <= 64
    assert machine.free >= 0
    assert address_space(machine.proc) >= 0


def test_this_machine():
    assert limits.cores() >= 1
    assert limits.free_memory() > 0

"""The share of the CPUs that a container leaves to this process, and the threads that follow from it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdturbo import Pipeline, cpu
from sdturbo.backends import registry

CPU_GROUPS = Path("/sys/fs/cgroup/cpu")


def machine(root, groups, mounts):
    """The files of a process's control groups. mounts: (root, mount point, file system, options)."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    lines = [f"30 23 0:26 {top} {point} rw - {kind} {kind} {options}\n" for top, point, kind, options in mounts]
    (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda rw\n" + "".join(lines))


def limit(root, group, **files):
    (root / group).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / group / name.replace("cpu_", "cpu.", 1)).write_text(text + "\n")


VERSION_2 = [("/", "/sys/fs/cgroup", "cgroup2", "rw,nsdelegate")]


def test_without_control_groups_nothing_is_limited(tmp_path):
    assert cpu.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("text", "quota"), [("150000 100000", 1.5), ("max 100000", None), ("25000 50000", 0.5)])
def test_version_2_says_quota_and_period_in_one_file(tmp_path, text, quota):
    machine(tmp_path, "0::/\n", VERSION_2)
    limit(tmp_path, "sys/fs/cgroup", cpu_max=text)
    assert cpu.cpu_quota(tmp_path) == quota


def test_the_tightest_of_all_groups_around_counts(tmp_path):
    machine(tmp_path, "0::/pods/one/server\n", VERSION_2)
    limit(tmp_path, "sys/fs/cgroup/pods", cpu_max="300000 100000")
    limit(tmp_path, "sys/fs/cgroup/pods/one", cpu_max="200000 100000")
    limit(tmp_path, "sys/fs/cgroup/pods/one/server", cpu_max="max 100000")
    limit(tmp_path, "sys/fs/cgroup/pods/two", cpu_max="1000 100000")  # another's
    assert cpu.cpu_quota(tmp_path) == 2


def test_mounts_without_a_source_or_with_names_of_any_bytes_are_passed_over(tmp_path):
    machine(tmp_path, "0::/\n", VERSION_2)
    limit(tmp_path, "sys/fs/cgroup", cpu_max="150000 100000")
    mounts = tmp_path / "proc/self/mountinfo"
    strange = [
        b"40 1 0:3 / /a rw - tmpfs  rw\n",
        b"41 1 0:4 / /caf\xe9 rw - tmpfs x rw\n",
        b"42 1 0:5 / /a\x0cb rw - tmpfs x rw\n",
    ]
    mounts.write_bytes(b"".join(strange) + mounts.read_bytes())
    assert cpu.cpu_quota(tmp_path) == 1.5
    mounts.write_bytes(b"of another form\n" + mounts.read_bytes())
    assert cpu.cpu_quota(tmp_path) is None


VERSION_1 = [
    ("/docker/12ab", "/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
    ("/docker/12ab", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
]


@pytest.mark.parametrize(("quota", "expected"), [("150000", 1.5), ("-1", None)])
def test_version_1_says_them_in_two_files_below_the_containers_own_root(tmp_path, quota, expected):
    machine(tmp_path, "4:memory:/docker/12ab\n2:cpu,cpuacct:/docker/12ab\n", VERSION_1)
    limit(tmp_path, "sys/fs/cgroup/cpu,cpuacct", cpu_cfs_quota_us=quota, cpu_cfs_period_us="100000")
    assert cpu.cpu_quota(tmp_path) == expected


@pytest.mark.parametrize("damage", ["", "max", "x y", "150000", "150000 0"])
def test_files_that_say_nothing_limit_nothing(tmp_path, damage):
    machine(tmp_path, "0::/\n", VERSION_2)
    limit(tmp_path, "sys/fs/cgroup", cpu_max=damage)
    assert cpu.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "cpus", "threads"), [(1.5, 8, 2), (0.2, 8, 1), (4.0, 8, 4), (8.0, 8, None), (None, 8, None)]
)
def test_as_many_threads_as_the_quota_keeps_busy(monkeypatch, quota, cpus, threads):
    monkeypatch.setattr(cpu, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cpu, "available_cpus", lambda: cpus)
    assert cpu.threads_of_quota() == threads


@pytest.mark.parametrize(("asked", "threads"), [(None, 1), (2, 2)])
@pytest.mark.skipif(cpu.available_cpus() < 2, reason="needs two CPUs")
def test_backends_start_them_unless_a_number_is_asked_for(bundle_dir, monkeypatch, asked, threads):
    monkeypatch.setattr(registry, "threads_of_quota", lambda: 1)
    by_ort = Pipeline.load(bundle_dir, "onnxruntime", num_threads=asked).backend
    by_openvino = Pipeline.load(bundle_dir, "openvino", num_threads=asked).backend
    assert by_ort._options.intra_op_num_threads == threads
    assert by_openvino._config["INFERENCE_NUM_THREADS"] == threads


@pytest.mark.skipif(
    not os.access(CPU_GROUPS / "cpu.cfs_quota_us", os.R_OK), reason="no control groups of version 1 here"
)
@pytest.mark.skipif(not os.access(CPU_GROUPS, os.W_OK), reason="this user may not make control groups")
def test_a_real_group_is_read(tmp_path):
    group = CPU_GROUPS / f"sdturbo-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("150000")
        code = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0'); from sdturbo.cpu import cpu_quota; print(cpu_quota())"
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert told.stdout == "1.5\n"
    finally:
        group.rmdir()

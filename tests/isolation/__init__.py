"""Commands run where they can reach nothing: without a network, their system calls followed, or where nothing can be written.

Both need Linux's namespaces, which some kernels and containers forbid. Tests then skip with the kernel's words.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CALLS = (
    "%network,open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "truncate,chmod,fchmodat"
)
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("engine", "export", ".")),
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Trace:
    """What a command and all its children tried. The paths are absolute or relative to the folder that it ran in."""

    _CONNECTION = re.compile(
        r"^\d+ +(connect|sendto|sendmsg|sendmmsg)\(.*?"
        r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"'
    )
    _RESOLVER = re.compile(r'^\d+ +connect\(.*sun_path=@?"[^"]*resolve')
    _OPENED = re.compile(r'^\d+ +(?:open\(|openat2?\([^,]*, )"([^"]*)",.*?O_(?:WRONLY|RDWR|CREAT)')
    _MADE = re.compile(r"^\d+ +(?:creat|mkdir|mknod|rename|link|symlink|truncate|chmod|fchmodat)\w*\((.*)")

    def __init__(self, text):
        self.lines = text.splitlines()

    def connections(self):
        """Every try to reach another machine, or to ask for its address. Loopback is this machine."""
        tries = [(line, self._CONNECTION.match(line)) for line in self.lines]
        foreign = [line for line, found in tries if found and not self._is_own(found[2], found[3])]
        return foreign + [line for line in self.lines if self._RESOLVER.match(line)]

    def written(self):
        """Every path that was opened for writing, made, renamed or changed, or that this was tried with."""
        paths = [found[1] for line in self.lines if (found := self._OPENED.match(line))]
        for line in self.lines:
            if found := self._MADE.match(line):
                paths += re.findall(r'"([^"]*)"', found[1])
        return sorted(set(paths))

    def written_outside(self, *folders):
        """The paths written outside these folders. Devices such as /dev/null are no files."""
        inside = (*(f"{folder}/" for folder in folders), "/dev/null", "/dev/tty", "/proc/self/")
        return [path for path in self.written() if path.startswith("/") and not f"{path}/".startswith(inside)]

    @staticmethod
    def _is_own(port, address):
        return port != "53" and (address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1"))


def offline(line, folder, *, timeout=300, **environment):
    """(process, trace) of a command in `folder`, without a network. Home, cache and temporary files lie in it."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed, which follows system calls (apt-get install strace)")
    _require_namespace("-rn")
    trace = folder.parent / f"{folder.name}.trace"
    for name in ("home", "cache", "tmp", "out"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    places = {"HOME": folder / "home", "SDTURBO_CACHE_DIR": folder / "cache", "TMPDIR": folder / "tmp"}
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "4096", "-e", f"trace={CALLS}", "-e", "signal=none"]
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, HERE / "loopback.py", *strace, "-o", trace, *map(str, line)],
        env=ENVIRONMENT | {name: str(path) for name, path in places.items()} | environment,
        cwd=folder / "out",
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    return done, Trace(trace.read_text(errors="replace"))


def read_only(line, *, timeout=120, **environment):
    """The ended process of a command where nothing can be written, by a user without a name and a home."""
    _require_namespace("-rm")
    return subprocess.run(
        ["unshare", "-rm", sys.executable, HERE / "read_only.py", *map(str, line)],
        env=ENVIRONMENT | environment,
        cwd="/",
        capture_output=True,
        timeout=timeout,
        check=False,
    )


@cache
def _require_namespace(flags):
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed, which makes namespaces (apt-get install util-linux)")
    done = subprocess.run(["unshare", flags, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this kernel gives no namespace: {done.stderr.strip()}")

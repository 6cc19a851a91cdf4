"""podman, a base image from Debian's mirror, and a network in which a container's outgoing packets are counted."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "container"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BASE = "localhost/base:debian"
# what Debian's slim images leave out too
FAT = (
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
    "var/cache/apt/",
    "var/lib/apt/lists/",
)
KEY = "correct-horse"
SERVER, CLIENT, OUTSIDE = "198.18.255.2", "198.18.255.1", "198.18.255.5"


def run(*words, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{shlex.join(map(str, words))}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Podman:
    """podman and buildah with a store of their own in `directory`."""

    directory: Path

    def words(self, program="podman"):
        store = ["--root", self.directory / "store", "--runroot", self.directory / "run", "--storage-driver", "overlay"]
        own = ["--runtime", "runc", "--cgroup-manager", "cgroupfs"] if program == "podman" else []
        return [program, *store, *own]

    def __call__(self, *words, **options):
        return run(*self.words(), *words, **options)

    def buildah(self, *words, **options):
        return run(*self.words("buildah"), *words, **options)

    def build(self, target, tag, *options, pip=""):
        """Build a target of the Containerfile on the local base, from the index of packages of this machine's pip.

        pip: further lines of pip's configuration. Steps that an earlier build has done are not done again.
        """
        secret, directories = self._pip_configuration(pip)
        mounts = [word for directory in directories for word in ("--volume", f"{directory}:{directory}:ro")]
        self.buildah(
            *("build", "--format", "docker", "--isolation", "chroot", "--network", "host", "--layers"),
            *(
                "--build-arg",
                f"BASE={BASE}",
                "--secret",
                f"id=pip,src={secret}",
                "--secret",
                f"id=ca,src={CERTIFICATES}",
            ),
            *(*mounts, *options, "--target", target, "--tag", tag, "."),
            cwd=ROOT,
        )

    def logs(self, name):
        words = [str(word) for word in (*self.words(), "logs", name)]
        return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout

    def _pip_configuration(self, more):
        """(file, directories that it names) with what `pip config` says on this machine. more: further lines."""
        settings = {}
        for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
            name, _, value = line.partition("=")
            settings[name.partition(".")[2].strip(".")] = value.strip("'").replace("\\n", " ")
        wanted = {
            key: settings[key] for key in ("index-url", "extra-index-url", "find-links", "timeout") if key in settings
        }
        file = self.directory / "pip.conf"
        lines = [f"{key} = {value}" for key, value in ({"cert": CERTIFICATES} | wanted).items()]
        file.write_text("\n".join(["[global]", *lines, more, ""]), encoding="utf-8")
        paths = [Path(word.removeprefix("file://")) for value in wanted.values() for word in value.split()]
        roots = {Path(*path.parts[:3]) for path in paths if path.is_absolute() and path.exists()}
        return file, sorted(roots)

    def make_base(self):
        """The image BASE: this machine's Debian, made by debootstrap, and kept below build/ for the next time."""
        release = dict(
            line.split("=", 1) for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines() if line
        )
        suite = release["VERSION_CODENAME"].strip('"')
        archive = CACHE / f"{suite}.tar"
        if not archive.exists():
            targets = run(
                "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Identifier: Packages"
            )
            mirror = next(line.split()[0] for line in targets.splitlines() if line.split()[1:] == [suite, "main"])
            system = self.directory / "system"
            run("debootstrap", "--variant=minbase", suite, system, mirror)
            CACHE.mkdir(parents=True, exist_ok=True)
            with tarfile.open(part := archive.with_suffix(".part"), "w") as file:
                file.add(system, ".", filter=_slim)
            part.rename(archive)
            shutil.rmtree(system)
        self.buildah("from", "--name", "base", "scratch")
        self.buildah("add", "base", archive, "/")
        self.buildah("commit", "base", BASE)
        self.buildah("rm", "base")

    def remove(self):
        for words in (("rm", "--all", "--force"), ("rmi", "--all", "--force")):
            subprocess.run([str(word) for word in (*self.words(), *words)], capture_output=True, check=False)
        subprocess.run(["umount", self.directory / "store" / "overlay"], capture_output=True, check=False)
        shutil.rmtree(self.directory)


def _slim(member):
    name = member.name.removeprefix("./")
    return None if any(name.startswith(path) and name != path.rstrip("/") for path in FAT) else member


def compose_options(profile, directory):
    """The options of `podman create` by which podman-compose would start that profile's service. Network and name left out."""
    environment = {
        **os.environ,
        "SDTURBO_API_KEYS": KEY,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "podman_compose", "--verbose", "--dry-run", "--in-pod", "false"]
    done = subprocess.run(
        [*command, "-f", ROOT / "compose.yaml", "-p", "sdturbo", "--profile", profile, "up", "--no-build", "-d"],
        capture_output=True, text=True, check=False, cwd=directory, env=environment,
    )  # fmt: skip
    (line,) = [line for line in done.stderr.splitlines() if "podman create" in line]
    words = shlex.split(line.partition("podman create ")[2])
    options, image = [], words.pop()
    while words:
        word = words.pop(0)
        value = [words.pop(0)] if words and not words[0].startswith("-") and "=" not in word.split(" ")[0] else []
        if not word.startswith(("--name", "--network", "-p", "--label", "--restart")):
            options += [word, *value]
    return options, image


@dataclass(frozen=True)
class Network:
    """A network namespace `name`. All that leaves it for other places than the client of the tests is counted."""

    name: str

    def sent(self):
        """Packets that left for anywhere."""
        return int(run("ip", "netns", "exec", f"{self.name}-sink", "cat", "/sys/class/net/out1/statistics/rx_packets"))


@contextmanager
def counted_network():
    name = f"sdturbo-{os.getpid()}"
    link = f"sdt{os.getpid()}"
    sink = f"{name}-sink"
    try:
        for space in (name, sink):
            run("ip", "netns", "add", space)
            run("ip", "netns", "exec", space, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "in0", "netns", name)
        run("ip", "-n", name, "link", "add", "out0", "type", "veth", "peer", "name", "out1", "netns", sink)
        run("ip", "addr", "add", f"{CLIENT}/30", "dev", link)
        run("ip", "link", "set", link, "up")
        for space, device, address in ((name, "in0", SERVER), (name, "out0", "198.18.255.6"), (sink, "out1", OUTSIDE)):
            run("ip", "-n", space, "addr", "add", f"{address}/30", "dev", device)
            run("ip", "-n", space, "link", "set", device, "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "route", "add", "default", "via", OUTSIDE)
        yield Network(name)
    finally:
        for words in (("link", "del", link), ("netns", "del", name), ("netns", "del", sink)):
            subprocess.run(["ip", *words], capture_output=True, check=False)


def inspected(podman, kind, name):
    (answer,) = json.loads(podman("inspect", "--type", kind, name))
    return answer

"""`make dist`: wheel, sdist, SBOM and SHA256SUMS of the last commit, the same bytes on every machine.

What decides the bytes: the commit, the version of hatchling, and for the SBOM the versions that pip finds for the extras.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from release.sbom import write_sbom

ROOT = Path(__file__).parent.parent
WITHOUT_COMMIT = 1580601600  # seconds, hatchling's own date for files without one


def release_date(root: Path) -> int:
    """Seconds since 1970 of the last commit. In unpacked sources that of their PKG-INFO, which is the commit's."""
    if chosen := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(chosen)
    if (root / ".git").exists():
        return int(_git(root, "log", "-1", "--format=%ct"))
    information = root / "PKG-INFO"
    return int(information.stat().st_mtime) if information.exists() else WITHOUT_COMMIT


def build(root: Path, out: Path) -> tuple[Path, Path]:
    """(wheel, sdist) of the commit at `root` in `out`. Changes that are not committed are left out."""
    with tempfile.TemporaryDirectory() as directory:
        source = root
        if (root / ".git").exists():
            source = Path(directory, "source")
            _unpack_commit(root, source)
        made = Path(directory, "made")
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(release_date(root))}
        command = [sys.executable, "-m", "hatchling", "build", "-d", str(made)]
        subprocess.run(command, cwd=source, env=environment, check=True, stdout=subprocess.DEVNULL)
        out.mkdir(parents=True, exist_ok=True)
        wheel, sdist = (_moved(next(made.glob(pattern)), out) for pattern in ("*.whl", "*.tar.gz"))
    return wheel, sdist


def write_sums(files: list[Path], sums: Path) -> None:
    """One line per file, which `sha256sum --check` reads."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files)]
    sums.write_text("".join(lines), encoding="utf-8", newline="\n")


def _unpack_commit(root: Path, into: Path) -> None:
    archive = into.with_suffix(".tar")
    _git(root, "archive", "--output", str(archive), "HEAD")
    into.mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(into)], check=True)


def _moved(file: Path, out: Path) -> Path:
    path = out / file.name
    path.write_bytes(file.read_bytes())
    return path


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="directory of the files")
    out = parser.parse_args().out
    if (ROOT / ".git").exists() and (changed := _git(ROOT, "status", "--porcelain")):
        print(f"These changes are not committed, so they are not in the release:\n{changed}", file=sys.stderr)
    wheel, sdist = build(ROOT, out)
    sbom = out / f"{wheel.name.removesuffix('.whl')}.cdx.json"
    write_sbom(wheel, sbom, release_date(ROOT))
    write_sums([wheel, sdist, sbom], out / "SHA256SUMS")
    print((out / "SHA256SUMS").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()

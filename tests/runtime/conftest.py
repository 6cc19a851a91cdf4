"""The command `sdturbo`, in process, on the hand-made bundle."""

import pytest
from hub_names import NAME
from imitation.hub import Hub, serving, tell

from sdturbo.commands.cli import cli
from sdturbo.commands.console import run


@pytest.fixture
def sdturbo(bundle_dir, capsys, monkeypatch):
    """Run the command; gives (exit code, stdout, stderr)."""
    monkeypatch.setenv("SDTURBO_BUNDLE", str(bundle_dir))

    def call(*arguments):
        status = run(cli, "sdturbo", [str(one) for one in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return status, captured.out, captured.err

    return call


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(Hub()) as state:
        tell(monkeypatch, state, tmp_path / "home")
        monkeypatch.chdir(tmp_path)
        yield state


@pytest.fixture
def files(bundle_dir):
    """What the repository of the bundle holds."""
    content = {
        path.relative_to(bundle_dir).as_posix(): path.read_bytes() for path in bundle_dir.rglob("*") if path.is_file()
    }
    return content | {"README.md": b"# card", ".gitattributes": b""}


@pytest.fixture
def repository(hub, files):
    return hub.new(NAME, files)

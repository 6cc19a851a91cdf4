"""The command `sdturbo`, in process, on the hand-made bundle."""

import pytest

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

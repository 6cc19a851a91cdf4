"""Shared by the tests of bundles on the Hub."""

import json
import sys

from sdturbo import Pipeline

NAME = "someone/model"


def load(name=NAME, **options):
    return Pipeline.load(name, backend="null", **options)


def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def without_network(monkeypatch):
    """Nobody listens on the discard port."""
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        module = sys.modules["huggingface_hub.constants"]
        old = getattr(module, name)
        monkeypatch.setattr(module, name, "http://127.0.0.1:9" + old[len(old.rstrip("/").split("/{")[0]) :])


def changed(files):
    """The files of another bundle."""
    manifest = json.loads(files["bundle.json"])
    return files | {"bundle.json": json.dumps(manifest | {"created_by": "another"}).encode()}

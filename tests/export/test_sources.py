"""Keys of the store follow every module of ours that decides an entry, and nothing else."""

import pytest

from sdturbo_export.int8.measurements import made_from
from sdturbo_export.options import BuildOptions
from sdturbo_export.stage_store import key_of, sources, stage_key
from sdturbo_export.stage_store.sources import source_hashes
from sdturbo_export.stages import stage_definitions

UNRELATED = ("sdturbo_export.cli", "sdturbo.commands.cli", "sdturbo.pipeline", "sdturbo_serve.app")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """write(file, text) puts a module into the package `apart`, which is importable."""
    folder = tmp_path / "apart"
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("from apart import unrelated")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda file, text: (folder / file).write_text(text)


@pytest.fixture
def touch(monkeypatch):
    """touch(module) changes the source that is read for it."""
    read, touched = sources._read, set()
    monkeypatch.setattr(sources, "_read", lambda module: read(module) + b"# changed" * (module in touched))
    return touched.add


def test_what_is_imported_is_found_wherever_the_statement_stands(package):
    package("start.py", "import apart.plain\ndef later():\n    from apart.deep import inner\n    import json, numpy")
    package("plain.py", "try:\n    from .deep.inner import VALUE\nexcept ImportError:\n    from . import sibling")
    package("sibling.py", "")
    package("unrelated.py", "")
    package("deep/__init__.py", "from .other import NAME")
    package("deep/inner.py", "VALUE = 1")
    package("deep/other.py", "from apart.deep import NAME")
    names = {"start", "plain", "sibling", "deep.inner"}
    assert set(source_hashes("apart.start")) == {f"apart.{name}" for name in names}
    package("start.py", "from apart.deep import NAME")
    assert set(source_hashes("apart.start")) == {"apart.start", "apart.deep", "apart.deep.other"}


def test_a_new_import_changes_the_hashes_and_so_does_its_module(package):
    package("start.py", "VALUE = 1")
    package("fresh.py", "VALUE = 1")
    before = source_hashes("apart.start")
    package("start.py", "from apart.fresh import VALUE")
    imported = source_hashes("apart.start")
    assert set(imported) - set(before) == {"apart.fresh"}
    package("fresh.py", "VALUE = 2")
    changed = source_hashes("apart.start")
    assert {name for name in changed if changed[name] != imported[name]} == {"apart.fresh"}


def test_imports_for_type_checkers_decide_nothing(package):
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import apart.plain\nelse:\n    import apart.sibling"
    )
    for file, content in {"start.py": text, "plain.py": "", "sibling.py": ""}.items():
        package(file, content)
    assert set(source_hashes("apart.start")) == {"apart.start", "apart.sibling"}


def test_a_name_without_a_file_is_an_error(package):
    package("start.py", "from apart.gone import VALUE")
    for module in ("apart.start", "sdturbo.backends.gone", "nobody.knows"):
        with pytest.raises(ModuleNotFoundError):
            source_hashes(module)


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("sdturbo_export.stages", ["text_encoder", "denoiser", "decoder", "encoder"]),
        ("sdturbo_export.stage_store.graphs", ["text_encoder", "denoiser", "decoder", "encoder"]),
        ("sdturbo_export.graphs.onnx_from_torch", ["text_encoder", "denoiser", "decoder", "encoder"]),
        ("sdturbo_export.rewrites.half", ["text_encoder", "denoiser", "decoder", "encoder"]),
        ("sdturbo_export.weights.lora", ["text_encoder", "denoiser", "decoder", "encoder"]),
        ("sdturbo_export.weights.autoencoder_tiny", ["text_encoder", "denoiser", "decoder", "encoder"]),
        ("sdturbo.bundle.description", ["text_encoder", "denoiser", "decoder", "encoder"]),
        ("sdturbo_export.rewrites.upsample", ["denoiser", "decoder"]),
        ("sdturbo_export.rewrites.geglu", ["denoiser"]),
        ("sdturbo_export.int8.session", []),
        *((module, []) for module in UNRELATED),
    ],
)
def test_a_stages_key_follows_its_sources(small_checkpoint, touch, module, stages):
    hashes = small_checkpoint.hashes()

    def keys():
        return {
            name: stage_key(definition, hashes, BuildOptions())
            for name, definition in stage_definitions(small_checkpoint).items()
        }

    before = keys()
    assert keys() == before
    touch(module)
    after = keys()
    assert [name for name in after if after[name] != before[name]] == stages


@pytest.mark.parametrize(
    ("module", "decides"),
    [
        ("sdturbo_export.int8.session", True),
        ("sdturbo_export.int8.recipe", True),
        ("sdturbo_export.int8.qdq", True),
        ("sdturbo_export.proof.distance", True),
        ("sdturbo.backends.ort", True),
        ("sdturbo.noise", True),
        *((module, False) for module in UNRELATED),
    ],
)
def test_an_int8_measurements_key_follows_its_sources(touch, module, decides):
    before = key_of(made_from("test", {}))
    assert key_of(made_from("test", {})) == before
    touch(module)
    assert (key_of(made_from("test", {})) != before) == decides


def test_keys_know_modules_and_not_the_paths_of_this_machine():
    parts = made_from("test", {})
    assert all(name.startswith(("sdturbo.", "sdturbo_export.")) for name in parts["sources"])
    assert all(len(digest) == 64 for digest in parts["sources"].values())

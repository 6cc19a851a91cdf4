"""The registry of rewrites: a file and the line that names it are all there is to one, inside the package or outside."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from silu_as_product import SiluAsProduct
from torch import nn

from sdturbo.errors import InvalidRequest
from sdturbo_export import rewrites
from sdturbo_export.build import build
from sdturbo_export.options import BuildOptions
from sdturbo_export.rewrites import added, rewrite_module, rewrite_names, rewrites_of
from sdturbo_export.stage_store import sources, stage_key
from sdturbo_export.stages import example_inputs, graph_module, stage_definitions

NAME = "silu-as-product"


@pytest.fixture
def outside():
    with added("silu_as_product"):
        yield


@pytest.fixture
def command(monkeypatch):
    """The command as it is first imported."""
    monkeypatch.delitem(sys.modules, "sdturbo_export.cli", raising=False)
    return importlib.import_module("sdturbo_export.cli").cli


def test_the_choices_of_without_are_listed_without_torch():
    code = """
import sys
for name in ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino"):
    sys.modules[name] = None
from sdturbo_export.cli import cli
cli(["build", "--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"[{'|'.join(rewrite_names())}]" in "".join(done.stdout.split())


def test_every_file_that_declares_a_rewrite_is_named():
    folder = Path(rewrites.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "REWRITE = " in path.read_text(encoding="utf-8")}
    assert {rewrite_module(name) for name in rewrite_names()} == {f"sdturbo_export.rewrites.{file}" for file in files}


def test_one_from_outside_is_the_last_while_it_is_added():
    before = rewrite_names()
    with added("silu_as_product"):
        assert rewrite_names() == (*before, NAME)
        assert rewrites_of("decoder", "fp32") == ("upsample", "group-norm", NAME)
        assert rewrites_of("decoder", "fp16") == ("transposed-upsample", NAME)
        assert rewrites_of("decoder", "fp32", without=(NAME, "upsample")) == ("group-norm",)
        assert NAME not in rewrites_of("denoiser", "fp32")
    assert rewrite_names() == before
    with pytest.raises(InvalidRequest, match=f"Got rewrites {NAME} to leave out"):
        rewrites_of("decoder", "fp32", without=(NAME,))


def test_it_goes_when_what_it_was_added_for_fails():
    before = rewrite_names()
    with pytest.raises(ZeroDivisionError), added("silu_as_product"):
        raise ZeroDivisionError
    assert rewrite_names() == before


@pytest.mark.parametrize("module", ["somebody.geglu", "silu_as_product"])
def test_a_name_is_given_once(outside, module):
    with pytest.raises(InvalidRequest, match="has that name"), added(module):
        pass
    assert rewrite_names()[-1] == NAME


def test_one_from_outside_changes_the_graph_module_and_not_its_output(small_checkpoint, outside):
    decoder = stage_definitions(small_checkpoint)["decoder"]
    inputs = example_inputs(decoder, 1, seed=3)
    modules = [graph_module(decoder, without=without) for without in ((), (NAME,))]
    kinds = [{type(child) for child in module.modules()} & {nn.SiLU, SiluAsProduct} for module in modules]
    assert kinds == [{SiluAsProduct}, {nn.SiLU}]
    with torch.no_grad():
        pictures, expected = (module.pixels(*inputs.values()) for module in modules)
    assert ((pictures - expected).norm() / expected.norm()).item() < 1e-5


def test_one_from_outside_is_built_into_its_stage_alone(small_checkpoint, small_bundle, store, outside, tmp_path):
    lines = []
    bundle = build(small_checkpoint, tmp_path / "out", store=store, say=lines.append)
    exported = [lines[i - 1].split()[1] for i, line in enumerate(lines) if line.strip().startswith("exported")]
    assert exported == ["decoder"]
    stages = json.loads((bundle.path / "bundle.json").read_text())["stages"]
    assert [name for name, stage in stages.items() if NAME in stage["rewrites"]] == ["decoder"]
    assert bundle.bundle_id != small_bundle.bundle_id
    assert (
        build(small_checkpoint, tmp_path / "plain", BuildOptions(without=[NAME]), store=store).bundle_id
        == small_bundle.bundle_id
    )


def test_the_key_follows_the_file_of_a_rewrite(small_checkpoint, outside, monkeypatch):
    hashes, decoder = small_checkpoint.hashes(), stage_definitions(small_checkpoint)["decoder"]

    def keys():
        return [stage_key(decoder, hashes, BuildOptions(without=without)) for without in ((), (NAME,))]

    before = keys()
    assert before[0] != before[1]
    read = sources._read
    monkeypatch.setattr(sources, "_read", lambda module: read(module) + b"\n" * (module == "silu_as_product"))
    after = keys()
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_the_command_offers_one_from_outside(small_path, outside, command, tmp_path, monkeypatch):
    asked = []

    def record(_, out, options, **others):
        asked.append(options)
        raise InvalidRequest("recorded")

    monkeypatch.setattr("sdturbo_export.build.build", record)
    arguments = ["build", "--model", str(small_path), "--out", str(tmp_path / "out"), "--workspace", str(tmp_path)]
    runner = CliRunner()
    assert NAME in runner.invoke(command, ["build", "--help"]).output.replace("\n", "").replace(" ", "")
    assert isinstance(runner.invoke(command, [*arguments, "--without", NAME]).exception, InvalidRequest)
    assert [options.without for options in asked] == [(NAME,)]
    assert runner.invoke(command, [*arguments, "--without", "sampling"]).exit_code == 2

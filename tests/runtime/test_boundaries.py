import subprocess
import sys
from functools import cache
from pathlib import Path

import grimp
import pytest

REPOSITORY = Path(__file__).parents[2]


def python(code, *arguments):
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_generation_needs_no_training_library(bundle_dir, tmp_path):
    code = """
import sys
for name in ("torch", "diffusers", "transformers", "onnx", "sdturbo_export", "onnxruntime", "openvino"):
    sys.modules[name] = None
import sdturbo
pipe = sdturbo.Pipeline.load(sys.argv[1], backend="null")
result = pipe("a cat", num_inference_steps=4)
result = pipe("a cat", image=result.images[0], num_inference_steps=4)
sdturbo.save_png(result.images[0], sys.argv[2])
print(result.images[0].size)
"""
    assert python(code, str(bundle_dir), str(tmp_path / "cat.png")) == "(64, 64)"


def test_the_server_needs_no_training_library(bundle_dir):
    code = """
import sys
for name in ("torch", "diffusers", "transformers", "onnx", "sdturbo_export", "openvino"):
    sys.modules[name] = None
import sdturbo, sdturbo_serve.cli
from sdturbo_serve import create_app
print(create_app(sdturbo.Pipeline.load(sys.argv[1], backend="null")).title)
"""
    assert python(code, str(bundle_dir)) == "sdturbo"


def test_the_servers_command_says_what_is_missing_instead_of_a_stack_trace(bundle_dir):
    code = """
import sys
for name in ("fastapi", "uvicorn", "isal"):
    sys.modules[name] = None
from sdturbo.commands.console import run
from sdturbo_serve.cli import cli
assert run(cli, "sdturbo-serve", ["--help"]) == 0
del sys.modules["fastapi"], sys.modules["uvicorn"], sys.modules["isal"]
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "fastapi" else real(name, *rest)
print(run(cli, "sdturbo-serve", ["--bundle", sys.argv[1]]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(bundle_dir)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "4"
    assert (
        "needs fastapi, not installed here. In a clone of sdturbo, `pip install '.[serve]'` brings them." in done.stderr
    )


def test_importing_the_package_loads_no_library():
    code = "import sys, sdturbo; print(*sorted({name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    loaded = python(code).split()
    assert not {"numpy", "PIL", "tokenizers", "onnxruntime", "openvino", "torch", "click"} & set(loaded)


def test_every_public_name_can_be_had():
    code = "import sdturbo; print(*(getattr(sdturbo, name).__name__ for name in sdturbo.__all__))"
    assert "Pipeline" in python(code).split()


def test_an_unknown_name_is_an_attribute_error():
    code = "import sdturbo; print(hasattr(sdturbo, 'pipelines'), hasattr(sdturbo, 'Pipeline'))"
    assert python(code) == "False True"


def test_import_contracts_hold():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(("package", "entries"), [("sdturbo", 19), ("sdturbo_export", 19)])
def test_a_folder_holds_few_names(package, entries):
    (folder,) = REPOSITORY.glob(f"*/{package}")
    tracked = subprocess.run(["git", "ls-files", "."], cwd=folder, capture_output=True, text=True, check=True).stdout
    names = {name.split("/")[0] for name in tracked.split()}
    assert 5 < len({name for name in names if not name.startswith("__")}) <= entries


@pytest.mark.parametrize("package", ["sdturbo", "sdturbo_export"])
def test_chains_of_imports_are_short(package):
    """From a command down to the last module it needs, a subpackage counted once."""
    graph = grimp.build_graph(package)
    modules = sorted(graph.find_children(package) - {f"{package}.__main__"})
    for module in modules:
        graph.squash_module(module)

    @cache
    def longest(module):
        below = graph.find_modules_directly_imported_by(module) - {package, module}
        return 1 + max((longest(one) for one in below), default=0)

    chains = {module: longest(module) for module in modules}
    assert 3 < max(chains.values()) <= 10, chains

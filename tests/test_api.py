"""The API of other libraries as our code uses it, against the real one: generated stubs of TensorRT 10 and 11 and of
cuda-bindings 12 and 13 (tests/typings/), and the installed onnxruntime. The type checker follows what objects are; this walks
names, so that it fails on a machine where the type checker is not run. The stubs that were written by hand
(tests/typings/libraries/) are held against what is installed."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from imitation import cuda as imitated_cuda
from imitation import tensorrt as imitated_tensorrt

ROOT = Path(__file__).parent.parent
TYPINGS = ROOT / "tests" / "typings"
LIBRARIES = TYPINGS / "libraries"
VERSIONS = ("tensorrt10", "tensorrt11")
OURS = [
    *sorted((ROOT / "engine/sdturbo/backends").rglob("*.py")),
    *sorted((ROOT / "export/sdturbo_export/tensorrt").glob("*.py")),
]
# members of objects that onnxruntime's functions return, by the class that has them
ORT_OBJECTS = {
    "InferenceSession": {"run", "run_with_iobinding", "get_inputs", "get_outputs", "get_providers", "io_binding"}
    | {"get_provider_graph_assignment_info"},
    "SessionOptions": {
        "add_session_config_entry",
        "log_severity_level",
        "intra_op_num_threads",
        "inter_op_num_threads",
    },
    "IOBinding": {"bind_ortvalue_input", "bind_ortvalue_output"},
    "RunOptions": {"add_run_config_entry"},
    "OrtValue": {"ortvalue_from_shape_and_type", "update_inplace", "numpy"},
}


def chains(tree, root):
    """Every dotted name in `tree` that begins at the module imported as `root` or kept as `self._root`, without the root; and
    what is imported from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == root:
            yield from ((alias.name,) for alias in node.names)
        names, inner = [], node
        while isinstance(inner, ast.Attribute):
            names, inner = [inner.attr, *names], inner.value
        if isinstance(inner, ast.Name) and inner.id == "self" and names[:1] == [f"_{root}"]:
            yield tuple(names[1:])
        elif isinstance(inner, ast.Name) and inner.id == root:
            yield tuple(names)


def used(root):
    """(file, chain) of every use in our code."""
    for path in OURS:
        for chain in set(chains(ast.parse(path.read_text(encoding="utf-8")), root)):
            if chain:
                yield path.name, chain


def stub_members(path):
    """name -> its members (a dict again) in a stub."""

    def members(body):
        found = {}
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                found[node.name] = members(node.body) if isinstance(node, ast.ClassDef) else {}
            elif isinstance(node, ast.AnnAssign):
                found[node.target.id] = {}
        return found

    return members(ast.parse(path.read_text(encoding="utf-8")).body)


def missing(chain, tree):
    """The first name of the chain that is not there."""
    for name in chain:
        if name not in tree:
            return name
        tree = tree[name]
        if not tree:  # a value: what follows is its own
            return None
    return None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("root", "stub", "least"),
    [
        ("tensorrt", "tensorrt/__init__.pyi", 16),
        ("runtime", "cuda/bindings/runtime.pyi", 16),
        ("driver", "cuda/bindings/driver.pyi", 4),
    ],
)
def test_every_name_we_use_is_in_the_real_api(version, root, stub, least):
    tree = stub_members(TYPINGS / version / stub)
    uses = list(used(root))
    assert len(uses) >= least
    assert [(file, chain) for file, chain in uses if missing(chain, tree)] == []


def test_what_tensorrt_for_rtx_alone_has_is_in_its_stub():
    """The stub is held against the library where that is installed."""
    tree = stub_members(LIBRARIES / "tensorrt_rtx/__init__.pyi")
    uses = list(used("tensorrt_rtx"))
    assert len(uses) > 2
    assert [(file, chain) for file, chain in uses if missing(chain, tree)] == []


def test_what_only_a_gpu_can_exercise_is_listed():
    """Every name of CUDA's runtime and driver and of TensorRT in our code, but for names of enums that stand for all members.

    All methods of the stub of TensorRT for RTX, for it holds no others than we call.
    """
    text = (ROOT / "benchmarks/gpu_acceptance.md").read_text(encoding="utf-8")
    roots = ("tensorrt", "tensorrt_rtx", "runtime", "driver")
    names = {chain[-1] for root in roots for _, chain in used(root)} - {"__version__", "__init__", "__members__"}
    names |= {name for kind in stub_members(LIBRARIES / "tensorrt_rtx/__init__.pyi").values() for name in kind}
    names -= {"__members__"}
    enums = {"cudaMemcpyKind", "cudaStreamCaptureMode"}
    assert len(names) > 30
    assert {name for name in names - enums if name not in text} == set()


def test_a_name_that_is_gone_is_found():
    """FP16 is a flag of TensorRT 10 that 11 has not."""
    chain = max(chains(ast.parse("tensorrt.BuilderFlag.FP16"), "tensorrt"), key=len)
    assert chain == ("BuilderFlag", "FP16")
    assert [missing(chain, stub_members(TYPINGS / one / "tensorrt/__init__.pyi")) for one in VERSIONS] == [None, "FP16"]


def test_every_name_of_onnxruntime_we_use_is_in_the_installed_one():
    import onnxruntime

    uses = list(used("onnxruntime")) + list(used("ort"))
    assert len(uses) > 5
    for file, chain in uses:
        if chain[-1] == "preload_dlls" or hasattr(importlib.import_module("onnxruntime"), chain[0]):
            continue
        pytest.fail(f"{file}: onnxruntime has no {'.'.join(chain)}")
    for kind, names in ORT_OBJECTS.items():
        assert {name for name in names if not hasattr(getattr(onnxruntime, kind), name)} == set(), kind


def lies(path, module):
    """Names, and parameters of Python functions, that the stub `path` has and `module` has not."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            kind = getattr(module, node.name, None)
            for member in node.body if kind is not None else ():
                yield from missing_parts(member, kind, node.name)
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AnnAssign)):
            yield from missing_parts(node, module, module.__name__)


def missing_parts(node, owner, owner_name):
    name = node.target.id if isinstance(node, ast.AnnAssign) else getattr(node, "name", None)
    if name is None:  # a docstring, or the dots of an empty class
        return
    if not hasattr(owner, name) and not is_set_on_instances(owner, name):
        yield f"{owner_name}.{name}"
    elif isinstance(node, ast.FunctionDef) and node.name != "__call__":
        try:
            real = inspect.signature(getattr(owner, name)).parameters.values()
        except (TypeError, ValueError):  # compiled
            return
        if inspect.Parameter.VAR_KEYWORD not in {parameter.kind for parameter in real}:
            stated = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
            yield from (f"{owner_name}.{name}({extra})" for extra in stated - {parameter.name for parameter in real})


def is_set_on_instances(kind, name):
    """Whether a class written in Python sets `self.name`, or takes `name` as a part of a pipeline."""
    try:
        source = inspect.getsource(kind) if inspect.isclass(kind) else ""
    except (OSError, TypeError):  # compiled
        return False
    return re.search(rf"\bself\.{name} = |^ {{8}}{name}: ", source, re.MULTILINE) is not None


@pytest.mark.parametrize("stub", sorted(LIBRARIES.rglob("*.pyi")), ids=lambda path: str(path.relative_to(LIBRARIES)))
def test_a_stub_has_no_name_that_the_installed_library_lacks(stub):
    name = ".".join(stub.relative_to(LIBRARIES).with_suffix("").parts).removesuffix(".__init__")
    if name == "tensorrt_rtx":
        pytest.importorskip(name)  # `make test` does without it
    assert list(lies(stub, importlib.import_module(name))) == []


def test_a_lie_of_a_stub_is_found(tmp_path):
    stub = tmp_path / "onnxruntime.pyi"
    stub.write_text(
        "class RunOption: ...\nclass RunOptions:\n    level: int\nclass OrtValue:\n    def numpi(self) -> int: ...\n"
        "    def update_inplace(self, array: int) -> None: ...\ndef get_device() -> str: ...\n"
    )
    lied = {"onnxruntime.RunOption", "RunOptions.level", "OrtValue.numpi", "OrtValue.update_inplace(array)"}
    assert set(lies(stub, importlib.import_module("onnxruntime"))) == lied


@pytest.mark.parametrize("version", VERSIONS)
def test_the_imitations_have_no_name_that_the_libraries_lack(version):
    runtime = stub_members(TYPINGS / version / "cuda/bindings/runtime.pyi")
    driver = stub_members(TYPINGS / version / "cuda/bindings/driver.pyi")
    assert {name for name in vars(imitated_cuda.Cuda) if name.startswith("cuda") and name not in runtime} == set()
    assert {name for name in vars(imitated_cuda.Driver) if name.startswith("cu") and name not in driver} == set()
    for kind, name in ((imitated_cuda.Kind, "cudaMemcpyKind"), (imitated_cuda.Mode, "cudaStreamCaptureMode")):
        assert set(kind.__members__) <= set(runtime[name])
    assert set(imitated_cuda.Error.__members__) <= set(runtime["cudaError_t"])
    trt = stub_members(TYPINGS / version / "tensorrt/__init__.pyi")
    for name, kind in vars(imitated_tensorrt.Trt).items():
        if isinstance(kind, type):
            assert set(getattr(kind, "__members__", ())) <= set(trt[name]), name
    for kind, name in (
        (imitated_tensorrt.Runtime, "Runtime"),
        (imitated_tensorrt.Engine, "ICudaEngine"),
        (imitated_tensorrt.Context, "IExecutionContext"),
        (imitated_tensorrt.Builder, "Builder"),
    ):
        own = {one for one in vars(kind) if not one.startswith("_")} - {"array", "get_engine_information"}
        assert own <= set(trt[name]), name


@pytest.mark.parametrize("version", VERSIONS)
def test_calls_of_cuda_have_the_real_number_of_arguments(version):
    stubs = [TYPINGS / version / f"cuda/bindings/{name}.pyi" for name in ("runtime", "driver")]
    functions = [node for stub in stubs for node in ast.parse(stub.read_text(encoding="utf-8")).body]
    arity = {node.name: len(node.args.args) for node in functions if isinstance(node, ast.FunctionDef)}
    calls = 0
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in arity:
                assert len(node.args) == arity[node.func.attr], f"{path.name}: {node.func.attr}"
                calls += 1
    assert calls > 15


WRONG = """
import tensorrt
from cuda.bindings import runtime

def run(context: tensorrt.IExecutionContext, config: tensorrt.IBuilderConfig) -> None:
    context.execute_async_v2(1)
    config.set_flag(tensorrt.BuilderFlag.FP16)
    runtime.cudaMalloc(1, 2)
"""


def test_the_type_checker_finds_what_the_libraries_lack(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    settings = {"include": ["wrong.py"], "stubPath": str(TYPINGS / "tensorrt11"), "typeCheckingMode": "strict"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [Path(sys.executable).with_name("basedpyright"), "--outputjson", "-p", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {
        one["range"]["start"]["line"]
        for one in json.loads(done.stdout)["generalDiagnostics"]
        if one["severity"] == "error"
    }
    assert found == {5, 6, 7}

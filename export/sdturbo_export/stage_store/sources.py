"""The code that decides an entry of the store, read off the import statements from its first modules on.

Imports inside functions count. A module that is loaded by its name, as backends and rewrites are, is in no statement: its key
names it. Imports for type checkers decide nothing. Nor does a package, unless a statement takes a name from its `__init__`.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path

_OURS = ("sdturbo", "sdturbo_export")


def source_hashes(*modules: str) -> dict[str, str]:
    """Name -> sha256 of the source: of `modules`, and of each module of ours that they import, directly or not.

    modules: full names. Ours are this project's packages and those of `modules`.
    Raises ModuleNotFoundError for a name without a file.
    """
    ours = {*_OURS, *(module.partition(".")[0] for module in modules)}
    hashes: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in hashes:
            source = _read(module)
            hashes[module] = hashlib.sha256(source).hexdigest()
            waiting += _imported(module, source, ours)
    return hashes


def _read(module: str) -> bytes:
    file = _file(module)
    if file is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    return file.read_bytes()


def _file(module: str) -> Path | None:
    """The file of the module or of the package's `__init__`. None if there is none. Imports nothing."""
    spec = find_spec(module.partition(".")[0])
    if spec is None:
        return None
    (place, *_) = spec.submodule_search_locations or [spec.origin or ""]
    path = Path(place).parent.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imported(module: str, source: bytes, ours: set[str]) -> Iterator[str]:
    """The modules of ours that the statements of `module` import."""
    file = _file(module)
    is_package = file is not None and file.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    for written, name in _statements(source):
        base = resolve_name(written, package)
        if base.partition(".")[0] in ours:
            is_module = name is not None and _file(f"{base}.{name}") is not None
            yield f"{base}.{name}" if is_module else base


@cache
def _statements(source: bytes) -> tuple[tuple[str, str | None], ...]:
    """(a.b, None) for each `import a.b`, (a.b, c) for each `from a.b import c`."""
    imports: list[tuple[str, str | None]] = []
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += [(alias.name, None) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            imports += [("." * node.level + (node.module or ""), alias.name) for alias in node.names]
    return tuple(imports)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below `node` except the bodies of `if TYPE_CHECKING`."""
    yield node
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        children = node.orelse
    for child in children:
        yield from _nodes(child)

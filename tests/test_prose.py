"""The documents and the help texts: short sentences, plain words, and nothing named that is not there."""

import ast
import io
import re
import shlex
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import sdturbo.commands.cli
import sdturbo_export.cli
import sdturbo_serve.cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "engine/README.md",
    "engine/sdturbo_serve/README.md",
    "export/README.md",
    "export/sdturbo_export/graphs/README.md",
    "export/sdturbo_export/int8/README.md",
    "export/sdturbo_export/rewrites/README.md",
    "export/sdturbo_export/tiny/checkpoint/README.md",
    "benchmarks/README.md",
    "benchmarks/gpu_acceptance.md",
)
COMMANDS = {
    "sdturbo": sdturbo.commands.cli.cli,
    "sdturbo-export": sdturbo_export.cli.cli,
    "sdturbo-serve": sdturbo_serve.cli.cli,
}
MOST_WORDS = 32  # in a sentence
MOST_SEMICOLONS = 3  # in all of it
MOST_WORDS_MEAN = 35  # in a paragraph of README and CONTRIBUTING
_CODE = re.compile(r"```.*?```|<!--.*?-->", re.DOTALL)
_TABLE = re.compile(r"^\s*\|.*$", re.MULTILINE)
_HEADING = re.compile(r"^#+ .*$", re.MULTILINE)
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.) ", re.MULTILINE)
# "a" where "per" is meant, and pronouns in the place of a noun
_UNCLEAR = re.compile(
    r"\bwho(?:m|so)?ever\b|\b(?:pictures|messages|times|once|twice|ms|one|each|thread|graph|file|prompt|key|pair|median|ratio)"
    r" an? (?:second|minute|line|picture|prompt|batch|stage|step|channel|request|machine|load|pair|replica|process|GPU)\b",
    re.IGNORECASE,
)


CODE = sorted(path for folder in ("engine", "export", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))
RUNTIME = sorted((ROOT / "engine" / "sdturbo").rglob("*.py"))
_CITATION = re.compile(r'([\w./]*\b(?:README|CONTRIBUTING)(?:\.md)?), "([^"]+)"')  # a page and one of its headings


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """The text without code blocks, comments and tables."""
    return _TABLE.sub("", _CODE.sub("", text))


def sentences(text: str) -> Iterator[str]:
    """Sentences end with a full stop, an empty line, a heading or an item of a list."""
    parted = _ITEM.sub("\n\n", _HEADING.sub(lambda found: f"\n{found[0]}\n", prose(text)))
    return (" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", parted) if part.strip())


def too_long(text: str) -> list[str]:
    return [f"{len(one.split())} words: {one}" for one in sentences(text) if len(one.split()) > MOST_WORDS]


def paragraphs(text: str) -> list[str]:
    """Blocks between empty lines, a list without empty lines being one; headings and pictures are none."""
    blocks = (block.strip() for block in re.split(r"\n\s*\n", _HEADING.sub("", prose(text))))
    return [block for block in blocks if block and not re.fullmatch(r"!\[[^]]*\]\([^)]*\)", block)]


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for part, inner in command.commands.items():
            yield from commands(f"{name} {part}", inner)


HELP = {
    f"{name} {getattr(part, 'opts', ['--help'])[0]}": part.help
    for program, group in COMMANDS.items()
    for name, command in commands(program, group)
    for part in (command, *command.params)
    if getattr(part, "help", None)
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_sentence_of_a_document_is_long(name):
    assert too_long(read(name)) == []


def test_no_sentence_of_a_help_text_is_long():
    assert len(HELP) > 40
    assert {name: found for name, text in HELP.items() if (found := too_long(text))} == {}


def test_semicolons_are_rare():
    texts = {name: prose(read(name)) for name in DOCUMENTS} | HELP
    assert sum(text.count(";") for text in texts.values()) <= MOST_SEMICOLONS, [n for n, t in texts.items() if ";" in t]


def test_a_per_is_a_per_and_a_noun_is_a_noun():
    texts = {name: _CODE.sub("", read(name)) for name in DOCUMENTS} | HELP
    assert {name: found for name, text in texts.items() if (found := _UNCLEAR.findall(text))} == {}


def test_every_option_has_a_help_text_and_every_command_an_example():
    for program, group in COMMANDS.items():
        for name, command in commands(program, group):
            assert "Example" in (command.epilog or ""), name
            options = [part for part in command.params if isinstance(part, click.Option)]
            assert [part.opts[0] for part in options if not part.help] == [], name


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 150


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_paragraphs_are_short(name):
    counts = [len(one.split()) for one in paragraphs(read(name))]
    assert len(counts) > 10
    assert sum(counts) / len(counts) <= MOST_WORDS_MEAN


@pytest.mark.parametrize("name", (*DOCUMENTS, "CHANGELOG.md"))
def test_links_lead_to_files_and_headings(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", _CODE.sub("", read(name))):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor:
            headings = [re.sub(r"[^\w\- ]", "", one.lstrip("# ")) for one in _HEADING.findall(file.read_text("utf-8"))]
            assert anchor in [one.lower().replace(" ", "-") for one in headings], target


@pytest.mark.parametrize("name", (*DOCUMENTS, ".github/workflows/ci.yml", ".pre-commit-config.yaml"))
def test_make_targets_that_are_named_exist(name):
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|[:(] )make ([a-z][\w-]*)", read(name), re.MULTILINE))
    assert named - targets == set()


def test_ci_runs_what_the_repositorys_own_check_runs():
    (targets,) = re.findall(r"target: \[(.*)\]", read(".github/workflows/ci.yml"))
    usual, own = (
        set(re.search(r"not \((.*?)\)", read(name))[1].split(" or ")) for name in ("pyproject.toml", ".ci/run")
    )
    assert own < usual
    assert set(targets.split(", ")) == {"lint", "test"} | {f"test-{marker}" for marker in usual - own}
    assert re.findall(r"\bmake (lint|test)\b", read(".ci/run")) == ["lint", "test"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_that_are_shown_can_be_parsed(name):
    for block in re.findall(r"```\w*\n(.*?)```", read(name), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.split(" ")[0] not in COMMANDS:
                continue
            program, *arguments = shlex.split(line, comments=True)
            command = COMMANDS[program]
            if isinstance(command, click.Group):
                program, *arguments = arguments
                command = command.commands[program]
            command.make_context(program, arguments)


@pytest.mark.parametrize("name", (*DOCUMENTS, "Makefile", ".github/workflows/ci.yml"))
def test_extras_that_are_named_exist(name):
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    named = {
        extra for group in re.findall(r"(?:\.|sdturbo)\[([a-z,0-9-]+)\]", read(name)) for extra in group.split(",")
    }
    assert named - set(extras) == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tests_that_are_named_exist(name):
    for path, function in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", read(name)):
        tree = ast.parse(read(path))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
        assert not function or function in functions, f"{path}::{function}"


def test_the_table_of_what_users_suffer_from_names_tests():
    _, _, section = read("CONTRIBUTING.md").partition("## What users suffer from")
    rows = re.findall(r"^\| (?!what |---)(.*?) \| (.*?) \|$", section.partition("\n## ")[0], re.MULTILINE)
    assert len(rows) > 15
    assert [name for name, held in rows if "::" not in held and "nothing yet" not in held.lower()] == []


def test_files_of_the_readmes_tree_exist():
    (tree,) = re.findall(r"## The files\n+```\n(.*?)```", read("README.md"), re.DOTALL)
    folders: list[str] = []
    seen = 0
    for line in tree.splitlines():
        indent, names = re.fullmatch(r"( *)(\S+(?:, \S+)*)(?:  .*)?", line).groups()
        folders = folders[: len(indent) // 2]
        for entry in names.split(", "):
            assert Path(ROOT, *folders, entry).exists(), line
            seen += 1
        folders.append(names)
    assert seen > 15


def headings(name: str) -> list[str]:
    return [heading.lstrip("# ") for heading in _HEADING.findall(_CODE.sub("", read(name)))]


def test_headings_that_the_code_cites_exist():
    citations = [
        citation
        for path in CODE
        for citation in _CITATION.findall(re.sub(r"\s+(?:# )?", " ", path.read_text(encoding="utf-8")))
    ]
    assert len(citations) > 2
    assert [(page, heading) for page, heading in citations if heading not in headings(page)] == []


def comments_and_docstrings(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and "pyright:" not in token.string:
            yield token.string


def test_comments_and_docstrings_of_the_runtime_are_plain():
    texts = [(path.name, text) for path in RUNTIME for text in comments_and_docstrings(path)]
    assert len(texts) > 300
    assert [(name, words) for name, text in texts if (words := _UNCLEAR.findall(text))] == []
    assert [(name, text) for name, text in texts if ";" in text] == []
    assert [(name, long) for name, text in texts if (long := too_long(text))] == []


def test_texts_of_the_runtime_have_no_semicolons():
    strings = [
        (path.name, node.value)
        for path in RUNTIME
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(strings) > 1000
    assert [(name, text) for name, text in strings if re.search(r";\s+\S|\w;\s*$", text)] == []


def test_local_names_of_the_runtime_say_what_they_hold():
    vague = {"found", "one", "some", "told", "kept", "many"}
    names = [
        (path.name, node.id)
        for path in RUNTIME
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    assert len(names) > 500
    assert [(name, local) for name, local in names if local in vague] == []

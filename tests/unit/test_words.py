"""Words that read like a translation stay out: a reader must be able to search for the usual one."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.projects import ROOT

# Each of these has a plainer word, which is the one that readers search for.
INSTEAD = {
    r"mend(s|ed|ing)?": "fix",
    r"ill": "unhealthy",
    r"(is|are|be|was|were|becomes?) well": "healthy",
    r"anew": "again, regenerated",
    r"goes on|go on|gone on": "resumes, continues",
    r"had back": "restored",
    r"outbox": "metric queue",
    r"askers?": "caller",
    r"doubtful": "warning",
    r"strangers?": "unauthenticated client",
    r"lies in|lie in": "is in",
    r"the storage": "MinIO",
    r"this machine": "the host",
    r"of one moment": "point-in-time consistent",
    r"is told|are told|was told": "is reported",
    r"(is|are|was|were|be) refused|refuses": "is denied, is rejected",
    r"(is|are|was|were) away": "unavailable",
    r"for good": "permanently",
    r"presigned links?|through links": "presigned URLs",
}
# Pages were written before these words were added to the list.
ONLY_IN_CODE = {word for word in INSTEAD if re.search("well|storage|machine|refuse|go on|away|for good|links", word)}
WORDS = re.compile("|".join(rf"\b(?:{word})\b" for word in INSTEAD), re.IGNORECASE)
# As a name of a variable or function, none of these says what it holds or does.
EMPTY_NAMES = {"each", "found", "made", "one", "said", "there", "told"}

# Prose and comments for users.
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "compose").glob("*.yml")),
    *sorted((ROOT / "docker").glob("*/Dockerfile")),
    ROOT / "docker-compose.yml",
    ROOT / ".env.example",
    ROOT / "Makefile",
]
CODE = [
    path
    for folder in ("benchmarks", "docker", "src", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
]


def unusual(text: str) -> set[str]:
    return {match[0].lower() for match in WORDS.finditer(text)}


def instead_of(word: str) -> str:
    return next(usual for pattern, usual in INSTEAD.items() if re.fullmatch(pattern, word, re.IGNORECASE))


def names_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The names that a module gives to its functions, classes, arguments and variables."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield node.lineno, name


def texts_in(source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Comments, and strings: docstrings and messages."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def problems_in(source: str) -> dict[str, str]:
    """What to write instead, by line and word."""
    tree = ast.parse(source)
    problems = {f"{line}: {name}": "what it is" for line, name in names_in(tree) if name in EMPTY_NAMES}
    if WORDS.search(source.replace("_", " ")):
        names = ((line, name.replace("_", " ")) for line, name in names_in(tree))
        for line, text in (*names, *texts_in(source, tree)):
            problems |= {f"{line}: {word}": instead_of(word) for word in unusual(text)}
    return problems


def test_pages_use_the_usual_words(subtests: pytest.Subtests) -> None:
    for page in PAGES:
        with subtests.test(page=str(page.relative_to(ROOT))):
            text = re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))  # names of tests and files are not prose
            words = {word: instead_of(word) for word in unusual(text)}
            assert {word: usual for word, usual in words.items() if not any(map(re.compile(word).search, ()))} == {}


def test_code_uses_the_usual_words(subtests: pytest.Subtests) -> None:
    for path in CODE:
        with subtests.test(file=str(path.relative_to(ROOT))):
            assert problems_in(path.read_text(encoding="utf-8")) == {}

"""Words that read like a translation stay out: a reader must be able to search for the usual one."""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
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
WORDS = re.compile(rf"\b(?:{'|'.join(INSTEAD)})\b")
# As a name of a variable or function, none of these says what it holds or does.
EMPTY_NAMES = {"each", "found", "made", "one", "said", "there", "told"}

# Prose and comments for users.
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.ipynb")),
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


def instead_of(words: Iterable[str]) -> dict[str, str]:
    """The usual word for each of these."""
    return {word: next(usual for pattern, usual in INSTEAD.items() if re.fullmatch(pattern, word)) for word in words}


def unusual(text: str) -> dict[str, str]:
    return instead_of(match[0] for match in WORDS.finditer(text.lower()))


def names_and_texts(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, name and text: of names that the module defines (in words), comments, and strings such as docstrings and messages."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], "", token.string
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name, name.replace("_", " ")
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield node.lineno, name, name.replace("_", " ")
            case ast.Constant(value=str(text)):
                yield node.lineno, "", text


def problems_in(source: str) -> dict[str, str]:
    """What to write instead, by line and word."""
    problems: dict[str, str] = {}
    for line, name, text in names_and_texts(source):
        if name in EMPTY_NAMES:
            problems[f"line {line}: {name}"] = "what it is"
        problems |= {f"line {line}: {word}": usual for word, usual in unusual(text).items()}
    return problems


def test_pages_use_the_usual_words(subtests: pytest.Subtests) -> None:
    for page in PAGES:
        with subtests.test(page=str(page.relative_to(ROOT))):
            # Names of tests and files are not prose.
            assert unusual(re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))) == {}


def test_code_uses_the_usual_words(subtests: pytest.Subtests) -> None:
    for path in CODE:
        with subtests.test(file=str(path.relative_to(ROOT))):
            assert problems_in(path.read_text(encoding="utf-8")) == {}

"""docs/security.md lists every refusal that a test proves, and none that no test does."""

import ast
import re

from tests.support.projects import ROOT

MARK = "pytest.mark.refusal"


def proven() -> list[str]:
    return [
        node.name
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and MARK in map(ast.unparse, node.decorator_list)
    ]


def listed() -> list[list[str]]:
    text = (ROOT / "docs/security.md").read_text()
    rows = re.findall(r"^\| (.+) \| (.+) \| `(test_\w+)` \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in row] for row in rows]


def test_the_list_and_the_tests_are_the_same() -> None:
    names = [name for *_, name in listed()]
    assert sorted(names) == sorted(proven())
    assert len(names) == len(set(names)) >= 25


def test_each_row_says_who_tries_what_and_the_answer() -> None:
    assert all(who and answer for who, answer, _ in listed())

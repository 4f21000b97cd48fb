"""docs/security.md lists every attack that a test marked `refusal` performs, and no other."""

import ast
import re

from tests.support.projects import ROOT

MARK = "pytest.mark.refusal"


def attacks() -> list[str]:
    return [
        node.name
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and MARK in map(ast.unparse, node.decorator_list)
    ]


def rows() -> list[list[str]]:
    """The cells (attempt, answer, test) of each row that names a test."""
    lines = (ROOT / "docs/security.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.search(r"`test_\w+` *\|$", line)]


def test_page_lists_every_attack_once() -> None:
    names = [row[-1].strip("`") for row in rows()]
    assert names
    assert sorted(names) == sorted(attacks())


def test_every_row_has_an_attempt_and_an_answer() -> None:
    assert [row for row in rows() if len(row) != 3 or not all(row)] == []

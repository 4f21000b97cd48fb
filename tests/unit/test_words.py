"""Words that read like a translation stay out: a reader must be able to search for the usual one."""

import re
from pathlib import Path

import pytest

from tests.support.projects import ROOT

# What stands here has a plainer word, which is the one that readers search for.
INSTEAD = {
    r"mend(s|ed|ing)?": "fix",
    r"ill": "unhealthy",
    r"anew": "again, regenerated",
    r"had back": "restored",
    r"outbox": "metric queue",
    r"askers?": "caller",
    r"doubtful": "warning",
    r"strangers?": "unauthenticated client",
    r"lies in|lie in": "is in",
    r"of one moment": "point-in-time consistent",
    r"is told|are told|was told": "is reported",
}
# Prose and comments for users; Python code follows file by file.
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_uses_the_usual_words(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))  # names of tests and files are not prose
    found = {match[0]: usual for word, usual in INSTEAD.items() for match in re.finditer(rf"\b(?:{word})\b", text, re.IGNORECASE)}
    assert found == {}, f"write instead: {found}"

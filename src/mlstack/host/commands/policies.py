"""`make policy`: lists the versions of a model's policy, stores another one, or activates one, through the scoring service."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from mlstack import settings
from mlstack.errors import MlstackError, quoted
from mlstack.host import http
from mlstack.host.commands import keys
from mlstack.host.stack import Stack

WHY = "It makes decisions of a model's scores."
TIMEOUT = 60  # seconds: a policy is tried on 10,000 decisions
OK = 200


def listed(stack: Stack, model: str) -> list[str]:
    """A line for each version of a model's policy, the newest first. Raises MlstackError."""
    answer = _call(stack, "GET", quote(model, safe=""))
    return [
        quoted(
            f"{row['version']} {'active ' if row['version'] == answer['active'] else ''}{row['put_at'][:19]} {row['put_by']}"
            f" {json.dumps(row['definition'], ensure_ascii=False)}"
        )
        for row in answer["versions"]
    ]


def put(stack: Stack, model: str, file: str) -> tuple[int, str]:
    """Stores the definition in a file as the next version; returns that, and what it would change. Raises MlstackError."""
    try:
        definition = json.loads((stack.folder / Path(file).expanduser()).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        wrong = f"{file} cannot be read as JSON: {error}."
        raise MlstackError(wrong, "It defines the policy.", "docs/scoring.md shows one") from error
    answer = _call(stack, "POST", quote(model, safe=""), definition)
    return answer["version"], _changes(answer)


def activate(stack: Stack, model: str, version: str, reason: str) -> str:
    """Lets a version decide from now on, or no policy (none). Returns what it would have changed. Raises MlstackError."""
    if version != "none" and not version.isdecimal():
        raise MlstackError(f"{version!r} is no version.", "No policy was changed.", "make policy MODEL=… lists the versions")
    number = None if version == "none" else int(version)
    answer = _call(stack, "POST", f"{quote(model, safe='')}/activate", {"version": number, "reason": reason})
    return "" if number is None else _changes(answer)


def _changes(tried: Mapping[str, Any]) -> str:
    changes = ", ".join(f"{quoted(change)}: {count:,}" for change, count in tried["changes"].items())
    return f"would change {tried['changed']:,} of the newest {tried['replayed']:,} decisions" + (
        f" ({changes})" if changes else ""
    )


def _call(stack: Stack, method: str, path: str, body: object = None) -> dict[str, Any]:
    keys.require_on(stack)
    url = urljoin(stack.services.by_name[keys.SERVICE].url, f"/policies/{path}")
    answer = http.call(
        "scoring",
        method,
        url,
        why=WHY,
        timeout=TIMEOUT,
        account=settings.notebook_account(stack.values),
        headers={"Content-Type": "application/json"},
        body=None if body is None else json.dumps(body),
    )
    content: dict[str, Any] = answer.json()
    if answer.status != OK:
        message = quoted(str(content.get("message", answer.status)))
        raise MlstackError(f"the scoring service answers: {message}", "No policy was changed.", "docs/scoring.md, Policies")
    return content

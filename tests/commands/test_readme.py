"""The README, typed from top to bottom."""

from mlstack.host.compose import docker
from tests.support import readme
from tests.support.clone import Clone


def test_every_command_of_the_readme_works_as_written(stack: Clone) -> None:
    """In the README's order, at a terminal. `make test` is this run itself: make only prints what it would do."""
    commands = readme.commands()
    assert commands[:2] == ["make up", "make test"]
    for command in commands:
        if command in readme.of_parts():  # tests/parts/test_scoring.py runs these
            continue
        shown = readme.at_a_terminal(stack, command + (" --dry-run" if command == "make test" else ""))
        if command == "make up":
            assert f"?token={stack.values['JUPYTER_TOKEN']}" in shown  # one click logs in; not in a file
    assert commands[-1] == "make reset"
    assert not docker("volume", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={stack.name}")

"""The error that a user reads, and escaping of untrusted text."""

from collections.abc import Iterable


class MlstackError(Exception):
    """What is wrong, why it matters, and the command or variable that fixes it: always three lines."""

    def __init__(self, wrong: str, why: str, fix: str) -> None:
        self.wrong, self.why, self.fix = quoted(wrong), quoted(why), quoted(fix)
        super().__init__(self.wrong)

    def __str__(self) -> str:
        return f"{self.wrong}\n{self.why}\nFix: {self.fix}"

    def __reduce__(self) -> tuple[type["MlstackError"], tuple[str, str, str]]:
        """Pools of processes pickle it from a worker to its parent."""
        return type(self), (self.wrong, self.why, self.fix)


def quoted(text: str) -> str:
    """Untrusted text on one line, with control characters escaped: it can neither forge lines nor control a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def quoted_lines(lines: Iterable[str]) -> str:
    """Several such lines, each marked so that none looks like a line of mlstack."""
    return "\n".join(f"  | {quoted(line)}" for line in lines)

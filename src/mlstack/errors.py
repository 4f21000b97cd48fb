"""The error a user reads."""


class MlstackError(Exception):
    """What is wrong, why it matters, and the command or variable that fixes it."""

    def __init__(self, wrong: str, why: str, fix: str) -> None:
        super().__init__(wrong)
        self.wrong, self.why, self.fix = wrong, why, fix

    def __str__(self) -> str:
        return f"{self.wrong}\n{self.why}\nFix: {self.fix}"

    def __reduce__(self) -> tuple[type["MlstackError"], tuple[str, str, str]]:
        """Pools of processes hand it from a worker to its parent."""
        return type(self), (self.wrong, self.why, self.fix)

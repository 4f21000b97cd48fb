"""Which passwords an account may have."""

MINIMUM = 12  # characters: MLflow's own limit
DIFFERENT = 6  # different characters that must remain without everything guessable
COMMON = (
    *("password", "passwort", "passw0rd", "qwertyuiop", "qwerty", "asdfgh", "zxcvbn", "letmein", "welcome", "changeme", "secret"),
    *("iloveyou", "administrator", "admin", "notebook", "jupyter", "mlflow", "mlstack", "default", "login", "monkey", "dragon"),
)


def complaint(username: str, password: object) -> str | None:
    """What is wrong with a password; None for a good one."""
    if not isinstance(password, str) or len(password) < MINIMUM:
        return f"Password must be a string of at least {MINIMUM} characters."
    rest = password.lower()
    for word in (username.lower(), *COMMON):
        rest = rest.replace(word, "") if len(word) > 2 else rest  # noqa: PLR2004
    if len(set(_without_sequences(rest))) < DIFFERENT:
        return (
            "Password is easy to guess: it consists of common words, the account's name, repetitions or sequences like 1234."
            " Choose a longer one with more different characters, or let `make user` generate it."
        )
    return None


def _without_sequences(text: str) -> str:
    """The first character of each repetition (aaa), ascending (123) or descending (cba) sequence."""
    return "".join(
        character for before, character in zip("\0" + text, text, strict=False) if abs(ord(before) - ord(character)) > 1
    )

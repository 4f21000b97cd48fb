import base64
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import env_file
from mlstack.host.env_file import Changes
from mlstack.host.stack import Stack
from mlstack.settings import VARIABLES
from tests.support.projects import ROOT, as_compose_reads, python, set_values, without

SECRETS = [name for name, variable in VARIABLES.items() if variable.secret and not variable.optional]
KEY = "JUPYTER_TOKEN"
SECRET = "s3cr3tpart"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A project without `.env`, as it is cloned."""
    shutil.copy2(ROOT / ".env.example", tmp_path)
    return tmp_path


def text_of(project: Path) -> str:
    return (project / ".env").read_text()


def problems_of(project: Path) -> list[str]:
    """What is wrong with a project's `.env`."""
    stack = Stack.of(project)
    return env_file.problems(stack.env, stack.values)


def leftovers(project: Path) -> list[str]:
    return [path.name for path in project.glob(".env*") if path.name not in (".env", ".env.example")]


# ---- created --------------------------------------------------------------------------------------


def test_ensure_creates_a_private_file_without_problems(bare: Path) -> None:
    assert env_file.ensure(bare) == Changes(created=True)
    assert (bare / ".env").stat().st_mode & 0o777 == 0o600
    assert problems_of(bare) == []
    assert not re.search("^[A-Z].*<", text_of(bare), re.MULTILINE)
    assert leftovers(bare) == []


def test_ensure_keeps_the_comments_and_defaults_of_the_example(bare: Path) -> None:
    env_file.ensure(bare)
    example = (bare / ".env.example").read_text().splitlines()
    lines = text_of(bare).splitlines()
    assert len(lines) == len(example)
    assert [line for line in lines if line in example] == [line for line in example if "=<" not in line]


def test_secrets_have_128_bits_and_are_never_repeated(tmp_path: Path) -> None:
    secrets = []
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy2(ROOT / ".env.example", folder)
        env_file.ensure(folder)
        secrets += [settings.of_project(folder)[name] for name in SECRETS]
    assert all(
        len(base64.urlsafe_b64decode(secret) if secret.endswith("=") else bytes.fromhex(secret)) >= 16 for secret in secrets
    )
    assert len(set(secrets)) == 5 * len(SECRETS)


def test_containers_of_root_run_as_a_uid_of_no_person(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(os, "getgid", lambda: 0)
    env_file.ensure(bare)
    assert settings.read("HOST_UID", "HOST_GID", values=settings.of_project(bare)) == {"HOST_UID": "60712", "HOST_GID": "60712"}


@pytest.fixture
def old(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of root whose .env comes from a version in which root's uid in the containers was 1000."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(os, "getgid", lambda: 0)
    monkeypatch.setattr(env_file, "_uid_of", lambda path: 0)
    env_file.ensure(bare)
    env_file.change(bare, HOST_UID="1000", HOST_GID="1000")
    (bare / ".env").write_text(without(bare, "MINIO_BUCKET_QUOTA"))
    return bare


def owner_in(project: Path) -> set[str]:
    return {settings.of_project(project)[name] for name in ("HOST_UID", "HOST_GID")}


def test_ensure_replaces_the_old_uid_of_root_once_and_nothing_else(old: Path) -> None:
    before = settings.of_project(old)
    assert env_file.ensure(old).changed_owner
    assert owner_in(old) == {"60712"}
    after = settings.of_project(old)
    assert {name: value for name, value in after.items() if before.get(name) != value}.keys() == {
        "HOST_UID", "HOST_GID", "MINIO_BUCKET_QUOTA",
    }  # fmt: skip
    env_file.change(old, HOST_UID="1000", HOST_GID="1000")  # from now on by choice
    assert not env_file.ensure(old).changed_owner
    assert owner_in(old) == {"1000"}


def test_ensure_does_not_read_the_old_uid_of_root_back_from_containers(old: Path) -> None:
    (old / ".env").unlink()
    assert env_file.ensure(old, known={"HOST_UID": "1000", "HOST_GID": "1000", "POSTGRES_PORT": "1234"}).changed_owner
    assert owner_in(old) == {"60712"}
    assert settings.of_project(old)["POSTGRES_PORT"] == "1234"


def test_ensure_keeps_the_uid_of_a_person(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_file, "_uid_of", lambda path: 1000)  # root maintains a person's project
    assert not env_file.ensure(old).changed_owner
    assert owner_in(old) == {"1000"}


def test_ensure_under_sudo_keeps_the_uid_of_its_caller(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "1000")
    assert not env_file.ensure(old).changed_owner
    assert owner_in(old) == {"1000"}


def test_ensure_under_sudo_gives_files_to_its_caller(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(os, "getgid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "5678")
    env_file.ensure(bare)
    assert settings.read("HOST_UID", "HOST_GID", values=settings.of_project(bare)) == {"HOST_UID": "1234", "HOST_GID": "5678"}


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        ("plain-value_1", f"{KEY}=plain-value_1"),
        ("two words #$x", f"{KEY}='two words #$x'"),
    ],
)
def test_ensure_writes_values_that_the_shell_sets(bare: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, line: str) -> None:
    monkeypatch.setenv(KEY, chosen)
    env_file.ensure(bare)
    assert line in text_of(bare).splitlines()
    monkeypatch.delenv(KEY)
    assert settings.of_project(bare)[KEY] == chosen
    assert problems_of(bare) == []


@pytest.mark.parametrize("chosen", ["it's long enough", "back\\slash", "${POSTGRES_DB}xxxx", "two\nlines long"])
def test_ensure_generates_a_secret_if_the_shells_cannot_be_written(
    bare: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv(KEY, chosen)
    env_file.ensure(bare)
    monkeypatch.delenv(KEY)
    assert re.fullmatch("[0-9a-f]{32}", settings.of_project(bare)[KEY])
    assert problems_of(bare) == []


# ---- completed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [lambda text: text, lambda text: text.replace("\n", "\r\n"), lambda text: text.rstrip("\n")])
def test_ensure_changes_nothing_the_second_time(project: Path, edit: Callable[[str], str]) -> None:
    path = project / ".env"
    path.write_bytes(edit(text_of(project)).encode())
    os.utime(path, ns=(1, 1))
    before = path.read_bytes()
    assert env_file.ensure(project) == Changes()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, 1)


ODD_LINES = f"""\
# mine: {KEY}=not-this-one
{KEY} = 'odd # $formatting'   # why
export MINIO_BUCKET="bucket-of-mine"


   POSTGRES_DB=metrics\t
MY_OWN_KEY=x
"""


def test_ensure_appends_the_keys_of_a_newer_version_and_keeps_the_rest(project: Path) -> None:
    text = ODD_LINES + without(project, KEY, "MINIO_BUCKET", "POSTGRES_DB", "LOG_LEVEL", "MLFLOW_DB_PASSWORD", "MLFLOW_IMAGE")
    (project / ".env").write_text(text)
    values = settings.of_project(project)
    changes = env_file.ensure(project)
    assert changes == Changes(added=("MLFLOW_DB_PASSWORD", "LOG_LEVEL", "MLFLOW_IMAGE"))
    assert text_of(project).startswith(text)
    assert settings.of_project(project).items() >= values.items()
    assert problems_of(project) == []
    assert env_file.ensure(project) == Changes()


@pytest.mark.parametrize("line", [f"{KEY}=", f"{KEY}=''", f'{KEY}=""', f"{KEY}=   ", f"export {KEY}=", f"  {KEY} ="])
def test_ensure_generates_an_empty_secret(project: Path, line: str) -> None:
    before = without(project, KEY)
    (project / ".env").write_text(f"# first\n\n{line}\n{before}")
    assert env_file.ensure(project).added == (KEY,)
    assert re.fullmatch("[0-9a-f]{32}", settings.of_project(project)[KEY])
    assert text_of(project).startswith("# first\n")
    assert before.strip() in text_of(project)
    assert problems_of(project) == []


def test_ensure_keeps_an_empty_optional_value(project: Path) -> None:
    assert settings.of_project(project)["POSTGRES_IMAGE"] == ""
    assert env_file.ensure(project) == Changes()


@pytest.mark.parametrize("lines", [f"{KEY}={SECRET}\n{KEY}=\n", f"{KEY}=\n{KEY}={SECRET}\n"])
def test_ensure_keeps_a_value_beside_an_empty_line_of_the_same_key(project: Path, lines: str) -> None:
    (project / ".env").write_text(lines + without(project, KEY))
    assert env_file.ensure(project) == Changes()
    assert SECRET in text_of(project)
    assert f".env line 2 sets {KEY} a second time" in problems_of(project)


@pytest.mark.parametrize("placeholder", [settings.GENERATED, settings.DETECTED])
def test_problems_reports_a_placeholder(project: Path, placeholder: str) -> None:
    set_values(project, **{KEY: placeholder})
    assert env_file.ensure(project) == Changes()
    assert any(f"{KEY} still holds the placeholder {placeholder}" in problem for problem in problems_of(project))


@pytest.mark.parametrize("line", [f"{KEY}='{SECRET}", f'{KEY}="{SECRET}', f"{KEY}='{SECRET}\nHOST_UID=1'", KEY, "JUPYTER_TOK"])
def test_ensure_rejects_a_broken_line_and_writes_nothing(project: Path, line: str) -> None:
    broken = without(project, KEY, "HOST_UID") + line
    (project / ".env").write_text(broken)
    with pytest.raises(MlstackError, match=r"\.env line \d+ \(JUPYTER_TOK(EN)?\) is not KEY=value") as error:
        env_file.ensure(project)
    assert SECRET not in str(error.value)
    assert text_of(project) == broken


def test_ensure_writes_nothing_if_a_new_secret_would_not_match_a_volume(project: Path) -> None:
    (project / ".env").write_text(without(project, "POSTGRES_PASSWORD", KEY))
    before = text_of(project)
    with pytest.raises(MlstackError, match=r"POSTGRES_PASSWORD is missing from \.env.*the volume has the old one") as error:
        env_file.ensure(project, {"POSTGRES_PASSWORD": "the volume has the old one"}.get)
    assert "make reset" in error.value.fix
    assert text_of(project) == before


def test_ensure_creates_nothing_if_a_new_secret_would_not_match_a_volume(bare: Path) -> None:
    with pytest.raises(MlstackError, match="POSTGRES_PASSWORD is missing"):
        env_file.ensure(bare, {"POSTGRES_PASSWORD": "the volume has the old one"}.get)
    assert not (bare / ".env").exists()


def test_ensure_makes_a_file_private_that_others_can_read(project: Path, subtests: pytest.Subtests) -> None:
    for mode in (0o644, 0o640, 0o604, 0o666):
        with subtests.test(mode=oct(mode)):
            (project / ".env").chmod(mode)
            assert env_file.ensure(project) == Changes(made_private=True)
            assert (project / ".env").stat().st_mode & 0o777 == 0o600


def test_ensure_reports_that_a_completed_file_was_made_private(project: Path) -> None:
    (project / ".env").write_text(without(project, KEY))
    (project / ".env").chmod(0o644)
    assert env_file.ensure(project) == Changes(added=(KEY,), made_private=True)
    assert (project / ".env").stat().st_mode & 0o777 == 0o600


def test_ensure_by_root_keeps_the_owner_of_the_file(project: Path) -> None:
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    (project / ".env").write_text(without(project, KEY))
    os.chown(project / ".env", owner, -1)
    env_file.ensure(project)
    assert (project / ".env").stat().st_uid == owner


def test_ensure_keeps_a_symbolic_link_to_the_file(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(without(project, KEY))
    (project / ".env").unlink()
    (project / ".env").symlink_to(elsewhere)
    env_file.ensure(project)
    assert (project / ".env").is_symlink()
    assert f"\n{KEY}=" in elsewhere.read_text()


# ---- interrupted -------------------------------------------------------------------------------

ENSURE = "import sys; from pathlib import Path; from mlstack.host import env_file; env_file.ensure(Path(sys.argv[1]))"
KILLED = f"import os, signal; os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL); {ENSURE}"
DISK_FULL = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); {ENSURE}"
CTRL_C = f"import os, signal; os.fsync = lambda file: os.kill(os.getpid(), signal.SIGINT); {ENSURE}"


@pytest.mark.parametrize(
    ("code", "message"), [(KILLED, ""), (DISK_FULL, ".env cannot be written"), (CTRL_C, "KeyboardInterrupt")]
)
def test_interrupted_write_leaves_the_old_file(project: Path, code: str, message: str) -> None:
    before = without(project, KEY)
    (project / ".env").write_text(before)
    done = subprocess.run(python(code, str(project)), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert text_of(project) == before
    assert leftovers(project) == [] or code == KILLED
    assert env_file.ensure(project).added == (KEY,)


@pytest.mark.parametrize("code", [KILLED, DISK_FULL, CTRL_C])
def test_interrupted_first_write_leaves_no_file(bare: Path, code: str) -> None:
    assert subprocess.run(python(code, str(bare)), stderr=subprocess.DEVNULL, check=False).returncode != 0
    assert not (bare / ".env").exists()


def test_ensure_rejects_a_file_that_is_no_text(project: Path) -> None:
    (project / ".env").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MlstackError, match=r"\.env cannot be read") as error:
        env_file.ensure(project)
    assert str(project / ".env") in error.value.fix


# ---- formats -----------------------------------------------------------------------------------

ACCEPTED = [
    (f"{KEY}=abcdefgh12", "abcdefgh12"),
    (f"{KEY}=abcdefgh12   ", "abcdefgh12"),
    (f"{KEY}=abcdefgh12\t", "abcdefgh12"),
    (f"{KEY}= abcdefgh12", "abcdefgh12"),
    (f"{KEY} = abcdefgh12", "abcdefgh12"),
    (f"  {KEY}=abcdefgh12", "abcdefgh12"),
    (f"export {KEY}=abcdefgh12", "abcdefgh12"),
    (f"\n  \n{KEY}=abcdefgh12", "abcdefgh12"),
    (f"{KEY}='abcdefgh12'", "abcdefgh12"),
    (f'{KEY}="abcdefgh12"', "abcdefgh12"),
    (f"{KEY}='abcdefgh12' # comment", "abcdefgh12"),
    (f"{KEY}='abcd efgh'", "abcd efgh"),
    (f"{KEY}=' abcdefgh '", " abcdefgh "),
    (f"{KEY}='pa$$ #word'", "pa$$ #word"),
    (f"{KEY}='abcd$efgh$'", "abcd$efgh$"),
    (f"{KEY}='$(id) `id`'", "$(id) `id`"),
    (f"{KEY}='ab\"cd\"efgh'", 'ab"cd"efgh'),
    (f"{KEY}='# no comment'", "# no comment"),
    (f"{KEY}=abcd#efgh", "abcd#efgh"),
    (f"{KEY}=abcd=efgh==", "abcd=efgh=="),
    (f"{KEY}==abcdefgh", "=abcdefgh"),
    (f"{KEY}=!%&()*+,-./:;<>?@[]^_{{|}}~", "!%&()*+,-./:;<>?@[]^_{|}~"),
    (f"{KEY}=pässwörd", "pässwörd"),
    (f"{KEY}=abcd-${{MINIO_BUCKET}}", "abcd-mlflow"),
    (f'{KEY}="abcd-${{MINIO_BUCKET}}"', "abcd-mlflow"),
    ("LOG_DIR=my logs", "my logs"),
    ('LOG_DIR="my logs"', "my logs"),
    ('LOG_DIR="my logs # here"', "my logs # here"),
    ("LOG_DIR=logs # comment", "logs"),
    ("LOG_DIR=C:/logs", "C:/logs"),
    ("LOG_DIR=~/logs", "~/logs"),
    ("POSTGRES_IMAGE=", ""),
    ("POSTGRES_IMAGE=''", ""),
]


@pytest.mark.docker
def test_python_and_compose_read_an_accepted_line_alike(project: Path, subtests: pytest.Subtests) -> None:
    others = without(project, KEY, "LOG_DIR", "POSTGRES_IMAGE")
    copies = []  # of each line, under keys of their own, so that compose reads them all at once
    for number, (line, value) in enumerate(ACCEPTED):
        with subtests.test(line=line):
            key = re.sub(r"^\s*(export )?|\s*=.*", "", line, flags=re.DOTALL)
            (project / ".env").write_text(without(project, key) + line)
            assert problems_of(project) == []
            assert settings.of_project(project)[key] == value
            copies.append(line.replace(key, f"LINE{number}", 1))
        (project / ".env").write_text(f"{others}{KEY}=abcdefgh12\nLOG_DIR=logs\nPOSTGRES_IMAGE=\n")
    (project / ".env").write_text(others + "\n".join(copies))
    expected = {f"LINE{number}": value for number, (_, value) in enumerate(ACCEPTED)}
    assert as_compose_reads(project, *expected) == expected


PIECES = ("a", "é", " ", "#", "=", "$", "${MINIO_BUCKET}", "'", '"', "\\", "`", "\t", "\u00a0", "\r")
LINES = [
    f"={quote}{''.join(pieces)}{quote}{tail}"
    for pieces in product(("", "x"), PIECES, ("", *PIECES))
    for quote, tail in product(("", "'", '"'), ("", " # b"))
]


@pytest.mark.docker
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_python_and_compose_read_every_accepted_mixture_of_characters_alike(bare: Path, end: str) -> None:
    accepted = {}
    for number, line in enumerate(LINES):
        (bare / ".env").write_bytes(f"MINIO_BUCKET=mlflow{end}K{number}{line}{end}".encode())
        if not [problem for problem in problems_of(bare) if problem.startswith(".env line")]:
            accepted[f"K{number}"] = line
    assert len(accepted) > 400
    (bare / ".env").write_bytes(end.join(["MINIO_BUCKET=mlflow", *(name + line for name, line in accepted.items())]).encode())
    of_python, of_compose = settings.of_project(bare), as_compose_reads(bare, *accepted)
    assert {line: of_python[name] for name, line in accepted.items() if of_python[name] != of_compose[name]} == {}


@pytest.mark.docker
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_python_and_compose_read_a_file_from_another_editor_alike(project: Path, mark: str, end: str) -> None:
    lines = text_of(project).splitlines()
    assignments = [line for line in lines if "=" in line and not line.startswith("#")]
    (project / ".env").write_bytes((mark + end.join(assignments) + end).encode())
    assert problems_of(project) == []
    assert as_compose_reads(project, *VARIABLES) == settings.of_project(project)


REJECTED = [
    (f"{KEY}=abcd${SECRET}", "has a $"),
    (f"{KEY}=abcd$${SECRET}", "has a $"),
    (f"{KEY}=abcd${{{SECRET}}}", "has a $"),
    (f"{KEY}=${{MINIO_BUCKET:-{SECRET}}}", "has a $"),
    (f"{KEY}=${{JUPYTER_PORT}}{SECRET}", "refers to JUPYTER_PORT, which is not set above it"),
    (f"{KEY}=${{{KEY}}}{SECRET}", f"refers to {KEY}, which is not set above it"),
    (f'{KEY}="abcd${SECRET}"', "has a $"),
    (f"{KEY}=$'{SECRET}'", "has a $"),
    (f"{KEY}=`{SECRET}`", "has a $"),
    (f"{KEY}=abcd\\n{SECRET}", "a backslash outside single quotes"),
    (f'{KEY}="abcd\\n{SECRET}"', "a backslash outside single quotes"),
    (f"{KEY}='abcd\\n{SECRET}'", "has a backslash"),
    (f"{KEY}='abcd\\'{SECRET}'", "has a backslash"),
    (f"{KEY}='${{MINIO_BUCKET}}{SECRET}'", "or ${…} inside quotes"),
    (f"{KEY}='${{{SECRET}}}'", "or ${…} inside quotes"),
    (f'{KEY}={SECRET}"', "a quote"),
    (f"{KEY}={SECRET}'", "a quote"),
    (f'{KEY}=abcd"{SECRET}"', "a quote"),
    (f'{KEY}="{SECRET}" # comment', "a quote"),
    (f"{KEY}='{SECRET}' # it's", "a quote or ${…} inside quotes"),
    (f"{KEY}=abcd {SECRET}", "has a space or a comment"),
    (f'{KEY}="abcd {SECRET}"', "has a space or a comment"),
    (f"{KEY}={SECRET} # comment", "has a space or a comment"),
    (f"{KEY}=#{SECRET}", "begins with #"),
    (f"{KEY}= # {SECRET}", "begins with #"),
    (f"{KEY}={SECRET}\t# comment", "has a tab"),
    (f"{KEY}='{SECRET}\t'", "has a tab"),
    (f"{KEY}={SECRET}\u00a0", "an invisible character"),
    (f"{KEY}={SECRET}\u200b", "an invisible character"),
    (f"{KEY}={SECRET}\x1f", "an invisible character"),
    (f"{KEY}='{SECRET}\u2028'", "an invisible character"),
    (f"{KEY}='{SECRET}", "(JUPYTER_TOKEN) is not KEY=value"),
    (f'{KEY}="{SECRET}', "(JUPYTER_TOKEN) is not KEY=value"),
    (f"{KEY}='{SECRET}'x", "(JUPYTER_TOKEN) is not KEY=value"),
    (f"{KEY}='abcd'{SECRET}'", "(JUPYTER_TOKEN) is not KEY=value"),
    (f'{KEY}="abcd"{SECRET}"', "(JUPYTER_TOKEN) is not KEY=value"),
    (f"{KEY}='{SECRET}\nabcd'", "(JUPYTER_TOKEN) is not KEY=value"),
    (f'{KEY}="{SECRET}\nabcd"', "(JUPYTER_TOKEN) is not KEY=value"),
    (f"{KEY}: {SECRET}", "(JUPYTER_TOKEN) is not KEY=value"),
    (f"{KEY}:{SECRET}", "(JUPYTER_TOKEN) is not KEY=value"),
    (f"{KEY} {SECRET}", "(JUPYTER_TOKEN) is not KEY=value"),
    (f"export {KEY} {SECRET}", "(JUPYTER_TOKEN) is not KEY=value"),
    (f"{KEY}+={SECRET}", "(JUPYTER_TOKEN) is not KEY=value"),
    (KEY, "(JUPYTER_TOKEN) is not KEY=value"),
    ("JUPYTER_TOK", "(JUPYTER_TOK) is not KEY=value"),
    (f"{KEY}={SECRET}\r# comment", "has a carriage return"),
    ("LOG_DIR=logs\t# comment", "has a tab"),
    ("LOG_DIR= # comment", "begins with #"),
    ("POSTGRES_IMAGE=  # none", "begins with #"),
    ("LOG_DIR=$HOME/logs", "has a $"),
    ("LOG_DIR=C:\\logs", "a backslash outside single quotes"),
    # Lines without a known key: compose could not read the file at all.
    (f"'MY_KEY'={SECRET}", "is not KEY=value"),
    (f"MY/KEY={SECRET}", "is not KEY=value"),
    (f"MY KEY={SECRET}", "is not KEY=value"),
    (f"={SECRET}", "is not KEY=value"),
    (SECRET, "is not KEY=value"),
    ("<<<<<<< HEAD", "is not KEY=value"),
]


def test_problems_names_a_rejected_line_without_showing_its_value(project: Path, subtests: pytest.Subtests) -> None:
    before = without(project, KEY, "JUPYTER_PORT", "LOG_DIR", "POSTGRES_IMAGE")
    place = f".env line {before.count(chr(10)) + 1}"
    for line, reason in REJECTED:
        with subtests.test(line=line):
            (project / ".env").write_bytes((before + line).encode())
            problems = problems_of(project)
            assert any(re.match(rf"{re.escape(place)}\b.*{re.escape(reason)}", problem) for problem in problems), problems
            keys = [key for key in (KEY, "LOG_DIR", "POSTGRES_IMAGE") if f"{key}=" in line and "return" not in reason]
            assert all(key in problems[0] for key in keys)
            assert SECRET not in str(problems)
            assert SECRET not in str(env_file.unknown_keys(settings.env_text(project)))


def test_problems_counts_lines_like_an_editor(project: Path, subtests: pytest.Subtests) -> None:
    others = without(project, KEY)
    for above, line in product(
        ("", "\n", "\n  \n\t\n", "# comment\n\n", "\r\n\r\n"), (f"{KEY}=abcd {SECRET}", f"{KEY}='{SECRET}", KEY)
    ):
        with subtests.test(above=above, line=line):
            (project / ".env").write_bytes((above + line + "\n" + others).encode())
            number = above.count("\n") + 1
            assert re.match(rf"\.env line {number}\D", problems_of(project)[0])


def test_problems_names_the_second_line_of_a_key_that_is_set_twice(project: Path, subtests: pytest.Subtests) -> None:
    others = without(project, KEY)
    for comments in (0, 1, 30):
        with subtests.test(comments=comments):
            between = "# comment\n" * comments
            (project / ".env").write_text(f"{KEY}=abcdefgh12\n{between}{KEY}={SECRET}\n{others}")
            assert problems_of(project) == [f".env line {comments + 2} sets {KEY} a second time"]


def test_problems_says_how_to_create_a_missing_file(bare: Path) -> None:
    assert problems_of(bare) == [".env is missing (make env writes it)"]


def test_problems_reports_every_wrong_value_at_once(project: Path) -> None:
    set_values(project, POSTGRES_PORT="http", MLFLOW_PORT="0", JUPYTER_TOKEN="short")
    assert problems_of(project) == [
        "POSTGRES_PORT=http: expected a port from 1 to 65535",
        "MLFLOW_PORT=0: expected a port from 1 to 65535",
        "JUPYTER_TOKEN: expected at least 8 characters",
    ]


def test_unknown_keys_suggests_the_known_key(project: Path) -> None:
    with (project / ".env").open("a") as file:
        file.write("POSTGRES_PASWORD=x\nMINIO_ENDPONT=x\nQQQ=x\n")
    assert env_file.unknown_keys(settings.env_text(project)) == [
        "POSTGRES_PASWORD (did you mean POSTGRES_PASSWORD?)",
        "MINIO_ENDPONT (did you mean MINIO_PORT?)",
        "QQQ",
    ]


def test_unknown_keys_knows_every_key_of_the_example(project: Path) -> None:
    assert env_file.unknown_keys(settings.env_text(project)) == []


# ---- addresses of the closed networks ----------------------------------------------------------


def test_closed_network_overlaps_no_route_of_the_host() -> None:
    routes = "Iface\tDestination\tGateway\nbr0\t0028C80A\t00000000\neth0\t00000000\t010200C0\n"
    assert env_file._routed(routes) == {"10.200.40", "0.0.0"}
    assert env_file.closed_network() not in env_file._routed(Path("/proc/net/route").read_text())


def test_ensure_keeps_the_chosen_closed_network(project: Path) -> None:
    before = (project / ".env").read_text()
    env_file.ensure(project)
    assert (project / ".env").read_text() == before
    assert "CLOSED_NETWORK=10.2" in before

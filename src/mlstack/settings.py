"""What the environment says, checked. Nothing else in mlstack reads the environment, or the files of secrets that it names.

On the host the values come from `.env` under whatever the shell sets, as in docker compose; in a container from compose.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

from dotenv.main import resolve_variables
from dotenv.parser import parse_stream

from mlstack.errors import MlstackError

PROJECT = Path(__file__).resolve().parents[2]
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# What .env.example writes where a value has to be made.
GENERATED, DETECTED = "<generated>", "<detected>"

# How the names of secrets are recognised, also those that are not the stack's own (AWS_SECRET_ACCESS_KEY, PGPASSWORD).
_SECRET = re.compile(r"PASSWORD|PASSPHRASE|SECRET|TOKEN|ACCESS_KEY|BACKUP_KEY|ROOT_USER")

Check = Callable[[str], str | None]


class SettingsError(MlstackError):
    """One or more variables are missing or wrong; `complaints` names each."""

    def __init__(self, complaints: Iterable[str]) -> None:
        self.complaints = tuple(complaints)
        super().__init__(
            "; ".join(self.complaints),
            "The stack would not start, or not as you mean it.",
            "edit .env (.env.example explains each)",
        )


def _matches(pattern: str, expected: str) -> Check:
    return lambda value: None if re.fullmatch(pattern, value) else f"expected {expected}"


def _port(value: str) -> str | None:
    return None if re.fullmatch(r"[0-9]{1,5}", value) and 1 <= int(value) <= 65535 else "expected a port from 1 to 65535"  # noqa: PLR2004


def _level(value: str) -> str | None:
    return None if value.upper() in LEVELS else f"expected one of {', '.join(LEVELS)}"


def _at_least(length: int) -> Check:
    return lambda value: None if len(value) >= length else f"expected at least {length} characters"


_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_address = _matches(rf"(?!(0|127)\.){_OCTET}(\.{_OCTET}){{3}}", "the IPv4 address of a host in the private network, or nothing")
_anything = _at_least(1)
_url = _matches(rf"https?://{_NAME}(:[1-9][0-9]{{0,4}})?", "https://host or https://host:port, without a path")
_identifier = _matches(r"[a-z_][a-z0-9_]{0,62}", "lower-case letters, digits and _, not starting with a digit")
# In basic authentication the first colon ends the name.
_account = _matches(r"[^\s:]+", "a name without spaces and colons")
_bucket = _matches(
    r"(?!.*(\.\.|\.-|-\.))(?!\d+(\.\d+){3}$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
    "3 to 63 lower-case letters, digits, - and ., not like an IP address",
)
_id_number = _matches(r"[0-9]+", "a number")
_switch = _matches("on|off", "on or off")
_host_name = _matches(_NAME, "a host name or an IPv4 address, without a port")
# host:port, as in a URL: a name in lower case or an IPv4 address.
_host = r"[a-z0-9][a-z0-9.-]*:[1-9][0-9]{0,4}"
_hosts = _matches(rf"{_host}(,{_host})*", "host:port with commas between them")
_memory = _matches(r"[1-9][0-9]*[mg]", "a size such as 512m or 3g")
_octet = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_network = _matches(rf"{_octet}(\.{_octet}){{2}}", "the first three numbers of IPv4 addresses, such as 10.213.87")


@dataclass(frozen=True)
class Variable:
    """One key of `.env`: what its value must look like, whether it is a secret, whether it may be empty.

    A secret that may be empty is another service's, and never generated.
    """

    name: str
    check: Check
    secret: bool = False
    optional: bool = False

    def complaint(self, value: str | None) -> str | None:
        """What is wrong with a value, without showing a secret; None if nothing is."""
        if not value:
            return None if self.optional else f"{self.name} is missing or empty"
        if value in (GENERATED, DETECTED):
            return f"{self.name} still holds the placeholder {value} (make env fills it in when the line is removed)"
        complaint = self.check(value)
        return complaint and (f"{self.name}: {complaint}" if self.secret else f"{self.name}={value}: {complaint}")


def _secret(name: str, length: int = 8) -> Variable:
    return Variable(name, _at_least(length), secret=True)


# The roles that the bootstrap makes.
DATABASE_USERS = ("MLFLOW_DB_USER", "ACCOUNTS_DB_USER", "READER_DB_USER", "SERVING_DB_USER", "SCORING_DB_USER")
# What can keep artifacts and data sets.
STORES = (MINIO, VERSITYGW) = ("minio", "versitygw")

VARIABLES: Mapping[str, Variable] = {
    variable.name: variable
    for variable in (
        Variable("COMPOSE_PROJECT_NAME", _matches(r"[a-z0-9][a-z0-9_-]*", "lower-case letters, digits, - and _")),
        Variable(
            "COMPOSE_PROFILES",
            _matches(r"\*|[a-z0-9_-]+(,[a-z0-9_-]+)*", "names of parts with commas between them"),
            optional=True,
        ),
        Variable("HOST_UID", _id_number),
        Variable("HOST_GID", _id_number),
        Variable("CLOSED_NETWORK", _network),
        Variable("CA_BUNDLE", _anything),
        Variable("POSTGRES_USER", _identifier),
        _secret("POSTGRES_PASSWORD"),
        Variable("POSTGRES_DB", _identifier),
        Variable("POSTGRES_PORT", _port),
        Variable("EXTERNAL_POSTGRES", _host_name, optional=True),
        Variable("EXTERNAL_POSTGRES_PORT", _port, optional=True),
        Variable("EXTERNAL_POSTGRES_USER", _account, optional=True),
        Variable("EXTERNAL_POSTGRES_PASSWORD", _at_least(8), secret=True, optional=True),
        Variable(
            "EXTERNAL_POSTGRES_TLS", _matches("verify-full|verify-ca|disable", "verify-full, verify-ca or disable"), optional=True
        ),
        Variable("EXTERNAL_POSTGRES_CA", _anything, optional=True),
        Variable("STORAGE", _matches("|".join(STORES), " or ".join(STORES)), optional=True),
        _secret("MINIO_ROOT_USER", 3),
        _secret("MINIO_ROOT_PASSWORD"),
        Variable("MINIO_BUCKET", _bucket),
        Variable("DATASETS_BUCKET", _bucket),
        Variable("MINIO_CONSOLE_USER", _matches(r"[A-Za-z0-9._-]{3,}", "3 or more letters, digits, ., _ and -")),
        _secret("MINIO_CONSOLE_PASSWORD"),
        Variable("MINIO_BUCKET_QUOTA", _matches(r"[1-9][0-9]{0,5}[mgt]", "a size such as 500m, 500g or 5t"), optional=True),
        Variable("MINIO_PORT", _port),
        Variable("MINIO_CONSOLE_PORT", _port),
        Variable("EXTERNAL_S3", _url, optional=True),
        Variable("EXTERNAL_S3_PUBLIC", _url, optional=True),
        Variable("EXTERNAL_S3_REGION", _matches(r"[a-z0-9-]+", "a region such as eu-central-1"), optional=True),
        Variable("EXTERNAL_S3_ACCESS_KEY_ID", _at_least(3), secret=True, optional=True),
        Variable("EXTERNAL_S3_SECRET_ACCESS_KEY", _at_least(8), secret=True, optional=True),
        Variable("EXTERNAL_S3_CA", _anything, optional=True),
        Variable("MLFLOW_PORT", _port),
        Variable("MLFLOW_TRACKING_URI", _matches(r"https?://.+", "http://host:port")),
        Variable("MLFLOW_TRACKING_USERNAME", _account),
        _secret("MLFLOW_TRACKING_PASSWORD", 12),
        Variable("MLFLOW_ADMIN_USERNAME", _account),
        _secret("MLFLOW_ADMIN_PASSWORD", 12),
        Variable("MLFLOW_AUTH", _switch),
        Variable("MLFLOW_OUTBOUND", _switch),
        Variable("WEBHOOK_HOSTS", _hosts, optional=True),
        Variable("TRACE_ARCHIVE", _matches(r"[1-9][0-9]{0,4}", "a number of days"), optional=True),
        Variable("TRACE_RETENTION", _matches(r"[1-9][0-9]{0,4}", "a number of days"), optional=True),
        Variable("TRACE_ROLLUPS", _switch, optional=True),
        Variable("MLFLOW_DB_USER", _identifier),
        _secret("MLFLOW_DB_PASSWORD"),
        Variable("ACCOUNTS_DB_USER", _identifier),
        _secret("ACCOUNTS_DB_PASSWORD"),
        Variable("READER_DB_USER", _identifier),
        _secret("READER_DB_PASSWORD"),
        _secret("MLFLOW_S3_ACCESS_KEY_ID", 3),
        _secret("MLFLOW_S3_SECRET_ACCESS_KEY"),
        _secret("MLFLOW_FLASK_SERVER_SECRET_KEY"),
        _secret("MLFLOW_CRYPTO_KEK_PASSPHRASE"),
        Variable(
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
            _matches(r"[A-Za-z0-9_-]{43}=", "32 bytes in URL-safe base64, as make env writes them"),
            secret=True,
        ),
        Variable("JUPYTER_PORT", _port),
        _secret("JUPYTER_TOKEN"),
        Variable("JUPYTER_OUTBOUND", _switch),
        Variable("JUPYTER_MEMORY", _memory),
        Variable("JUPYTER_GPU", _switch),
        Variable("JUPYTER_IDLE_HOURS", _matches(r"[0-9]{1,4}", "a whole number of hours, 0 for never")),
        Variable("JUPYTER_EXTRA_REQUIREMENTS", _anything, optional=True),
        Variable(
            "JUPYTER_EXTRA_APT",
            _matches(r"[a-z0-9][a-z0-9+.-]*( +[a-z0-9][a-z0-9+.-]*)*", "names of Debian packages"),
            optional=True,
        ),
        Variable("SCORING_PORT", _port),
        Variable("SCORING_ALIASES", _matches(r"[A-Za-z0-9_-]+(,[A-Za-z0-9_-]+)*", "aliases of models with commas between them")),
        Variable("SCORING_MEMORY", _memory),
        Variable("SCORING_THREADS", _matches(r"[1-9][0-9]?", "a number from 1 to 99")),
        Variable("SCORING_RATE", _matches(r"[0-9]{1,6}", "a whole number of requests in a second, 0 for no limit")),
        Variable(
            "SCORING_HOSTS", _matches(r"[a-z0-9.:-]+(,[a-z0-9.:-]+)*", "names of hosts with commas between them"), optional=True
        ),
        Variable("SCORING_REPLICAS", _matches(r"[1-4]", "a number from 1 to 4, or empty"), optional=True),
        Variable("SCORING_USERNAME", _account),
        _secret("SCORING_PASSWORD", 12),
        Variable("SERVING_DB_USER", _identifier),
        _secret("SERVING_DB_PASSWORD"),
        Variable("SCORING_DB_USER", _identifier),
        _secret("SCORING_DB_PASSWORD"),
        Variable("DECISION_LOG", _matches("before|after|off", "before, after or off")),
        Variable("DECISION_RETENTION", _matches(r"[0-9]{1,4}", "a whole number of months, 0 for ever")),
        Variable("GATEWAY_HOSTS", _hosts, optional=True),
        Variable("GATEWAY_JOBS_MEMORY", _memory),
        _secret("GATEWAY_JOB_TOKEN", 32),
        Variable("RAY_WORKERS", _matches(r"[1-9][0-9]{0,2}", "a whole number of workers, 1 or more")),
        Variable("RAY_WORKER_CPUS", _matches(r"[1-9][0-9]{0,2}", "a whole number of CPUs, 1 or more")),
        Variable("RAY_WORKER_MEMORY", _memory),
        _secret("RAY_TOKEN", 32),
        Variable("RAY_HOST", _address, optional=True),
        Variable("RAY_HEAD", _address, optional=True),
        Variable("RAY_NOTEBOOKS", _switch),
        Variable("BACKUP_DIR", _anything),
        _secret("BACKUP_KEY", 32),
        Variable("LOG_DIR", _anything),
        Variable("LOG_LEVEL", _level),
        Variable("POSTGRES_IMAGE", _anything, optional=True),
        Variable("MINIO_IMAGE", _anything, optional=True),
        Variable("VERSITYGW_IMAGE", _anything, optional=True),
        Variable("MLFLOW_IMAGE", _anything, optional=True),
        Variable("JUPYTER_IMAGE", _anything, optional=True),
        Variable("SCORING_IMAGE", _anything, optional=True),
    )
}

# Roles with different rights: as one, the bootstrap would take from the one what the other must not have. And two buckets.
_APART = (
    *combinations(("POSTGRES_USER", *DATABASE_USERS), 2),
    *(("EXTERNAL_POSTGRES_USER", user) for user in DATABASE_USERS),
    *combinations(("MINIO_ROOT_USER", "MINIO_CONSOLE_USER", "MLFLOW_S3_ACCESS_KEY_ID"), 2),
    *combinations(("MLFLOW_ADMIN_USERNAME", "MLFLOW_TRACKING_USERNAME", "SCORING_USERNAME"), 2),
    ("MINIO_BUCKET", "DATASETS_BUCKET"),
)
# What a login to another service also needs.
_TOGETHER = (
    ("EXTERNAL_POSTGRES_USER", "EXTERNAL_POSTGRES_PASSWORD"),
    ("EXTERNAL_S3", "EXTERNAL_S3_ACCESS_KEY_ID"),
    ("EXTERNAL_S3", "EXTERNAL_S3_SECRET_ACCESS_KEY"),
)


def complaints(values: Mapping[str, str | None], names: Collection[str] = VARIABLES) -> list[str]:
    """What is wrong with these variables, one line each."""
    wrong = [VARIABLES[name].complaint(values.get(name)) for name in names]
    wrong += [
        f"{owner} and {other} are the same: they need names of their own"
        for owner, other in _APART
        if owner in names and other in names and values.get(owner) and values.get(owner) == values.get(other)
    ]
    wrong += [
        f"{name} is set, and {other} is empty"
        for name, other in _TOGETHER
        if other in names and values.get(name) and not values.get(other)
    ]
    return [complaint for complaint in wrong if complaint]


def read(*names: str, values: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The values of these variables. Raises SettingsError naming every one that is missing or wrong."""
    values = _given() if values is None else values
    if wrong := complaints(values, names):
        raise SettingsError(wrong)
    return {name: values[name] or "" for name in names}


def of_project(project: Path = PROJECT) -> dict[str, str]:
    """Every variable as docker compose sees it in this project: `.env`, overridden by the shell."""
    return of_text(env_text(project))


def of_text(env: str | None) -> dict[str, str]:
    """Every variable as docker compose sees it with an `.env` of this text, overridden by the shell."""
    merged = {**_from_file(env), **{name: os.environ[name] for name in VARIABLES if name in os.environ}}
    return {name: value for name, value in merged.items() if value is not None}


def shadowed(env: str | None) -> list[str]:
    """Names of variables that the shell sets to something else than an `.env` of this text does."""
    from_file = _from_file(env)
    return [name for name in VARIABLES if from_file.get(name) and os.environ.get(name, from_file[name]) != from_file[name]]


def env_text(project: Path, file: str = ".env") -> str | None:
    """The text of a project's `.env`, or of a file beside it, wherever a link leads; None if it is missing."""
    env = (project / ".env").resolve()
    return file_text(env if file == ".env" else env.with_name(file))


def file_text(path: Path) -> str | None:
    """The text of `.env`, None if it is missing. Raises MlstackError when it cannot be read."""
    try:
        # Editors on Windows put a byte-order mark in front, and a carriage return at each line's end.
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise MlstackError(
            f".env cannot be read: {error}.", "It holds every setting and secret of the stack.", f"check {path}"
        ) from error


def _from_file(env: str | None) -> Mapping[str, str | None]:
    # Not dotenv_values: inside ${…} it prefers the file to the shell, which compose does not.
    bindings = parse_stream(StringIO(env or ""))
    return resolve_variables([(binding.key, binding.value) for binding in bindings if binding.key], override=False)


def of_shell(name: str) -> str:
    """A variable of the shell that is none of the stack's, empty if unset."""
    return os.environ.get(name, "")


def publish(values: Mapping[str, str]) -> None:
    """Puts variables into this process' environment, where libraries such as MLflow's client look for them."""
    os.environ.update(values)


def forget(names: Iterable[str]) -> None:
    """Takes variables out of this process' environment, for work on a project whose `.env` alone shall count."""
    for name in names:
        os.environ.pop(name, None)


def accounts_are_on() -> bool:
    """Whether MLflow's server asks who somebody is."""
    return of_shell("MLFLOW_AUTH") != "off"


def is_root() -> bool:
    """Whether this process may change the owner of files."""
    return os.geteuid() == 0


def for_commands(**more: str) -> dict[str, str]:
    """The environment for a command that is started: the shell's, and these."""
    return {**os.environ, **more}


def secret_values() -> set[str]:
    """The secrets that this process was given, for the logger to hide."""
    given = _given().items()
    return {value for name, value in given if _SECRET.search(name) and not name.endswith("_FILE") and len(value) >= 8}  # noqa: PLR2004


def publish_secrets() -> None:
    """Puts the secrets that are in files into this process' environment, for libraries that look nowhere else.

    They do not show in /proc/<pid>/environ; but a program that this process starts would be given them.
    """
    publish(_in_files())


def _given() -> Mapping[str, str]:
    """The environment, with the secrets that the container's entrypoint has moved to files (docker/take-secrets)."""
    return {**os.environ, **_in_files()}


def _in_files() -> dict[str, str]:
    paths = {name: path for name, path in os.environ.items() if name.endswith("_FILE") and _SECRET.search(name)}
    return {name.removesuffix("_FILE"): text for name, path in paths.items() if (text := _text(path))}


@cache
def _text(path: str) -> str:
    """What a file holds; nothing where it cannot be read, so that its variable is missing."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


# What MLflow's server encrypts with.
ENCRYPTION = ("MLFLOW_CRYPTO_KEK_PASSPHRASE", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY")


BUCKETS = ("MINIO_BUCKET", "DATASETS_BUCKET")


@dataclass(frozen=True)
class Encryption:
    """The keys with which MLflow stores other services' secrets."""

    passphrase: str = field(repr=False)
    """For the keys of model providers."""
    webhook_key: str = field(repr=False)
    """For the secrets of webhooks: a Fernet key."""


@dataclass(frozen=True)
class Login:
    """A way into a database. `options`, `sslmode` and `sslrootcert` are as libpq takes them."""

    user: str
    password: str = field(repr=False)
    database: str
    host: str = "postgres"
    port: int = 5432
    options: str = ""
    sslmode: str = ""
    sslrootcert: str = ""

    @property
    def is_external(self) -> bool:
        """Whether the server is an existing one, outside the stack."""
        return bool(self.sslmode)

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments of psycopg2.connect."""
        values = {"dbname": self.database} | {name: value for name, value in vars(self).items() if name != "database"}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class Roles:
    """The roles in MLflow's database beside the server's owner."""

    tracking: Login
    """Owns MLflow's tables."""
    accounts: Login
    """Owns the schema of MLflow's accounts, and sees no other table."""
    reader: Login
    """Reads MLflow's tracking tables."""


@dataclass(frozen=True)
class Keys:
    """Keys for MinIO."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    bucket: str
    """MLflow's artifacts."""
    datasets: str
    """The data sets."""
    endpoint: str = "minio:9000"
    scheme: str = "http"
    region: str = "us-east-1"
    """MinIO's own, or that of an external store."""
    authorities: str = ""
    """A file with the certificates that an external store's may be signed by."""
    public: str = ""
    """The URL at which clients reach an external store."""

    @property
    def is_external(self) -> bool:
        """Whether the store is an existing one, outside the stack."""
        return bool(self.public)

    @property
    def url(self) -> str:
        """The store's address for services and commands."""
        return f"{self.scheme}://{self.endpoint}"

    @property
    def buckets(self) -> tuple[str, str]:
        """Both buckets."""
        return self.bucket, self.datasets


@dataclass(frozen=True)
class Account:
    """A user of MLflow."""

    username: str
    password: str = field(repr=False)
    is_admin: bool


def database_owner(values: Mapping[str, str | None] | None = None) -> Login:
    """The owner of the database server, or an external server's administrator. Raises MlstackError if none is given.

    No name in its sessions leads to what another role made (docs/adr/0017).
    """
    prefix = "EXTERNAL_" if is_external_postgres(values) else ""
    if not has_administrator(values):
        raise MlstackError(
            "this needs an administrator's login to the external Postgres, and .env has none.",
            "Only an administrator creates, renames and removes databases and roles there.",
            "set EXTERNAL_POSTGRES_USER and EXTERNAL_POSTGRES_PASSWORD in .env (docs/external.md)",
        )
    owner = _login(f"{prefix}POSTGRES_USER", f"{prefix}POSTGRES_PASSWORD", values)
    return replace(owner, options="-csearch_path=pg_catalog")


def is_external_postgres(values: Mapping[str, str | None] | None = None) -> bool:
    """Whether an existing Postgres takes the place of the stack's own."""
    return bool((_given() if values is None else values).get("EXTERNAL_POSTGRES"))


def commands_database(database: str) -> str:
    """The database of an external server to which commands connect while they replace the stack's own; no other role may."""
    return f"{database[:50]}_commands"


def has_administrator(values: Mapping[str, str | None] | None = None) -> bool:
    """Whether the settings have a login that may create databases and roles."""
    given = _given() if values is None else values
    return not is_external_postgres(given) or bool(given.get("EXTERNAL_POSTGRES_USER"))


def tracking_login(values: Mapping[str, str | None] | None = None) -> Login:
    """MLflow's own role, which owns MLflow's tables and nothing else."""
    return _login("MLFLOW_DB_USER", "MLFLOW_DB_PASSWORD", values)


def accounts_login(values: Mapping[str, str | None] | None = None) -> Login:
    """The role that owns MLflow's accounts."""
    return _login("ACCOUNTS_DB_USER", "ACCOUNTS_DB_PASSWORD", values)


def reader_login(values: Mapping[str, str | None] | None = None) -> Login:
    """The role that reads MLflow's tracking tables."""
    return _login("READER_DB_USER", "READER_DB_PASSWORD", values)


def serving_login(values: Mapping[str, str | None] | None = None) -> Login:
    """The role that owns the schemas of decisions and features."""
    return _login("SERVING_DB_USER", "SERVING_DB_PASSWORD", values)


def scoring_login(values: Mapping[str, str | None] | None = None) -> Login:
    """The scoring service's role, which adds rows to those schemas and reads them."""
    return _login("SCORING_DB_USER", "SCORING_DB_PASSWORD", values)


def database_roles(values: Mapping[str, str | None] | None = None) -> Roles:
    """Every role that the bootstrap makes."""
    return Roles(tracking_login(values), accounts_login(values), reader_login(values))


def reader_name() -> str:
    """The reader's name, where its password is not needed."""
    return read("READER_DB_USER")["READER_DB_USER"]


def storage_owner(values: Mapping[str, str | None] | None = None) -> Keys:
    """The keys of MinIO's owner, for the bootstrap only; for an external store, which has one login, the same as MLflow's."""
    return _keys("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", values)


def tracking_keys(values: Mapping[str, str | None] | None = None) -> Keys:
    """MLflow's own keys, which open both buckets."""
    return _keys("MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY", values)


def console_keys(values: Mapping[str, str | None] | None = None) -> Keys:
    """The login for MinIO's web console, which reads the buckets."""
    return _keys("MINIO_CONSOLE_USER", "MINIO_CONSOLE_PASSWORD", values)


@cache
def server_keys() -> Keys:
    """The same keys inside MLflow's server, which has them under the names that boto3 reads."""
    names = {"MLFLOW_S3_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY"}
    given = _given()
    values = {name: given.get(other) for name, other in names.items()} | {name: given.get(name) for name in BUCKETS}
    keys = tracking_keys(values)
    if is_external_s3(given):
        return _at_external_s3(keys, given)
    return replace(keys, endpoint=of_shell("MLFLOW_S3_ENDPOINT_URL").partition("://")[2])


@cache
def storage_port() -> int:
    """MinIO's port on the host."""
    return int(read("MINIO_PORT")["MINIO_PORT"])


def storage(values: Mapping[str, str | None] | None = None) -> str:
    """What keeps artifacts and data sets, unless an external store does: one of STORES."""
    given = _given() if values is None else values
    return given.get("STORAGE") or MINIO


def bucket_quota() -> int:
    """What each bucket may hold at most, in bytes; 0 where that is not limited."""
    text = read("MINIO_BUCKET_QUOTA")["MINIO_BUCKET_QUOTA"]
    return int(text[:-1]) * 1024 ** ("mgt".index(text[-1]) + 2) if text else 0


def admin_account(values: Mapping[str, str | None] | None = None) -> Account:
    """The account that may do everything in MLflow."""
    values_read = read("MLFLOW_ADMIN_USERNAME", "MLFLOW_ADMIN_PASSWORD", values=values)
    return Account(values_read["MLFLOW_ADMIN_USERNAME"], values_read["MLFLOW_ADMIN_PASSWORD"], is_admin=True)


def notebook_account(values: Mapping[str, str | None] | None = None) -> Account:
    """The account of the notebooks."""
    values_read = read("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", values=values)
    return Account(values_read["MLFLOW_TRACKING_USERNAME"], values_read["MLFLOW_TRACKING_PASSWORD"], is_admin=False)


def scoring_account(values: Mapping[str, str | None] | None = None) -> Account:
    """The account of the scoring service, which MLflow's server lets only read."""
    values_read = read("SCORING_USERNAME", "SCORING_PASSWORD", values=values)
    return Account(values_read["SCORING_USERNAME"], values_read["SCORING_PASSWORD"], is_admin=False)


def reading_username() -> str:
    """The name of the account that may only read, for MLflow's server, which does not need its password."""
    return of_shell("SCORING_USERNAME")


def is_gateway() -> bool:
    """Whether this server is that of the part `gateway`, which forwards nothing."""
    return of_shell("MLFLOW_ENABLE_AI_GATEWAY") == "true"


def has_rollups() -> bool:
    """Whether MLflow keeps sums by day of traces."""
    return of_shell("TRACE_ROLLUPS") == "on"


def rollups() -> dict[str, str]:
    """MLflow's variables for them: whether it keeps them, and when the part `gateway` computes them (UTC)."""
    schedule = "MLFLOW_TRACE_ROLLUPS_SCHEDULE"
    return {"MLFLOW_SQL_TRACE_ROLLUPS_ENABLED": str(has_rollups()).lower(), schedule: of_shell(schedule) or "17 * * * *"}


@cache
def job_token() -> str:
    """The token of jobs, in the services of the part `gateway`."""
    return read("GATEWAY_JOB_TOKEN")["GATEWAY_JOB_TOKEN"]


def hosts(name: str) -> frozenset[tuple[str, int]]:
    """The hosts and ports that a variable names."""
    value = read(name, values={name: of_shell(name)})[name]
    named = (entry.rpartition(":") for entry in value.split(",") if entry)
    return frozenset((host, int(port)) for host, _, port in named)


def scoring_aliases() -> tuple[str, ...]:
    """The aliases whose model versions the scoring service serves, the most important first."""
    return tuple(read("SCORING_ALIASES")["SCORING_ALIASES"].split(","))


def scoring_rate() -> int:
    """How many requests in a second a client of the scoring service may send; 0 for no limit."""
    return int(read("SCORING_RATE")["SCORING_RATE"])


def scoring_hosts() -> tuple[str, ...]:
    """Names under which clients reach the scoring service, besides its own."""
    named = read("SCORING_HOSTS", values={"SCORING_HOSTS": of_shell("SCORING_HOSTS")})["SCORING_HOSTS"]
    return tuple(name for name in named.split(",") if name)


def decision_log() -> str:
    """Whether decisions are committed before the answer, after it, or not at all."""
    return read("DECISION_LOG")["DECISION_LOG"]


def decision_retention() -> int:
    """For how many months decisions are kept; 0 for ever."""
    return int(read("DECISION_RETENTION")["DECISION_RETENTION"])


def scoring_port() -> int:
    """The scoring service's port on the host."""
    return int(read("SCORING_PORT")["SCORING_PORT"])


def notebook_username() -> str:
    """The name of the notebooks' account, for MLflow's server, which does not need its password."""
    return of_shell("NOTEBOOK_USERNAME")


def encryption() -> tuple[Encryption, Encryption]:
    """The keys of before a rotation and those of after it."""
    given = _given()
    following = {name: given.get(f"NEXT_{name}") for name in ENCRYPTION}
    before, after = read(*ENCRYPTION), read(*ENCRYPTION, values=following)
    return Encryption(*(before[name] for name in ENCRYPTION)), Encryption(*(after[name] for name in ENCRYPTION))


def _login(user: str, password: str, values: Mapping[str, str | None] | None) -> Login:
    values_read = read(user, password, "POSTGRES_DB", values=values)
    login = Login(values_read[user], values_read[password], values_read["POSTGRES_DB"])
    return _at_external(login, values) if is_external_postgres(values) else login


def _at_external(login: Login, values: Mapping[str, str | None] | None) -> Login:
    """The same role at the external server."""
    names = ("EXTERNAL_POSTGRES", "EXTERNAL_POSTGRES_PORT", "EXTERNAL_POSTGRES_TLS", "EXTERNAL_POSTGRES_CA", "CA_BUNDLE")
    given = _given() if values is None else values
    host, port, sslmode, authority, bundle = (given.get(name) or "" for name in names)
    return replace(login, host=host, port=int(port or 5432), sslmode=sslmode or "verify-full", sslrootcert=authority or bundle)


def _keys(access_key: str, secret_key: str, values: Mapping[str, str | None] | None) -> Keys:
    if is_external := is_external_s3(values):
        access_key, secret_key = "EXTERNAL_S3_ACCESS_KEY_ID", "EXTERNAL_S3_SECRET_ACCESS_KEY"
    values_read = read(access_key, secret_key, *BUCKETS, values=values)
    keys = Keys(values_read[access_key], values_read[secret_key], *(values_read[name] for name in BUCKETS))
    return _at_external_s3(keys, _given() if values is None else values) if is_external else keys


def is_external_s3(values: Mapping[str, str | None] | None = None) -> bool:
    """Whether an existing S3 store takes the place of the stack's own."""
    return bool((_given() if values is None else values).get("EXTERNAL_S3"))


def _at_external_s3(keys: Keys, given: Mapping[str, str | None]) -> Keys:
    """The same buckets at the external store."""
    url, public = given.get("EXTERNAL_S3") or "", given.get("EXTERNAL_S3_PUBLIC")
    scheme, _, endpoint = url.partition("://")
    return replace(
        keys,
        endpoint=endpoint,
        scheme=scheme,
        region=given.get("EXTERNAL_S3_REGION") or keys.region,
        authorities=given.get("EXTERNAL_S3_CA") or given.get("CA_BUNDLE") or "",
        public=public or url,
    )


def _log_defaults() -> tuple[str, str]:
    try:
        values = of_project()
    except MlstackError:
        values = {}  # the command that needs .env says what is wrong with it
    return values.get("LOG_DIR") or "logs", values.get("LOG_LEVEL") or "INFO"


# The logger's defaults. A wrong level is reported where it is used, so that importing this module never fails.
LOG_DIR, LOG_LEVEL = _log_defaults()


def log_level(value: str) -> str:
    """The level in the spelling of the logging module. Raises SettingsError for an unknown one."""
    return read("LOG_LEVEL", values={"LOG_LEVEL": value})["LOG_LEVEL"].upper()


def log_dir(value: str | Path, project: Path | None = None) -> Path:
    """The folder of the log files; a relative one is relative to the project, not to the current folder."""
    return (project or PROJECT) / Path(value).expanduser()

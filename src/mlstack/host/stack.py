"""The stack that a command works on: its folder and settings, and access to its containers, Postgres and MinIO."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mlstack import settings
from mlstack.host import services
from mlstack.host.compose import Program, compose_in
from mlstack.host.services import Services
from mlstack.settings import Keys, Login

if TYPE_CHECKING:
    from mlstack.host.engine import Container, Engine

DEFAULT_NAME = "mlstack"  # as in .env.example
PATIENCE = 60  # seconds: removing an image takes that long on a busy disk


@dataclass(frozen=True)
class Stack:
    """One stack. The CLI creates it once and passes it down; a command that writes `.env` continues with the result of `reread`.

    `env` is the text of `.env`, None if it is missing; `values` are its values, overridden by the shell. The engine has
    `patience` seconds for each answer.
    """

    folder: Path
    env: str | None = field(repr=False)
    values: Mapping[str, str] = field(repr=False)
    patience: float = PATIENCE

    @classmethod
    def of(cls, folder: Path, *, file: str = ".env", patience: float = PATIENCE) -> Self:
        """The stack of a project's folder. Raises MlstackError when `.env` cannot be read; it may be missing or incomplete."""
        env = settings.env_text(folder, file)
        return cls(folder, env, settings.of_text(env), patience)

    def reread(self) -> "Stack":
        """The same stack, after its `.env` was written."""
        return Stack.of(self.folder, patience=self.patience)

    @property
    def name(self) -> str:
        """COMPOSE_PROJECT_NAME, also before there is an `.env`."""
        return self.values.get("COMPOSE_PROJECT_NAME") or DEFAULT_NAME

    @cached_property
    def compose(self) -> Program:
        """docker compose in this stack's folder."""
        return compose_in(self.folder)

    @cached_property
    def engine(self) -> "Engine":
        """The Docker engine. Raises MlstackError when it does not answer."""
        from mlstack.host import engine

        return engine.connect(self.patience)

    @property
    def containers(self) -> "dict[str, Container]":
        """The current containers, by service."""
        return {container.service: container for container in self.engine.containers(self.name)}

    @cached_property
    def services(self) -> Services:
        return services.read(self.folder, self.values)

    @property
    def every_part(self) -> dict[str, str]:
        """The environment in which compose sees every part, also those that are off."""
        return {"COMPOSE_PROFILES": ",".join(services.parts(self.folder))}

    def port(self, name: str) -> int:
        """A port on the host, by its variable. Raises SettingsError if it is missing."""
        return int(settings.read(name, values=self.values)[name])

    @property
    def backups(self) -> Path:
        """The folder of the backups. Raises SettingsError if BACKUP_DIR is missing."""
        return self.folder / Path(settings.read("BACKUP_DIR", values=self.values)["BACKUP_DIR"]).expanduser()

    @property
    def logs(self) -> Path:
        """The folder of the log files. Raises SettingsError if LOG_DIR is missing."""
        return settings.log_dir(settings.read("LOG_DIR", values=self.values)["LOG_DIR"], self.folder)

    @property
    def storage(self) -> str:
        """What keeps artifacts and data sets, unless an external store does: one of settings.STORES."""
        return settings.storage(self.values)

    # Each login is one object, so that code can ask `login is stack.accounts`.

    @property
    def has_administrator(self) -> bool:
        """Whether commands may create, rename and remove databases."""
        return settings.has_administrator(self.values)

    @property
    def database(self) -> str:
        """The name of MLflow's database."""
        return settings.read("POSTGRES_DB", values=self.values)["POSTGRES_DB"]

    @cached_property
    def owner(self) -> Login:
        """The owner of the database server, or an external one's administrator. Raises MlstackError if there is none."""
        return self._here(settings.database_owner(self.values))

    @property
    def catalog(self) -> Login:
        """Reads catalogs, never rows: the owner, or MLflow's own role where no administrator's login is given."""
        return self.owner if self.has_administrator else self.tracking

    @property
    def server(self) -> Login:
        """The owner's login to the database from which commands replace MLflow's."""
        owner = self.owner
        return replace(owner, database=settings.commands_database(self.database) if owner.is_external else "postgres")

    @cached_property
    def tracking(self) -> Login:
        """MLflow's own role."""
        return self._here(settings.tracking_login(self.values))

    @cached_property
    def reader(self) -> Login:
        """The role that reads MLflow's tracking tables."""
        return self._here(settings.reader_login(self.values))

    @cached_property
    def accounts(self) -> Login:
        """The role that owns MLflow's accounts."""
        return self._here(settings.accounts_login(self.values))

    @cached_property
    def serving(self) -> Login:
        """The role that owns the schemas of the part `scoring`."""
        return self._here(settings.serving_login(self.values))

    @cached_property
    def scoring(self) -> Login:
        """The scoring service's role."""
        return self._here(settings.scoring_login(self.values))

    @cached_property
    def keys(self) -> Keys:
        """MinIO's owner, or the login to an external store."""
        return self._from_host(settings.storage_owner(self.values))

    @cached_property
    def tracking_keys(self) -> Keys:
        """MLflow's own keys of MinIO."""
        return self._from_host(settings.tracking_keys(self.values))

    @property
    def backup_key(self) -> str:
        """The key that signs this stack's backups."""
        return settings.read("BACKUP_KEY", values=self.values)["BACKUP_KEY"]

    def image(self, service: str) -> str:
        """The image of a service."""
        return self.services.by_name[service].image

    @property
    def built(self) -> list[str]:
        """The services whose images are built here, because `.env` names no others."""
        return [service.name for service in self.services.with_image if not self.values.get(service.image_variable)]

    def _here(self, login: Login) -> Login:
        """The login from the host: paths in `.env` are relative to the project."""
        if login.is_external:
            return replace(login, sslrootcert=self._path(login.sslrootcert))
        return replace(login, host="127.0.0.1", port=self.port("POSTGRES_PORT"))

    def _from_host(self, keys: Keys) -> Keys:
        if keys.is_external:
            return replace(keys, authorities=self._path(keys.authorities))
        return replace(keys, endpoint=f"127.0.0.1:{self.port('MINIO_PORT')}")

    def _path(self, path: str) -> str:
        return str(self.folder / Path(path).expanduser())

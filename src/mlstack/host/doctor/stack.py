"""The containers: there, healthy, started with today's settings, open to this machine alone."""

from functools import cache

from mlstack.errors import MlstackError
from mlstack.host import status
from mlstack.host.doctor import environment, machine
from mlstack.host.doctor.check import Check, Doubt, check
from mlstack.host.doctor.context import Subject, output

REACH = "containers"


@check(REACH, "the stack is running", machine.engine, environment.env, environment.name)
def running(subject: Subject) -> str:
    up = [container.service for container in subject.containers.values() if container.is_running]
    if not up:
        raise MlstackError("the stack is not running.", "Everything else is asked of its services.", "make up")
    return f"{len(up)} containers"


@cache
def service(name: str) -> Check:
    """The check of one long-running service's container. Which services there are, the compose file says."""

    def examine(subject: Subject) -> str:
        container = subject.containers.get(name)
        if container is None:
            raise MlstackError(f"{name} has no container.", "What uses it fails.", "make up")
        if not container.is_running:
            cause = "was killed for want of memory" if container.out_of_memory else f"is {container.state}"
            raise MlstackError(
                f"{name} {cause} (exit code {container.exit_code}).", "What uses it fails.", f"make up; make logs SERVICE={name}"
            )
        if container.health == "starting":
            raise MlstackError(f"{name} is still starting.", "It does not do its work yet.", "make doctor, in a moment")
        if container.health not in ("", "healthy"):
            said = subject.stack.engine.last_probe(container)
            raise MlstackError(
                f"{name} is {container.health}{f': {said}' if said else ''}.",
                "It runs and does not do its work.",
                f"make logs SERVICE={name}",
            )
        if container.restarts:
            raise Doubt(
                f"{name} has died and come back {container.restarts} times since it was made.",
                "Each time, what it was doing was lost.",
                f"make logs SERVICE={name}",
            )
        return container.health or "running"

    return Check(REACH, name, examine, (running,))


@check(REACH, "one-shots did their work", running)
def one_shots(subject: Subject) -> None:
    long_running = {service.name for service in subject.stack.services.long_running}
    ill = [
        container
        for container in subject.containers.values()
        if container.service not in long_running and not container.is_running and container.exit_code
    ]
    if ill:
        names = " and ".join(container.service for container in ill)
        raise MlstackError(
            f"{names} failed at the last start.",
            "Roles, policies or tables may not be as wanted.",
            f"make up; make logs SERVICE={names}",
        )


@check(REACH, "started with the settings of today", environment.compose, running)
def configuration(subject: Subject) -> None:
    """Compose marks each container with a hash of its configuration, and recreates a container where it differs."""
    wanted = dict(line.split() for line in output(subject.stack.compose, "config", "--hash", "*").splitlines())
    there = subject.containers
    stale = [
        s.name for s in subject.stack.services.long_running if s.name in there and wanted.get(s.name) != there[s.name].config_hash
    ]
    if stale:
        raise Doubt(
            f"{', '.join(stale)} was started with other settings than .env and docker-compose.yml have now.",
            "What you changed is not in force yet.",
            "make up",
        )


@check(REACH, "made from the images of today", running)
def images(subject: Subject) -> None:
    stale = [c.service for c in subject.containers.values() if c.is_running and subject.stack.engine.has_newer_image(c)]
    if stale:
        raise Doubt(
            f"{', '.join(stale)} runs an older image than the one that is built.", "What was built is not in use.", "make up"
        )


@check(REACH, "open to this machine alone", running)
def loopback(subject: Subject) -> None:
    open_ = [address for c in subject.containers.values() for address in c.addresses if not address.startswith("127.0.0.1:")]
    if open_:
        raise MlstackError(
            f"a port is open to the network: {', '.join(sorted(open_))}.",
            "Anybody who reaches this machine reaches the service.",
            "publish it on 127.0.0.1 in docker-compose.yml (and any override file), then make up",
        )


@check(REACH, "memory within limits", running)
def memory(subject: Subject) -> None:
    limited = {each: each.memory_limit for each in subject.containers.values() if each.is_running and each.memory_limit}
    shares = {each.service: status.memory(subject.stack.engine, each) / limit for each, limit in limited.items()}
    if tight := [f"{name} {share:.0%}" for name, share in shares.items() if share > subject.limits.memory_share]:
        raise Doubt(
            f"close to the memory limit: {', '.join(tight)}.",
            "The kernel kills what goes over it.",
            "restart it, or give it more (JUPYTER_MEMORY in .env; mem_limit in docker-compose.yml)",
        )


@check(REACH, "a recent backup", environment.env)
def backup(subject: Subject) -> str:
    found = status.last_backup(subject.stack)
    if found is None:
        raise Doubt("there is no backup yet.", "What is lost is lost.", "make backup")
    days = found.age / 86400
    if found.age > subject.limits.backup_age:
        raise Doubt(f"the last backup is {days:.0f} days old.", "What came after it could be lost.", "make backup")
    return f"{days:.1f} days old"

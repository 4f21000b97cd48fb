"""The containers: existing, healthy, started with the current settings, open to the host only."""

from functools import cache

from mlstack.errors import MlstackError
from mlstack.host import status
from mlstack.host.doctor import environment, machine
from mlstack.host.doctor.check import Check, CheckWarning, check
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
    """The check of one long-running service's container. The compose file lists the services."""

    def examine(subject: Subject) -> str:
        container = subject.containers.get(name)
        if subject.stack.services.by_name[name].is_external:
            return "external"
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
            output = subject.stack.engine.last_probe(container)
            raise MlstackError(
                f"{name} is {container.health}{f': {output}' if output else ''}.",
                "It runs and does not do its work.",
                f"make logs SERVICE={name}",
            )
        if container.restarts:
            raise CheckWarning(
                f"{name} has died and come back {container.restarts} times since it was made.",
                "Each time, what it was doing was lost.",
                f"make logs SERVICE={name}",
            )
        return container.health or "running"

    return Check(REACH, name, examine, (running,))


@check(REACH, "one-shots did their work", running)
def one_shots(subject: Subject) -> None:
    long_running = {service.name for service in subject.stack.services.long_running}
    failed = [
        container
        for container in subject.containers.values()
        if container.service not in long_running and not container.is_running and container.exit_code
    ]
    if failed:
        names = " and ".join(container.service for container in failed)
        raise MlstackError(
            f"{names} failed at the last start.",
            "Roles, policies or tables may not be as wanted.",
            f"make up; make logs SERVICE={names}",
        )


@check(REACH, "started with the settings of today", environment.compose, running)
def configuration(subject: Subject) -> None:
    """Compose marks each container with a hash of its configuration, and recreates a container if it differs."""
    expected = dict(line.split() for line in output(subject.stack.compose, "config", "--hash", "*").splitlines())
    containers = subject.containers
    stale = [
        s.name
        for s in subject.stack.services.long_running
        if s.name in containers and expected.get(s.name) != containers[s.name].config_hash
    ]
    if stale:
        raise CheckWarning(
            f"{', '.join(stale)} was started with other settings than .env and docker-compose.yml have now.",
            "What you changed is not in force yet.",
            "make up",
        )


@check(REACH, "made from the images of today", running)
def images(subject: Subject) -> None:
    stale = [c.service for c in subject.containers.values() if c.is_running and subject.stack.engine.has_newer_image(c)]
    if stale:
        raise CheckWarning(
            f"{', '.join(stale)} runs an older image than the one that is built.", "What was built is not in use.", "make up"
        )


@check(REACH, "open to the host only", running)
def loopback(subject: Subject) -> None:
    open_ = [address for c in subject.containers.values() for address in c.addresses if not address.startswith("127.0.0.1:")]
    if open_:
        raise MlstackError(
            f"a port is open to the network: {', '.join(sorted(open_))}.",
            "Anyone who can connect to the host can connect to the service.",
            "publish it on 127.0.0.1 in docker-compose.yml (and any override file), then make up",
        )


@check(REACH, "memory within limits", running)
def memory(subject: Subject) -> None:
    limited = {
        container: container.memory_limit
        for container in subject.containers.values()
        if container.is_running and container.memory_limit
    }
    shares = {container.service: status.memory(subject.stack.engine, container) / limit for container, limit in limited.items()}
    if tight := [f"{name} {share:.0%}" for name, share in shares.items() if share > subject.limits.memory_share]:
        raise CheckWarning(
            f"close to the memory limit: {', '.join(tight)}.",
            "The kernel kills what goes over it.",
            "restart it, or give it more (JUPYTER_MEMORY in .env; mem_limit in docker-compose.yml)",
        )


@check(REACH, "a recent backup", environment.env)
def backup(subject: Subject) -> str:
    last = status.last_backup(subject.stack)
    if last is None:
        raise CheckWarning("there is no backup yet.", "What is lost is lost.", "make backup")
    days = last.age / 86400
    if last.age > subject.limits.backup_age:
        raise CheckWarning(f"the last backup is {days:.0f} days old.", "What came after it could be lost.", "make backup")
    return f"{days:.1f} days old"

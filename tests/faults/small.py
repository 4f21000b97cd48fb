"""A stack whose disks are small and in memory, so that they can be filled."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults import faults
from tests.faults.stack import Stack
from tests.support.clone import Clone

# Half of each is filled by the data of the faults. Docker counts their content as memory of the service that wrote it.
SMALL = """
services:
  postgres: { mem_limit: 2g, memswap_limit: 2g }
  minio: { mem_limit: 7g, memswap_limit: 7g }
  mlflow: { mem_limit: 3g, memswap_limit: 3g }
volumes:
  postgres: { driver_opts: { type: tmpfs, device: tmpfs, o: "size=1536m,uid=999,gid=999,mode=1777" } }
  minio: { driver_opts: { type: tmpfs, device: tmpfs, o: "size=5g,uid=60710,gid=60710" } }
  spool: { driver_opts: { type: tmpfs, device: tmpfs, o: "size=256m,uid=60711,gid=60711,mode=1777" } }
"""
FILLED = [fault.inject.volume for fault in faults.OF_DISKS]


@contextmanager
def started(clone: Clone) -> Iterator[Stack]:
    """The clone's stack on such disks. It replaces the clone's other stack: they share a name and ports."""
    override = clone.folder / "docker-compose.override.yml"
    clone.erase()
    override.write_text(SMALL)
    stack = Stack(clone)
    try:
        clone.up()
        for volume in FILLED:  # a volume in memory loses its data when no container has it
            stack.docker(
                "run", "--detach", "--init", "--name", faults.holder(stack, volume), "--user", "0", "--network", "none",
                "--volume", f"{clone.name}_{volume}:/held", "--entrypoint", "sleep", clone.image("postgres"), "infinity",
            )  # fmt: skip
        yield stack
    finally:
        for volume in FILLED:
            stack.docker("rm", "--force", faults.holder(stack, volume))
        clone.erase()
        override.unlink()

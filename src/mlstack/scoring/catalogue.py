"""The models that are served: it follows the aliases in MLflow's registry, and exchanges a version while requests are answered.

A candidate is downloaded, tried in a process of its own (trial.py), loaded beside the version that is served and asked for the
same answer; then one reference is exchanged. A request keeps the version with which its rows were checked. A candidate that
fails is rejected with a reason, and the version before it continues to be served.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mlstack.scoring import model
from mlstack.scoring.batches import Batches
from mlstack.scoring.cache import Cache
from mlstack.scoring.metrics import Metrics
from mlstack.scoring.model import Loaded, ModelError
from mlstack.scoring.registry import Registry, RegistryError, Target, Version
from mlstack.scoring.trial import SECONDS, Trials

log = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
INTERVAL = 1  # seconds between two looks at the registry
TRIALS = 2  # at the same time: a candidate that never returns holds up no other model
FIRST = 30  # seconds that the first versions may take before the service answers without them


@dataclass(frozen=True)
class Served:
    """A version in service. It is replaced as a whole, never changed."""

    version: Version
    loaded: Loaded = field(repr=False)
    batches: Batches = field(repr=False)


@dataclass(frozen=True)
class Champion:
    """A version that is served as champion, and whether the alias names it now: if not, another one is loading or rejected."""

    version: str
    is_named: bool


@dataclass(frozen=True)
class Swap:
    """A candidate on its way."""

    version: Version
    task: asyncio.Task[None] = field(repr=False)


class Catalogue:
    """The served versions, by model and alias. Belongs to one event loop."""

    def __init__(self, registry: Registry, cache: Cache, trials: Trials, metrics: Metrics) -> None:
        self._registry, self._cache, self._trials, self._metrics = registry, cache, trials, metrics
        self._served: dict[Target, Served] = {}
        self._swaps: dict[Target, Swap] = {}
        self._rejected: dict[Target, tuple[Version, str]] = {}
        self._wanted: Mapping[Target, Version] = {}
        self._trying = asyncio.Semaphore(TRIALS)
        self._reading = ThreadPoolExecutor(1, "registry")
        self._downloads = ThreadPoolExecutor(TRIALS, "downloads")
        self._is_registry_up: bool | None = None

    @property
    def served(self) -> Mapping[Target, Served]:
        return self._served

    @property
    def rejected(self) -> Mapping[Target, tuple[Version, str]]:
        """Why the version that an alias names is not served."""
        return self._rejected

    @property
    def champions(self) -> dict[str, Champion]:
        """The version that is served as each model's champion."""
        return {
            target.model: Champion(served.version.number, self._wanted.get(target) == served.version)
            for target, served in self._served.items()
            if target.alias == CHAMPION
        }

    def is_champion(self, model: str, version: str) -> bool:
        """Whether MLflow names a version as the champion now. Blocks; raises RegistryError."""
        return self._registry.names(Target(model, CHAMPION), version)

    def find(self, model: str | None, alias: str = "", version: str | None = None) -> tuple[Target, Served] | None:
        """What answers for a model, or for the only one: the most important alias that is served, a challenger only by name."""
        models = {target.model for target in self._served}
        if model is None and len(models) == 1:
            model = next(iter(models))
        candidates = [
            (target, served)
            for target, served in self._served.items()
            if target.model == model
            and (target.alias == alias if alias else version or target.alias != CHALLENGER)
            and version in (None, served.version.number)
        ]
        order = self._registry.aliases
        return min(candidates, key=lambda candidate: order.index(candidate[0].alias), default=None)

    def challenger(self, model: str) -> Served | None:
        """The version that is served as a model's challenger. One that is the champion too challenges nothing."""
        challenger, champion = (self._served.get(Target(model, alias)) for alias in (CHALLENGER, CHAMPION))
        return None if challenger and champion and challenger.version == champion.version else challenger

    async def start(self) -> None:
        """Serves what was served last, from the cache; without a cache, what the aliases name.

        A new replica must not answer that there is no such model, which others serve.
        """
        for version in self._cache.fatal():
            log.error("version %s of %s is left out: the service ended while it was loaded", version.number, version.model)
        for target, version in self._cache.served().items():
            try:
                loaded = await self._load(version, self._cache.folder(version))
            except ModelError as error:
                log.warning("version %s of %s in the cache is not served: %s", version.number, version.model, error)
            else:
                self._serve(target, version, loaded)
        self._report_served()
        if not self._served:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST):
                    await self._first_versions()

    async def _first_versions(self) -> None:
        """Waits until what each alias names is served or rejected."""
        while True:
            is_known = await self._look()
            if self._swaps:
                await asyncio.wait([swap.task for swap in self._swaps.values()])
            if is_known and not self._wanted.keys() - self._served.keys() - self._rejected.keys():
                return
            await asyncio.sleep(INTERVAL)

    async def follow(self) -> None:
        """Follows the aliases until it is cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(INTERVAL)

    async def _look(self) -> bool:
        """Begins to load what the aliases name now; False if the registry cannot be read."""
        try:
            self._wanted = await asyncio.get_running_loop().run_in_executor(self._reading, self._registry.versions)
        except RegistryError as error:
            self._report_registry(str(error))
            return False
        self._report_registry(None)
        self._begin_swaps()
        return True

    def _report_registry(self, problem: str | None) -> None:
        """Logs a change, not every look."""
        if (problem is None) != self._is_registry_up:
            log.log(logging.WARNING if problem else logging.INFO, "%s", problem or "following the aliases in MLflow's registry")
        self._is_registry_up = problem is None
        self._metrics.registry_up.replace([({}, float(problem is None))])

    def _begin_swaps(self) -> None:
        for target in self._served.keys() - self._wanted.keys():
            log.info("%s has no alias %s any more: its version is no longer served", target.model, target.alias)
            self._served.pop(target).batches.retire()
            self._remember()
        for target in self._rejected.keys() - self._wanted.keys():
            del self._rejected[target]
        for target, swap in list(self._swaps.items()):
            if self._wanted.get(target) != swap.version:
                swap.task.cancel()
                del self._swaps[target]
        for target, version in self._wanted.items():
            served, rejected = self._served.get(target), self._rejected.get(target)
            if served and served.version == version:
                self._rejected.pop(target, None)
            elif (
                target not in self._swaps
                and not (rejected and rejected[0] == version)
                and version not in [swap.version for swap in self._swaps.values()]  # under another alias: one at a time
            ):
                task = asyncio.create_task(self._swap(target, version))
                task.add_done_callback(restart_if_failed)
                self._swaps[target] = Swap(version, task)
        self._report_rejected()

    async def _swap(self, target: Target, version: Version) -> None:
        started = time.monotonic()
        try:
            async with self._trying:
                loaded = await self._tried(version)
        except RegistryError as error:
            log.warning("version %s of %s: %s; it is tried again", version.number, version.model, error)
        except ModelError as error:
            self._rejected[target] = version, str(error)
            self._metrics.swaps.add(1, model=target.model, result="rejected")
            log.warning("version %s of %s is rejected: %s", version.number, version.model, error)
            self._remember()
            self._report_rejected()
            await self._note(version, str(error))
        else:
            self._rejected.pop(target, None)
            self._serve(target, version, loaded)
            self._remember()
            self._metrics.swaps.add(1, model=target.model, result="served")
            seconds = time.monotonic() - started
            log.info("version %s of %s is served as %s after %.1f s", version.number, version.model, target.alias, seconds)
            await self._note(version, None)
        finally:
            if (swap := self._swaps.get(target)) and swap.task is asyncio.current_task():
                del self._swaps[target]
            self._report_rejected()

    async def _note(self, version: Version, reason: str | None) -> None:
        """Notes a rejection on the model version, where people look; it is in the log and /models too."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._reading, self._registry.note, version, reason)
        except RegistryError as error:
            log.warning("version %s of %s: %s", version.number, version.model, error)

    async def _tried(self, version: Version) -> Loaded:
        """A version that was tried, loaded into this process. Raises RegistryError, or ModelError with the reason."""
        if version in self._cache.fatal():
            raise ModelError("the service ended while it was loaded")
        fill = partial(self._cache.fill, version, partial(self._registry.download, version))
        folder = await asyncio.get_running_loop().run_in_executor(self._downloads, fill)
        expected = await self._trials.run(folder)
        loaded = await self._load(version, folder)
        answer = await asyncio.to_thread(loaded.answer_to_example)
        if not model.same(model.as_json(answer), expected):
            raise ModelError("it answers its input example differently each time it is loaded")
        return loaded

    async def _load(self, version: Version, folder: Path) -> Loaded:
        """The model in this process. Raises ModelError, also when it takes longer than a trial may."""
        thread = ThreadPoolExecutor(1, "load")
        try:
            with self._cache.loading(version):
                async with asyncio.timeout(SECONDS):
                    return await asyncio.get_running_loop().run_in_executor(thread, model.load_calmly, folder)
        except TimeoutError as error:
            raise ModelError(f"it does not load within {SECONDS} s") from error
        finally:
            thread.shutdown(wait=False)

    def _serve(self, target: Target, version: Version, loaded: Loaded) -> None:
        before = self._served.get(target)
        self._served[target] = Served(version, loaded, Batches(loaded.answer))
        if before:
            before.batches.retire()

    def _remember(self) -> None:
        on_their_way = [swap.version for swap in self._swaps.values()]
        self._cache.keep({target: served.version for target, served in self._served.items()}, *on_their_way)
        self._report_served()

    def _report_served(self) -> None:
        self._metrics.served.replace(
            ({"model": target.model, "alias": target.alias, "version": served.version.number}, 1.0)
            for target, served in self._served.items()
        )

    def _report_rejected(self) -> None:
        self._metrics.rejected.replace(
            ({"model": target.model, "alias": target.alias, "version": version.number, "reason": reason}, 1.0)
            for target, (version, reason) in self._rejected.items()
        )


def restart_if_failed(task: asyncio.Task[None]) -> None:
    """Ends the service, which then starts again, if a task failed that must not: what it served it will serve again."""
    if not task.cancelled() and (problem := task.exception()):
        log.critical("the service restarts, because it can no longer follow the aliases", exc_info=problem)
        os.kill(os.getpid(), signal.SIGTERM)

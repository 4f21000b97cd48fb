"""A real Chromium on the shipped stack, as `make test-browser` starts it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, Response, expect, sync_playwright

from mlstack.errors import MlstackError
from tests.support.clone import Clone

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")  # as in scripts/chromium.sh
# Debian's Chromium blocks site data of other sites in frames, as private windows do: frames with traces stay empty there.
CHROME = {"block_third_party_cookies": False, "cookie_controls_mode": 0}
SLOW = 120_000  # milliseconds that a page may take on a busy machine
# What browsers report as an error and is none: a page was resized again while it drew.
HARMLESS = ("Failed to load resource", "ResizeObserver loop")  # the first has no address; failed requests are recorded below
BOX = ".du-bois-light-alert-error, .jp-Dialog, [data-mime-type='application/vnd.jupyter.error']"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", type=Path, help="the folder whose pictures of the pages are written from this run")


@pytest.fixture(scope="session")
def stack(clone: Clone) -> Iterator[Clone]:
    """The shipped stack, started as a user would."""
    with clone.started():
        yield clone


@pytest.fixture(scope="session")
def chromium() -> Iterator[Callable[..., BrowserContext]]:
    """Starts a browser of its own in a folder, with Chrome's defaults."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        raise MlstackError("there is no Chromium here.", "These tests click as a user would.", "make test-browser")
    expect.set_options(timeout=SLOW)

    def start(folder: Path, **options: Any) -> BrowserContext:
        (folder / "Default").mkdir()
        (folder / "Default/Preferences").write_text(json.dumps({"profile": CHROME}))
        return playwright.chromium.launch_persistent_context(folder, executable_path=program, **options)

    with sync_playwright() as playwright:
        yield start


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Writes what a page shows where --pictures says."""
    folder: Path | None = request.config.getoption("--pictures")
    return lambda page, name: folder and page.screenshot(path=folder / f"{name}.png") and None


class Profile:
    """A browser without history that answers MLflow's question for a login, and records whatever fails in it."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.complaints: list[str] = []
        context.on("console", self._console)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.on("response", self._response)
        context.on("requestfailed", self._failed)

    def open(self, url: str) -> Page:
        page = self.context.new_page()
        page.goto(url)
        return page

    def look(self, page: Page) -> None:
        """Fails where the page shows an error box."""
        assert page.locator(BOX).all_inner_texts() == []

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(text in message.text for text in HARMLESS):
            self.complaints.append(message.text)

    def _failed(self, request: Request) -> None:
        # The browser itself ends what a page that is left still asks for.
        if request.failure != "net::ERR_ABORTED":
            self.complaints.append(f"{request.failure} {request.method} {request.url}")

    def _response(self, response: Response) -> None:
        # MinIO's console asks whether somebody has logged in.
        if response.status >= 400 and not response.url.endswith("/api/v1/session"):
            self.complaints.append(f"{response.status} {response.request.method} {response.url}")


@pytest.fixture
def profile(chromium: Callable[..., BrowserContext], stack: Clone, mlflow: str, tmp_path: Path) -> Iterator[Profile]:
    """No request may have failed when the test ends."""
    values = stack.values
    context = chromium(
        tmp_path,
        viewport={"width": 1440, "height": 900},
        http_credentials={
            "username": values["MLFLOW_TRACKING_USERNAME"],
            "password": values["MLFLOW_TRACKING_PASSWORD"],
            "origin": mlflow,
        },
    )
    context.set_default_timeout(SLOW)
    profile = Profile(context)
    yield profile
    context.close()
    assert profile.complaints == []


@pytest.fixture(scope="session")
def mlflow(stack: Clone) -> str:
    return f"http://mlflow.localhost:{stack.values['MLFLOW_PORT']}"


@pytest.fixture(scope="session")
def jupyter(stack: Clone) -> str:
    """The link of `make urls`, which logs in."""
    return f"http://jupyter.localhost:{stack.values['JUPYTER_PORT']}/lab?token={stack.values['JUPYTER_TOKEN']}"

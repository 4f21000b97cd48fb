"""What a user sees in the first hour: MLflow's page and MinIO's console."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Profile
from tests.support.clone import Clone

pytestmark = pytest.mark.browser
Picture = Callable[[Page, str], None]


def test_the_page_opens_for_model_training(profile: Profile, mlflow: str, picture: Picture) -> None:
    page = profile.open(mlflow)
    expect(page.get_by_role("link", name="Model registry")).to_be_visible()
    expect(page.get_by_text("Information about UI telemetry")).to_have_count(0)
    expect(page.get_by_placeholder("Ask a question")).to_have_count(0)
    profile.look(page)
    picture(page, "mlflow-home")


def test_what_the_user_chose_on_the_page_stays(profile: Profile, mlflow: str) -> None:
    page = profile.open(mlflow)
    page.get_by_text("GenAI", exact=True).click()
    expect(page.get_by_role("link", name="Prompts", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_role("link", name="Prompts", exact=True)).to_be_visible()


def test_the_console_of_minio_lists_the_bucket(profile: Profile, stack: Clone) -> None:
    page = profile.open(f"http://minio.localhost:{stack.values['MINIO_CONSOLE_PORT']}")
    page.locator("#accessKey").fill(stack.values["MINIO_CONSOLE_USER"])
    page.locator("#secretKey").fill(stack.values["MINIO_CONSOLE_PASSWORD"])
    page.get_by_role("button", name="Login").click()
    expect(page.get_by_text(stack.values["MINIO_BUCKET"], exact=True).first).to_be_visible()
    profile.look(page)

"""What a user sees in the first hour: JupyterLab, the links that MLflow prints there, MLflow's page, MinIO's console."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Profile
from tests.support.clone import Clone

pytestmark = pytest.mark.browser
Picture = Callable[[Page, str], None]
NOTEBOOK = 600_000  # milliseconds for a notebook that takes a minute on an idle machine

TRACED = """\
import mlflow

mlflow.set_experiment("traces")

@mlflow.trace
def shout(text):
    return text.upper()

shout("is anybody there?")
mlflow.flush_trace_async_logging()"""


def run_all(profile: Profile, jupyter: str, name: str) -> Page:
    """Opens a notebook from JupyterLab's list of files and runs it from the menu."""
    page = profile.open(jupyter)
    page.locator(".jp-DirListing-item", has_text=name).dblclick()
    expect(page.get_by_text("| Idle")).to_be_visible()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    return page


def test_the_first_notebook_runs_and_its_links_open_what_they_say(profile: Profile, jupyter: str, picture: Picture) -> None:
    page = run_all(profile, jupyter, "01_first_run.ipynb")
    expect(page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output")).to_contain_text("@champion", timeout=NOTEBOOK)
    profile.look(page)
    picture(page, "jupyterlab")
    links = page.locator(".jp-OutputArea-output a", has_text="/#/experiments/1/runs/")
    with profile.context.expect_page() as opened:
        links.first.click()
    run = opened.value
    expect(run.get_by_role("heading", name="baseline")).to_be_visible()
    profile.look(run)


def test_the_page_opens_for_model_training_and_shows_runs_charts_and_files(
    profile: Profile, mlflow: str, picture: Picture
) -> None:
    """After the first notebook."""
    page = profile.open(mlflow)
    expect(page.get_by_role("link", name="Model registry")).to_be_visible()
    expect(page.get_by_text("Information about UI telemetry")).to_have_count(0)
    expect(page.get_by_text("New to MLflow?")).to_have_count(0)
    expect(page.get_by_placeholder("Ask a question")).to_have_count(0)
    page.get_by_role("link", name="flights", exact=True).click()
    expect(page.get_by_role("link", name="baseline")).to_be_visible()
    expect(page.get_by_role("link", name="gradient boosting")).to_be_visible()
    profile.look(page)

    page.get_by_role("checkbox", name="Select all runs").click()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("Comparing 2 Runs")).to_be_visible()
    profile.look(page)

    page.go_back()
    page.get_by_role("link", name="gradient boosting").click()
    page.get_by_role("tab", name="Model metrics").click()
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    profile.look(page)
    picture(page, "mlflow-run")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("learning_and_calibration.png").first.click()
    figure = page.locator("img[src^='blob:'], img[src*='get-artifact']").first
    expect(figure).to_be_visible()
    assert figure.evaluate("image => image.naturalWidth") > 0
    profile.look(page)


def test_the_registered_model_is_where_the_notebook_says(profile: Profile, mlflow: str) -> None:
    page = profile.open(mlflow)
    page.get_by_role("link", name="Model registry").click()
    page.get_by_role("link", name="flight-delay").click()
    expect(page.get_by_text("champion")).to_be_visible()
    page.get_by_role("link", name="Version 1", exact=True).click()
    expect(page.get_by_role("link", name="gradient boosting")).to_be_visible()
    profile.look(page)


def test_what_the_user_chose_on_the_page_stays(profile: Profile, mlflow: str) -> None:
    page = profile.open(mlflow)
    page.get_by_text("GenAI", exact=True).click()
    expect(page.get_by_role("link", name="Prompts", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_role("link", name="Prompts", exact=True)).to_be_visible()


def test_a_trace_opens_in_its_experiment(profile: Profile, mlflow: str, stack: Clone) -> None:
    stack.in_container("jupyter", "with-own-packages", "python", "-c", TRACED)
    page = profile.open(mlflow)
    page.get_by_role("link", name="traces", exact=True).click()
    page.get_by_role("link", name="Traces", exact=True).click()
    page.get_by_text("is anybody there?").first.click()
    expect(page.get_by_text("IS ANYBODY THERE?").last).to_be_visible()
    expect(page.get_by_text("shout", exact=True).last).to_be_visible()
    profile.look(page)


def test_the_notebook_about_traces_shows_them_below_its_cell_and_in_mlflow(profile: Profile, jupyter: str, mlflow: str) -> None:
    page = run_all(profile, jupyter, "04_traces_and_prompts.ipynb")
    last = page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output")
    expect(last.filter(has_text="I do not know.")).to_be_visible(timeout=NOTEBOOK)
    frame = page.locator("iframe[src*='notebook-trace-renderer']").first
    frame.scroll_into_view_if_needed()
    for span in ("answer", "retrieve", "complete"):
        expect(frame.content_frame.get_by_text(span, exact=True).first).to_be_visible()
    profile.look(page)

    page = profile.open(mlflow)
    page.get_by_text("GenAI", exact=True).click()
    page.get_by_role("link", name="airport questions", exact=True).click()
    page.get_by_role("link", name="Evaluation runs", exact=True).click()
    expect(page.get_by_text("right/mean")).to_be_visible()
    profile.look(page)
    page.get_by_role("link", name="Datasets", exact=True).click()
    expect(page.get_by_role("link", name="airport questions", exact=True).last).to_be_visible()
    page.get_by_role("link", name="Prompts", exact=True).click()
    page.get_by_role("link", name="airport-answer", exact=True).click()
    expect(page.get_by_text("may say that it does not know")).to_be_visible()
    profile.look(page)


def test_the_console_of_minio_lists_the_bucket(profile: Profile, stack: Clone) -> None:
    page = profile.open(f"http://minio.localhost:{stack.values['MINIO_CONSOLE_PORT']}")
    page.locator("#accessKey").fill(stack.values["MINIO_CONSOLE_USER"])
    page.locator("#secretKey").fill(stack.values["MINIO_CONSOLE_PASSWORD"])
    page.get_by_role("button", name="Login").click()
    expect(page.get_by_text(stack.values["MINIO_BUCKET"], exact=True).first).to_be_visible()
    profile.look(page)

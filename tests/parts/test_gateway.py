"""The optional part `gateway`: a judge from a notebook and as a job, what is denied, and the core without the part."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
import requests

from mlstack.errors import MlstackError
from mlstack.host.compose import docker
from mlstack.host.doctor import Subject
from mlstack.host.doctor import gateway as gateway_checks
from mlstack.host.stack import Stack
from mlstack.postgres import connected
from mlstack.settings import Login
from tests.stack.conftest import rows
from tests.support.clone import ROOT, Clone
from tests.support.service import wait_until

PROGRAM = (ROOT / "tests/support/judge_program.py").read_text()
SERVER = ROOT / "tests/support/model_server.py"
PROVIDER_KEY = "sk-a-key-of-the-provider"
PORT, WEBHOOK_PORT = 8000, 9999
# In a notebook, as docs/gateway.md says.
PROMPT = """
import mlflow
from mlflow.genai.optimize import MetaPromptOptimizer
prompt = mlflow.genai.register_prompt(name="assistant", template="Answer: {{question}}")
better = mlflow.genai.optimize_prompts(
    predict_fn=lambda question: prompt.format(question=question),
    train_data=None,
    prompt_uris=[prompt.uri],
    optimizer=MetaPromptOptimizer(reflection_model="gateway:/stub"),
)
print(better.optimized_prompts[0].template)
"""
# What a job needs that optimizes a prompt: a prompt with a model, one without, a data set and a judge.
OPTIMIZABLE = """
import json, mlflow
from mlflow.genai.datasets import create_dataset
from mlflow.genai.judges import make_judge
experiment = mlflow.set_experiment("optimized").experiment_id
config = {"provider": "gateway", "model_name": "stub"}
prompt = mlflow.genai.register_prompt(name="assistant", template="Answer at once: {{question}}", model_config=config)
lost = mlflow.genai.register_prompt(name="lost", template="Answer: {{question}}", model_config={**config, "model_name": "none"})
other = mlflow.genai.register_prompt(
    name="other", template="Answer: {{question}}", model_config={"provider": "openai", "model_name": "gpt"}
)
dataset = create_dataset(name="questions", experiment_id=experiment)
dataset.merge_records([{"inputs": {"question": "What is a run?"}, "expectations": {"expected_response": "An execution"}}])
judge = make_judge(name="short", instructions="Is {{ outputs }} short?", model="gateway:/stub", feedback_value_type=str)
judge.register(experiment_id=experiment)
uris = {"prompt": prompt.uri, "lost": lost.uri, "other": other.uri}
print(json.dumps({"experiment": experiment, "dataset": dataset.dataset_id, **uris}))
"""
# MLflow judges traces that began more than five minutes ago, and looks for them every minute.
AUTOMATIC = """
import mlflow, time
from mlflow.genai.judges import make_judge
from mlflow.genai.scorers import ScorerSamplingConfig
mlflow.set_experiment("automatic")
span = mlflow.start_span_no_context("answer", inputs="a question", start_time_ns=time.time_ns() - 600 * 10**9)
span.set_outputs("an answer")
span.end()
mlflow.flush_trace_async_logging()
judge = make_judge(name="automatic", instructions="Is {{ outputs }} helpful?", model="gateway:/stub", feedback_value_type=str)
judge.register().start(sampling_config=ScorerSamplingConfig(sample_rate=1))
print(span.trace_id)
"""
# Traces that began so many days ago.
DAYS = """
import sys, time, mlflow
mlflow.set_experiment("summed")
for days in map(int, sys.argv[1:]):
    start = time.time_ns() - days * 86400 * 10**9
    span = mlflow.start_span_no_context("answer", inputs="a question", start_time_ns=start)
    span.end(outputs="an answer", end_time_ns=start + 10**9)
mlflow.flush_trace_async_logging()
print(mlflow.get_experiment_by_name("summed").experiment_id)
"""
# What MLflow's periodic task calls, in its service.
SUMS = """
from mlstack import settings
settings.publish_secrets()
settings.publish(settings.rollups())
from mlflow.server.jobs.utils import initialize_periodic_tasks_tracking_store
from mlflow.tracing.trace_rollup_service import run_sql_trace_rollup_scheduler
print(run_sql_trace_rollup_scheduler(initialize_periodic_tasks_tracking_store()).trace_metric.built)
"""
MESSAGES = [{"role": "user", "content": "Hello"}]


@contextmanager
def model_server(stack: Clone, name: str) -> Iterator[str]:
    """A model server in a container that has joined the gateway's network, under this name."""
    container = docker(
        "run", "--detach", "--rm", "--init", "--network", f"{stack.name}_gateway-outbound", "--network-alias", name,
        "--volume", f"{SERVER}:/server.py:ro", "--entrypoint", "python3", stack.image("mlflow"), "/server.py", str(PORT),
    ).strip()  # fmt: skip
    try:
        wait_until(lambda: "listening" in docker("logs", container))
        yield container
    finally:
        docker("rm", "--force", container)


@dataclass(frozen=True)
class Gateway:
    """The running part, and what the notebook printed."""

    stack: Clone
    container: str
    notebook: Mapping[str, Any] = field(default_factory=dict)

    @property
    def login(self) -> tuple[str, str]:
        return self.stack.values["MLFLOW_TRACKING_USERNAME"], self.stack.values["MLFLOW_TRACKING_PASSWORD"]

    def call(self, method: str, path: str, login: tuple[str, str] | None = None, **body: Any) -> requests.Response:
        url = f"http://127.0.0.1:{self.stack.values['MLFLOW_PORT']}{path}"
        return requests.request(method, url, json=body or None, auth=login or self.login, timeout=120)

    def created(self, kind: str, **body: Any) -> dict[str, Any]:
        answer = self.call("POST", f"/api/3.0/mlflow/gateway/{kind}/create", **body)
        assert answer.ok, answer.text
        (created,) = answer.json().values()
        return dict(created)

    def endpoint(self, name: str, url: str) -> None:
        """An endpoint of a model server with OpenAI's API."""
        config = {"api_base": url}
        secret = self.created(
            "secrets", secret_name=name, secret_value={"api_key": PROVIDER_KEY}, provider="openai", auth_config=config
        )
        model = {"secret_id": secret["secret_id"], "provider": "openai", "model_name": "stub"}
        model_id = self.created("model-definitions", name=name, **model)["model_definition_id"]
        self.created(
            "endpoints", name=name, model_configs=[{"model_definition_id": model_id, "linkage_type": "PRIMARY", "weight": 1}]
        )

    def chat(self, endpoint: str, login: tuple[str, str] | None = None, **options: Any) -> requests.Response:
        return self.call("POST", "/gateway/mlflow/v1/chat/completions", login, model=endpoint, messages=MESSAGES, **options)

    def received(self) -> list[dict[str, str]]:
        program = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{PORT}').read().decode())"
        requests_so_far: list[dict[str, str]] = json.loads(docker("exec", self.container, "python3", "-c", program))
        return requests_so_far

    def job(self, path: str, **body: Any) -> dict[str, Any]:
        """A job that MLflow's page would start, when it has ended."""
        started = self.call("POST", f"/ajax-api/3.0/mlflow/{path}", **body)
        assert started.ok, started.text
        jobs = started.json().get("jobs") or [started.json()]
        wait_until(lambda: self.status(jobs[0]["job_id"])["status"] not in ("PENDING", "RUNNING"))
        return self.status(jobs[0]["job_id"])

    def status(self, job: str) -> dict[str, Any]:
        answer = self.call("GET", f"/ajax-api/3.0/mlflow/jobs/{job}")
        assert answer.ok, answer.text
        return dict(answer.json())


@pytest.fixture(scope="module")
def gateway(stack: Clone) -> Iterator[Gateway]:
    env = stack.folder / ".env"
    before = env.read_text()
    stack.set(GATEWAY_HOSTS=f"stub:{PORT}", WEBHOOK_HOSTS=f"jupyter:{WEBHOOK_PORT}")
    added = stack.make("add", PART="gateway")
    assert added.returncode == 0, added.stderr
    with model_server(stack, "stub") as container:
        Gateway(stack, container).endpoint("stub", f"http://stub:{PORT}/v1")
        stack.in_container("jupyter", "python3", "-c", PROGRAM)
        yield Gateway(stack, container, json.loads(stack.in_container("jupyter", "cat", "/tmp/judged.json")))  # noqa: S108
    stack.make("remove", PART="gateway")
    env.write_text(before)  # other files share the stack, and start it with this


def test_judge_of_a_notebook_is_answered_through_the_gateway(gateway: Gateway) -> None:
    assert (gateway.notebook["verdict"], gateway.notebook["evaluated"]) == ("yes", ["yes", "yes"])
    streamed = gateway.chat("stub", stream=True)
    assert [word in streamed.text for word in ("one", "two")] == [True, True], streamed.text
    asked = gateway.received()
    assert {(request["path"], request["key"]) for request in asked} == {("/v1/chat/completions", f"Bearer {PROVIDER_KEY}")}
    assert len(asked) >= len(["the judge", "two traces", "the stream"]) + 1


def test_judges_that_the_page_starts_run_as_jobs(gateway: Gateway) -> None:
    judged = {"experiment_id": gateway.notebook["experiment"], "trace_ids": gateway.notebook["traces"]}
    before = len(gateway.received())
    job = gateway.job("scorer/invoke", serialized_scorer=gateway.notebook["scorer"], **judged)
    assert job["status"] == "SUCCEEDED", job
    values = [result["assessments"][0]["feedback"]["value"] for result in job["result"].values()]
    assert (values, len(gateway.received()) - before) == (["yes", "yes"], 2)
    evaluated = gateway.job("genai/evaluate/invoke", serialized_scorers=[gateway.notebook["scorer"]], **judged)
    assert evaluated["status"] == "SUCCEEDED", evaluated
    run = gateway.call("GET", f"/api/2.0/mlflow/runs/get?run_id={evaluated['result']['run_id']}").json()["run"]
    assert run["info"]["status"] == "FINISHED"
    assert len(gateway.received()) - before == 4


def test_issues_that_the_page_looks_for_are_looked_for_by_a_job(gateway: Gateway) -> None:
    traces = {"experiment_id": gateway.notebook["experiment"], "trace_ids": gateway.notebook["traces"]}
    job = gateway.job("issues/invoke", **traces, categories=["correctness"], provider="gateway", endpoint_name="stub")
    assert (job["status"], job["result"]["total_traces_analyzed"]) == ("SUCCEEDED", 2), job


def test_notebook_improves_a_prompt_through_the_gateway(gateway: Gateway) -> None:
    assert (
        gateway.stack.in_container("jupyter", "python3", "-c", PROMPT).splitlines()[-1] == "Answer in one sentence: {{question}}"
    )


@pytest.fixture(scope="module")
def optimizable(gateway: Gateway) -> dict[str, str]:
    ids: dict[str, str] = json.loads(gateway.stack.in_container("jupyter", "python3", "-c", OPTIMIZABLE).splitlines()[-1])
    return ids


def optimized(
    gateway: Gateway, ids: dict[str, str], prompt: str = "prompt", kind: str = "METAPROMPT", model: str = "gateway:/stub"
) -> dict[str, Any]:
    """A job that optimizes a prompt, when it has ended."""
    jobs = "/api/3.0/mlflow/prompt-optimization/jobs"
    config = {
        "optimizer_type": f"OPTIMIZER_TYPE_{kind}",
        "dataset_id": ids["dataset"],
        "scorers": ["short"],
        "optimizer_config_json": json.dumps({"reflection_model": model}),
    }
    started = gateway.call("POST", jobs, experiment_id=ids["experiment"], source_prompt_uri=ids[prompt], config=config)
    assert started.ok, started.text
    job = started.json()["job"]["job_id"]

    def state() -> dict[str, Any]:
        return dict(gateway.call("GET", f"{jobs}/{job}").json()["job"])

    wait_until(lambda: state()["state"]["status"] not in ("JOB_STATUS_PENDING", "JOB_STATUS_IN_PROGRESS"))
    return state()


def test_prompt_is_optimized_by_a_job(gateway: Gateway, optimizable: dict[str, str], role: Login) -> None:
    before = len(gateway.received())
    job = optimized(gateway, optimizable)
    assert job["state"]["status"] == "JOB_STATUS_COMPLETED", job
    assert job["optimized_prompt_uri"] not in ("", optimizable["prompt"])
    number = int(job["optimized_prompt_uri"].rpartition("/")[2])
    version = gateway.call("GET", f"/api/2.0/mlflow/model-versions/get?name=assistant&version={number}").json()["model_version"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert tags["mlflow.prompt.text"] == "Answer in one sentence: {{question}}"
    assert (job["initial_eval_scores"]["aggregate"], job["final_eval_scores"]["aggregate"]) == (1, 1)
    # The prompt's model: once for MLflow to see that it answers, before and after. Two judgements, and the improvement.
    assert len(gateway.received()) - before == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": "other"}, "has no model of the AI gateway: its model configuration names the provider 'openai'"),
        ({"prompt": "lost"}, "gateway:/none is no endpoint of the AI gateway"),
        ({"model": "openai:/gpt"}, "openai:/gpt is no endpoint of the AI gateway"),
        ({"kind": "GEPA"}, "needs the packages gepa"),
    ],
)
def test_optimization_that_cannot_work_says_what_to_set(
    gateway: Gateway, optimizable: dict[str, str], change: dict[str, str], reason: str
) -> None:
    job = optimized(gateway, optimizable, **change)
    assert job["state"]["status"] == "JOB_STATUS_FAILED", job
    assert reason in job["state"]["error_message"] and "Fix: " in job["state"]["error_message"]


@pytest.mark.refusal
def test_optimization_uses_models_in_the_name_of_the_account_that_started_it(
    gateway: Gateway, optimizable: dict[str, str], role: Login
) -> None:
    job = optimized(gateway, optimizable)
    removed = "UPDATE jobs SET creator = 'nobody' WHERE id = %s"
    with connected(role) as connection, connection.cursor() as cursor:  # its account is removed, and the job runs again
        cursor.execute(f"{removed} RETURNING status", (job["job_id"],))
        cursor.execute("UPDATE jobs SET status = 0 WHERE id = %s", (job["job_id"],))
    wait_until(lambda: rows(role, f"SELECT status FROM jobs WHERE id = '{job['job_id']}'")[0][0] not in (0, 1))  # noqa: S608
    again = gateway.call("GET", f"/api/3.0/mlflow/prompt-optimization/jobs/{job['job_id']}").json()["job"]
    assert again["state"]["status"] == "JOB_STATUS_FAILED", again
    assert "did not answer" in again["state"]["error_message"] and "401" in again["state"]["error_message"]


def test_traces_are_evaluated_automatically(gateway: Gateway, role: Login) -> None:
    trace = gateway.stack.in_container("jupyter", "python3", "-c", AUTOMATIC).splitlines()[-1]
    judged = f"SELECT name, value FROM assessments WHERE trace_id = '{trace}'"  # noqa: S608 # an id that MLflow made
    wait_until(lambda: rows(role, judged) == [("automatic", '"yes"')], seconds=240)


@pytest.mark.refusal
def test_gateway_connects_to_named_hosts_only(gateway: Gateway, subtests: pytest.Subtests) -> None:
    urls = (
        "http://postgres:5432",
        f"http://stub:{PORT + 1}",
        "http://169.254.169.254",
        "http://127.0.0.1:5432",
        "https://a.example",
    )
    for number, url in enumerate(urls):
        with subtests.test(url=url):
            gateway.endpoint(f"other-{number}", f"{url}/v1")
            answer = gateway.chat(f"other-{number}")
            assert (answer.status_code, "GATEWAY_HOSTS" in answer.text) == (403, True), answer.text


@pytest.mark.refusal
def test_provider_key_is_in_no_answer_row_or_log(gateway: Gateway, role: Login) -> None:
    admin = gateway.stack.values["MLFLOW_ADMIN_USERNAME"], gateway.stack.values["MLFLOW_ADMIN_PASSWORD"]
    lists = ("secrets/list", "endpoints/list", "model-definitions/list")
    answers = [
        gateway.call("GET", f"/api/3.0/mlflow/gateway/{path}", login) for path in lists for login in (gateway.login, admin)
    ]
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert "stub" in answers[0].text  # the list is not empty
    stored = str(rows(role, "SELECT s::text, encode(encrypted_value, 'escape') FROM secrets s"))
    written = gateway.stack.compose("logs", "--no-color", "gateway", "gateway-jobs", "mlflow", "jupyter")
    assert [text for text in (*(answer.text for answer in answers), stored, written) if PROVIDER_KEY in text] == []


@pytest.mark.refusal
def test_token_of_jobs_opens_only_the_routes_of_models_and_only_inside(gateway: Gateway) -> None:
    name, token = gateway.login[0], gateway.stack.values["GATEWAY_JOB_TOKEN"]
    experiments = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert gateway.chat("stub", (name, token)).status_code == 401
    assert gateway.call("GET", experiments, (name, token)).status_code == 401
    program = (
        "import requests, sys; url, token = 'http://gateway.mlstack.internal:5000', sys.argv[1]\n"
        f"models = '/gateway/mlflow/v1/models'; asks = [('{name}', models), ('nobody', models), ('{name}', '{experiments}')]\n"
        "print([requests.get(url + path, auth=(account, token)).status_code for account, path in asks])"
    )
    assert gateway.stack.in_container("mlflow", "python3", "-c", program, token).strip() == "[200, 401, 401]"


@pytest.mark.refusal
def test_job_is_seen_and_canceled_only_by_the_account_that_started_it(gateway: Gateway) -> None:
    admin = gateway.stack.values["MLFLOW_ADMIN_USERNAME"], gateway.stack.values["MLFLOW_ADMIN_PASSWORD"]
    other = "other", "a-passphrase-of-another"
    assert gateway.call("POST", "/api/2.0/mlflow/users/create", admin, username=other[0], password=other[1]).ok
    own = gateway.call("POST", "/ajax-api/3.0/jobs/search", job_name="invoke_scorer").json()["jobs"]
    assert [job["creator"] for job in own] == [gateway.login[0]] * len(own) != []
    assert gateway.call("POST", "/ajax-api/3.0/jobs/search", other, job_name="invoke_scorer").json()["jobs"] == []
    for method, path in (("GET", "mlflow/jobs"), ("PATCH", "mlflow/jobs/cancel"), ("GET", "jobs"), ("PATCH", "jobs/cancel")):
        assert gateway.call(method, f"/ajax-api/3.0/{path}/{own[0]['job_id']}", other).status_code == 403
    assert gateway.call("DELETE", "/api/2.0/mlflow/users/delete", admin, username=other[0]).ok


@pytest.mark.refusal
def test_account_cannot_start_a_job_in_the_name_of_another(gateway: Gateway, role: Login) -> None:
    before = rows(role, "SELECT count(*) FROM jobs")
    judged = {"experiment_id": gateway.notebook["experiment"], "trace_ids": gateway.notebook["traces"]}
    parameters = {
        **judged,
        "serialized_scorer": gateway.notebook["scorer"],
        "username": gateway.stack.values["MLFLOW_ADMIN_USERNAME"],
    }
    for path in ("/ajax-api/3.0/jobs/", "/ajax-api/3.0/jobs", "/ajax-api/3.0//jobs/"):
        assert not gateway.call("POST", path, job_name="invoke_scorer", params=parameters).ok
    assert rows(role, "SELECT count(*) FROM jobs") == before


@pytest.mark.refusal
def test_jobs_have_no_way_out(gateway: Gateway) -> None:
    network = f'{{{{(index .NetworkSettings.Networks "{gateway.stack.name}_gateway-outbound").IPAddress}}}}'
    address = docker("inspect", "--format", network, gateway.container).strip()
    attempt = f"timeout 8 bash -c 'exec 3<>/dev/tcp/{address}/{PORT}' && echo connected || true"
    reached = {
        service: gateway.stack.in_container(service, "bash", "-c", attempt).strip() for service in ("gateway", "gateway-jobs")
    }
    assert reached == {"gateway": "connected", "gateway-jobs": ""}


# ---- without the part ----------------------------------------------------------------------------


@pytest.mark.refusal
def test_webhook_reaches_a_named_receiver_and_no_other_private_address(gateway: Gateway) -> None:
    admin = gateway.stack.values["MLFLOW_ADMIN_USERNAME"], gateway.stack.values["MLFLOW_ADMIN_PASSWORD"]
    listen = ("exec", "--detach", "jupyter", "python3", "-c", SERVER.read_text(), str(WEBHOOK_PORT))
    gateway.stack.compose(*listen)
    ask = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{WEBHOOK_PORT}').read().decode())"
    event = [{"entity": "REGISTERED_MODEL", "action": "CREATED"}]

    def webhook(name: str, url: str) -> requests.Response:
        return gateway.call("POST", "/api/2.0/mlflow/webhooks", admin, name=name, url=url, events=event)

    created = webhook("named", f"http://jupyter:{WEBHOOK_PORT}/hook")
    assert created.ok, created.text
    assert gateway.call("POST", "/api/2.0/mlflow/registered-models/create", name="announced").ok
    wait_until(lambda: "/hook" in gateway.stack.in_container("jupyter", "python3", "-c", ask))
    for url in ("http://jupyter:8888", f"https://jupyter:{WEBHOOK_PORT + 1}", "https://minio:9000", "https://127.0.0.1:5000"):
        assert webhook("other", url).status_code == 400
    assert gateway.call("DELETE", f"/api/2.0/mlflow/webhooks/{created.json()['webhook']['webhook_id']}", admin).ok


def test_gc_archives_and_deletes_old_traces(gateway: Gateway, role: Login) -> None:
    old, young = gateway.notebook["traces"]
    with connected(role, 30) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE trace_info SET timestamp_ms = timestamp_ms - 2678400000 WHERE request_id = %s", (old,))
    kept = gateway.stack.make("gc", YES="1")
    assert "TRACE_RETENTION" not in kept.stdout
    gateway.stack.set(TRACE_ARCHIVE="30")
    gateway.stack.make("gc", YES="1").check_returncode()
    traces = {"experiment_id": gateway.notebook["experiment"], "trace_ids": [old]}
    judged = gateway.job("scorer/invoke", serialized_scorer=gateway.notebook["scorer"], **traces)
    assert judged["status"] == "FAILED" and "are archived in the bucket" in str(judged), judged
    gateway.stack.set(TRACE_ARCHIVE="", TRACE_RETENTION="30")
    done = gateway.stack.make("gc", YES="1")
    assert "traces older than TRACE_RETENTION" in done.stdout, done.stdout + done.stderr
    remaining = {row[0] for row in rows(role, "SELECT request_id FROM trace_info")}
    assert (old in remaining, young in remaining) == (False, True)


def counted(gateway: Gateway, experiment: str) -> dict[int, float]:
    """The number of traces of each day, by how many days ago it was, as a chart of MLflow's page asks for it."""
    today = int(time.time()) // 86400
    asked = {
        "view_type": "TRACES",
        "metric_name": "trace_count",
        "aggregations": [{"aggregation_type": "COUNT"}],
        "time_interval_seconds": 86400,
        "start_time_ms": (today - 60) * 86400000,
        "end_time_ms": (today + 1) * 86400000 - 1,
    }
    answer = gateway.call("POST", "/api/3.0/mlflow/traces/metrics", experiment_ids=[experiment], **asked)
    assert answer.ok, answer.text
    points = answer.json()["data_points"]
    return {
        today - int(datetime.fromisoformat(point["dimensions"]["time_bucket"]).timestamp()) // 86400: point["values"]["COUNT"]
        for point in points
    }


def test_sums_by_day_are_read_and_never_stale(gateway: Gateway, role: Login) -> None:
    stack, stored = gateway.stack, "SELECT count(*) FROM sql_trace_metric_daily_rollups"
    stack.set(TRACE_ROLLUPS="on")
    stack.make("up").check_returncode()
    experiment = stack.in_container("jupyter", "python3", "-c", DAYS, "0", "5", "5", "40", "40", "50").splitlines()[-1]
    raw = counted(gateway, experiment)
    assert raw == {0: 1, 5: 2, 40: 2, 50: 1}
    runner = "timeout 120 python3 -m mlstack.jobs.runner || true"  # with its periodic tasks, one of them each minute
    stack.in_container("gateway-jobs", "bash", "-c", runner, MLFLOW_TRACE_ROLLUPS_SCHEDULE="* * * * *")
    days = rows(role, f"SELECT count(DISTINCT rollup_day) FROM sql_trace_metric_daily_rollups WHERE experiment_id = {experiment}")  # noqa: S608
    assert days == [(3,)]
    assert counted(gateway, experiment) == raw
    with connected(role) as connection, connection.cursor() as cursor:  # it is the sum that is read
        cursor.execute(
            "UPDATE sql_trace_metric_daily_rollups SET sample_count = sample_count + 100 WHERE metric_name = 'trace_count'"
        )
    assert counted(gateway, experiment) == {0: 1, 5: 102, 40: 102, 50: 101}
    # A new trace of such a day, one that the server deletes, and those that make gc deletes: the day is counted again.
    stack.in_container("jupyter", "python3", "-c", DAYS, "50")
    (five, *_), = rows(role, f"SELECT array_agg(request_id) FROM trace_info WHERE experiment_id = {experiment}"  # noqa: S608
                       " AND timestamp_ms BETWEEN (extract(epoch FROM now()) - 6 * 86400) * 1000"
                       " AND (extract(epoch FROM now()) - 4 * 86400) * 1000")[0]  # fmt: skip
    assert gateway.call("POST", "/api/3.0/mlflow/traces/delete-traces", experiment_id=experiment, request_ids=[five]).ok
    assert counted(gateway, experiment) == {0: 1, 5: 1, 40: 102, 50: 2}
    stack.set(TRACE_RETENTION="45")
    stack.make("gc", YES="1").check_returncode()
    assert counted(gateway, experiment) == {0: 1, 5: 1, 40: 102}
    stack.set(TRACE_RETENTION="")
    # A server that starts does not know what was changed before: it begins without sums.
    stack.compose("restart", "mlflow")
    stack.compose("up", "--detach", "--wait", "--no-build")
    assert counted(gateway, experiment) == {0: 1, 5: 1, 40: 2}
    stack.in_container("gateway-jobs", "python3", "-c", SUMS)
    assert rows(role, stored) != [(0,)]
    stack.set(TRACE_ROLLUPS="off")
    off = stack.make("up")
    assert off.returncode == 0, off.stdout + off.stderr
    assert (rows(role, stored), counted(gateway, experiment)) == ([(0,)], {0: 1, 5: 1, 40: 2})


def test_doctor_finds_the_part_healthy_and_reports_a_job_that_nobody_takes(gateway: Gateway, role: Login) -> None:
    results = doctor(gateway)
    assert {name: result["state"] for name, result in results.items()} == dict.fromkeys(
        ("MLflow forwards requests to it", "jobs are taken"), "ok"
    )
    subject = Subject(Stack.of(gateway.stack.folder))
    gateway.stack.compose("stop", "gateway", "gateway-jobs")
    try:
        with connected(role) as connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO jobs (id, creation_time, job_name, params, status, retry_count, last_update_time)"
                " VALUES ('waiting', 0, 'nothing', '{}', 0, 0, 0)"
            )
        with pytest.raises(MlstackError, match="1 jobs have waited for more than 5 minutes"):
            gateway_checks.jobs.examine(subject)
        with pytest.raises(MlstackError, match=r"MLflow answers [45][0-9][0-9] for the AI gateway"):
            gateway_checks.forwards.examine(subject)
    finally:
        with connected(role) as connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM jobs WHERE id = 'waiting'")
        gateway.stack.compose("up", "--detach", "--wait", "--no-build")


def doctor(gateway: Gateway) -> dict[str, dict[str, str]]:
    results: list[dict[str, str]] = json.loads(gateway.stack.make("doctor", JSON="1").stdout)["checks"]
    return {result["name"]: result for result in results if result["reach"] == "gateway"}


def test_removed_part_leaves_mlflow_as_it_was(gateway: Gateway) -> None:
    before = gateway.stack.compose("ps", "--format", "{{.ID}}", "mlflow")
    for _ in range(2):
        removed = gateway.stack.make("remove", PART="gateway")
        assert removed.returncode == 0, removed.stderr
    assert gateway.stack.compose("ps", "--format", "{{.ID}}", "mlflow") == before
    assert gateway.call("GET", "/ajax-api/3.0/mlflow/server-info").json()["features_enabled"] == {"gateway": False}
    assert gateway.chat("stub").status_code == 501
    listed = json.loads(gateway.stack.make("status", JSON="1").stdout)
    assert not [service for service in listed["services"] if "gateway" in service["name"]]

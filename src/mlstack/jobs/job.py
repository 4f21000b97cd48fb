"""A job's own process: `python3 -m mlstack.jobs.job`, MLflow's, with another way to optimize a prompt.

MLflow's calls the prompt's model with a package that is not in the image, and with a provider's key. Here the model is an
endpoint of the gateway, as that of every other job, and it is called in the name of the account that started the job.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from mlflow.exceptions import MlflowException

from mlstack import settings
from mlstack.jobs import upstream

OPTIMIZATION = "optimize_prompts"  # MLflow's name of the job
SCHEME = "gateway:/"
HOW = "mlflow.genai.set_prompt_model_config(name, version, {'provider': 'gateway', 'model_name': 'my-endpoint'})"


class ModelFailed(BaseException):
    """A model that does not answer. MLflow takes an Exception for an answer, or for no better prompt: the job would succeed."""


def main() -> None:
    upstream.replace_archives(unreadable)
    name, job = settings.of_shell("_MLFLOW_SERVER_JOB_NAME"), settings.of_shell("_MLFLOW_SERVER_JOB_ID")
    if name == OPTIMIZATION:
        if account := upstream.creator(job):
            settings.publish({"MLFLOW_TRACKING_USERNAME": account})
        upstream.replace_optimization(explained, predict_fn, check, fatal)
    upstream.run_job()


def unreadable(trace: Any) -> str:
    """Raises MlflowException: a job has no key of the bucket, and MLflow would judge a trace without spans."""
    raise MlflowException(
        f"The spans of {trace.trace_id} are archived in the bucket, of which jobs have no key. Fix: evaluate archived traces in a"
        " notebook, with mlflow.genai.evaluate."
    )


def predict_fn(prompt_uri: str) -> Callable[..., str]:
    """A function that formats the prompt and asks the endpoint of its model configuration."""
    prompt = upstream.prompt(prompt_uri)
    config = prompt.model_config or {}
    if config.get("provider") != "gateway" or not config.get("model_name"):
        raise MlflowException.invalid_parameter_value(
            f"{prompt_uri} has no model of the AI gateway: its model configuration names the provider {config.get('provider')!r}"
            f" and the model {config.get('model_name')!r}. A job asks the prompt's model, and has no provider's key and no way"
            f" out of the stack but the gateway. Fix: {HOW}."
        )
    model = _known(f"{SCHEME}{config['model_name']}")

    def predict(**inputs: Any) -> str:
        text = prompt.format(**inputs)
        return upstream.ask(model, text if isinstance(text, list) else [{"role": "user", "content": text}])

    return predict


def check(kind: str, config: dict[str, Any] | None) -> None:
    """Raises MlflowException for an optimizer that cannot work in a job."""
    if kind == "gepa":
        raise MlflowException.invalid_parameter_value(
            "The optimizer GEPA does not work in a job: it needs the packages gepa and litellm, which are not in the image, and"
            " calls a provider itself, which no job reaches. Fix: choose the optimizer MetaPrompt, OPTIMIZER_TYPE_METAPROMPT."
        )
    if model := (config or {}).get("reflection_model"):
        _known(model)


def _known(model: str) -> str:
    name = model.removeprefix(SCHEME)
    if name == model or not upstream.endpoint_exists(name):
        raise MlflowException.invalid_parameter_value(
            f"{model} is no endpoint of the AI gateway. A job has no provider's key and no way out of the stack but the gateway."
            f" Fix: create the endpoint in MLflow's page, AI Gateway, and write {SCHEME}my-endpoint."
        )
    return model


def fatal(call: Callable[..., Any]) -> Callable[..., Any]:
    """Calls a model so that its failure ends the job."""

    @wraps(call)
    def called(*arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except Exception as error:
            raise ModelFailed(str(error)) from error

    return called


def explained(run: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the job; a model's failure is its error."""

    @wraps(run)
    def ran(**parameters: Any) -> Any:
        try:
            return run(**parameters)
        except ModelFailed as error:
            raise MlflowException(
                f"A model of the AI gateway did not answer: {error}. No prompt was registered. Fix: try the endpoint in MLflow's"
                " page, AI Gateway, then start the job again."
            ) from error

    return ran


if __name__ == "__main__":
    main()

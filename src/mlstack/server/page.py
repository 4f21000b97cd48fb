"""MLflow's own page, set for model training until the user chooses otherwise (docs/adr/0027).

MLflow keeps the choices of its page in the browser. Those that are absent are set before its program starts: the page otherwise
opens for traces of language models, with a panel and a banner about features that this server has switched off.
"""

import json
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Depends
from starlette.responses import HTMLResponse

from mlstack.server import auth

DEFAULTS = {
    "mlflow.workflowType_v1": "machine_learning",  # the menu has runs and models
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,  # needs MLflow outside of a container
    "mlflow.home.getting-started.collapsed_v1": True,  # it starts with a demo of traces
    "mlflow.telemetry.info.alert.dismissed_v1": True,  # the server sends no usage data (MLFLOW_DISABLE_TELEMETRY)
    "_mlflow_model_registry_promo_modal_dismissed_v1": True,  # a dialog over the models, about aliases
    "mlflow.settings.telemetry.enabled_v1": False,  # the switch in the page's settings says so too
}
SET_WHEN_ABSENT = """<script>
for (const [key, value] of Object.entries(%s)) {
  if (localStorage.getItem(key) === null) localStorage.setItem(key, JSON.stringify(value));
}
</script>"""

# One of MLflow's application, whose middlewares forbid other pages to frame it.
router = APIRouter(dependencies=[Depends(auth.caller_or_none)])


@router.api_route("/", methods=["GET", "HEAD"])
async def page() -> HTMLResponse:
    """The page from which MLflow's program starts."""
    return HTMLResponse(_page(), headers={"Cache-Control": "no-cache"})


@cache
def _page() -> str:
    before, head, after = (files("mlflow") / "server/js/build/index.html").read_text("utf-8").partition("<head>")
    return before + head + SET_WHEN_ABSENT % json.dumps(DEFAULTS) + after

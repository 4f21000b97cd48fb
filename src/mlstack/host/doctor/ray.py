"""The optional part `ray`, by asking it: every worker has joined, tasks run, the token is needed."""

import json

from mlstack.errors import MlstackError
from mlstack.host.doctor.check import check
from mlstack.host.doctor.context import Subject
from mlstack.host.doctor.stack import service

REACH = "ray"
SERVICE = "ray-head"
WHY = "Searches and training on several workers need it."

# As a notebook would: the status of a call without a token, and the CPUs of the nodes that are alive.
_PROGRAM = """\
import json, os, urllib.error, urllib.request

def get(path, **headers):
    request = urllib.request.Request(os.environ["RAY_API_SERVER_ADDRESS"] + path, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""

anonymous, _ = get("/api/version")
status, text = get("/nodes?view=summary", Authorization="Bearer " + os.environ.get("RAY_AUTH_TOKEN", ""))
nodes = json.loads(text)["data"]["summary"] if status == 200 else []
alive = [node["raylet"] for node in nodes if node["raylet"]["state"] == "ALIVE"]
print(json.dumps([anonymous, status, len([node for node in alive if not node.get("isHeadNode")])]))
"""


@check(REACH, "every worker has joined, and clients need the token", service(SERVICE), service("jupyter"))
def workers(subject: Subject) -> str:
    anonymous, status, joined = json.loads(subject.python_inside("jupyter", _PROGRAM))
    if anonymous != 401:  # noqa: PLR2004
        raise MlstackError(
            f"Ray answers {anonymous} to a client without the token.",
            "Whoever reaches it runs code on the workers.",
            "set RAY_AUTH_MODE: token in compose/ray.yml, then make up",
        )
    if status != 200:  # noqa: PLR2004
        raise MlstackError(f"Ray answers {status} to a notebook's token.", WHY, "make up gives both the RAY_TOKEN of .env")
    wanted = 1 if subject.values.get("RAY_HOST") else int(subject.values["RAY_WORKERS"])
    if joined < wanted:
        raise MlstackError(f"{joined} of {wanted} workers have joined.", WHY, "make logs SERVICE=ray-worker; make up")
    return f"{joined} workers"

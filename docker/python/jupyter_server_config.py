# JupyterLab behind a loopback port. The token comes from JUPYTER_TOKEN, which Jupyter reads itself.
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jupyter_server.auth import IdentityProvider
from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

c = get_config()  # noqa: F821  (Jupyter puts it there)

c.ServerApp.ip = "0.0.0.0"
c.ServerApp.port = 8888
# A second server on the next port would not be published.
c.ServerApp.port_retries = 0
c.ServerApp.open_browser = False
c.ServerApp.root_dir = "/home/mlstack/notebooks"
# Listening on all interfaces would turn the Host check off, and so allow DNS rebinding.
c.ServerApp.allow_remote_access = False
c.ServerApp.local_hostnames = ["localhost", "127.0.0.1", "jupyter", "jupyter.localhost"]
# A browser's login ends when the token changes: Jupyter would keep the key of its cookies on the home volume.
c.ServerApp.cookie_secret = hashlib.sha256(f"cookies of {IdentityProvider().token}".encode()).digest()
# A password that is set in the page would survive a change of the token too.
c.PasswordIdentityProvider.allow_password_change = False
c.PasswordIdentityProvider.hashed_password = ""
c.ServerApp.quit_button = False
# No login shell, whose profile would take the users' packages from the PATH.
c.ServerApp.terminado_settings = {"shell_command": ["/bin/bash", "-c", '[ "$PWD" != ~ ] || cd notebooks; exec /bin/bash']}
# A kernel whose notebook a browser shows is not ended.
c.MappingKernelManager.cull_idle_timeout = round(3600 * float(os.environ["JUPYTER_IDLE_HOURS"]))
c.MappingKernelManager.cull_interval = max(1, min(60, c.MappingKernelManager.cull_idle_timeout))
# Kernels, terminals and the server share this limit.
c.ResourceUseDisplay.mem_limit = int(os.environ["JUPYTER_MEMORY"][:-1]) << {"m": 20, "g": 30}[os.environ["JUPYTER_MEMORY"][-1]]
# Kernels talk to the server through sockets in the file system: no port that another container could reach.
c.KernelManager.transport = "ipc"
# Deletions are permanent: a trash folder would fill the home volume unnoticed.
c.FileContentsManager.delete_to_trash = False
# HEAD is only a cover (docker-compose.yml); the others are Jupyter's own defaults.
c.ContentsManager.hide_globs = ["HEAD", "__pycache__", "*.pyc", "*.pyo", ".DS_Store", "*~"]


class Connection(ZMQChannelsWebsocketConnection):
    """A page's connection to a kernel: says below the running cell when the kernel was killed for its memory.

    Jupyter says only that a kernel "appears to have died" and starts another one.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._kills = kills()
        self._cell: dict[str, Any] = {}  # the header of the last request to run code

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        super().handle_incoming_message(incoming_msg)
        if self._is_binary:
            header = json.loads(deserialize_msg_from_ws_v1(incoming_msg)[1][0])
        else:
            header = {} if isinstance(incoming_msg, bytes) else json.loads(incoming_msg)["header"]
        if header.get("msg_type") == "execute_request":
            self._cell = header

    def on_kernel_restarted(self) -> None:
        if kills() > self._kills:
            self._kills = kills()
            limit = os.environ["JUPYTER_MEMORY"]
            self._say(
                f"The kernel was killed: all notebooks together needed more memory than JUPYTER_MEMORY={limit}.\n"
                "Its variables are lost; what MLflow has stored is not.\n"
                "Fix: shut down kernels that you do not need (the page's left side), load less data at once, or raise"
                " JUPYTER_MEMORY in .env, then make up.\n"
            )
        super().on_kernel_restarted()

    def _say(self, text: str) -> None:
        message = self.session.msg("stream", {"name": "stderr", "text": text}, parent=self._cell)
        if self._is_binary:
            self.write_message(serialize_msg_to_ws_v1(message, "iopub", self.session.pack), binary=True)
        else:
            self.write_message(json.dumps(message | {"channel": "iopub"}, default=str))

    @property
    def _is_binary(self) -> bool:
        return self.subprotocol == "v1.kernel.websocket.jupyter.org"


def kills() -> int:
    """How many processes of this container the system has killed for its memory limit."""
    for file in ("memory.events", "memory/memory.oom_control"):  # control groups of version 2 and 1
        path = Path("/sys/fs/cgroup", file)
        if path.exists():
            return int(dict(line.split() for line in path.read_text().splitlines()).get("oom_kill", 0))
    return 0


c.ServerApp.kernel_websocket_connection_class = Connection

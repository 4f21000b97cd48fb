# JupyterLab behind a loopback port. The token comes from JUPYTER_TOKEN, which Jupyter reads itself.
import hashlib

from jupyter_server.auth import IdentityProvider

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
# Kernels talk to the server through sockets in the file system: no port that another container could reach.
c.KernelManager.transport = "ipc"
# Deletions are permanent: a trash folder would fill the home volume unnoticed.
c.FileContentsManager.delete_to_trash = False
# HEAD is only a cover (docker-compose.yml); the others are Jupyter's own defaults.
c.ContentsManager.hide_globs = ["HEAD", "__pycache__", "*.pyc", "*.pyo", ".DS_Store", "*~"]

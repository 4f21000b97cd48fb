"""Jupyter's login after the token changed, and after a package wrote files to the home volume."""

from collections.abc import Iterator

import pytest
import requests
from testcontainers.core.network import Network

from mlstack.host.compose import docker
from tests.support.clone import Clone
from tests.support.service import Service, wait_until

OTHER_TOKEN = "another-token-than-before"
# Files that a package could write for the next start of the server.
PLANTED = {
    ".jupyter/jupyter_server_config.py": (
        "c.IdentityProvider.token = ''; c.ServerApp.allow_remote_access = True; c.ServerApp.allow_origin = '*'\n"
        "c.ServerApp.disable_check_xsrf = True; c.ServerApp.allow_unauthenticated_access = True"
    ),
    ".jupyter/jupyter_lab_config.json": '{"IdentityProvider": {"token": ""}, "ServerApp": {"allow_remote_access": true}}',
    ".local/etc/jupyter/jupyter_server_config.d/planted.json": '{"IdentityProvider": {"token": ""}}',
    "jupyter_server_config.py": "c.IdentityProvider.token = ''",
    ".local/lib/python3.13/site-packages/usercustomize.py": "import os; os.environ['JUPYTER_TOKEN'] = ''",
}


@pytest.fixture
def home(built: Clone) -> Iterator[str]:
    name = docker("volume", "create", f"{built.name}-login").strip()
    yield name
    docker("volume", "rm", name)


def jupyter(built: Clone, network: Network, home: str) -> Service:
    return Service(built, "jupyter", network, 8888, volumes=[(home, "/home/mlstack", "rw")])


def listing(service: Service, browser: requests.Session, **headers: str) -> int:
    url = f"http://{service.address(8888)}/api/contents"
    return browser.get(url, headers=headers, timeout=60, allow_redirects=False).status_code


@pytest.mark.refusal
def test_cookie_of_an_older_token_is_rejected(built: Clone, network: Network, home: str) -> None:
    with requests.Session() as browser:
        with jupyter(built, network, home) as before:
            browser.get(f"http://{before.address(8888)}/lab?token={built.values['JUPYTER_TOKEN']}", timeout=60).raise_for_status()
            assert listing(before, browser) == 200
            before.restart()
            assert listing(before, browser) == 200  # a restart alone logs nobody out
            cookies = {cookie.name: str(cookie.value) for cookie in browser.cookies}
        with jupyter(built, network, home).with_env("JUPYTER_TOKEN", OTHER_TOKEN) as after:
            # A cookie has the port in its name: the attacker may choose any port.
            new = str(after.get_exposed_port(8888))
            renamed = {name.rpartition("-")[0] + f"-{new}": value for name, value in cookies.items() if name != "_xsrf"}
            with requests.Session() as later:
                later.cookies.update(cookies | renamed)
                assert listing(after, later) == 403
            with requests.Session() as fresh:
                assert listing(after, fresh, Authorization=f"token {OTHER_TOKEN}") == 200


@pytest.mark.refusal
def test_jupyter_accepts_no_new_password(built: Clone, network: Network, home: str) -> None:
    with jupyter(built, network, home) as service:
        url = f"http://{service.address(8888)}/login"
        with requests.Session() as browser:
            browser.get(url, timeout=60)
            form = {"_xsrf": browser.cookies["_xsrf"], "password": built.values["JUPYTER_TOKEN"], "new_password": "chosen-by-me"}
            browser.post(url, data=form, timeout=60)
        with requests.Session() as browser:
            browser.get(url, timeout=60)
            browser.post(url, data={"_xsrf": browser.cookies["_xsrf"], "password": "chosen-by-me"}, timeout=60)
            assert listing(service, browser) == 403


@pytest.mark.refusal
def test_files_in_the_home_volume_do_not_weaken_the_login(built: Clone, network: Network, home: str) -> None:
    with jupyter(built, network, home) as service:
        for path, content in PLANTED.items():
            place = f"/home/mlstack/{path}"
            service.run("python3", "-c", "import pathlib, sys; p = pathlib.Path(sys.argv[1]);"
                        "p.parent.mkdir(parents=True, exist_ok=True); p.write_text(sys.argv[2])", place, content)  # fmt: skip
        service.restart()
        token = {"Authorization": f"token {built.values['JUPYTER_TOKEN']}"}
        with requests.Session() as nobody:
            assert listing(service, nobody) == 403
            assert listing(service, nobody, **token) == 200
            assert listing(service, nobody, Host="evil.example", **token) == 403
            evil = nobody.get(f"http://{service.address(8888)}/api", headers={"Origin": "http://evil.example"}, timeout=60)
            assert "Access-Control-Allow-Origin" not in evil.headers
        wait_until(service.is_healthy)

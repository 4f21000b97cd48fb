"""Where the Python images hold mlstack's wheels."""

from mlstack import __version__

PACKAGES = "/usr/local/lib/python3.13/dist-packages"


def entry_points(wheel: str) -> str:
    """The file of a wheel through which MLflow finds its plugins."""
    return f"{PACKAGES}/{wheel.replace('-', '_')}-{__version__}.dist-info/entry_points.txt"


# For compose files that hide the plugins.
PLUGINS = {"SERVER_PLUGINS": entry_points("mlstack-server"), "CLIENT_PLUGINS": entry_points("mlstack-client")}

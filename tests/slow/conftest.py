import subprocess
import sys
from pathlib import Path

import pytest

# Its newest dependencies are incompatible with it. Its accounts were in a file, so it runs without accounts.
OLD = ("mlflow==2.22.*", "sqlalchemy<2.1", "setuptools<81", "psycopg2-binary", "boto3")


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the old MLflow."""
    venv = tmp_path_factory.mktemp("old")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *OLD], check=True)
    return venv / "bin/python"

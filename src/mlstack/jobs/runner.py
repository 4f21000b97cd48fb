"""The service `gateway-jobs` (compose/gateway.yml): `python3 -m mlstack.jobs.runner`, MLflow's own executor of jobs.

`mlflow server` starts it as a second process of its container. Here it has a container of its own, whose memory a large job
cannot take from the server; jobs are in the database, where the server stores and the executor finds them.
"""

import os
import runpy
import signal
import sys
import tempfile
import time

from mlstack import settings
from mlstack.jobs import upstream

EXECUTOR = "mlflow.server.jobs._executor_runner"
JOB = "mlstack.jobs.job"
URI = "postgresql+psycopg2://"  # completed by PG*


def main() -> None:
    settings.publish_secrets()
    token = settings.job_token()
    settings.publish(
        {
            "MLFLOW_SERVER_PID": str(os.getpid()),  # it ends when this process has ended, normally the server
            "_MLFLOW_SERVER_UP_TIME": str(time.time_ns() // 1_000_000),  # jobs that were running before are run again
            "_MLFLOW_HUEY_STORAGE_PATH": tempfile.mkdtemp(),  # locks of periodic tasks
            "_MLFLOW_SERVER_FILE_STORE": URI,
            "_MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN": token,  # for jobs that an account started
            **settings.rollups(),
            "MLFLOW_TRACKING_PASSWORD": token,  # for those that nobody did, such as automatic evaluation
        }
    )
    if not settings.has_rollups():
        upstream.delete_rollups(URI)  # this process would not note what its jobs change
    upstream.replace_entry(JOB)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # it stops its jobs and gives them back
    try:
        runpy.run_module(EXECUTOR, run_name="__main__")
    finally:
        sys.stderr.flush()
        os._exit(0)  # a thread of MLflow's that watches the periodic tasks never ends


if __name__ == "__main__":
    main()

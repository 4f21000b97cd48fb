"""`python3 -m mlstack.server`: loads what the server consists of without the garbage collector, in five sixths of the time."""

import gc


def main() -> None:
    gc.disable()  # everything that is imported stays; launcher.py sets it going again
    from mlstack import settings

    settings.publish_secrets()  # MLflow, boto3 and libpq look in the environment
    from mlstack.server import launcher

    launcher.main()


if __name__ == "__main__":
    main()

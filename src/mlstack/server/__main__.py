"""`python3 -m mlstack.server`: imports the server without the garbage collector, in five sixths of the time."""

import gc


def main() -> None:
    gc.disable()  # imported code is never freed; launcher.py enables it again
    from mlstack import settings

    settings.publish_secrets()  # MLflow, boto3 and libpq read the environment
    from mlstack.server import launcher

    launcher.main()


if __name__ == "__main__":
    main()

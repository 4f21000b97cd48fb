#!/usr/bin/env bash
# make up, restore, verify, upgrade: prepares the host, then starts the Python command. Each step is idempotent.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/engine.sh      # a Docker engine with compose and buildx
scripts/base-image.sh  # the one external image
scripts/venv.sh        # Python packages of the commands
exec .venv/bin/mlstack "${@:-up}"

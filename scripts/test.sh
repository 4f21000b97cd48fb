#!/usr/bin/env bash
# make test: prepares the host as make up does, then runs style and type checks and all tests. They use temporary stacks, whose
# names and ports differ from those of any running stack. Arguments go to pytest: make test TESTS=tests/unit
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/engine.sh
scripts/base-image.sh
scripts/venv.sh check
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --quiet --check .
.venv/bin/mypy --no-error-summary
exec .venv/bin/pytest "$@"

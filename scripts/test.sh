#!/usr/bin/env bash
# make test: prepares the host as make up does, then checks style and types and runs every unit, integration and stack test, two
# files at a time. They use temporary stacks, whose names and ports differ from those of any running stack. PYTEST_ADDOPTS goes
# to pytest: make test TESTS="-n0 tests/unit"
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/engine.sh
scripts/base-image.sh
scripts/venv.sh check
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --quiet --check .
.venv/bin/mypy --no-error-summary
PYTEST_ADDOPTS="--numprocesses 2 --dist loadscope --no-loadscope-reorder ${PYTEST_ADDOPTS:-}" exec .venv/bin/pytest "$@"

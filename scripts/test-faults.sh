#!/usr/bin/env bash
# make test-faults: injects every fault of docs/reliability.md and docs/scoring.md, on two temporary stacks at a time (about 20
# minutes). REPORT=1 writes the tables there. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/engine.sh
scripts/base-image.sh
scripts/venv.sh check
exec .venv/bin/pytest --verbose --numprocesses 2 --timeout 1500 tests/faults/test_matrix.py tests/faults/test_scoring.py ${REPORT:+--report} "$@"

#!/usr/bin/env bash
# make test-faults: injects every fault of docs/reliability.md, on temporary stacks (about 25 minutes). REPORT=1 writes the
# table there. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/engine.sh
scripts/base-image.sh
scripts/venv.sh check
exec .venv/bin/pytest -s --timeout 1500 tests/faults/test_matrix.py ${REPORT:+--report docs/reliability.md} "$@"

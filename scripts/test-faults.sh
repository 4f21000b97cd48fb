#!/usr/bin/env bash
# make test-faults: injects every fault of docs/reliability.md, on temporary stacks (about 20 minutes); with PART=scoring those of
# docs/scoring.md (15 minutes), with PART=ray those of docs/scale.md (15 minutes). REPORT=1 writes the table there. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/engine.sh
scripts/base-image.sh
scripts/venv.sh check
tests=(tests/faults/test_comparison.py tests/faults/test_matrix.py)
[ -z "${PART:-}" ] || tests=("tests/faults/test_$PART.py")
exec .venv/bin/pytest --verbose --timeout 1500 "${tests[@]}" ${REPORT:+--report} "$@"

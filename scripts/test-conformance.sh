#!/usr/bin/env bash
# make test-conformance: compares the shipped stack with genuine MLflow (about 8 minutes). SEED=n generates other malformed
# calls; REPORT=1 writes docs/conformance.md. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/engine.sh
scripts/base-image.sh
scripts/venv.sh check
exec .venv/bin/pytest tests/conformance ${SEED:+--seed "$SEED"} ${REPORT:+--conformance-page docs/conformance.md} "$@"

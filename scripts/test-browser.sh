#!/usr/bin/env bash
# make test-browser: a real browser on a stack of its own. REPORT=1 writes pictures of the pages to docs/images. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/engine.sh
scripts/base-image.sh
scripts/venv.sh check
scripts/chromium.sh
exec .venv/bin/pytest tests/browser ${REPORT:+--pictures docs/images} "$@"

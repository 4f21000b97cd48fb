#!/usr/bin/env bash
# make check: style, types, import contracts, linters and unit tests. No container is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/messages.sh

scripts/venv.sh check
PATH=$PWD/.venv/bin:$PATH
readonly SHELL_FILES=(scripts/*.sh docker/postgres/entrypoint.sh docker/take-secrets docker/python/{install,mlflow-server,on-empty-tmp,ray-node,with-logins} .ci/run)
readonly ACTIONLINT=github.com/rhysd/actionlint/cmd/actionlint@v1.7.7

step "Python: style, types, import contracts"
ruff check --quiet .
ruff format --quiet --check .
mypy --no-error-summary
lint-imports --no-logo >/dev/null || { lint-imports --no-logo; exit 1; }

step "Shell, Dockerfiles, YAML, workflows"
shellcheck --external-sources "${SHELL_FILES[@]}"
hadolint docker/*/Dockerfile tests/faults/engine.Dockerfile
yamllint --strict .
check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
check-jsonschema --quiet --builtin-schema vendor.renovate renovate.json
if go run "$ACTIONLINT" -version >/dev/null 2>&1; then
  go run "$ACTIONLINT"
else
  step "actionlint needs Go 1.18 or newer and its module proxy: here the workflows were checked by their schema only"
fi

step "Unit tests"
pytest tests/unit -m "not docker" --numprocesses auto --quiet "$@"

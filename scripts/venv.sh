#!/usr/bin/env bash
# Makes .venv with the hash-locked packages of the commands (requirements/host.txt), or with `venv.sh check` also those of checks
# and tests (requirements/check.txt). uv installs them; if uv is missing, it is installed from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/messages.sh

# Written last: an incomplete venv, or one that is older than its lock, is made again.
readonly MARK=.venv/mlstack.lock
# pyproject.toml for the entry points that MLflow looks for; the folder because a venv contains its own path: in a copied or
# renamed project it would run the original's code, on the original's stack.
locked_by() { cat "requirements/$1.txt" pyproject.toml && pwd -P; }
is_current() { locked_by "$1" | cmp -s - "$MARK"; }
set=${1:-host}
is_current "$set" && exit 0
# The checks' packages include those of the commands, so the next command keeps a developer's venv as it is.
if [ "$set" = host ] && is_current check; then exit 0; fi

if [ -e "$MARK" ] && [ "$(tail -n 1 "$MARK")" != "$(pwd -P)" ]; then rm -rf .venv; fi # made in another folder

readonly UV_VENV=.venv/uv
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
  python=$(command -v python3 || true)
  [ -n "$python" ] || die "python3 is not installed." "The commands of mlstack are written in Python (3.11 or newer)." "install Python, or uv: https://docs.astral.sh/uv/getting-started/installation/"
  if ! "$python" -c 'import ensurepip' 2>/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    step "Python has no venv module here: installing python3-venv"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends python3-venv; } >/dev/null 2>&1 || true
  fi
  step "No uv here: obtaining it into $UV_VENV"
  mkdir -p .venv
  { "$python" -m venv "$UV_VENV" && "$UV_VENV/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt; } ||
    die "uv could not be obtained (the lines above say why)." "It installs the packages of mlstack's own commands." "check the network and the proxy (PIP_INDEX_URL, PIP_CERT), or install uv: https://docs.astral.sh/uv/getting-started/installation/"
  uv=$PWD/$UV_VENV/bin/uv
fi

step "Python packages of mlstack's commands into .venv ($set)"
# Behind a proxy that re-signs TLS, uv has to trust the system's certificates. An index set for pip applies to uv too.
export UV_SYSTEM_CERTS=true
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
{ "$uv" venv --quiet --allow-existing --python '>=3.11' .venv &&
  "$uv" pip sync --quiet --python .venv/bin/python --require-hashes "requirements/$set.txt" &&
  "$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .; } ||
  die "the Python packages could not be installed (the lines above say why)." "The commands of mlstack need them." "check the network and the proxy, then run the same command again"
# Compiled once, here: with PYTHONDONTWRITEBYTECODE set, every command would take a second to compile it again.
env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -c 'import mlstack.host.cli, mlstack.host.ownership, mlstack.host.render.status, mlstack.host.status, mlstack.host.commands.upgrade'
locked_by "$set" >"$MARK"

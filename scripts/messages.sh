# shellcheck shell=bash
# Messages of the scripts: one line for a step; for an error, what is wrong, why it matters and how to fix it.
# Sourced by the other scripts.

step() { printf '==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }

# die WRONG WHY FIX
die() {
  printf 'mlstack: %s\n         %s\n         Fix: %s\n' "$1" "$2" "$3" >&2
  exit 1
}

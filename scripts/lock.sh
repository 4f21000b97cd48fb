#!/usr/bin/env bash
# make lock: writes requirements/*.txt from *.in, with hashes of every file for every platform, and without an index URL.
set -euo pipefail
cd "$(dirname "$0")/../requirements"
for set in uv mlflow notebook scoring ray host build check triton; do
  uv pip compile --quiet --universal --generate-hashes --python-version "$(case $set in mlflow | notebook | scoring | ray) echo 3.13 ;; *) echo 3.11 ;; esac)" \
    --custom-compile-command "make lock" --output-file "$set.txt" "$@" "$set.in"
done

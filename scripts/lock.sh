#!/usr/bin/env bash
# Writes requirements/*.txt from *.in: hashes of every file, for every platform, and no index host. Run by `make lock`.
set -euo pipefail
cd "$(dirname "$0")/../requirements"
for set in uv mlflow notebook host check; do
  uv pip compile --quiet --universal --generate-hashes --python-version "$(case $set in mlflow | notebook) echo 3.13 ;; *) echo 3.11 ;; esac)" \
    --custom-compile-command "make lock" --output-file "$set.txt" "$@" "$set.in"
done

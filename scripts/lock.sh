#!/usr/bin/env bash
# Writes requirements/*.txt from *.in: hashes of every file, for every platform, and no index host. Run by `make lock`.
set -euo pipefail
cd "$(dirname "$0")/../requirements"
for set in uv mlflow notebook host; do
  uv pip compile --quiet --universal --generate-hashes --python-version "$([ $set = host ] || [ $set = uv ] && echo 3.11 || echo 3.13)" \
    --custom-compile-command "make lock" --output-file "$set.txt" "$@" "$set.in"
done

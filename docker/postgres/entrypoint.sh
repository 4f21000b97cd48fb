#!/bin/bash
# The official image's interface: POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB (each also as …_FILE),
# POSTGRES_INITDB_ARGS, PGDATA, and *.sh, *.sql, *.sql.gz in /docker-entrypoint-initdb.d on the first start.
set -euo pipefail

readonly MAJOR=17

fail() { printf 'postgres: ERROR: %s\n' "$*" >&2; exit 1; }

# from_file NAME: takes NAME's value from the file that NAME_FILE names
from_file() {
  local file="${1}_FILE"
  [ -z "${!file:-}" ] || { printf -v "$1" '%s' "$(cat "${!file}")"; export "${1?}"; unset "$file"; }
}

# sql DATABASE ARGS…: psql against the local-only server of the first start
sql() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$@"; }

run_init_scripts() {
  local script
  for script in /docker-entrypoint-initdb.d/*; do
    # shellcheck disable=SC1090 # the user's own script
    case "$script" in
      *.sh) if [ -x "$script" ]; then "$script"; else . "$script"; fi ;;
      *.sql) sql "$POSTGRES_DB" --file "$script" ;;
      *.sql.gz) gunzip -c "$script" | sql "$POSTGRES_DB" ;;
    esac
  done
}

# A new cluster is created in a separate folder and moved into place when it is complete, PG_VERSION last: an interrupted first
# start restarts or resumes, and never serves a half-initialised database.
readonly MAKING="$PGDATA/.first-start"

make_cluster() {
  [ -n "${POSTGRES_PASSWORD:-}" ] || fail "POSTGRES_PASSWORD is empty and the database would be open to everybody. Set it (make env writes one to .env)."
  [ -z "$(find "$PGDATA" -mindepth 1 -maxdepth 1 ! -name lost+found ! -name .first-start -print -quit)" ] ||
    fail "$PGDATA holds files but no database. Nothing was changed. Give Postgres an empty volume, or restore the missing PG_VERSION."
  rm -rf "$MAKING"
  # shellcheck disable=SC2086 # a list of options
  initdb --pgdata "$MAKING" --username "$POSTGRES_USER" --pwfile <(printf '%s\n' "$POSTGRES_PASSWORD") \
    --auth-local trust --auth-host scram-sha-256 --encoding UTF8 --data-checksums ${POSTGRES_INITDB_ARGS:-} >/dev/null
  printf 'host all all all scram-sha-256\n' >>"$MAKING/pg_hba.conf"
  printf "listen_addresses = '*'\n" >>"$MAKING/postgresql.conf"
  pg_ctl --pgdata "$MAKING" --options "-c listen_addresses=''" --wait --silent start
  [ "$POSTGRES_DB" = postgres ] || sql postgres --set db="$POSTGRES_DB" <<<'CREATE DATABASE :"db"'
  PGUSER="$POSTGRES_USER" PGDATABASE="$POSTGRES_DB" run_init_scripts
  pg_ctl --pgdata "$MAKING" --mode fast --wait --silent stop
  touch "$MAKING/.whole"
}

move_into_place() {
  find "$MAKING" -mindepth 1 -maxdepth 1 ! -name PG_VERSION ! -name .whole -exec mv -t "$PGDATA" {} +
  mv "$MAKING/PG_VERSION" "$PGDATA/"
  rm -rf "$MAKING"
}

if [ "${1:-}" != postgres ]; then exec "$@"; fi

for name in POSTGRES_USER POSTGRES_PASSWORD POSTGRES_DB; do from_file "$name"; done
export POSTGRES_USER="${POSTGRES_USER:-postgres}"
export POSTGRES_DB="${POSTGRES_DB:-$POSTGRES_USER}"
mkdir -p "$PGDATA"
[ -w "$PGDATA" ] || fail "$PGDATA cannot be written by uid $(id -u). The volume belongs to somebody else: chown it to 999:999."
chmod 700 "$PGDATA" 2>/dev/null || true

if [ -s "$PGDATA/PG_VERSION" ] && [ "$(cat "$PGDATA/PG_VERSION")" != "$MAJOR" ]; then
  fail "the volume holds a database of Postgres $(cat "$PGDATA/PG_VERSION"), this image is Postgres $MAJOR. Nothing was changed. Start it with an image of that version (POSTGRES_IMAGE=postgres:$(cat "$PGDATA/PG_VERSION") in .env), take a backup there (make backup), then make reset, this image again, and make restore BACKUP=latest (docs/operations.md)."
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  [ -e "$MAKING/.whole" ] || make_cluster
  move_into_place
fi
unset POSTGRES_PASSWORD
exec "$@"

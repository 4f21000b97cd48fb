#!/usr/bin/env bash
# Ensures a Docker engine with compose and buildx. Nothing is installed if they already work. On Debian or Ubuntu as root, missing
# parts are installed from the distribution; anywhere else, a message names them. `engine.sh check` only checks (exit 0: ready).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/messages.sh

# Set by the tests only.
readonly MIN_ENGINE=${MLSTACK_MIN_ENGINE:-20.10} MIN_COMPOSE=${MLSTACK_MIN_COMPOSE:-2.20}
readonly PIDFILE=${MLSTACK_ENGINE_PIDFILE:-/var/run/docker.pid}
readonly DOCS=https://docs.docker.com/engine/install/
readonly LOG=/var/log/dockerd.log
readonly LOCK=/run/mlstack-engine.lock

# at_least FOUND EXPECTED: compares dotted versions
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

engine_version() { docker version --format '{{.Server.Version}}' 2>/dev/null; }
compose_version() { docker compose version --short 2>/dev/null | sed 's/^v//'; }
has_buildx() { docker buildx version >/dev/null 2>&1; }

# State of the engine: ready | absent | denied | stopped
engine_state() {
  command -v docker >/dev/null 2>&1 || { echo absent; return; }
  local error
  if error=$(docker version --format '{{.Server.Version}}' 2>&1 >/dev/null); then echo ready; return; fi
  case "$error" in
    *"permission denied"*) echo denied ;;
    *) if command -v dockerd >/dev/null 2>&1 || [ -n "${DOCKER_HOST:-}" ] || [ "$(uname -s)" = Darwin ]; then echo stopped; else echo absent; fi ;;
  esac
}

# debian | ubuntu if root may install packages, otherwise empty
installable_distribution() {
  [ "$(id -u)" = 0 ] && [ -r /etc/os-release ] || return 0
  (. /etc/os-release; case "$ID" in debian|ubuntu) echo "$ID" ;; esac)
}

check_versions() {
  local engine compose
  engine=$(engine_version)
  at_least "$engine" "$MIN_ENGINE" || die "the Docker engine is too old: expected at least $MIN_ENGINE, found $engine." \
    "The stack's compose file needs features it does not have." "upgrade Docker: $DOCS"
  compose=$(compose_version)
  if [ -z "$compose" ] || ! has_buildx; then return 1; fi
  at_least "$compose" "$MIN_COMPOSE" || die "docker compose is too old: expected at least $MIN_COMPOSE, found $compose." \
    "The stack's compose file needs features it does not have." "upgrade the compose plugin: https://docs.docker.com/compose/install/"
}

# ---- changes to the host below this line -------------------------------------------------

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >>"$LOG.apt" 2>&1 ||
    die "apt-get could not install: $*." "The Docker engine is needed to run anything here." "see $LOG.apt, then run make up again"
}

install_engine() {
  local distribution packages
  distribution=$(installable_distribution)
  [ -n "$distribution" ] || die "Docker is not installed." \
    "Postgres, MinIO, MLflow and Jupyter run in containers." "install Docker Desktop or Engine: $DOCS (as root on Debian or Ubuntu, make up installs it)"
  packages="docker.io iptables iproute2 ca-certificates"
  # Debian 13 has the client in a separate package.
  apt-cache show docker-cli >/dev/null 2>&1 && packages="$packages docker-cli"
  step "No Docker engine here: installing $packages from $distribution's own archive (about 20 s)"
  apt-get update -qq >>"$LOG.apt" 2>&1 || die "apt-get update failed." "The package lists are needed to install Docker." "see $LOG.apt and check /etc/apt/sources.list*"
  # shellcheck disable=SC2086 # a list of names
  apt_install $packages
}

install_plugins() {
  local distribution
  distribution=$(installable_distribution)
  [ -n "$distribution" ] || die "docker compose (>= $MIN_COMPOSE) or docker buildx is missing." \
    "The stack is described in a compose file and its images are built here." "install the plugins: https://docs.docker.com/compose/install/linux/"
  step "No compose or buildx plugin here: adding them"
  [ -n "$(ls /var/lib/apt/lists/*Packages* 2>/dev/null)" ] || apt-get update -qq >>"$LOG.apt" 2>&1
  if apt-cache show docker-compose-v2 >/dev/null 2>&1; then
    apt_install docker-compose-v2 docker-buildx
  elif (. /etc/os-release; [ "$distribution" = debian ] && [ "${VERSION_ID:-99}" -ge 13 ]); then
    apt_install docker-compose docker-buildx
  else
    plugins_from_newer_debian
  fi
}

# Debian 12 has neither plugin. Debian 13's run on it (libc6 >= 2.34): they are fetched with a separate apt configuration, so that
# signatures are checked and the system's sources do not change.
plugins_from_newer_debian() {
  local work plugins=/usr/local/lib/docker/cli-plugins
  work=$(mktemp -d)
  mkdir -p "$work/lists/partial" "$work/archives/partial" "$plugins"
  . scripts/debian-mirror.sh
  printf 'deb %s trixie main\n' "$(debian_mirror)" >"$work/sources.list"
  local apt=(-qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists"
             -o "Dir::Cache::archives=$work/archives" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=" -o APT::Sandbox::User=root)
  # Absolute paths only: apt-get download writes into the current folder.
  (cd "$work" && apt-get "${apt[@]}" update && apt-get "${apt[@]}" download docker-compose docker-buildx) >>"$LOG.apt" 2>&1 ||
    die "the compose and buildx plugins could not be downloaded." "Debian 12 has no packages of them." "see $LOG.apt, or install them by hand: https://docs.docker.com/compose/install/linux/"
  local package
  for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/tree"; done
  find "$work/tree" -type f \( -name docker-compose -o -name docker-buildx \) -path '*cli-plugins*' -exec install -m 755 {} "$plugins/" \;
  rm -rf "$work"
}

start_engine() {
  if [ -d /run/systemd/system ]; then
    step "Starting the Docker engine with systemd"
    systemctl enable --now docker >/dev/null
  else
    step "Starting the Docker engine in the background (log: $LOG)"
    forget_dead_engine
    # In a new session, so that it outlives this shell and its Ctrl-C. It must not inherit the lock (fd 9).
    setsid nohup dockerd >>"$LOG" 2>&1 </dev/null 9>&- &
  fi
  local deadline=$((SECONDS + 60))
  until [ "$(engine_state)" = ready ]; do
    [ $SECONDS -lt $deadline ] || die "the Docker engine did not start within 60 s: $(tail -n 1 "$LOG" 2>/dev/null)" \
      "Nothing can run without it." "read $LOG (or: journalctl -u docker)"
    sleep 0.5
  done
}

# A killed dockerd leaves its pid file behind, and the next one does not start while that pid is in use.
forget_dead_engine() {
  local pid
  [ -f "$PIDFILE" ] || return 0
  pid=$(cat "$PIDFILE")
  # A killed engine that was not reaped yet is still listed, as a zombie.
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != dockerd ] || grep -q '^State:[[:space:]]*[ZX]' "/proc/$pid/status"; then
    note "removing the pid file of an engine that is gone ($PIDFILE, $pid)"
    rm -f "$PIDFILE"
  fi
}

refuse_to_touch() {
  case "$1" in
    denied) die "no permission to use Docker's socket (user $(id -un))." "make up has to talk to the Docker engine." \
      "sudo usermod -aG docker $(id -un), then log in again (or start with rootless Docker: https://docs.docker.com/engine/security/rootless/)" ;;
    stopped) die "Docker is installed but its engine does not answer${DOCKER_HOST:+ at DOCKER_HOST=$DOCKER_HOST}." "Nothing can run without it." \
      "start Docker Desktop, or: sudo systemctl start docker" ;;
    absent) die "Docker is not installed." "Postgres, MinIO, MLflow and Jupyter run in containers." "install Docker Desktop or Engine: $DOCS" ;;
  esac
}

may_start() { [ "$(id -u)" = 0 ] && [ -z "${DOCKER_HOST:-}" ] && command -v dockerd >/dev/null 2>&1; }

main() {
  local mode=${1:-fix} state
  state=$(engine_state)
  if [ "$state" = ready ] && check_versions; then return 0; fi
  if [ "$mode" = check ]; then
    [ "$state" = ready ] || refuse_to_touch "$state"
    die "docker compose (>= $MIN_COMPOSE) or docker buildx is missing." "The stack is described in a compose file and its images are built here." \
      "as root on Debian or Ubuntu: make up; otherwise: https://docs.docker.com/compose/install/"
  fi
  if [ -n "$(installable_distribution)" ] && [ "$state" != denied ]; then
    exec 9>"$LOCK"
    flock -n 9 || { step "Another make up is preparing the engine: waiting for it"; flock 9; state=$(engine_state); }
    if [ "$state" = absent ] && [ -z "${DOCKER_HOST:-}" ]; then install_engine; state=$(engine_state); fi
  fi
  if [ "$state" != ready ]; then
    may_start || refuse_to_touch "$state"
    start_engine
  fi
  check_versions || { install_plugins; check_versions || die "compose and buildx were installed but docker does not see them." \
    "The stack is described in a compose file." "docker compose version; docker info"; }
}

main "$@"

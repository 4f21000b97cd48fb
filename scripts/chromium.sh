#!/usr/bin/env bash
# Ensures a Chromium for the browser tests. Nothing is installed if there is one; on Debian as root it comes from Debian's own
# archive. Anywhere else, a message says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/messages.sh

# The names are also in tests/browser/conftest.py. Ubuntu's chromium-browser may be a script that only asks for a snap.
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  if "$name" --version >/dev/null 2>&1; then exit 0; fi
done

distribution=$(. /etc/os-release 2>/dev/null && echo "$ID") || distribution=unknown
if [ "$(id -u)" != 0 ] || [ "$distribution" != debian ]; then
  die "there is no Chromium or Chrome here." "The browser tests click through MLflow, JupyterLab and MinIO's console as a user would." \
    "install Chromium or Chrome as a command of that name (as root on Debian, make test-browser installs it)"
fi
step "No Chromium here: installing Debian's (about a minute)"
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null ||
  die "apt-get could not install chromium (the lines above say why)." "The browser tests need it." "check the network and /etc/apt/sources.list*, then run the same command again"

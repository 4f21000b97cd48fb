#!/usr/bin/env bash
# debian:trixie-slim, the only external image: pulled if an image registry answers, otherwise made from Debian's archive.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/messages.sh
. scripts/debian-mirror.sh

# Set by the tests only.
readonly IMAGE=${MLSTACK_BASE_IMAGE:-debian:trixie-slim}
readonly PULL_TIMEOUT=120

docker image inspect "$IMAGE" >/dev/null 2>&1 && exit 0

error=$(timeout "$PULL_TIMEOUT" docker pull --quiet "$IMAGE" 2>&1 >/dev/null) && {
  step "Base image $IMAGE: pulled from the image registry"
  exit 0
}

[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || die "the base image $IMAGE could not be pulled: $(printf '%s' "$error" | tail -n 1)" \
  "Every image of the stack is built on it." "check the network or the proxy of Docker, then: docker pull $IMAGE"

step "Base image $IMAGE: no image registry answers, making it from Debian's archive (about 40 s)"
work=$(mktemp -d)
log=$work/log
trap 'rm -rf "$work"' EXIT
missing=()
command -v mmdebstrap >/dev/null 2>&1 || missing+=(mmdebstrap)
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
if [ ${#missing[@]} -gt 0 ]; then
  { [ -n "$(ls /var/lib/apt/lists/*Packages* 2>/dev/null)" ] || apt-get update -qq; } >"$log" 2>&1 &&
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}" >>"$log" 2>&1 ||
    die "apt-get could not install ${missing[*]}: $(tail -n 1 "$log")" "The base image is made with it where no image registry answers." "apt-get install ${missing[*]}"
fi

main=$(debian_mirror Debian)
security=$(debian_mirror Debian-Security)
sources=()
[ -n "$main" ] && sources+=("deb $main trixie main" "deb $main trixie-updates main")
[ -n "$main" ] && [ -n "$security" ] && sources+=("deb $security trixie-security main")

# Like the official slim image: no manuals, documentation or translations, and apt keeps no cache in a layer.
mmdebstrap --quiet --variant=minbase --include=ca-certificates \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --customize-hook='printf "%s\n" "APT::Keep-Downloaded-Packages \"false\";" "Dir::Cache::pkgcache \"\";" "Dir::Cache::srcpkgcache \"\";" >"$1/etc/apt/apt.conf.d/no-cache-in-layers"; rm -f "$1"/var/cache/apt/*.bin' \
  trixie "$work/base.tar" "${sources[@]}" 2>"$log" ||
  die "the base image could not be made: $(grep -v 'mmdebstrap failed' "$log" | tail -n 1)" "Every image of the stack is built on it." "check that Debian's mirror answers (apt-get update), then run make up again"
docker import --change 'CMD ["bash"]' "$work/base.tar" "$IMAGE" >/dev/null

# shellcheck shell=bash
# The Debian mirror that this host itself is configured with (empty on Ubuntu: mmdebstrap then takes Debian's default).
# Sourced by the scripts that take packages from Debian's archive.

# debian_mirror [LABEL]: the URI of the first source whose release is labelled so (Debian, Debian-Security)
debian_mirror() {
  apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null | awk -v label="${1:-Debian}" '$1 == label { print $2; exit }'
}

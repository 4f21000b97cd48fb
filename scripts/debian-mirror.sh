# shellcheck shell=bash
# The Debian mirror that the host is configured with (empty on Ubuntu: mmdebstrap then uses Debian's default).
# Sourced by the scripts that use Debian's archive.

# debian_mirror [LABEL]: the URI of the first source whose release has this label (Debian, Debian-Security)
debian_mirror() {
  apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null | awk -v label="${1:-Debian}" '$1 == label { print $2; exit }'
}

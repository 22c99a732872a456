#!/usr/bin/env bash
# Installs what Quern needs on Debian 12 and is not there yet. As root, or with sudo.
#   install-deps.sh [build|test|check]     build: the quern binary (default); test: and its tests; check: and clang-format
set -euo pipefail

packages=(
  g++ make cmake ninja-build pkg-config
  protobuf-compiler libprotobuf-dev
  libzmq3-dev
  librocksdb-dev libsnappy-dev liblz4-dev libzstd-dev libbz2-dev zlib1g-dev libgflags-dev
  nlohmann-json3-dev libyaml-cpp-dev libcli11-dev libpcre2-dev libicu-dev libxxhash-dev libboost1.81-dev
)
case "${1:-build}" in
  build) ;;
  test) packages+=(libgtest-dev) ;;
  check) packages+=(libgtest-dev clang-format) ;;
  *) echo "install-deps.sh: unknown set '$1'; one of build, test, check" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install-deps.sh: no apt on this machine; if the build misses something, these are Debian's names: ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "install-deps.sh: missing packages, and neither root nor sudo: ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi

echo "installing ${#missing[@]} Debian packages: ${missing[*]}" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1; }
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; }; then
  tail -n 20 "$log" >&2
  echo "install-deps.sh: apt-get failed (its last lines are above)" >&2
  exit 1
fi

#!/usr/bin/env bash
# Installs what Quern needs on Debian 12 and is not there yet. As root, or with sudo.
#   install-deps.sh [build|test|check|fuzz]     build: the quern binary (default); test: and its tests; check: and clang-format
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  g++ make cmake ninja-build pkg-config
  protobuf-compiler libprotobuf-dev
  libzmq3-dev
  librocksdb-dev libsnappy-dev liblz4-dev libzstd-dev libbz2-dev zlib1g-dev libgflags-dev
  nlohmann-json3-dev libyaml-cpp-dev libcli11-dev libpcre2-dev libicu-dev libxxhash-dev libboost1.81-dev prometheus-cpp-dev libssl-dev
)
case "${1:-build}" in
  build) ;;
  test) packages+=(libgtest-dev) ;;
  check) packages+=(libgtest-dev clang-format) ;;
  fuzz) packages+=(libgtest-dev clang) ;;
  *) echo "install-deps.sh: unknown set '$1'; one of build, test, check, fuzz" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install-deps.sh: no apt on this machine; if the build misses something, these are Debian's names: ${packages[*]}" >&2
  exit 0
fi

# Checks the alert rules and scrapes a running job. The package itself would start a server on this machine.
fetch_prometheus() {
  [ -x /usr/bin/prometheus ] || [ -x build/tools/prometheus ] && return
  local folder
  folder=$(mktemp -d)
  if (cd "$folder" && apt-get -qq download prometheus && dpkg-deb -x prometheus_*.deb .) >/dev/null 2>&1; then
    mkdir -p build/tools && cp "$folder"/usr/bin/{promtool,prometheus} build/tools/
  else
    echo "install-deps.sh: Prometheus could not be fetched: the tests of the alert rules and of scraping are skipped" >&2
  fi
  rm -rf "$folder"
}

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  [ "${1:-build}" != test ] || fetch_prometheus
  exit 0
fi

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
[ "${1:-build}" != test ] || fetch_prometheus

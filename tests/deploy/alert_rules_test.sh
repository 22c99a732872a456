#!/usr/bin/env bash
# Every alert fires on a series where it should, and does not on one where it should not.
set -euo pipefail
cd "$(dirname "$0")/../.."
promtool=$(command -v promtool || echo build/tools/promtool)
if [ ! -x "$promtool" ]; then
  echo "SKIP: no promtool (Debian's package prometheus, or scripts/install-deps.sh test)"
  exit 77
fi
promtool=$(realpath "$promtool")
cd deploy/prometheus
for alert in $(sed -n 's/^ *- alert: //p' alerts.yml); do
  for case in fires "does not fire"; do
    grep -q "name: $alert $case\$" alerts_test.yml || { echo "alerts_test.yml has no test '$alert $case'"; exit 1; }
  done
done
"$promtool" check config --syntax-only prometheus.yml
"$promtool" test rules alerts_test.yml

#!/bin/sh
# Runs every fuzz target for SECONDS_EACH (default 60) seconds from its seeds: tests/fuzz/run.sh BUILD_FOLDER [SECONDS_EACH]
set -eu
build=$1
seconds=${2:-60}
here=$(dirname "$0")
for target in "$build"/tests/fuzz/*_fuzz; do
  name=$(basename "$target")
  mkdir -p "$build/corpus/$name" "$build/artifacts/$name"
  "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -dict="$here/dictionaries/$name.dict" -artifact_prefix="$build/artifacts/$name/" "$build/corpus/$name" "$here/seeds/$name"
done

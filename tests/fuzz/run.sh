#!/bin/sh
# Runs every fuzz target for SECONDS_EACH (default 60) seconds, two at a time: tests/fuzz/run.sh BUILD_FOLDER [SECONDS_EACH [TARGET..]]
set -eu
build=$1
seconds=${2:-60}
here=$(dirname "$0")
[ $# -le 2 ] && targets=$(cd "$build/tests/fuzz" && ls -d *_fuzz) || { shift 2; targets=$*; }
"$build/tests/fuzz/make_fuzz_seeds" "$build/seeds"
mkdir -p "$build/artifacts" "$build/fuzz-logs"

fuzz() {
  name=$1
  corpus="$build/corpus/$name"
  mkdir -p "$corpus" "$build/artifacts/$name"
  set -- "$corpus"
  for folder in "$here/seeds/$name" "$build/seeds/$name"; do [ -d "$folder" ] && set -- "$@" "$folder"; done
  dictionary="$here/dictionaries/$name.dict"
  [ -f "$dictionary" ] && set -- "-dict=$dictionary" "$@"
  log="$build/fuzz-logs/$name.log"
  if "$build/tests/fuzz/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="$build/artifacts/$name/" "$@" > "$log" 2>&1; then
    echo "$name: clean, $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs"
  else
    echo "$name: FOUND SOMETHING, see $log and $build/artifacts/$name"
    return 1
  fi
}

failed=0
set -- $targets
while [ $# -gt 0 ]; do
  fuzz "$1" & first=$!
  shift
  if [ $# -gt 0 ]; then
    fuzz "$1" || failed=1
    shift
  fi
  wait "$first" || failed=1
done
exit $failed

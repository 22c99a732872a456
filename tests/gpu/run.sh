#!/usr/bin/env bash
# Tests the GPU backend against the double reference and measures it, in under eight minutes. The table comes last.
#   tests/gpu/run.sh [--peer PYTHON]   on the machine with the GPU: uses .gpu/ where it is there and runs, else builds
#                                      (CMake, a C++20 compiler, nvcc; the tests need GoogleTest, the benchmark nothing).
#                                      PYTHON: one that has PyTorch, whose training steps join the table
#   tests/gpu/run.sh --pack            on a machine with everything: builds the programs into .gpu/, to be carried
#                                      along. They need an x86-64 machine with the C library's version 2.35 (Ubuntu
#                                      22.04) when packed with GCC 12, a driver and CUDA's libraries. Whole jobs
#                                      (gpu_job_test) go with what build/release has of it, and the libraries it needs
#                                      but the C library: that of this machine or a newer one.
# Exit code: 0 all tests passed and every part ran; 1 some did not; 2 a wrong argument; 3 there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
programs=(cuda_test bench_gpu)
build=build/gpu
# Seconds since the start after which nothing new begins; of one test, one part of the benchmark, the peer.
tests_until=240 parts_until=440 test_limit=60 job_limit=90 part_limit=45 peer_limit=90

build_programs() {
  local tests=ON
  [ -e /usr/include/gtest/gtest.h ] || [ -n "${GTest_DIR:-}" ] || tests=OFF
  local ninja=()
  command -v ninja >/dev/null && ninja=(-G Ninja)
  cmake "${ninja[@]}" -S . -B $build -DCMAKE_BUILD_TYPE=Release -DQUERN_CORE_ONLY=ON -DQUERN_CUDA=ON \
    -DQUERN_TESTS=$tests >$build.log 2>&1 || { tail -n 20 $build.log; return 1; }
  local targets=(bench_gpu)
  [ $tests = ON ] && targets=("${programs[@]}")
  cmake --build $build --parallel "$(nproc)" --target "${targets[@]}" >>$build.log 2>&1 || { tail -n 40 $build.log; return 1; }
  folder=$(dirname "$(find $build -name bench_gpu -type f | head -n 1)")
}

peer=
while [ $# -gt 0 ]; do
  case $1 in
    --pack)
      mkdir -p build
      build_programs || exit 1
      rm -rf .gpu && mkdir -p .gpu/lib
      for program in "${programs[@]}"; do
        path=$(find $build -name "$program" -type f | head -n 1)
        [ -n "$path" ] || { echo "--pack: $program was not built (GoogleTest is needed)"; exit 1; }
        cp "$path" .gpu/ || exit 1
      done
      if [ -x build/release/quern ] && [ -x build/release/tests/e2e/gpu_job_test ]; then
        cp build/release/quern build/release/tests/e2e/gpu_job_test .gpu/ || exit 1
        ldd .gpu/quern .gpu/gpu_job_test | awk '$3 ~ /^\// && $1 !~ /^lib(c|m|dl|rt|pthread|resolv|cuda)\.so/ { print $3 }' | sort -u |
          xargs -I{} cp -L {} .gpu/lib/ || exit 1
      fi
      find .gpu -maxdepth 1 -type f -exec strip {} + && ls -l .gpu
      exit
      ;;
    --peer)
      peer=${2:-}
      [ -n "$peer" ] || { echo "--peer needs a Python"; exit 2; }
      shift 2
      ;;
    *)
      echo "unknown argument $1 (--pack, --peer PYTHON)"
      exit 2
      ;;
  esac
done

mkdir -p build
folder=.gpu
if ! { [ -x .gpu/bench_gpu ] && .gpu/bench_gpu --list >/dev/null 2>&1; }; then
  command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
  if ! command -v nvcc >/dev/null; then
    echo "no GPU kit: neither .gpu/ (tests/gpu/run.sh --pack) nor nvcc is here"
    exit 1
  fi
  echo "building (log: $build.log)"
  build_programs || exit 1
fi
bench=$folder/bench_gpu
tests=$folder/cuda_test
[ -x "$tests" ] || tests=$(find $build -name cuda_test -type f 2>/dev/null | head -n 1)

# Nothing else makes sense without what this finds: a GPU, and what it can do.
table=build/gpu_table.txt
"$bench" header >$table
measured=$(timeout $((2 * part_limit)) "$bench" ceilings 2>&1)
code=$?
if [ $code -ne 0 ]; then
  printf '%s\n' "$measured" | tail -n 5
  [ $code -eq 3 ] || echo "the ceilings could not be measured: exit code $code"
  exit $code
fi
grep -v '^ceilings' <<<"$measured" >>$table
read -r _ copy product < <(grep '^ceilings' <<<"$measured")
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

status=0
# Every test of a program, a process each: one that ends in a CHECK or hangs must not hide the others.
run_tests() {
  while read -r test; do
    [ $SECONDS -lt $until ] || { failed+=("$test: no time left"); continue; }
    output=$(timeout "$2" "$1" --gtest_filter="$test" 2>&1)
    code=$?
    printf '%s\n' "$output" >>build/gpu_test.log
    if [ $code -ne 0 ]; then
      failed+=("$test: exit code $code: $(grep -m 1 -E 'Failure|CHECK|check|error' <<<"$output" | cut -c1-160)")
    elif grep -q '^\[  SKIPPED' <<<"$output"; then
      skipped=$((skipped + 1))
    else
      passed=$((passed + 1))
    fi
  done < <("$1" --gtest_list_tests 2>/dev/null | sed 's/ *#.*//' | awk '/^[^ ]/ { suite = $1; next } { print suite $1 }')
}
if [ -n "$tests" ]; then
  : >build/gpu_test.log
  passed=0 failed=() skipped=0 until=$((SECONDS + 60))  # some, even after a long build
  [ $until -gt $tests_until ] || until=$tests_until
  run_tests "$tests" $test_limit
  if [ -x "$folder/gpu_job_test" ]; then
    export QUERN_BINARY=$PWD/$folder/quern LD_LIBRARY_PATH=$PWD/$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    if "$folder/quern" version >/dev/null 2>&1; then
      run_tests "$folder/gpu_job_test" $job_limit
    else
      echo "jobs: not tested, the carried program does not start here"
    fi
  fi
  for test in "${failed[@]}"; do echo "FAILED $test"; done
  summary="tests: $passed passed, ${#failed[@]} failed, $skipped skipped (log: build/gpu_test.log)"
  { [ ${#failed[@]} -eq 0 ] && [ $passed -gt 0 ]; } || status=1
else
  summary="tests: not built, there is no GoogleTest here; carry a build (tests/gpu/run.sh --pack)"
  status=1
fi

# After the tests have had their share; the first parts say most.
[ -n "$peer" ] && parts_until=$((parts_until - peer_limit))
for part in $("$bench" --list); do
  if [ $SECONDS -ge $parts_until ]; then
    echo "$part: no time left" >>$table
    status=1
    continue
  fi
  left=$((parts_until + 20 - SECONDS))
  timeout $((left < part_limit ? left : part_limit)) "$bench" "$part" "$copy" "$product" >>$table 2>>build/gpu_bench.log
  code=$?
  if [ $code -ne 0 ]; then
    echo "$part: exit code $code$([ $code -eq 124 ] && echo ", its time was over") (log: build/gpu_bench.log)" >>$table
    status=1
  fi
done
if [ -n "$peer" ]; then
  timeout $peer_limit "$peer" tests/gpu/pytorch_peer.py --product "$product" >>$table 2>>build/gpu_bench.log ||
    { echo "the peer, $peer: exit code $? (log: build/gpu_bench.log)" >>$table; status=1; }
fi
echo "$summary"
cat $table
exit $status

#!/usr/bin/env bash
# Tests the GPU backend against the double reference and measures it, in under eight minutes. The table comes last.
#   tests/gpu/run.sh           on the machine with the GPU: uses .gpu/ where it is there and runs, else builds (CMake, a
#                              C++20 compiler, nvcc; the tests need GoogleTest, the benchmark nothing)
#   tests/gpu/run.sh --pack    on a machine with everything: builds the programs into .gpu/, to be carried along. They
#                              need the C library of this machine or a newer one, a driver and CUDA's libraries. Whole
#                              jobs (gpu_job_test) go with what build/release has of it, and the libraries it needs.
set -uo pipefail
cd "$(dirname "$0")/../.."
programs=(cuda_test bench_gpu)
build=build/gpu

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

mkdir -p build
if [ "${1:-}" = --pack ]; then
  build_programs || exit 1
  mkdir -p .gpu/lib && cp "$folder"/cuda_test "$folder"/bench_gpu .gpu/ || exit 1
  if [ -x build/release/quern ] && [ -x build/release/tests/e2e/gpu_job_test ]; then
    cp build/release/quern build/release/tests/e2e/gpu_job_test .gpu/ || exit 1
    ldd .gpu/quern .gpu/gpu_job_test | awk '$3 ~ /^\// && $1 !~ /^lib(c|m|dl|rt|pthread|cuda)\.so/ { print $3 }' | sort -u |
      xargs -I{} cp -L {} .gpu/lib/ || exit 1
  fi
  find .gpu -maxdepth 1 -type f -exec strip {} + && ls -l .gpu
  exit
fi

folder=.gpu
if ! { [ -x .gpu/bench_gpu ] && .gpu/bench_gpu --help >/dev/null 2>&1; }; then
  command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
  if ! command -v nvcc >/dev/null; then
    echo "no GPU kit: neither .gpu/ (tests/gpu/run.sh --pack) nor nvcc is here"
    exit 1
  fi
  echo "building (log: $build.log)"
  build_programs || exit 1
fi

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
if [ -x "$folder/cuda_test" ]; then
  : >build/gpu_test.log
  passed=0 failed=() skipped=0 until=$((SECONDS + 240))
  run_tests "$folder/cuda_test" 60
  if [ -x "$folder/gpu_job_test" ]; then
    export QUERN_BINARY=$PWD/$folder/quern LD_LIBRARY_PATH=$PWD/$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    if "$folder/quern" version >/dev/null 2>&1; then
      run_tests "$folder/gpu_job_test" 90
    else
      echo "jobs: not tested, the carried program does not start here"
    fi
  fi
  for test in "${failed[@]}"; do echo "FAILED $test"; done
  echo "tests: $passed passed, ${#failed[@]} failed, $skipped skipped (log: build/gpu_test.log)"
  [ ${#failed[@]} -eq 0 ] || status=1
else
  echo "tests: not built, there is no GoogleTest here; carry a build (tests/gpu/run.sh --pack)"
fi
timeout 200 "$folder/bench_gpu" || status=1
exit $status

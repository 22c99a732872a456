#!/usr/bin/env bash
# Tests the GPU backend against the double reference and measures it, in under eight minutes. The table comes last.
#   tests/gpu/run.sh           on the machine with the GPU: uses .gpu/ where it is there and runs, else builds (CMake, a
#                              C++20 compiler, nvcc; the tests need GoogleTest, the benchmark nothing)
#   tests/gpu/run.sh --pack    on a machine with everything: builds both programs into .gpu/, to be carried along. They
#                              need the C library of this machine or a newer one, a driver and CUDA's libraries.
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
  mkdir -p .gpu && cp "$folder"/cuda_test "$folder"/bench_gpu .gpu/ && strip .gpu/cuda_test .gpu/bench_gpu && ls -l .gpu
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
if [ -x "$folder/cuda_test" ]; then
  timeout 240 "$folder/cuda_test" >build/gpu_test.log 2>&1
  status=$?
  grep -E '^\[  (FAILED|SKIPPED)|Failure|CHECK' build/gpu_test.log | sort | uniq -c | head -n 40
  [ $status = 124 ] && echo "tests: did not end within 240 s"
  echo "tests: $(grep -cE '^\[       OK' build/gpu_test.log) passed, $(grep -cE '^\[  FAILED  \].*ms\)' build/gpu_test.log) failed," \
    "$(grep -cE '^\[  SKIPPED \].*ms\)' build/gpu_test.log) skipped, exit code $status (log: build/gpu_test.log)"
else
  echo "tests: not built, there is no GoogleTest here; carry a build (tests/gpu/run.sh --pack)"
fi
timeout 200 "$folder/bench_gpu" || status=1
exit $status

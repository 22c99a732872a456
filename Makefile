# The README's commands. Each installs what it needs (Debian 12, as root or with sudo), builds, and does its work.
JOBS ?= $(shell nproc)
LAUNCHER := $(if $(shell command -v ccache),-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
SOURCES = $(shell git ls-files -co --exclude-standard -- '*.h' '*.cpp' '*.cu')

.PHONY: all demo test benchmarks asan tsan crash-test fuzz format check-format check-layers clean

all:
	@scripts/install-deps.sh build
	@test -f build/release/build.ninja || cmake --preset release -DQUERN_TESTS=OFF $(LAUNCHER) > /dev/null
	@cmake --build --preset release --parallel $(JOBS) --target quern

demo: all
	build/release/quern run examples/wordle.yaml

test:
	@scripts/install-deps.sh test
	@cmake --preset release -DQUERN_TESTS=ON $(LAUNCHER) > /dev/null
	@cmake --build --preset release --parallel $(JOBS)
	@ctest --preset release --parallel $(JOBS)

# The programs of tests/bench, which print tables; built, not run.
benchmarks:
	@scripts/install-deps.sh test
	@cmake --preset release -DQUERN_TESTS=ON $(LAUNCHER) > /dev/null
	@cmake --build --preset release --parallel $(JOBS) --target benchmarks

# The unit tests under sanitizers.
asan tsan:
	@scripts/install-deps.sh test
	@cmake --preset $@ $(LAUNCHER) > /dev/null
	@cmake --build --preset $@ --parallel $(JOBS)
	@ctest --preset $@ --parallel $(JOBS)

# 300 kills, 300 power losses, 300 damaged files, 10,000 failing disk operations, 28,000 strangers at ports; 25 minutes
# beside builds. `make test` has a short version.
crash-test: all
	@scripts/install-deps.sh test
	@cmake --preset release -DQUERN_TESTS=ON $(LAUNCHER) > /dev/null
	@cmake --build --preset release --parallel $(JOBS) --target crash_test
	@QUERN_BINARY=$(CURDIR)/build/release/quern QUERN_SOURCE_DIR=$(CURDIR) QUERN_CRASH=full build/release/tests/crash/crash_test

# Every decoder of what comes from outside, with AddressSanitizer and UBSan: a minute each (FUZZ_SECONDS), two at a time.
FUZZ_SECONDS ?= 60
fuzz:
	@scripts/install-deps.sh fuzz
	@cmake --preset fuzz $(LAUNCHER) > /dev/null
	@cmake --build --preset fuzz --parallel $(JOBS)
	@tests/fuzz/run.sh build/fuzz $(FUZZ_SECONDS)

format:
	@scripts/install-deps.sh check
	@clang-format -i $(SOURCES)

check-format:
	@scripts/install-deps.sh check
	@clang-format --dry-run --Werror $(SOURCES)

check-layers:
	@scripts/check-layers.sh

clean:
	rm -rf build

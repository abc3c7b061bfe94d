# Forwards to the CMake presets; see CMakePresets.json.
.PHONY: all build demo test test-all asan core fuzz install clean format
all: build

build/build.ninja:
	cmake --preset release

build: build/build.ninja
	cmake --build --preset release

demo: build
	build/bin/linework demo

test: build
	ctest --test-dir build --output-on-failure -j2 -LE slow
	tools/asan_test

# What takes long or needs PyPI.
test-all: test
	ctest --test-dir build --output-on-failure -L slow
	tools/tsan_test
	tools/analyze
	tools/abi_check
	tools/fuzz 60
	tools/check_pypi

asan:
	cmake --preset asan && cmake --build --preset asan && ctest --test-dir build/asan --output-on-failure -j2

core:
	cmake --preset core && cmake --build --preset core && ctest --test-dir build/core --output-on-failure

fuzz:
	tools/fuzz 60

install: build
	cmake --install build

format:
	git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	rm -rf build

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
	ctest --test-dir build --output-on-failure -j2
	tools/asan_test

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

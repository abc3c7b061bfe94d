# Forwards to the CMake presets; see CMakePresets.json.
.PHONY: all build demo test test-all asan core fuzz mutants install clean format
all: build

# make ARCHS=90a-real: kernels for one GPU architecture only
build/build.ninja:
	cmake --preset release $(if $(ARCHS),"-DLW_CUDA_ARCHS=$(ARCHS)")

build: build/build.ninja
	cmake --build --preset release

demo: build
	build/bin/linework demo

test: build
	ctest --test-dir build --output-on-failure -j2 -LE slow
	tools/asan_test

# What takes long. What needs PyPI is run by hand: tools/check_opencv.py, tools/check_tokenizer.py, tools/reference.
test-all: test
	tools/analyze
	ctest --test-dir build --output-on-failure -L slow
	tools/tsan_test
	tools/abi_check
	tools/fuzz 60

asan:
	cmake --preset asan && cmake --build --preset asan && ctest --test-dir build/asan --output-on-failure -j2

core:
	cmake --preset core && cmake --build --preset core && ctest --test-dir build/core --output-on-failure

fuzz:
	tools/fuzz 60

# Random mutants with AddressSanitizer and UBSan, the same ones every time: at least 100,000 of each format (docs/TESTING.md).
mutants:
	cmake --preset asan && cmake --build --preset asan
	build/asan/bin/safetensors_fuzz --mutants 15000 tests/fuzz/corpus/safetensors
	build/asan/bin/safetensors_fuzz --mutants 2000 tests/data/weights
	build/asan/bin/zip_fuzz --mutants 35000 tests/fuzz/corpus/zip
	build/asan/bin/pickle_fuzz --mutants 25000 tests/fuzz/corpus/pickle
	build/asan/bin/bpe_fuzz --mutants 20000 tests/fuzz/corpus/bpe
	build/asan/bin/image_fuzz --mutants 6000 tests/fuzz/corpus/image
	build/asan/bin/infotext_fuzz --mutants 10000 tests/fuzz/corpus/infotext
	build/asan/bin/options_fuzz --mutants 10000 tests/fuzz/corpus/options

install: build
	cmake --install build

format:
	git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	rm -rf build

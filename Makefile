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

# Random mutants of the corpora, with AddressSanitizer: 20,000 of each model file, pickle and vocabulary.
mutants:
	cmake --preset asan && cmake --build --preset asan
	for t in safetensors zip pickle bpe; do build/asan/bin/$${t}_fuzz --mutants 20000 tests/fuzz/corpus/$$t || exit 1; done

install: build
	cmake --install build

format:
	git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	rm -rf build

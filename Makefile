# build, demo, test, bench, torture, install: each from nothing, each says what it does.
PREFIX ?= /usr/local
DESTDIR ?=

build:   ; @tools/setup build && cargo build --release --locked --workspace
demo:    ; @tools/setup build && tools/demo/run
test:    ; @tests/run
bench: build ; @tools/setup lab && tests/vm/bench/run
torture: ; @tests/torture
install: build ; @tools/install "$(DESTDIR)" "$(PREFIX)"

.PHONY: build demo test bench torture install

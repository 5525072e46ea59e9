# Two commands do everything: `make run` and `make test`. The rest are their parts.
#
#   make run PORT=9000 ARGS="--max-running-requests 64"     passes ARGS on to `capstan serve`
#   make run MODEL=/models/R1-Distill-Qwen-7B               serves another model

HOST   ?= 127.0.0.1
PORT   ?= 8000
MODEL  ?=
ARGS   ?=
JOBS   ?= $(shell nproc)
PRESET ?= release
BUILD   = build/$(PRESET)

.DEFAULT_GOAL := help
.PHONY: help run port test test-faults build deps test-deps model check-format format lint fuzz clean

help:            ## what this file can do
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

run: port build  ## install what is missing, build, get the default model, serve it with a chat page
	@test -n "$(MODEL)" || scripts/get_model.sh
	exec $(BUILD)/capstan serve --host $(HOST) --port $(PORT) --enable-metrics --enable-cache-report \
	  $(if $(MODEL),--model-path $(MODEL)) $(ARGS)

# Before minutes of building rather than after.
port:
	@scripts/check_port.sh $(HOST) $(PORT)

test: test-deps  ## install what is missing, build, run all tests
	@scripts/build.sh $(PRESET) $(JOBS)
	@scripts/get_model.sh
	@scripts/run_tests.sh $(PRESET)

test-faults: test-deps  ## every fault in every phase against groups of nodes (needs root; minutes)
	@scripts/build.sh $(PRESET) $(JOBS) capstan
	@PYTHON=build/venv/bin/python tests/cluster/run.sh $(BUILD)/capstan --all-faults

build: deps      ## build a release binary (build/release/capstan)
	@scripts/build.sh $(PRESET) $(JOBS) capstan

deps:            ## install the Debian packages and crates that a build needs
	@scripts/install_deps.sh build

test-deps:       ## also what the tests need: Chromium and a Python environment
	@scripts/install_deps.sh build test

model:           ## fetch the default model, SmolLM2-135M-Instruct
	@scripts/get_model.sh

format:          ## format all C++ sources in place
	@scripts/format.sh --fix

check-format:    ## fail if a C++ source is not formatted
	@scripts/format.sh

lint:            ## clang-tidy over the changed sources (all: scripts/lint.sh --all)
	@scripts/lint.sh

fuzz:            ## run every fuzz target for SECONDS_EACH seconds (default 60)
	@scripts/fuzz.sh

clean:           ## remove every build tree
	rm -rf build

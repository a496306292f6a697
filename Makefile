# Everything a contributor or user runs.
.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-pure torture torture-cluster torture-ranks lint deny fuzz fuzz-long python operators clients bench bench-all bench-train bench-ranks bench-inference bench-gallery bench-learn bench-beside bench-start bench-overload bench-cluster rolling soak hostile dashboard gpu-check-build gpu-check clean

CHIPS ?= ../shared/data/hoss165
TILES ?= ../shared/data/optisar_pair
DENY := target/tools/bin/cargo-deny
DENY_VERSION := 0.20.2
CARGO_FUZZ_VERSION := 0.13.2
# What the built server says of itself beside its version; empty outside a checkout.
COMMIT = $(shell git rev-parse --short=12 HEAD 2>/dev/null)
# Where the fuzz targets and cargo-fuzz are built.
FUZZ_BUILD ?= target/fuzz
CARGO_FUZZ = $(FUZZ_BUILD)/tools/bin/cargo-fuzz
# The sanitizer is a nightly feature of the compiler, and its runtime comes with the stable one.
FUZZ_CARGO = RUSTC_BOOTSTRAP=1 $(CARGO_FUZZ)
FUZZ_SECONDS ?= 60
FUZZ_JOBS ?= 5
TORTURE_ROUNDS ?= 1000
SEEDS ?= 200
# Where `make gpu-check` runs; cpu tries the check itself.
DEVICE ?= cuda:0
# Absolute: tests run in folders of their own.
TORTURE_TABLE ?= $(CURDIR)/target/torture.md

help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: ## Fetches libtorch into the user's cache, once, and links it here
	@python3 scripts/libtorch.py --link libtorch

build: setup ## Builds the release binary
	SHIPREID_COMMIT=$(COMMIT) cargo build --release --locked

demo: build ## Draws ships, trains through a server, activates, enrols, matches: the whole mission in minutes
	target/release/shipreid demo --force $(if $(wildcard $(CHIPS)),--chips $(CHIPS))

test: setup ## Runs every test
	cargo test --locked

test-pure: ## Runs the tests that need no libtorch
	cargo test --locked --no-default-features

lint: setup ## Checks format and lints, with libtorch and without, warnings being errors
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --all-targets -- -D warnings

deny: $(DENY) ## Checks licences, bans and sources of what we depend on
	$(DENY) check bans licenses sources

$(DENY):
	CARGO_TARGET_DIR=target/tools/build cargo install --locked --root target/tools cargo-deny@$(DENY_VERSION)

fuzz: $(CARGO_FUZZ) ## Fuzzes every reader of foreign bytes for FUZZ_SECONDS each, FUZZ_JOBS at once (docs/fuzzing.md)
	$(FUZZ_CARGO) build --target-dir $(FUZZ_BUILD)
	python3 scripts/fuzz.py --build $(FUZZ_BUILD) --seconds $(FUZZ_SECONDS) --jobs $(FUZZ_JOBS) $(TARGETS)

fuzz-long: $(CARGO_FUZZ) ## The long campaign, 10^6 or 10^7 executions of each target; resumes where it stopped
	$(FUZZ_CARGO) build --sanitizer none --no-trace-compares --target-dir $(FUZZ_BUILD)-fast
	nice -n 10 python3 scripts/fuzz.py --build $(FUZZ_BUILD)-fast --campaign --jobs $(FUZZ_JOBS) $(TARGETS)

$(CARGO_FUZZ):
	CARGO_TARGET_DIR=$(FUZZ_BUILD)/tools/build cargo install --locked --debug --root $(FUZZ_BUILD)/tools cargo-fuzz@$(CARGO_FUZZ_VERSION)

python: ## Installs what the Python client and the drawn images of the tests need, into .venv
	test -x .venv/bin/python || python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r tests/python/requirements.txt

operators: ## Installs the programs of operators that tests run, as root, where they are missing
	command -v prometheus >/dev/null && command -v haproxy >/dev/null && command -v pgbouncer >/dev/null && ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || { \
		apt-get update --quiet=2 && apt-get install --yes --quiet=2 --no-install-recommends prometheus haproxy postgresql pgbouncer; }

clients: python ## Installs what compiles the clients of examples/, Debian's Go as root, where it is missing
	which go protoc protoc-gen-go protoc-gen-go-grpc >/dev/null && test -d /usr/share/gocode/src/google.golang.org/grpc || { \
		apt-get update --quiet=2 && apt-get install --yes --quiet=2 --no-install-recommends golang-go protoc-gen-go \
		protoc-gen-go-grpc golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev; }
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r tests/python/grpcurl.txt
	.venv/bin/pyright --version
	cd examples/typescript && npm ci --ignore-scripts --no-audit --no-fund

bench: build ## Measures the server beside the bare model (about 15 minutes; chips from CHIPS)
	python3 benches/serving.py --chips $(CHIPS)

bench-all: setup ## Runs the short form of every benchmark with a target beside an earlier build (BASELINE, else built; 40 minutes)
	SHIPREID_COMMIT=$(COMMIT) cargo bench --locked --no-run --bench gallery --bench enrolment # and the program
	python3 benches/all.py $(if $(wildcard $(CHIPS)),--chips $(CHIPS)) $(if $(CPU),--cpu $(CPU)) $(if $(BASELINE),--baseline $(BASELINE))

bench-train: build ## Measures a training step beside PyTorch's where it is installed, and the loader alone (4 minutes)
	python3 benches/training.py --data $(CHIPS)

bench-ranks: build ## Measures training in two processes of one thread beside one of two threads (10 minutes)
	python3 benches/ranks.py

bench-inference: build ## Measures inference beside ONNX Runtime and OpenVINO from PyPI (about 10 minutes, 10 GiB of memory and 4 of disk)
	python3 benches/inference.py $(if $(wildcard $(CHIPS)),--chips $(CHIPS)) $(if $(CPU),--cpu $(CPU))

bench-beside: build ## Measures Embed before, during and after a training job (15 minutes; chips from CHIPS)
	python3 benches/beside_training.py --chips $(CHIPS)

rolling: build ## Restarts servers under load: replicas behind HAProxy, one with galleries, three that share them (about two minutes)
	.venv/bin/python benches/rolling.py
	.venv/bin/python benches/rolling_cluster.py

soak: build ## Churns a server for 30 minutes and looks whether memory, descriptors and files level off
	.venv/bin/python benches/soak.py

hostile: build ## Sets a bad neighbour with every attack at once beside a good tenant, for a minute
	.venv/bin/python tests/python/hostile.py --strict

bench-start: build ## Measures starts and idle memory, beside the binary BASELINE where it is given (about 2 minutes)
	python3 benches/start.py $(if $(BASELINE),--baseline $(BASELINE)) $(if $(CPU),--cpu $(CPU))

bench-overload: build ## Overload, many connections, slow headers, cancelled calls, garbage (about 3 minutes)
	.venv/bin/python benches/overload.py

bench-cluster: build ## Measures galleries in PostgreSQL beside galleries in files and a bare COPY (about 4 minutes, 3 GiB of disk)
	.venv/bin/python benches/cluster.py

bench-gallery: ## Measures the search of galleries beside memory bandwidth and, where PyPI is reachable, FAISS (about 5 minutes, 9 GiB)
	test -x .venv/bin/python || python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check faiss-cpu numpy || echo "no FAISS: it is skipped"
	cargo bench --locked --no-default-features --bench gallery
	cargo bench --locked --no-default-features --bench enrolment

torture: setup ## Kills servers amid every call that changes something, fills disks, flips bytes, and prints a table
	@mkdir -p target && rm -f $(TORTURE_TABLE)
	SHIPREID_TORTURE_ROUNDS=$(TORTURE_ROUNDS) SHIPREID_TORTURE_TABLE=$(TORTURE_TABLE) \
		cargo test --locked --test it torture:: -- --nocapture
	SHIPREID_TORTURE_ROUNDS=$(TORTURE_ROUNDS) SHIPREID_TORTURE_TABLE=$(TORTURE_TABLE) \
		cargo test --locked --lib -- gallery::tests::rot flipped --nocapture
	@echo "| what | rounds | acknowledged calls | lost, doubled, back or silently wrong | outcomes |"
	@echo "|---|---|---|---|---|"
	@sort $(TORTURE_TABLE)

torture-cluster: setup ## Judges SEEDS histories of three servers on one PostgreSQL that are killed, stopped and cut off
	SHIPREID_CLUSTER_SEEDS=0..$(SEEDS) cargo test --locked --test it cluster:: -- --nocapture --test-threads 1

torture-ranks: setup ## Kills, stops and poisons one of two training processes at five random steps each
	SHIPREID_RANK_FAULTS=5 cargo test --locked --test it ranks::two -- --nocapture
	SHIPREID_RANK_FAULTS=5 cargo test --locked --lib ranks_faults -- --nocapture

gpu-check-build: build ## Builds what gpu-check needs into target/gpu-check, to be carried to a machine with a GPU
	@mkdir -p target/gpu-check
	strip -o target/gpu-check/shipreid target/release/shipreid
	strip -o target/gpu-check/tests "$$(cargo test --release --locked --lib --no-run --message-format=json | \
		sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')"

gpu-check: ## Checks results, batching, training and memory on DEVICE within eight minutes, without network and cargo (docs/gpu.md)
	python3 scripts/gpu_check.py --device $(DEVICE)

bench-learn: build ## Trains on synthetic ships and real tiles, and prints what was learned
	python3 benches/learning.py $(if $(wildcard $(TILES)),--pairs $(TILES))

dashboard: ## Rewrites Grafana's dashboard
	python3 deploy/grafana/dashboard.py

clean: ## Removes what was built
	cargo clean

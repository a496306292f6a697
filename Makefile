# Everything a contributor or user runs.
.DEFAULT_GOAL := help
.PHONY: help build test lint clean

help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

build: ## Builds the release binary
	cargo build --release --locked

test: ## Runs every test
	cargo test --locked

lint: ## Checks format and lints, warnings being errors
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

clean: ## Removes what was built
	cargo clean

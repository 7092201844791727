# `make run` and `make test` install everything they need. `make help` lists all commands.
.DEFAULT_GOAL := help
.PHONY: help install run serve test slow browser screenshots chaos deployment lint types imports check benchmark s3-up s3-down lock clean
bin := .venv/bin

help: ## List the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

install: .venv/.installed ## Create .venv and install the project

.venv/.installed: requirements.lock pyproject.toml infra/dev/setup/install.sh infra/dev/setup/installer.lock
	@sh infra/dev/setup/install.sh
	@touch $@

.venv/.installed-dev: requirements-dev.lock .venv/.installed
	@sh infra/dev/setup/install.sh dev
	@touch $@

run: .venv/.installed ## Run the main job: train on Fashion-MNIST and classify its test images
	@$(bin)/fmnist run --preset quick

serve: .venv/.installed ## Run Prefect's server and UI, Ray, a worker and the deployments, until Ctrl-C
	@$(bin)/fmnist serve

test: .venv/.installed-dev var/test-data/datasets/fashion-mnist/dataset.json ## Run the tests
	@$(bin)/python -m pytest tests/unit -m "not slow" --numprocesses logical --maxprocesses 4 --dist loadfile
	@$(bin)/python -m pytest tests/integration -m "not slow" --numprocesses logical --maxprocesses 2 --dist loadscope

slow: .venv/.installed-dev var/test-data/datasets/fashion-mnist/dataset.json ## Run the slow tests, and the S3 tests on Ceph if it is installed
	@$(bin)/python -m pytest tests/unit tests/integration -m slow --numprocesses logical --maxprocesses 2 --dist loadscope

browser: .venv/.installed-dev var/test-data/datasets/fashion-mnist/dataset.json ## Test Prefect's UI in Chromium, with cancels=N random cancels
	@$(bin)/python -m pytest -s tests/browser $(if $(cancels),--cancels $(cancels))

screenshots: .venv/.installed-dev var/test-data/datasets/fashion-mnist/dataset.json ## Create the README's screenshots
	@$(bin)/python -m tests.browser.screenshots docs

chaos_suites := $(patsubst tests/chaos/test_%.py,chaos-%,$(wildcard tests/chaos/test_*.py))
chaos: $(chaos_suites) ## Test faults and kills in many rounds, with short=1 in a few
.PHONY: $(chaos_suites)
$(chaos_suites): chaos-%: .venv/.installed-dev var/test-data/datasets/fashion-mnist/dataset.json
	@$(bin)/python -m pytest -s tests/chaos/test_$*.py $(if $(short),--short)

deployment: .venv/.installed-dev ## Test the container image, Compose and the Kubernetes manifests
	@$(bin)/python -m pytest tests/deploy

# Prepares the dataset before the tests, so that the tests themselves need no network.
var/test-data/datasets/fashion-mnist/dataset.json: | .venv/.installed-dev
	@FMNIST_STORE=var/test-data $(bin)/fmnist dataset prepare >/dev/null

lint: .venv/.installed-dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .

types: .venv/.installed-dev
	$(bin)/mypy

imports: .venv/.installed-dev
	$(bin)/lint-imports

check: lint types imports ## Check style, types and import rules

benchmark: .venv/.installed-dev ## Measure performance and write the results to tests/benchmarks/results
	$(bin)/python -m tests.benchmarks.main_job --install

s3-up: .venv/.installed ## Start a local Ceph S3 gateway: eval "$$(make -s s3-up)"
	@$(bin)/python infra/dev/ceph/gateway.py start var/ceph

s3-down: ## Stop the gateway and delete its buckets
	@$(bin)/python infra/dev/ceph/gateway.py stop var/ceph

lock: .venv/.installed ## Resolve the dependencies and update the lock files
	sh infra/dev/setup/lock.sh

clean: ## Remove .venv and build output, but not var/, which holds the default store
	rm -rf .venv build *.egg-info

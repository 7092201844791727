# `make run` and `make test` do all on a fresh machine; `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help install run serve test slow browser screenshots chaos deployment lint types imports check benchmark s3-up s3-down lock clean
bin := .venv/bin

help: ## List the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

install: .venv/.installed ## Make .venv and install what runs

.venv/.installed: requirements.lock pyproject.toml infra/dev/setup/install.sh infra/dev/setup/installer.lock
	@sh infra/dev/setup/install.sh
	@touch $@

.venv/.installed-dev: requirements-dev.lock .venv/.installed
	@sh infra/dev/setup/install.sh dev
	@touch $@

run: .venv/.installed ## Train on Fashion-MNIST and classify its test images: the main job
	@$(bin)/fmnist run --preset quick

serve: .venv/.installed ## Prefect's server and pages, Ray, a worker and the deployments, until Ctrl-C
	@$(bin)/fmnist serve

test: .venv/.installed-dev var/test-data/datasets/fashion-mnist/dataset.json ## Run the tests
	@$(bin)/python -m pytest tests/unit --numprocesses logical --maxprocesses 4 --dist loadfile
	@$(bin)/python -m pytest tests/integration -m "not slow" --numprocesses logical --maxprocesses 2 --dist loadscope

slow: .venv/.installed-dev var/test-data/datasets/fashion-mnist/dataset.json ## Run slow tests, and the S3 tests on Ceph if it is installed
	@$(bin)/python -m pytest tests/integration -m slow --numprocesses logical --maxprocesses 2 --dist loadscope

browser: .venv/.installed-dev var/test-data/datasets/fashion-mnist/dataset.json ## Test Prefect's pages in Chromium, and cancels
	@$(bin)/python -m pytest -s tests/browser $(if $(cancels),--cancels $(cancels))

screenshots: .venv/.installed-dev var/test-data/datasets/fashion-mnist/dataset.json ## Make the pictures of the README anew
	@$(bin)/python -m tests.browser.screenshots docs

chaos: .venv/.installed-dev var/test-data/datasets/fashion-mnist/dataset.json ## Faults and kills, many rounds; short=1: few
	@$(bin)/python -m pytest -s tests/chaos $(if $(short),--short)

deployment: .venv/.installed-dev ## Test the container image's parts, Compose and the Kubernetes manifests
	@$(bin)/python -m pytest tests/deploy

# Here rather than in the tests, so that they need no network once this is done.
var/test-data/datasets/fashion-mnist/dataset.json: | .venv/.installed-dev
	@FMNIST_STORE=var/test-data $(bin)/fmnist dataset prepare >/dev/null

lint: .venv/.installed-dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .

types: .venv/.installed-dev
	$(bin)/mypy

imports: .venv/.installed-dev
	$(bin)/lint-imports

check: lint types imports ## Lint, types and import rules

benchmark: .venv/.installed-dev ## Measure; figures go to tests/benchmarks/results
	$(bin)/python -m tests.benchmarks.main_job --install

s3-up: .venv/.installed ## Start a Ceph S3 gateway here: eval "$$(make -s s3-up)"
	@$(bin)/python infra/dev/ceph/gateway.py start var/ceph

s3-down: ## Stop it; what its buckets hold is gone
	@$(bin)/python infra/dev/ceph/gateway.py stop var/ceph

lock: .venv/.installed ## Resolve the dependencies anew
	sh infra/dev/setup/lock.sh

clean: ## Remove what was installed and what runs left (var/ holds the default store!)
	rm -rf .venv build *.egg-info

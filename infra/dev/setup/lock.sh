#!/bin/sh
# Resolve the dependencies again: requirements.lock for running, and requirements-dev.lock for testing as well.
# Both hold hashes for every platform, and no index address.
set -eu
cd "$(dirname "$0")/../../.."
uv=.venv/bin/uv
options="--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --quiet"
$uv pip compile $options --custom-compile-command "make lock" infra/dev/setup/installer.in -o infra/dev/setup/installer.lock
$uv pip compile $options --custom-compile-command "make lock" pyproject.toml -o requirements.lock
$uv pip compile $options --custom-compile-command "make lock" pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock

#!/bin/sh
# Resolve the dependencies anew: requirements.lock (what runs) and requirements-dev.lock (what also tests).
# Both are hash-locked, for every platform, and hold no index address.
set -eu
cd "$(dirname "$0")/../.."
uv=.venv/bin/uv
options="--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --quiet"
$uv pip compile $options --custom-compile-command "make lock" infra/dev/setup/installer.in -o infra/dev/setup/installer.lock
$uv pip compile $options --custom-compile-command "make lock" pyproject.toml -o requirements.lock
$uv pip compile $options --custom-compile-command "make lock" pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock

#!/bin/sh
# Create .venv and install requirements.lock (or requirements-dev.lock for "dev"). Every file is checked by its hash.
#
# Needs python3 (3.11 or later) and a package index. uv gets pip's own configuration (index, certificate, proxy). It
# installs in half a minute what takes pip several minutes.
set -eu
cd "$(dirname "$0")/../../.."
lock=requirements.lock
[ "${1:-}" = dev ] && lock=requirements-dev.lock

fail() { printf '%s\n' "$@" >&2; exit 2; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "python3 is not installed. Install Python 3.11 or later."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old. Install Python 3.11 or later, or name one with PYTHON=/path/to/python3 make."

if ! [ -x .venv/bin/uv ]; then
    "$python" -m venv .venv || fail \
        "python3 could not create a virtual environment (see above)." \
        "On Debian and Ubuntu, install the venv module: apt-get install python3-venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --require-hashes --requirement infra/dev/setup/installer.lock ||
        fail "pip could not install uv (see above). Check that pip can reach a package index."
fi

# `pip config get` would read only the user's file.
pip_setting() { .venv/bin/python -m pip config list 2>/dev/null | sed -n "s/^global\\.$1='\\(.*\\)'\$/\\1/p"; }
index=${PIP_INDEX_URL:-$(pip_setting index-url)}
certificate=${PIP_CERT:-$(pip_setting cert)}
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
[ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"

# Compile the bytecode once here. Otherwise every process of the first run would compile it at the first import.
.venv/bin/uv pip install --python .venv --compile-bytecode --require-hashes --requirement "$lock" ||
    fail "The installation failed (see above). Run make again to continue."
.venv/bin/uv pip install --python .venv --quiet --no-deps --no-index --no-build-isolation --editable .

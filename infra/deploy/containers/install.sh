#!/bin/sh
# The steps by which the image is built; the tests run the same ones into a folder.
#
#   install.sh dependencies PREFIX gpu|cpu    a virtual environment with what requirements.lock names
#   install.sh wheel PREFIX SOURCE FOLDER     the project as a wheel, built by what PREFIX has
#   install.sh project PREFIX FOLDER          that wheel into the environment
#   install.sh cpu-lock                       prints what of requirements.lock is installed for cpu
#
# gpu: all files by their hashes, PyTorch as the lock names it, with its CUDA libraries; it runs without a GPU as well.
# cpu: the lock without PyTorch, torchvision and CUDA; and these two, of the same versions (or TORCH, if it is set), from
# TORCH_INDEX, an index of PyTorch's CPU builds. These have other hashes than the lock's: that index is trusted.
set -eu

fail() { printf '%s\n' "$@" >&2; exit 2; }

dependencies() {
    prefix=$1 variant=$2
    case $variant in
    gpu) ;;
    cpu) [ -n "${TORCH_INDEX:-}" ] || fail "cpu: name an index of PyTorch's CPU builds in TORCH_INDEX." ;;
    *) fail "$variant: expected gpu or cpu." ;;
    esac
    "${PYTHON:-python3}" -m venv "$prefix"
    "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check \
        --require-hashes --requirement infra/dev/setup/installer.lock
    pip_configuration "$prefix"
    if [ "$variant" = gpu ]; then
        install "$prefix" --require-hashes --requirement requirements.lock
    else
        cpu_lock >"$prefix/requirements.lock"
        install "$prefix" --require-hashes --no-deps --requirement "$prefix/requirements.lock"
        # shellcheck disable=SC2086 # two requirements, two words
        install "$prefix" --no-deps --default-index "$TORCH_INDEX" ${TORCH:-$(torch_of_lock)}
    fi
}

# Compiled here, once: where the image runs, its files are read-only.
install() {
    environment=$1
    shift
    "$environment/bin/uv" pip install --python "$environment/bin/python" --quiet --compile-bytecode "$@"
}

# pip's index and certificate, from its environment or files, are uv's, too.
pip_configuration() {
    index=${PIP_INDEX_URL:-$(pip_setting "$1" index-url)}
    certificate=${PIP_CERT:-$(pip_setting "$1" cert)}
    [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    [ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"
}

# By `list`: `get` looks into one of the files alone.
pip_setting() {
    "$1/bin/python" -m pip config list | sed -n "s/^global\.$2='\(.*\)'$/\1/p"
}

cpu_lock() {
    awk '/^[a-z0-9]/ { cuda = /^(torch|torchvision|triton|(nvidia|cuda)-[a-z0-9-]+)==/ } !cuda' requirements.lock
}

torch_of_lock() {
    sed -nE 's/^((torch|torchvision)==[^ ;]+).*/\1/p' requirements.lock
}

wheel() {
    "$1/bin/uv" build --quiet --wheel --python "$1/bin/python" --no-build-isolation --offline --out-dir "$3" "$2"
}

project() {
    install "$1" --no-deps --no-index "$2"/fmnist_jobs-*.whl
}

case "${1:-}" in
dependencies | wheel | project) "$@" ;;
cpu-lock) cpu_lock ;;
*) fail "Expected dependencies, wheel, project or cpu-lock; the first lines of $0 say more." ;;
esac

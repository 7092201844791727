#!/bin/sh
# Build steps of the image. The tests run the same steps in a folder.
#
#   install.sh dependencies PREFIX gpu|cpu    create a virtual environment with the packages of requirements.lock
#   install.sh wheel PREFIX SOURCE FOLDER     build the project's wheel with the tools in PREFIX
#   install.sh project PREFIX FOLDER          install that wheel in the environment
#   install.sh cpu-lock                       print the part of requirements.lock that cpu installs
#
# gpu installs the whole lock with its hashes, including CUDA. It also runs without a GPU.
# cpu installs the lock without PyTorch, torchvision and CUDA. The first two come from TORCH_INDEX, an index of CPU
# builds, in the lock's versions or in those of TORCH. Their hashes are not in the lock, so you must trust that index.
set -eu

fail() { printf '%s\n' "$@" >&2; exit 2; }

dependencies() {
    prefix=$1 variant=$2
    case $variant in
    gpu) ;;
    cpu) [ -n "${TORCH_INDEX:-}" ] || fail "cpu: set TORCH_INDEX to an index of PyTorch's CPU builds." ;;
    *) fail "$variant: use gpu or cpu." ;;
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

# Compile to bytecode now, because the image's files are read-only later.
install() {
    environment=$1
    shift
    "$environment/bin/uv" pip install --python "$environment/bin/python" --quiet --compile-bytecode "$@"
}

# Give uv the index and certificate of pip's environment and files.
pip_configuration() {
    index=${PIP_INDEX_URL:-$(pip_setting "$1" index-url)}
    certificate=${PIP_CERT:-$(pip_setting "$1" cert)}
    [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    [ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"
}

# `pip config list` reads all files. `get` would read only one.
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
*) fail "Use dependencies, wheel, project or cpu-lock. The first lines of $0 explain them." ;;
esac

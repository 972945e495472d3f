# The trainer, ready to run, on the GPUs of this machine (target cuda, the default) or on two CPU ranks (target cpu):
#
#   docker build -t partialkd .
#   docker build -t partialkd:cpu --target cpu .
#   docker run --gpus all --shm-size=8g --read-only --tmpfs /tmp:exec -v "$PWD/data:/app/data" -v "$PWD/runs:/app/runs" \
#          partialkd [CONFIG] [section.key=value ...]
#
# The folders that are mounted must be writable for user 1000 (or give --user); nothing else is written but /tmp,
# where what is compiled meanwhile must be loadable (exec); a volume at /tmp/cache keeps it.
# `docker stop -t 300` lets the ranks save before they leave. docs/cluster.md has more, and compose and Kubernetes files.
#
# BASE: a tag moves; for an image that can be made again, give the digest that `docker buildx imagetools inspect` shows:
#   --build-arg BASE=python:3.11-slim-bookworm@sha256:...
# Every package is locked by its hash (containers/requirements-*.txt, made by containers/lock.sh), but for torch of the
# target cpu: PyPI has CUDA builds alone, so that it comes from the index that pip is configured with, by version.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS python
# Whatever is kept between kernels' compilations goes where it may be written with a read-only root.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    XDG_CACHE_HOME=/tmp/cache \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor

# Triton compiles C as it starts, torch.compile C++ on the CPU; the base image has Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 trainer
WORKDIR /app

FROM scratch AS source
WORKDIR /app
COPY pyproject.toml LICENSE THIRD_PARTY.md ./
COPY partialkd partialkd
COPY launch launch
COPY configs configs
COPY containers/healthcheck.sh containers/

# The image for the CPU has no DALI.
# What changes least comes first: editing the package does not install torch again.
FROM python AS cpu
ARG TORCH_VERSION=2.13.0
COPY containers/requirements-cpu.txt containers/
RUN pip install --require-hashes --no-deps -r containers/requirements-cpu.txt \
    && pip install --no-deps "torch==${TORCH_VERSION}" \
    && pip check
COPY --from=source /app ./
RUN pip install --no-deps --no-build-isolation -e . \
    && install --directory --owner=trainer data runs
USER 1000
HEALTHCHECK --interval=60s --timeout=10s --start-period=300s --retries=3 CMD ["containers/healthcheck.sh"]
ENTRYPOINT ["launch/local.sh"]
CMD ["configs/quickstart.toml", "data.loader=jpeg"]

FROM python AS cuda
COPY containers/requirements-cuda.txt containers/
RUN pip install --require-hashes --no-deps -r containers/requirements-cuda.txt \
    && pip check
COPY --from=source /app ./
RUN pip install --no-deps --no-build-isolation -e . \
    && install --directory --owner=trainer data runs
USER 1000
HEALTHCHECK --interval=60s --timeout=10s --start-period=300s --retries=3 CMD ["containers/healthcheck.sh"]
ENTRYPOINT ["launch/local.sh"]
CMD ["configs/quickstart.toml"]

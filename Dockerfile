# The trainer, ready to run, on the GPUs of this machine or on two CPU ranks:
#
#   docker build -t partialkd .
#   docker run --gpus all --shm-size=8g -v "$PWD/data:/app/data" -v "$PWD/runs:/app/runs" \
#          partialkd [CONFIG] [section.key=value ...]
#
# The folders that are mounted must be writable for user 1000 (or give --user). `docker stop -t 300` lets the
# ranks save before they leave. What is compiled while it runs lies under /tmp: with --read-only give --tmpfs /tmp:exec,
# from where it can be loaded; a volume at /tmp/cache keeps it.
FROM python:3.11-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
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

# What changes least comes first: editing the package does not install torch again.
COPY requirements.txt ./
RUN pip install -r requirements.txt

COPY pyproject.toml LICENSE THIRD_PARTY.md ./
COPY partialkd partialkd
RUN pip install --no-deps -e . \
    && install --directory --owner=trainer data runs
COPY launch launch
COPY configs configs

USER 1000
ENTRYPOINT ["launch/local.sh"]
CMD ["configs/quickstart.toml"]

# The trainer, ready to run, on the GPUs of this machine or on two CPU ranks:
#
#   docker build -t partialkd .
#   docker run --gpus all --shm-size=8g -v "$PWD/data:/app/data" -v "$PWD/runs:/app/runs" \
#          partialkd [CONFIG] [section.key=value ...]
#
# The folders that are mounted must be writable for user 1000 (or give --user). `docker stop -t 300` lets the
# ranks save before they leave.
FROM python:3.11-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1

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

# syntax=docker/dockerfile:1
# Uses the CPU by default. For GPUs, build with a CUDA base image:
#   docker build --build-arg BASE=nvidia/cuda:13.0.0-runtime-ubuntu24.04 -t ginr .
# Usage:
#   docker run --rm -v "$PWD/runs:/app/runs" ginr fit --config configs/experiments/photos_ipc.yaml
#   docker run --rm --gpus all --ipc=host -v "$PWD/runs:/app/runs" -v "$PWD/data:/app/data" ginr \
#       fit --config configs/experiments/imagenette178_ipc.yaml
#   docker run --rm -v "$PWD:/data" ginr predict --images /data/photo.jpg --output /data/predictions
ARG BASE=python:3.11-slim
FROM ${BASE} AS environment
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /tmp/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --requirement /tmp/requirements.txt

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
COPY --from=environment /opt/venv /opt/venv
WORKDIR /app
COPY . .
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
ENTRYPOINT ["python", "cli.py"]
CMD ["--help"]

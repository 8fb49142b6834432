# syntax=docker/dockerfile:1
# Without arguments, the image contains the CPU build of torch. For GPUs, pass an index of CUDA builds, whose wheels contain the
# CUDA libraries, so that the base image does not need them:
#   docker build -t ginr .
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t ginr:cuda .
# BASE may be any image that has Python 3.11 to 3.13 or is based on Debian or Ubuntu. docs/containers.md describes how to run
# the image.
ARG BASE=python:3.11-slim

FROM ${BASE} AS environment
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3008
RUN python3 -c "import ensurepip, venv" || { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv; }
WORKDIR /tmp
COPY requirements-runtime.txt constraints.txt ./
# torch comes from its own index without dependencies, the rest from the default index. Tests of the packages, C++ headers and
# programs of torch, and pip are not needed to run; without the headers, torch.compile does not work.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-deps --index-url "${TORCH_INDEX}" --constraint constraints.txt torch \
    && /opt/venv/bin/python -m pip install --requirement requirements-runtime.txt \
    && find /opt/venv/lib -depth -type d \( -name tests -o -path "*/torch/test" -o -path "*/torch/include" \) -exec rm -r {} + \
    && find /opt/venv -type f \( -name "*.a" -o -path "*/torch/bin/*" ! -name torch_shm_manager \) -delete \
    && /opt/venv/bin/python -m pip uninstall --yes pip

FROM ${BASE}
# hadolint ignore=DL3008
RUN { command -v tini && command -v python3; } \
    || { apt-get update && apt-get install -y --no-install-recommends tini \
    && { command -v python3 || apt-get install -y --no-install-recommends python3; } && rm -rf /var/lib/apt/lists/*; }
COPY --from=environment /opt/venv /opt/venv
WORKDIR /app
COPY . .
# Any user may write to the volumes: docker run --user "$(id -u):$(id -g)". All libraries write their caches below HOME; USER is
# the name of users that /etc/passwd does not list.
RUN python3 -m compileall -q . \
    && groupadd --gid 10001 ginr && useradd --uid 10001 --gid ginr --home-dir /cache --no-create-home ginr \
    && install --directory --mode=1777 /cache runs data predictions
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/cache XDG_CACHE_HOME=/cache USER=ginr TINI_SUBREAPER=1
USER 10001:10001
VOLUME ["/cache", "/app/runs", "/app/data", "/app/predictions"]
# As process 1, tini forwards signals to the program, which saves the run, and reaps orphaned loader workers.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=1m --timeout=30s --start-period=1m CMD ["python", "-m", "tools.doctor", "--quick"]
ENTRYPOINT ["tini", "--", "python", "cli.py"]
CMD ["--help"]

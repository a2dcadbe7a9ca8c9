# A production image: an NGC tritonserver and the cascade library in its Python.
#   docker build -t cascade .                                   with a GPU
#   docker build -t cascade --build-arg FLAVOUR=cpu .           without
#   docker run --rm --gpus all --shm-size 1g -p 8000-8002:8000-8002 \
#     --read-only --tmpfs /tmp --cap-drop ALL -v "$PWD/model_repository:/models:ro" cascade
ARG BASE=nvcr.io/nvidia/tritonserver:26.04-py3
FROM ${BASE}
ARG FLAVOUR=gpu

WORKDIR /opt/cascade
COPY pyproject.toml README.md LICENSE ./
COPY cascade cascade
COPY clients clients
COPY export export
COPY perf perf
# torch, the exporter and the bundled development server stay out: the graphs bring what they need.
RUN pip install --no-cache-dir --break-system-packages ".[${FLAVOUR},store]"

RUN useradd --system --no-create-home cascade
USER cascade
EXPOSE 8000 8001 8002
# A real question through the whole cascade: the server's own readiness does not tell of dead stages.
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s \
  CMD ["python3", "-m", "cascade.server.health"]
# The launcher bounds threads by cores, answers only once a real request was answered, and hands
# SIGTERM on. A container's port is published by whoever runs it, so it listens on all addresses.
ENTRYPOINT ["python3", "-m", "cascade.server", "--host", "0.0.0.0", "--repository"]
CMD ["/models"]

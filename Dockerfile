# A production image: an NGC tritonserver and the cascade library in its Python.
#   docker build -t cascade .                                   with a GPU
#   docker build -t cascade --build-arg FLAVOUR=cpu .           without
#   docker run --rm --gpus all --shm-size 1g -p 8000-8002:8000-8002 \
#     --read-only --tmpfs /tmp --cap-drop ALL -v "$PWD/model_repository:/models:ro" cascade
ARG BASE=nvcr.io/nvidia/tritonserver:26.04-py3
FROM ${BASE}
ARG FLAVOUR=gpu

WORKDIR /opt/cascade
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cascade cascade
# The versions of the tests. All pins apply: the client of 2.51 speaks to later servers, and a later
# server's Python backend takes numpy 1.26 as well as numpy 2. A base image that installs its numpy
# by other means than pip needs that line taken out of constraints.txt.
# torch, the exporter and the bundled development server stay out: the graphs bring what they need.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --break-system-packages -c constraints.txt \
  ".[${FLAVOUR},store,sign]" psutil

# A numeric user, which Kubernetes' runAsNonRoot accepts without runAsUser.
USER 10001:10001
EXPOSE 8000 8001 8002
# A real request through the whole cascade: the server's own readiness ignores dead processes.
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s \
  CMD ["python3", "-m", "cascade.server.health"]
# The launcher bounds threads by cores, reports ready once a real request was answered, and passes
# SIGTERM on. It listens on all addresses: `docker run -p` decides which are reachable.
ENTRYPOINT ["python3", "-m", "cascade.server", "--host", "0.0.0.0", "--repository"]
CMD ["/models"]

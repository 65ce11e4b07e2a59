# Choir on NVIDIA GPUs. The host needs a driver for CUDA 13 and the NVIDIA container toolkit. Build it from the root of
# the repository:
#   docker build -f deployments/docker/cuda.Dockerfile -t choir:cuda .
# The base image is pinned by its tag. To pin it by digest, give PYTHON_IMAGE=python@sha256:... as a build argument.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PATH=/opt/choir/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY requirements/ requirements/
# The large layer depends on the locks alone. Nothing is resolved, and every file is compared with its hash.
RUN python -m venv /opt/choir \
    && pip install --no-deps --require-hashes -r requirements/cuda.lock
COPY pyproject.toml README.md LICENSE ./
COPY serve/ serve/
COPY training/ training/
COPY clients/ clients/
RUN pip install --no-deps --no-build-isolation .

FROM ${PYTHON_IMAGE}
# CUDA comes with the Python packages; Triton compiles small programs when it starts; KubeRay's probes call wget, in a
# login shell. Debian keeps old versions of packages for a short time only, so theirs are not pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libnuma1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && echo "PATH=/opt/choir/bin:\$PATH" >/etc/profile.d/choir.sh \
    && useradd --uid 10001 --create-home choir \
    && install --directory --owner=choir --group=choir /srv/choir /srv/choir/store
COPY --from=build /opt/choir /opt/choir
ENV PATH=/opt/choir/bin:$PATH PYTHONUNBUFFERED=1 CHOIR_STORE=/srv/choir/store \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /srv/choir
EXPOSE 8000
# An engine loads and warms up before /ready answers 200.
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=4 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["choir"]
# Beyond loopback, a server wants CHOIR_ADMIN_TOKEN.
CMD ["serve", "/srv/choir/bundle", "--host", "0.0.0.0"]

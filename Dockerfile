# The suite with the locked packages, for NVIDIA GPUs or without one; how to build and run it: docs/install.md.
# torch's wheels bring CUDA along, so the base needs no CUDA; the host needs NVIDIA's driver and its container toolkit.
FROM python:3.12-slim-bookworm

# git: results name their commit. g++: torch.compile and mmcv's compiled ops use it. OpenCV's headless build needs no libGL.
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make g++ \
    && rm -rf /var/lib/apt/lists/*

ARG UID=1000
RUN useradd --create-home --uid ${UID} bootmae \
    && mkdir -p /opt/bootmae/data /opt/bootmae/work_dirs \
    && chown -R bootmae /opt/bootmae \
    && git config --system --add safe.directory /opt/bootmae
USER bootmae
WORKDIR /opt/bootmae

# only what decides the installation, so that a change of the code does not download 2.6 GB again
COPY --chown=bootmae requirements.lock pyproject.toml LICENSE ./
COPY --chown=bootmae tools/setup_env.py tools/
COPY --chown=bootmae bootmae/__init__.py bootmae/
RUN PIP_NO_CACHE_DIR=1 python tools/setup_env.py

COPY --chown=bootmae . .
ENV PATH=/opt/bootmae/.venv/bin:$PATH
VOLUME ["/opt/bootmae/data", "/opt/bootmae/work_dirs"]
CMD ["make", "doctor"]

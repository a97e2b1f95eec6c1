# LTX-2 as a RunPod serverless worker (the default command) or as an HTTP server. docs/runpod.md has the rest.
#
#   docker build --platform linux/amd64 -t ltx2 .
#   docker run --gpus all -v /path/to/models:/runpod-volume ltx2                                           # worker
#   docker run --gpus all -v /path/to/models:/runpod-volume -p 127.0.0.1:8000:8000 ltx2 python server.py  # server
#
# Of CUDA the base has what a driver wants to see. cuBLAS, cuDNN and the others come with torch's wheels: the larger
# bases have all of them a second time, which every cold start on a new machine would fetch.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# The suite is pinned by the base; a pinned package would be gone from the archive with its next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# the large layer first: it changes only with the pins
COPY requirements.txt /tmp/requirements.txt
RUN python3 -m venv /opt/venv \
    && pip install -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt

# No USER follows: RunPod starts a container as its image says, the volumes that it mounts belong to root, and workers
# write results there. Elsewhere this user is the better one, as compose.yaml has it: docker run --user 10001:10001
RUN useradd --create-home --uid 10001 ltx2 \
    && install --directory --owner ltx2 --group ltx2 /data /opt/huggingface

# video: without it the driver's encoders are not in the container
ENV LTX2_MODEL=ltx-2-distilled \
    LTX2_MODELS_DIR=/runpod-volume \
    LTX2_DATA_DIR=/data \
    HF_HOME=/opt/huggingface \
    LTX2_HOST=0.0.0.0 \
    RUNPOD_LOG_LEVEL=INFO \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

WORKDIR /app
COPY ltx2 ltx2

# Weights, if the build argument LTX2_BAKE names a model (what LTX2_MODEL may be); else nothing is fetched. A token for
# gated ones is a secret of the build, so that it is in no layer: --secret id=hf_token,src=FILE
ARG LTX2_BAKE
RUN --mount=type=secret,id=hf_token \
    if [ -n "$LTX2_BAKE" ]; then \
        LTX2_MODEL="$LTX2_BAKE" HF_TOKEN_PATH=/run/secrets/hf_token python -c "import logging; \
from ltx2.model.checkpoint import find_checkpoint; from ltx2.settings import load_settings; \
logging.basicConfig(level='INFO'); find_checkpoint(load_settings())"; \
    fi
ENV LTX2_MODEL=${LTX2_BAKE:-$LTX2_MODEL}

COPY handler.py server.py test_input.json llms.txt LICENSE ./

EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "-m", "ltx2.healthcheck"]

# this very process gets RunPod's SIGTERM, and with it ends what it started
CMD ["python", "-u", "handler.py"]

# LTX-2 as a RunPod serverless worker (the default command) or as an HTTP server.
#
#   docker build --platform linux/amd64 -t ltx2 .
#   docker run --gpus all -v /path/to/models:/runpod-volume ltx2                                  # worker
#   docker run --gpus all -v /path/to/models:/runpod-volume -p 8000:8000 ltx2 python server.py    # server
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

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

WORKDIR /app
COPY ltx2 ltx2
COPY handler.py server.py test_input.json llms.txt LICENSE ./

RUN useradd --create-home --uid 10001 ltx2 && install --directory --owner ltx2 /data
USER ltx2

ENV LTX2_MODEL=ltx-2-distilled \
    LTX2_MODELS_DIR=/runpod-volume \
    LTX2_DATA_DIR=/data \
    HF_HOME=/data/huggingface \
    LTX2_HOST=0.0.0.0 \
    RUNPOD_LOG_LEVEL=INFO

EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "-m", "ltx2.healthcheck"]

CMD ["python", "-u", "handler.py"]

# A Docker Space (uid 1000, port 7860) and a plain `docker run --gpus all -p 7860:7860 IMAGE`.
# The CUDA libraries come with torch's wheels; the GPU itself through the host's driver.
FROM python:3.11-slim-bookworm

# Triton builds its kernels' launchers on the GPU machine, at first use, with a C compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user
USER user
ENV HOME=/home/user \
    PATH=/home/user/.local/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    QLORA_DEMO_HOME=/home/user/qlora_demo
WORKDIR /home/user/app

# Layers from the one that changes least to the one that changes most.
COPY --chown=user requirements.txt .
RUN pip install --user -r requirements.txt
COPY --chown=user qlora_demo qlora_demo
RUN python -m qlora_demo fetch
COPY --chown=user app.py README.md LICENSE ./

EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860', timeout=4)"]
CMD ["python", "app.py"]

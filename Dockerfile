# A Docker Space (uid 1000, port 7860), and on a machine of one's own, where operators sign in with the password:
#     docker run --gpus all -p 127.0.0.1:7860:7860 -v qlora_demo:/data -e HF_HOME=/data/huggingface \
#         -e QLORA_DEMO_PASSWORD=... IMAGE
# The CUDA libraries come with torch's wheels; the GPU itself through the host's driver.
# Layers go from the one that changes least to the one that changes most.

FROM python:3.11-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
# Triton compiles one C module at its first use.  It is compiled here, so that the image needs no compiler.
COPY docker/triton_launcher.py .
RUN mkdir /stub \
    && gcc -shared -Wl,-soname,libcuda.so.1 -o /stub/libcuda.so.1 -x c /dev/null \
    && TRITON_LIBCUDA_PATH=/stub LD_LIBRARY_PATH=/stub TRITON_CACHE_DIR=/opt/triton python triton_launcher.py
COPY qlora_demo qlora_demo
RUN QLORA_DEMO_HOME=/opt/qlora_demo python -m qlora_demo fetch

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 1000 user \
    && install --directory --owner=user --group=user /data
# Gradio lets people sign in with the hub where SYSTEM is "spaces" and SPACE_ID is set; a Docker Space sets the latter.
ENV SYSTEM=spaces \
    HOME=/home/user \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    QLORA_DEMO_DISK=/data \
    QLORA_DEMO_BUNDLED=/opt/qlora_demo/models
COPY --from=build /opt/venv /opt/venv
COPY --from=build --chown=1000:1000 /opt/triton /home/user/.triton/cache
# safetensors writes files that only their owner may read.
COPY --from=build --chown=1000:1000 /opt/qlora_demo/models /opt/qlora_demo/models
# Not in the user's home: who may write above a folder can put another in its place.
WORKDIR /app
USER 1000
# Fails the build where Triton does not find its module without a compiler.
RUN --mount=type=bind,from=build,source=/stub,target=/stub \
    --mount=type=bind,source=docker,target=/docker \
    TRITON_LIBCUDA_PATH=/stub LD_LIBRARY_PATH=/stub python /docker/triton_launcher.py
COPY requirements.txt app.py README.md LICENSE ./
COPY qlora_demo qlora_demo

EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['GRADIO_SERVER_PORT']}/healthz\", timeout=4)"]
CMD ["python", "app.py"]

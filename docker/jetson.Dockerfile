# syntax=docker/dockerfile:1.7
# For a Jetson Orin with JetPack 6 (L4T 36): Ubuntu 22.04, hence ROS 2 Humble; CUDA 12.6 and TensorRT 10.3 are in the base.
#   docker build -f docker/jetson.Dockerfile -t vla:jetson .
# JetPack 7 (Ubuntu 24.04, ROS 2 Jazzy) takes the images of servers; TensorRT then comes from NVIDIA's packages:
#   docker build -f docker/jetson.Dockerfile -t vla:jetson --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 \
#     --build-arg DISTRO=jazzy --build-arg TENSORRT=10.14.1.48-1+cuda13.0 --build-arg TORCH=torch==2.13.0 \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 --build-arg NUMPY=numpy .
# Not yet built: docs/reference/hardware.md.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0

FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG DISTRO=humble
ENV LANG=C.UTF-8 ROS_DISTRO=${DISTRO} NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=all
COPY docker/install_ros.sh /tmp/
RUN /tmp/install_ros.sh "$ROS_DISTRO"
# Empty: the base has it.
ARG TENSORRT=
RUN if [ -n "$TENSORRT" ]; then apt-get update \
    && apt-get install -y --no-install-recommends "libnvinfer10=$TENSORRT" "libnvinfer-plugin10=$TENSORRT" \
        "libnvonnxparsers10=$TENSORRT" "python3-libnvinfer=$TENSORRT" \
    && rm -rf /var/lib/apt/lists/*; fi
ARG UID=1001
RUN groupadd --gid "$UID" vla \
    && useradd --uid "$UID" --gid vla --groups video --create-home --shell /bin/bash vla \
    && install -d -o vla -g vla /opt/vla
USER ${UID}:${UID}
WORKDIR /opt/vla
# torch for the integrated GPU is not on PyPI; ./vla prepare keeps what it finds. Its wheels for JetPack 6 know numpy 1.
ARG TORCH=torch==2.8.0
ARG TORCH_INDEX=https://pypi.jetson-ai-lab.io/jp6/cu126
ARG NUMPY=numpy<2
RUN echo "$NUMPY" > constraints.txt \
    && python3 -m venv --system-site-packages .venv \
    && PIP_CONSTRAINT=constraints.txt .venv/bin/pip install --no-cache-dir "$NUMPY" \
    && PIP_CONSTRAINT=constraints.txt .venv/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" "$TORCH"
COPY --chown=vla:vla vla ./
COPY --chown=vla:vla requirements requirements
COPY --chown=vla:vla scripts scripts
RUN PIP_CONSTRAINT=constraints.txt PIP_NO_CACHE_DIR=1 ./vla prepare
COPY --chown=vla:vla src src
RUN ./vla build
COPY --chown=vla:vla docker docker
ENTRYPOINT ["/opt/vla/docker/entrypoint.sh"]
HEALTHCHECK --interval=30s --timeout=30s --start-period=300s --retries=2 \
    CMD ["/opt/vla/docker/entrypoint.sh", "python", "/opt/vla/docker/healthcheck.py"]
CMD ["python", "-m", "vla_bringup.cli", "doctor"]

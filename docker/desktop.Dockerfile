# syntax=docker/dockerfile:1.7
# ROS 2 Jazzy, CUDA and TensorRT for a PC with an NVIDIA GPU (driver 580 or newer). At the root of the repository:
#   docker build -f docker/desktop.Dockerfile -t vla:desktop .
#   docker build -f docker/desktop.Dockerfile --target rviz -t vla:rviz .
# Not yet built: docs/reference/hardware.md.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE} AS suite
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV LANG=C.UTF-8 ROS_DISTRO=jazzy NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
COPY docker/install_ros.sh /tmp/
RUN /tmp/install_ros.sh "$ROS_DISTRO"
ARG TENSORRT=10.14.1.48-1+cuda13.0
RUN apt-get update \
    && apt-get install -y --no-install-recommends "libnvinfer10=$TENSORRT" "libnvinfer-plugin10=$TENSORRT" \
        "libnvonnxparsers10=$TENSORRT" "python3-libnvinfer=$TENSORRT" \
    && rm -rf /var/lib/apt/lists/*
ARG UID=1001
RUN groupadd --gid "$UID" vla \
    && useradd --uid "$UID" --gid vla --groups video --create-home --shell /bin/bash vla \
    && install -d -o vla -g vla /opt/vla
USER ${UID}:${UID}
WORKDIR /opt/vla
# What is installed changes seldom, what is built often: two layers.
COPY --chown=vla:vla vla ./
COPY --chown=vla:vla requirements requirements
COPY --chown=vla:vla scripts scripts
RUN ./vla prepare
COPY --chown=vla:vla src src
RUN ./vla build
COPY --chown=vla:vla docker docker
ENTRYPOINT ["/opt/vla/docker/entrypoint.sh"]
HEALTHCHECK --interval=30s --timeout=20s --start-period=180s --retries=2 \
    CMD ["/opt/vla/docker/entrypoint.sh", "python", "/opt/vla/docker/healthcheck.py"]
CMD ["python", "-m", "vla_bringup.cli", "doctor"]

FROM suite AS rviz
ARG UID=1001
# hadolint ignore=DL3002
USER 0
# The version is that of the day, as of all packages of ROS. hadolint wants a number.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends "ros-$ROS_DISTRO-rviz2" \
    && rm -rf /var/lib/apt/lists/*
USER ${UID}:${UID}
CMD ["rviz2"]

FROM suite

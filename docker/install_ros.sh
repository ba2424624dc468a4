#!/usr/bin/env bash
# ROS 2 from packages.ros.org and what `./vla build` needs beside it. Runs as root while an image is built.
# Usage: install_ros.sh DISTRO. Versions are those of the day; what was installed is listed in /opt/vla-packages.txt.
set -euo pipefail
distro=$1
version=1.2.0
declare -A sha256=(
  [jammy]=767884cf4ed03116b9d64438930a832ed854147ae435279a7924dfdf60f94433
  [noble]=0804d9b13db770eb87019be414cd78378835228ad5fa801fc88758596dd8f7e5
)
ubuntu=$(. /etc/os-release && echo "$VERSION_CODENAME")
deb=ros2-apt-source_${version}.${ubuntu}_all.deb
export DEBIAN_FRONTEND=noninteractive

apt-get update
apt-get install -y --no-install-recommends ca-certificates curl
curl -fsSL -o "/tmp/$deb" "https://github.com/ros-infrastructure/ros-apt-source/releases/download/$version/$deb"
echo "${sha256[$ubuntu]}  /tmp/$deb" | sha256sum --check --strict
apt-get install -y --no-install-recommends "/tmp/$deb"
apt-get update
# ros-base has the messages, rclpy and launch; the others only some robots need (see docs/reference/interfaces.md).
apt-get install -y --no-install-recommends \
  "ros-$distro-ros-base" "ros-$distro-domain-coordinator" "ros-$distro-rmw-fastrtps-cpp" \
  "ros-$distro-rosbag2-storage-mcap" "ros-$distro-robot-state-publisher" \
  "ros-$distro-control-msgs" "ros-$distro-controller-manager-msgs" "ros-$distro-moveit-msgs" \
  python3-colcon-common-extensions python3-dev python3-venv build-essential git \
  libegl1 libgl1-mesa-dri libopengl0
dpkg-query -W > /opt/vla-packages.txt
rm -rf "/tmp/$deb" /var/lib/apt/lists/*

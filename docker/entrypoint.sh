#!/usr/bin/env bash
# Runs a command where ROS and the suite are found, with the environment of ./vla.
set -eo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -f "/opt/ros/${ROS_DISTRO:-}/setup.bash" ]; then . "/opt/ros/$ROS_DISTRO/setup.bash"; fi
. "$root/install/setup.bash"
export PATH="$root/.venv/bin:$PATH" VIRTUAL_ENV="$root/.venv" PYTHONUNBUFFERED=1
export ROS_PYTHON_CHECK_FIELDS=${ROS_PYTHON_CHECK_FIELDS:-1} MUJOCO_GL=${MUJOCO_GL:-egl}
export FASTRTPS_DEFAULT_PROFILES_FILE=${FASTRTPS_DEFAULT_PROFILES_FILE:-$root/src/vla_bringup/config/fastdds_robot.xml}
exec "$@"

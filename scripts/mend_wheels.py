"""Make the ROS 2 wheels of this virtual environment buildable against, and an ordinary colcon underlay.

Run with the environment's own Python after every install. Doing it twice does no harm.
"""

import pathlib
import sys
import sysconfig

import numpy


def mend_cmake_paths(prefix: pathlib.Path) -> None:
    """The wheels' CMake exports carry the include paths of the machine they were built on; put ours in."""
    include = sysconfig.get_paths()['include']
    major, minor = sys.version_info[:2]
    tag, version = f'cp{major}{minor}', f'python{major}.{minor}'
    baked = f'/opt/python/{tag}-{tag}'
    swaps = {
        f'{baked}/lib/{version}/site-packages/numpy/_core/include': numpy.get_include(),
        f'{baked}/include/{version}': include,
    }
    for path in (prefix / 'share').glob('*/cmake/*.cmake'):
        old = new = path.read_text()
        for baked_path, ours in swaps.items():
            new = new.replace(baked_path, ours)
        if new != old:
            path.write_text(new)
        if '/opt/python/' in new:
            sys.exit(f'{path} still names a path of the build machine')


def write_local_setup(prefix: pathlib.Path) -> None:
    """With a local_setup file colcon chains the environment into the workspace's install/setup.bash."""
    libraries = ':'.join(map(str, [prefix / 'lib', *sorted(prefix.glob('lib/python3*/site-packages/ros_*.libs'))]))
    text = f"""\
_vla_prepend() {{ eval "case \\":\\$$1:\\" in *\\":$2:\\"*) ;; *) export $1=\\"$2\\${{$1:+:\\$$1}}\\" ;; esac"; }}
_vla_prepend AMENT_PREFIX_PATH "{prefix}"
_vla_prepend CMAKE_PREFIX_PATH "{prefix}"
_vla_prepend LD_LIBRARY_PATH "{libraries}"
_vla_prepend PATH "{prefix}/bin"
unset -f _vla_prepend
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1   # the library path is set here: python need not start itself a second time
export ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
export RMW_IMPLEMENTATION="${{RMW_IMPLEMENTATION:-rmw_fastrtps_cpp}}"
export ROS_AUTOMATIC_DISCOVERY_RANGE="${{ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}}"
"""
    for name in ('local_setup.sh', 'local_setup.bash'):
        (prefix / name).write_text(text)


if __name__ == '__main__':
    mend_cmake_paths(pathlib.Path(sys.prefix))
    write_local_setup(pathlib.Path(sys.prefix))

"""Checks of DDS: middleware, profile, discovery, multicast, and the kernel's socket buffers."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from vla_bringup.doctor.check import Check, fail, skip, warn

IMAGE = 640 * 480 * 3  # [byte] usual size of a camera image
GROUP = '239.255.0.1'  # multicast group of DDS discovery
PROFILES = 'vla_bringup/config/fastdds_loopback.xml on one machine, fastdds_robot.xml on a network'


def discovery_range() -> str:
    return os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET').upper()


def profile() -> str:
    """Return the path of the Fast DDS profile that is set; empty without one."""
    return os.environ.get('FASTDDS_DEFAULT_PROFILES_FILE') or os.environ.get('FASTRTPS_DEFAULT_PROFILES_FILE') or ''


def check_rmw() -> Iterator[Check]:
    import rclpy

    rmw = rclpy.get_rmw_implementation_identifier()
    if not rmw.startswith('rmw_fastrtps'):
        yield warn('middleware', rmw, 'the suite is tested with Fast DDS only: check that large images arrive')
        return
    yield Check('middleware', rmw)
    path, remedy = profile(), f'set FASTRTPS_DEFAULT_PROFILES_FILE to {PROFILES}'
    if not path:
        yield warn('Fast DDS profile', 'none: about 40 % of the images are lost', remedy)
    elif not Path(path).is_file():
        yield fail('Fast DDS profile', f'{path} does not exist', remedy)
    elif 'interfaceWhiteList' in Path(path).read_text() and discovery_range() != 'LOCALHOST':
        yield warn('Fast DDS profile', f'{path} stays on this machine, the discovery range does not', remedy)
    else:
        yield Check('Fast DDS profile', path)


def check_discovery() -> Iterator[Check]:
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    if not domain.isdigit() or int(domain) > 232:
        yield fail('ROS_DOMAIN_ID', domain, 'must be a number from 0 to 101')
    elif int(domain) > 101:
        yield warn('ROS_DOMAIN_ID', domain, 'above 101 its ports collide with those that Linux hands out: 0 to 101')
    else:
        yield Check('ROS_DOMAIN_ID', domain)
    where = discovery_range()
    if 'ROS_LOCALHOST_ONLY' in os.environ:
        yield warn('discovery range', 'ROS_LOCALHOST_ONLY overrides it', 'unset this deprecated variable')
    elif where not in ('LOCALHOST', 'SUBNET', 'OFF', 'SYSTEM_DEFAULT'):
        yield fail('discovery range', where, 'ROS_AUTOMATIC_DISCOVERY_RANGE must be LOCALHOST or SUBNET')
    elif where == 'OFF':
        yield warn('discovery range', 'OFF: nodes do not find each other', 'set LOCALHOST or SUBNET')
    else:
        yield Check('discovery range', where)
    if os.environ.get('ROS_PYTHON_CHECK_FIELDS') != '1':
        yield fail(
            'message checks', 'off: a field of the wrong type is sent as garbage', 'set ROS_PYTHON_CHECK_FIELDS=1'
        )


def check_multicast(seconds: float = 1.0) -> Check:
    """Send one packet to the multicast group of DDS discovery and wait for it [s]."""
    if discovery_range() == 'LOCALHOST':
        return skip('multicast', 'not needed: with LOCALHOST nodes find each other by unicast')
    remedy = 'allow UDP multicast on the robot network: ip link set IF multicast on; firewall; ip route add 239.0.0.0/8'
    word = os.urandom(16)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as at,
    ):
        try:
            at.bind(('', 0))
            at.setsockopt(
                socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + socket.inet_aton('0.0.0.0')
            )
            at.settimeout(seconds)
            to.sendto(word, (GROUP, at.getsockname()[1]))
            while at.recv(64) != word:
                pass
        except TimeoutError:
            return fail('multicast', f'a packet to {GROUP} did not come back: nodes will not find each other', remedy)
        except OSError as error:
            return fail('multicast', f'{GROUP}: {error.strerror}', remedy)
    return Check('multicast', f'a packet to {GROUP} came back (this machine; others: ros2 multicast)')


def check_sockets(root: Path = Path('/'), image: int = IMAGE) -> Iterator[Check]:
    """Compare the kernel's buffers with two images of this size [byte] and with the buffers of the profile."""
    local = discovery_range() == 'LOCALHOST'
    content = Path(profile()).read_text() if profile() and Path(profile()).is_file() else ''
    asked = [int(n) for n in re.findall(r'<receiveBufferSize>(\d+)<', content)]
    wanted = max([2 * image, *asked])
    for name, wants in (('rmem_max', wanted), ('wmem_max', wanted)):
        path = root / 'proc/sys/net/core' / name
        if not path.is_file():
            yield skip(f'net.core.{name}', 'the kernel does not report it here (a container without host network?)')
            continue
        has = int(path.read_text())
        fact = f'{has / 2**20:.1f} MiB; {wants / 2**20:.1f} MiB wanted (profile, two images of {image / 2**20:.1f} MiB)'
        if has >= wants:
            yield Check(f'net.core.{name}', fact)
        elif local:
            yield Check(f'net.core.{name}', f'{fact}; enough here, images go through shared memory')
        else:
            yield warn(
                f'net.core.{name}', f'{fact}: images are lost on the network', f'sysctl -w net.core.{name}={wants}'
            )

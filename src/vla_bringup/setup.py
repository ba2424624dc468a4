from pathlib import Path

from setuptools import find_packages, setup

name = 'vla_bringup'


def files(folder: str, pattern: str) -> list[str]:
    return sorted(map(str, Path(folder).glob(pattern)))


setup(
    name=name,
    version='0.1.0',
    packages=find_packages(exclude=['test']),
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{name}']),
        (f'share/{name}', ['package.xml']),
        (f'share/{name}/launch', files('launch', '*.launch.py')),
        (f'share/{name}/config', files('config', '*.xml')),
        (f'share/{name}/config', files('config', '*.json')),
        (f'share/{name}/rviz', files('rviz', '*.rviz')),
        (f'share/{name}/config/controllers', files('config/controllers', '*.yaml')),
        (f'share/{name}/config/robots', files('config/robots', '*.yaml')),
    ],
    install_requires=['setuptools'],
    extras_require={'test': ['pytest']},
    zip_safe=False,
    maintainer='VLA suite maintainers',
    maintainer_email='maintainers@vla-suite.example',
    description='Launch files, robot profiles, the demo and the other commands of ./vla.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'recorder_node = vla_bringup.bags.recorder_node:main',
        ]
    },
)

from setuptools import find_packages, setup

name = 'vla_core'

setup(
    name=name,
    version='0.1.0',
    packages=find_packages(exclude=['test']),
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{name}']),
        (f'share/{name}', ['package.xml']),
    ],
    install_requires=['setuptools'],
    extras_require={'test': ['pytest']},
    zip_safe=False,
    maintainer='VLA suite maintainers',
    maintainer_email='maintainers@vla-suite.example',
    description='The ROS-free core of the robot side: motion within limits, observations by time, kinematics.',
    license='Apache-2.0',
    entry_points={'console_scripts': []},
)

from setuptools import find_packages, setup

name = 'vla_policy_node'

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
    description='The two robot-side nodes, policy and executor, and the ROS-free core they stand on.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'policy_node = vla_policy_node.policy.policy_node:main',
            'executor_node = vla_policy_node.executor.executor_node:main',
            'show = vla_policy_node.show.show_node:main',
        ]
    },
)

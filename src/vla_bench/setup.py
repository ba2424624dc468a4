from setuptools import find_packages, setup

name = 'vla_bench'

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
    description='Benchmarks of the running suite, fault injection and fuzzing of the executor. Not needed on a robot.',
    license='Apache-2.0',
    entry_points={'console_scripts': []},
)

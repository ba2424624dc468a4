from setuptools import find_packages, setup

name = 'vla_training'

setup(
    name=name,
    version='0.1.0',
    packages=find_packages(exclude=['test']),
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{name}']),
        (f'share/{name}', ['package.xml']),
    ],
    # Of colcon's build only package.xml counts; these are for pip, e.g. on a GPU machine without ROS.
    python_requires='>=3.10,<3.13',
    install_requires=[
        'matplotlib',
        'numpy',
        'pillow',
        'pyyaml',
        'rich',
        'safetensors',
        'tokenizers',
        'torch>=2.5',
        'typer',
        'vla_model',
    ],
    extras_require={
        'data': ['av', 'pyarrow'],  # LeRobot data sets
        'bags': ['backports.zstd', 'lz4', 'rosbags'],
        'test': ['hypothesis', 'pytest', 'pytest-timeout'],
    },
    zip_safe=False,
    maintainer='VLA suite maintainers',
    maintainer_email='maintainers@vla-suite.example',
    description='Demonstrations to a trained model: collect, convert, annotate, tokenize, train, evaluate, export.',
    license='Apache-2.0',
    entry_points={'console_scripts': []},
)

from setuptools import find_packages, setup

name = 'vla_model'

setup(
    name=name,
    version='0.1.0',
    packages=find_packages(exclude=['test']),
    package_data={name: ['data/*.json', 'data/nano/*', 'remote/mappings/*.yaml']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{name}']),
        (f'share/{name}', ['package.xml']),
    ],
    # Of colcon's build only package.xml counts; these are for pip, e.g. on a GPU machine without ROS.
    python_requires='>=3.10,<3.13',
    install_requires=[
        'msgpack',
        'numpy',
        'pillow',
        'psutil',
        'pydantic>=2',
        'pyyaml',
        'safetensors',
        'tokenizers',
        'torch>=2.5',
        'websockets>=13',
    ],
    extras_require={
        'cuda': ['triton; sys_platform == "linux"'],  # the kernels of cuda-graph; without it torch does the same
        'openvino': ['openvino'],
        'export': ['onnx', 'onnxruntime; python_version >= "3.11"'],  # and TensorRT, by your version of CUDA
        'test': ['hypothesis', 'pytest', 'pytest-timeout'],
    },
    zip_safe=False,
    maintainer='VLA suite maintainers',
    maintainer_email='maintainers@vla-suite.example',
    description='The unified vision-language-action model: tokenizers, prompts, network, decoding. No ROS.',
    license='Apache-2.0',
    entry_points={'console_scripts': []},
)

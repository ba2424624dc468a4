"""The unified vision-language-action model: tokenizers, prompts, network, decoding. No ROS."""

import os

# Set before torch is imported. By default its idle threads spin. They then take cores from the threads of OpenVINO
# (act on two threads: 7.2 instead of 4.8 ms) and from the process that drives the arm.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

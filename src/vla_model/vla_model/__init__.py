"""The unified vision-language-action model: tokenizers, prompts, network, decoding. No ROS."""

import os

# Before torch is imported. Its threads wait for work by spinning, which takes the core from those of OpenVINO that have
# some (act on two threads 7.2 instead of 4.8 ms), and from whoever drives the arm.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

"""The unified vision-language-action model: tokenizers, prompts, network, decoding. No ROS."""

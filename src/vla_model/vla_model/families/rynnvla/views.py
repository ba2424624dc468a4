"""Camera images as blocks of image tokens, and codes as pictures."""

import numpy as np
import torch
from torch import Tensor

from vla_model.families.rynnvla import preprocess, tokens
from vla_model.families.rynnvla.vqgan import Vqgan, to_images, to_pixels

_KEPT = 8  # pictures whose blocks are kept: those of two cameras at some times


class Views:
    """Encodes and decodes pictures; the newest blocks are kept, so that a history costs no second encoding.

    mirrored: the model was trained on pictures whose left and right are swapped, as LIBERO gives them. Pictures of a
    camera are swapped for it, and its own are swapped back.
    """

    def __init__(self, vqgan: Vqgan, mirrored: bool = False):
        self.vqgan, self.mirrored = vqgan, mirrored
        self._blocks = list[tuple[np.ndarray, np.ndarray]]()  # picture and block, the newest last

    @torch.inference_mode()
    def block(self, image: np.ndarray) -> np.ndarray:
        """Return the block of an image (h, w, 3) uint8 of any shape, which is squashed to the square of training."""
        for known, block in self._blocks:
            if known is image or np.array_equal(known, image):
                return block
        seen = image[:, ::-1] if self.mirrored else image
        pixels = to_pixels(torch.from_numpy(preprocess.squash(np.ascontiguousarray(seen)).copy())[None])
        device = next(self.vqgan.parameters()).device
        block = tokens.image_ids(self.vqgan.encode(pixels.to(device))[0].cpu().numpy())
        self._blocks = [*self._blocks, (image, block)][-_KEPT:]
        return block

    @torch.inference_mode()
    def picture(self, codes: Tensor) -> np.ndarray:
        """Return the picture (h, w, 3) uint8 of codes (h / 16, w / 16)."""
        found = to_images(self.vqgan.decode(codes[None]))[0].cpu().numpy()
        return np.ascontiguousarray(found[:, ::-1]) if self.mirrored else found

    def forget(self) -> None:
        """Free the kept pictures."""
        self._blocks.clear()

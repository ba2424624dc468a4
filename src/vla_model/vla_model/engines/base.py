"""The base class of engines, which run a network, and the prompts that they are checked on."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_model.image_tokenizer import ImageTokenizer
from vla_model.network import KeyValues, Network
from vla_model.tokens.prompt import Template
from vla_model.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class Act:
    """The request of `act` to the network, with prompts for calibration and checks."""

    prompts: tuple[Tensor, ...]  # ids (1, T), images and states random
    block: slice
    vocabulary: slice
    longest: int  # length of the longest possible prompt [tokens]

    @classmethod
    def of(cls, template: Template, v: Vocabulary, longest: int, prompts: int = 12, regresses: bool = False) -> 'Act':
        """Return a request with random prompts on the device of `template`; they are the same at every call.

        regresses: the network has a continuous action head, whose column is requested, too.
        """
        generator = torch.Generator().manual_seed(0)
        made = []
        for _ in range(prompts):
            state, views = torch.Size([template.state.stop - template.state.start]), len(template.views)
            tokens = template.views[0].stop - template.views[0].start
            bins = torch.randint(v.bins_offset, v.size, state, generator=generator)
            codes = torch.randint(v.image_offset, v.image_offset + v.codes, (views, tokens), generator=generator)
            made.append(template.fill(bins.to(template.ids.device), codes.to(template.ids.device)))
        return cls(tuple(made), template.block, slice(v.bins_offset, v.size + regresses), longest)


class Engine:
    """Runs torch eager on any device. Other engines override the requests that they run faster."""

    name = 'eager'
    fixed_shapes = False  # True: all requests of a type have the same shape

    def __init__(self, network: Network, image_tokenizer: ImageTokenizer):
        self.network, self.image_tokenizer = network, image_tokenizer
        self.encoder = ImageEncoder(image_tokenizer)  # `make` may replace it by a faster one
        self.error = 0.0  # relative difference of its logits from eager's

    def __call__(
        self,
        ids: Tensor,
        rows: slice | Tensor,
        vocabulary: slice,
        valid: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Return logits (B, rows, vocabulary) of ids (B, T), as `Network.forward`."""
        return self.network(ids, rows, vocabulary, valid, cache)

    def prepare(self, length: int) -> None:
        """Prepare for prompts of `length` tokens; engines that are faster for one length compile it here."""

    def seal(self) -> None:
        """End the warm-up: each later request has run once before. Engines of graphs stop capturing."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Return codes (B, tokens) int64 of pixels (B, 3, resolution, resolution), as `ImageTokenizer.encode`."""
        return self.encoder(pixels)


class ImageEncoder:
    """Encodes images by torch eager on any device. Subclasses replace the call of the encoder."""

    together = False  # True: a batch of images is faster than single ones, and gets the same codes

    def __init__(self, image_tokenizer: ImageTokenizer, dtype: torch.dtype = torch.float32) -> None:
        """float32 shares the tokenizer's weights; other precisions take a copy of the encoder."""
        self.quantize, self.dtype = image_tokenizer.quantize, dtype
        self.name = 'eager'
        self.agreement = 1.0  # share of codes that are those of float32 eager
        encoder = image_tokenizer.encoder
        if dtype != torch.float32:
            encoder = copy.deepcopy(encoder).to(dtype)
        self.encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._run: Callable[[Tensor], Tensor] = self.encoder

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Return codes (B, tokens) int64 of pixels (B, 3, resolution, resolution), as `ImageTokenizer.encode`."""
        return self.quantize(self._run(pixels.to(self.dtype, memory_format=torch.channels_last)))

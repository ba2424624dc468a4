"""What an engine is: how a network is run, and the request that it is tried with."""

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
    """What `act` asks of the network, with prompts to calibrate and check on."""

    prompts: tuple[Tensor, ...]  # ids (1, T), images and states random
    block: slice
    vocabulary: slice
    longest: int  # tokens of the longest prompt that may come

    @classmethod
    def of(cls, template: Template, v: Vocabulary, longest: int, prompts: int = 12) -> 'Act':
        """Prompts on the device of `template`, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        made = []
        for _ in range(prompts):
            state, views = torch.Size([template.state.stop - template.state.start]), len(template.views)
            tokens = template.views[0].stop - template.views[0].start
            bins = torch.randint(v.bins_offset, v.size, state, generator=generator)
            codes = torch.randint(v.image_offset, v.image_offset + v.codes, (views, tokens), generator=generator)
            made.append(template.fill(bins.to(template.ids.device), codes.to(template.ids.device)))
        return cls(tuple(made), template.block, slice(v.bins_offset, v.size), longest)


class Engine:
    """torch eager, on any device. The other engines inherit what they do not do faster."""

    name = 'eager'
    fixed_shapes = False  # True: every request for a kind of block has the same shape

    def __init__(self, network: Network, image_tokenizer: ImageTokenizer):
        self.network, self.image_tokenizer = network, image_tokenizer
        self.encoder = ImageEncoder(image_tokenizer)  # `make` may put a faster one here
        self.error = 0.0  # relative difference of its logits from eager's

    def __call__(
        self,
        ids: Tensor,
        rows: slice | Tensor,
        vocabulary: slice,
        valid: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Logits (B, rows, vocabulary) of ids (B, T), as `Network.forward`."""
        return self.network(ids, rows, vocabulary, valid, cache)

    def prepare(self, length: int) -> None:
        """Prompts of so many tokens will come: an engine that can be faster for one length may get ready."""

    def seal(self) -> None:
        """Everything that will be asked for has been asked for once. Engines of graphs capture no more."""

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, resolution, resolution) float32 -> (B, tokens) int64 codes, as `ImageTokenizer.encode`."""
        return self.encoder(pixels)


class ImageEncoder:
    """torch eager, on any device. The others replace what runs the encoder."""

    together = False  # True: several images in one call take less time than one after the other, and get the same codes

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
        """(B, 3, resolution, resolution) float32 -> (B, tokens) int64 codes, as `ImageTokenizer.encode`."""
        return self.quantize(self._run(pixels.to(self.dtype, memory_format=torch.channels_last)))

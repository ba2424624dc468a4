"""Compares MM-ACT, tensor by tensor, with numbers of its public reference.

docs/explanation/reference-model.md has the table of tensor names.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_model import decode
from vla_model.bench.parity_case import ParityCase, Row, fill, needed
from vla_model.config import ImageTokenizerConfig, NetworkConfig, read
from vla_model.image_tokenizer import ImageTokenizer, preprocess
from vla_model.network import Network
from vla_model.tokens import bins, prompt_texts
from vla_model.tokens.prompt import PromptBuilder, PromptLayout, Template
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_model.tokens.vocabulary import Vocabulary

LOGITS, PIXELS = 2e-5, 1e-3  # tolerances of numbers: network, image tokenizer
EXACT = 1e-7  # of numbers that follow from bins alone
RESIZED = 1e-6  # of pixels: sums in another order, values about 1
HORIZON = 8  # steps per chunk of all released models
IMAGE_CHANNELS = 32  # base width of the image tokenizer of all parity cases


@dataclass(frozen=True)
class Given:
    """A prompt of the folder."""

    ids: Tensor  # (1, length), without its padding
    block: slice  # its masks
    padded: int  # its length with padding


class MmActCase(ParityCase):
    """Prompts, network, decoders, image tokenizer and bins of MM-ACT."""

    def __init__(self, folder: Path, tensors: dict[str, np.ndarray]):
        super().__init__(folder, tensors)
        self.text = TextTokenizer.load(needed(folder / 'tokenizer' / 'tokenizer.json'))
        self.vocabulary = Vocabulary.of_released(self.config, self.text.size)
        self.network, self.given, self.built = cache(self._network), cache(self._given), cache(self._built)
        self.image_tokenizer = cache(self._image_tokenizer)
        self.checks = [
            (r'q_in|img\d+_uint8_hwc', self._input),
            (r'(?P<prompt>mmu_gen)_prefix', self._ids),
            (r'(?P<prompt>\w+)_ids', self._ids),
            (r'(?P<prompt>\w+)_mask', self._mask),
            (r'(?P<prompt>\w+)_prompt_id', self._prompt_id),
            (r'(?P<heads>mha|gqa)_(?P<prompt>\w+)_action_logits', self._action_logits),
            (r'action_tokens_steps(?P<steps>\d+)_temp(?P<temperature>[\d.]+)', self._action_tokens),
            (r'actions_dequant', self._actions),
            (r't2i_logits_first(?P<count>\d+)', self._image_logits),
            (r't2i_codes_(?P<steps>\d+)_temp(?P<temperature>[\d.]+)', self._image_codes),
            (r'mmu_logits_first(?P<count>\d+)', self._text_logits),
            (r'mmu_gen_(?P<length>\d+)_(?P<steps>\d+)', self._text),
            (r'vq_pix', self._pixels),
            (r'vq_z', self._latents),
            (r'vq_codes', self._codes),
            (r'vq_rec', self._reconstruction),
            (r'q_(?P<kind>action|state)_out', self._quantized),
            (r'dq_all', self._dequantized),
        ]

    # Prompts: taken apart, built again, compared

    def _given(self, name: str) -> Given:
        """`name`: t2i, mmu_gen, or the layout of an action prompt."""
        mask = self.vocabulary.mask
        if name == 'mmu_gen':  # its masks are not in the file
            prefix = torch.from_numpy(self._get('mmu_gen_prefix'))
            length = self._text_length()
            ids = torch.cat((prefix, prefix.new_full((1, length), mask)), 1)
            return Given(ids, slice(prefix.shape[1], ids.shape[1]), ids.shape[1])
        whole = torch.from_numpy(self._get(f'{name}_ids'))
        if f'{name}_mask' in self.tensors:
            valid = torch.from_numpy(self._get(f'{name}_mask')) == 1
        else:
            valid = whole != self.vocabulary.pad
        ids = whole[valid][None]
        masks = (ids[0] == mask).nonzero()[:, 0].tolist()
        if not masks or masks != list(range(masks[0], masks[-1] + 1)):
            raise ValueError(f'{name}_ids must have one block of masks')
        return Given(ids, slice(masks[0], masks[-1] + 1), whole.shape[1])

    def _built(self, name: str) -> tuple[Template, Tensor]:
        """Return the template of a prompt of the folder, and its ids (1, length) with the folder's content."""
        v, given = self.vocabulary, self.given(name)
        ids = given.ids[0].tolist()
        codes = range(v.image_offset, v.image_offset + v.codes)
        views = [ids[i + 1 : ids.index(v.eoi, i)] for i, x in enumerate(ids) if x == v.soi and ids[i + 1] in codes]
        state = ids[ids.index(v.sostate) + 1 : ids.index(v.eostate)] if v.sostate in ids else None
        starts = [i for i, x in enumerate(ids) if x == v.soa]  # of previous actions, then of the block
        previous = ids[starts[0] + 1 : ids.index(v.eoa)] if len(starts) == 2 else None
        if not 1 <= len(views) <= 3 or len({len(view) for view in views}) != 1:
            raise ValueError(f'the prompt must have one to three images of one size, has {[len(w) for w in views]}')
        text_or_image = name in ('mmu_gen', 't2i')  # from these the number of dimensions cannot be read, its mark can
        dim = (7 if v.dim7 in ids else 16) if text_or_image else (given.block.stop - given.block.start) // HORIZON
        before_block = given.padded - 2 - HORIZON * dim * (2 if dim == 7 else 1)
        limit = given.padded if name == 'mmu_gen' else before_block
        layout = PromptLayout(len(views), len(views[0]), len(state or ()), dim, HORIZON, limit)
        builder = PromptBuilder(self.text, v, layout, torch.device('cpu'))
        task = self._task(ids, state is not None)
        if name == 'mmu_gen':
            template = builder.plan(task, self._text_length(), state is not None)
        elif name == 't2i':
            template = builder.image(task, state is not None)
        else:
            template = builder.action(task, len(previous or ()))
        slots = [None if x is None else torch.tensor(x) for x in (state, previous)]
        return template, template.fill(slots[0], torch.tensor(views), None, slots[1])

    def _task(self, ids: list[int], state: bool) -> str:
        """Return the text between BOS and the first fixed phrase."""
        phrase = self.text.encode(prompt_texts.STATE if state else prompt_texts.HEAD_VIEW)
        ends = [i for i in range(2, len(ids)) if ids[i : i + len(phrase)] == phrase]
        if not ends:
            raise ValueError('the phrase after the task is not in the prompt')
        return self.text.decode(ids[2 : ends[0]])

    def _text_length(self) -> int:
        """Return the length of the text block, which the decodes of the folder have [tokens]."""
        lengths = [int(m[1]) for n in self.tensors if (m := re.fullmatch(r'mmu_gen_(\d+)_\d+', n))]
        return lengths[0] if lengths else 48

    def _ids(self, name: str, prompt: str) -> Row:
        template, ids = self.built(prompt)
        if prompt == 'mmu_gen':
            return self._integers(name, ids[:, : template.block.start])
        return self._integers(name, template.padded(ids)[0], f'{ids.shape[1]} ids are not padding')

    def _mask(self, name: str, prompt: str) -> Row:
        template, ids = self.built(prompt)
        return self._integers(name, template.padded(ids)[1].to(torch.int64))

    def _prompt_id(self, name: str, prompt: str) -> Row:
        template, _ = self.built(prompt)
        return self._integers(name, np.array([template.left + template.block.start - 1]))

    # Network and decoders: on the folder's prompts, without their padding

    def _network(self, heads: str) -> Network:
        config = read(NetworkConfig, self.config, '')
        network = Network(replace(config, n_kv_heads=2) if heads == 'gqa' else config)
        return fill(network, self.weights.lm_tensor)

    def _action_logits(self, name: str, heads: str, prompt: str) -> Row:
        v, given = self.vocabulary, self.given(prompt)
        ours = self.network(heads)(given.ids, given.block, slice(v.bins_offset, v.size))
        return self._numbers(name, ours, LOGITS)

    def _action_tokens(self, name: str, steps: str, temperature: str) -> Row:
        given = self.given('libero')
        sampling = decode.Sampling(float(temperature), torch.Generator().manual_seed(123))
        decoder = decode.action(
            self.network('mha'), self.vocabulary, given.ids, given.block, steps=int(steps), sampling=sampling
        )
        return self._integers(name, decode.run(decoder)[0][None])

    def _actions(self, name: str) -> Row:
        tokens = self._get('action_tokens_steps1_temp0.0')
        ours = bins.dequantize(tokens.reshape(HORIZON, -1), self.vocabulary.bins)
        return self._numbers(name, ours, EXACT)

    def _image_logits(self, name: str, count: str) -> Row:
        v = self.vocabulary
        return self._first_logits(name, 't2i', int(count), slice(v.image_offset, v.image_offset + v.codes))

    def _image_codes(self, name: str, steps: str, temperature: str) -> Row:
        given = self.given('t2i')
        sampling = decode.Sampling(float(temperature), torch.Generator().manual_seed(7))
        decoder = decode.image(self.network('mha'), self.vocabulary, given.ids, given.block, int(steps), sampling)
        return self._integers(name, decode.run(decoder)[0][None])

    def _text_logits(self, name: str, count: str) -> Row:
        return self._first_logits(name, 'mmu_gen', int(count), slice(0, self.vocabulary.size))

    def _first_logits(self, name: str, prompt: str, count: int, vocabulary: slice) -> Row:
        given = self.given(prompt)
        rows = slice(given.block.start, given.block.start + count)
        return self._numbers(name, self.network('mha')(given.ids, rows, vocabulary), LOGITS)

    def _text(self, name: str, length: str, steps: str) -> Row:
        given = self.given('mmu_gen')
        block = slice(given.block.start, given.block.start + int(length))
        ids = given.ids[:, : block.start]
        ids = torch.cat((ids, ids.new_full((1, int(length)), self.vocabulary.mask)), 1)
        decoder = decode.text(self.network('mha'), self.vocabulary, ids, block, steps=int(steps), stop=False)
        return self._integers(name, decode.run(decoder)[0][None])

    # Image tokenizer, bins

    def _image_tokenizer(self) -> ImageTokenizer:
        tokenizer = ImageTokenizer(ImageTokenizerConfig.released(IMAGE_CHANNELS))
        return fill(tokenizer, self.weights.vq_tensor, skip='quantize.')

    def _pixels(self, name: str) -> Row:
        if not any(re.fullmatch(r'img\d+_uint8_hwc', n) for n in self.tensors):
            return Row(name, None, None, True, 'input: the folder has no images')
        return self._numbers(name, self._preprocessed(len(self._get(name))), RESIZED)

    def _preprocessed(self, count: int) -> Tensor:
        return torch.stack([preprocess(self._get(f'img{i}_uint8_hwc'), 256) for i in range(count)])

    def _encoder_input(self, count: int) -> Tensor:
        """Return the pixels of the reference where the folder has them, so that each step is checked separately."""
        return torch.from_numpy(self._get('vq_pix')) if 'vq_pix' in self.tensors else self._preprocessed(count)

    def _latents(self, name: str) -> Row:
        pixels = self._encoder_input(len(self._get(name)))
        return self._numbers(name, self.image_tokenizer().encoder(pixels), PIXELS)

    def _codes(self, name: str) -> Row:
        return self._integers(name, self.image_tokenizer().encode(self._encoder_input(len(self._get(name)))))

    def _reconstruction(self, name: str) -> Row:
        if 'vq_codes' in self.tensors:
            codes = torch.from_numpy(self._get('vq_codes'))
        else:
            codes = self.image_tokenizer().encode(self._encoder_input(len(self._get(name))))
        return self._numbers(name, self.image_tokenizer().decode(codes), PIXELS)

    def _quantized(self, name: str, kind: str) -> Row:
        values = self._get('q_in').astype(np.float32 if kind == 'action' else np.float64)
        return self._integers(name, bins.quantize(values, self.vocabulary.bins))

    def _dequantized(self, name: str) -> Row:
        count = self.vocabulary.bins
        return self._numbers(name, bins.dequantize(np.arange(count), count), EXACT)

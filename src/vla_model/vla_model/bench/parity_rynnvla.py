"""RynnVLA-002, tensor by tensor, against numbers that its public reference made."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from vla_model import decode
from vla_model.bench.parity_case import ParityCase, Row, fill
from vla_model.bench.parity_rynnvla_parts import batch, layers
from vla_model.families.rynnvla import decode as answers
from vla_model.families.rynnvla import losses, preprocess, prompt, tokens
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.families.rynnvla.constants import (
    LIBERO_ACTION,
    LIBERO_STATE,
    LIBERO_WORLD_ACTION,
    SO100_ACTION,
    SO100_STATE,
)
from vla_model.families.rynnvla.mask import chunk_mask
from vla_model.families.rynnvla.tokens import ACTION, STATE, Scale
from vla_model.families.rynnvla.vqgan import Vqgan, to_images, to_pixels
from vla_model.families.rynnvla.weights import head_shape, network_config, released_name, vqgan_config
from vla_model.network import Network
from vla_model.tokens.text_tokenizer import TextTokenizer

LOGITS, HIDDEN, PIXELS, GRADIENTS = 2e-4, 1e-4, 1e-3, 1e-3
EXACT = 1e-12  # of numbers in float64 that follow from bins alone
GAP = 1e-3  # below this squared distance the nearest code may be another on another processor
EVERYTHING = slice(0, tokens.VOCABULARY)
CONSTANTS = {  # by robot: of the action, of the state, of the action in a world-model prompt
    'libero': (LIBERO_ACTION, LIBERO_STATE, LIBERO_WORLD_ACTION),
    'lerobot': (SO100_ACTION, SO100_STATE, SO100_ACTION),
    'so100': (SO100_ACTION, SO100_STATE, SO100_ACTION),
}

NORMS = {'norm_action': 'action', 'norm_state': 'state', 'norm_wm_action': 'action_wm'}


class RynnVlaCase(ParityCase):
    """Tokens, prompts, masks, network, action head, decoders, image tokenizer and losses of RynnVLA-002."""

    def __init__(self, folder: Path, tensors: dict[str, np.ndarray]):
        super().__init__(folder, tensors)
        self.case = self.config['case']
        self.horizon, self.dims = head_shape(self.config)
        with TemporaryDirectory() as place:  # too large to be kept in the folder
            self.weights.write_tokenizer(place)
            self.text = TextTokenizer.load(Path(place) / 'tokenizer.json')
        self.network, self.head, self.vqgan = cache(self._network), cache(self._head), cache(self._vqgan)
        self.codes, self.hidden, self.prefill = cache(self._codes_of_frames), cache(self._hidden), cache(self._prefill)
        self.layers, self.chunk, self.world = cache(self._probed), cache(self._chunk), cache(self._world)
        self.loss = cache(self._losses)
        self.checks = [
            (r'norm_(action|state|wm_action)_(?P<end>min|max)', self._constants),
            (r'(q_(action|state)_in|state|train_actions|dq_ids|logit_ids|wm_logit_ids|probe_positions)', self._input),
            (r'(loss_(ids|labels|lengths)|head_unit_hidden|toy_\w+_ids|loss_edge_(ids|labels))', self._input),
            (r'crop_sizes_target', self._crop_sizes),
            (r'(?P<tag>pre_\w+)_crop', self._crop),
            (r'pre_path_rows', self._path_rows),
            (r'image_tokens', self._image_tokens),
            (r'vq_codes', self._vq_codes),
            (r'vq_gap', self._vq_gap),
            (r'vq_z', self._vq_z),
            (r'vq_rec_every4', self._vq_rec),
            (r'vq_rec_u8_every2', self._vq_rec_u8),
            (r'q_(?P<kind>action|state|action_wm)_norm', self._normalized),
            (r'q_(?P<kind>action|state|action_wm)_ids', self._bin_ids),
            (r'q_(?P<kind>action|state)_out', self._bin_values),
            (r'dq_values_f(?P<bits>32|64)', self._values),
            (r'(?P<which>vla|vla_first|vla_train|wm|wm_train)_ids', self._prompt),
            (r'(?P<which>vla_train|wm_train)_labels', self._labels),
            (r'wm_answer_positions', self._answer_positions),
            (r'(?P<tensor>layer0_[qk]_(normed|rotated)|hidden_per_layer)', self._layer),
            (r'vla_hidden', self._vla_hidden),
            (r'vla_(?P<what>logits|lse|argmax)_(?P<mask>chunk|causal)', self._vla_logits),
            (r'vla_mask_rows', self._mask_rows),
            (r'wm_(?P<what>logits_every16|lse|argmax)', self._wm_logits),
            (r'head_(?P<first>first_)?actions(?P<unnorm>_unnorm)?', self._head_actions),
            (r'head_encoder_queries', self._head_queries),
            (r'head_unit_out', self._head_unit),
            (r'dec_ids', self._dec_ids),
            (r'dec_actions(?P<unnorm>_unnorm)?', self._dec_actions),
            (r'dec_logits', self._dec_logits),
            (r'dec_causal_ids', self._dec_causal),
            (r'free_ids', self._free),
            (r'wm_gen_ids', self._wm_gen),
            (r'wm_codes', self._wm_codes),
            (r'wm_front_u8_every4', self._wm_front),
            (r'loss_(?P<what>values|pred_actions|target_actions|per_sample|edge_ce)', self._loss),
            (r'grad_(?P<what>q_proj_0|head_fc2|head_queries|norm)', self._gradient),
            (r'toy_(?P<which>\w+)_mask', self._toy_mask),
        ]

    # Modules

    def _network(self) -> Network:
        return fill(Network(network_config(self.config)), self.weights.tensor, released_name)

    def _head(self) -> ActionHead:
        head = ActionHead(self.network().config.d_model, self.horizon, self.dims)
        return fill(head, self.weights.tensor, 'action_head.{}'.format)

    def _vqgan(self) -> Vqgan:
        return fill(Vqgan(vqgan_config(self.config['vqgan'])), self.weights.tensor)

    @property
    def scales(self) -> dict[str, Scale]:
        if known := CONSTANTS.get(self.case['robot']):
            return dict(zip(('action', 'state', 'action_wm'), known, strict=True))
        # A robot that no released checkpoint is for: the folder has its constants.
        return {kind: Scale(self._get(f'{name}_min'), self._get(f'{name}_max')) for name, kind in NORMS.items()}

    # Constants, pictures, bins

    def _constants(self, name: str, end: str) -> Row:
        scale = self.scales[NORMS[name.rpartition('_')[0]]]
        return self._numbers(name, scale.low if end == 'min' else scale.high, EXACT)

    def _crop_sizes(self, name: str) -> Row:
        return self._integers(name, np.array(preprocess.crop_sizes(self.case['target_size'])))

    def _crop(self, name: str, tag: str) -> Row:
        return self._integers(name, self._cropped(tag, self.case['preprocess'][tag]))

    def _cropped(self, tag: str, how: dict) -> np.ndarray:
        image = self.weights.image(tag, *how['source'])
        return preprocess.crop(image, how['target'], tuple(how['left_top']))

    def _path_rows(self, name: str) -> Row:
        image = self.weights.image('pre_path', *self.case['preprocess']['pre_path']['source'])
        return self._integers(name, preprocess.squash(image)[::32])

    def _frames(self) -> Tensor:
        """(frames, 3, h, w) pixels: pictures of a size that is a crop of itself, else cropped as the case tells."""
        pictures = []
        for tag in self.case['frame_tags']:
            if tag in self.case['preprocess']:
                pictures.append(self._cropped(tag, self.case['preprocess'][tag]))
            else:
                height, width = self.case['frame_size_hw']
                picture, target = self.weights.image(tag, height, width), self.case['target_size']
                size = preprocess.crop_size(width, height, target)
                if size != (width, height):
                    offset = self.case.get('frame_left_top', {}).get(tag, (0, 0))
                    if tag not in self.case.get('frame_left_top', {}) and preprocess.cover(picture, *size).size != size:
                        raise ValueError(f'frames of {width} x {height} px are cropped, and the case gives no offset')
                    picture = preprocess.crop(picture, target, tuple(offset))
                pictures.append(picture)
        return to_pixels(torch.from_numpy(np.stack(pictures)))

    def _codes_of_frames(self) -> np.ndarray:
        return self.vqgan().encode(self._frames()).numpy()

    def _image_tokens(self, name: str) -> Row:
        return self._integers(name, np.stack([tokens.image_ids(codes) for codes in self.codes()]))

    def _vq_codes(self, name: str) -> Row:
        theirs, ours = self._get(name), self.codes().reshape(len(self.codes()), -1)
        clear = self._get('vq_gap') > GAP if 'vq_gap' in self.tensors else np.ones_like(theirs, bool)
        if ours.shape != theirs.shape:
            return self._integers(name, ours)
        equal = float((ours == theirs)[clear].mean())
        return Row(name, equal, None, equal == 1, f'{(~clear).sum()} codes that may flip are left out')

    def _vq_gap(self, name: str) -> Row:
        near = self.vqgan().distances(self._frames()).topk(2, largest=False).values
        return self._numbers(name, (near[..., 1] - near[..., 0]).flatten(1), PIXELS)

    def _vq_z(self, name: str) -> Row:
        return self._numbers(name, self.vqgan().latents(self._frames()[:1]), PIXELS)

    def _decoded(self) -> Tensor:
        codes = self._get('vq_codes')[:1].reshape(1, *self.codes().shape[1:])
        return self.vqgan().decode(torch.from_numpy(codes).long())

    def _vq_rec(self, name: str) -> Row:
        return self._numbers(name, self._decoded()[..., ::4, ::4], PIXELS)

    def _vq_rec_u8(self, name: str) -> Row:
        return self._steps(name, to_images(self._decoded())[0, ::2, ::2])

    def _steps(self, name: str, ours: Tensor) -> Row:
        """Pixels uint8: where the float is on a whole number the fraction may be cut to another one."""
        return self._numbers(name, ours.to(torch.int16).numpy(), 1.0, 'steps of uint8')

    def _normalized(self, name: str, kind: str) -> Row:
        return self._numbers(name, self.scales[kind].normalize(self._raw(kind)), EXACT)

    def _raw(self, kind: str) -> np.ndarray:
        return self._get('q_state_in' if kind == 'state' else 'q_action_in')

    def _bin_ids(self, name: str, kind: str) -> Row:
        """A row with NaN must be refused, which the reference reads as the largest values."""
        block, theirs = STATE if kind == 'state' else ACTION, self._get(name)
        ours, refused = np.full_like(theirs, -1), 0
        for i, row in enumerate(self.scales[kind].normalize(self._raw(kind))):
            if np.isnan(row).any():
                try:
                    tokens.block_ids(row, block)
                except ValueError:
                    ours[i], refused = theirs[i], refused + 1
            else:
                ours[i] = tokens.block_ids(row, block)
        return self._integers(name, ours, f'{refused} rows with NaN are refused')

    def _bin_values(self, name: str, kind: str) -> Row:
        block, scale = (STATE, self.scales['state']) if kind == 'state' else (ACTION, self.scales['action'])
        ours = scale.denormalize(tokens.bin_values(self._get(f'q_{kind}_ids')[:, 1:-1], block))
        return self._numbers(name, ours, self._range(scale))

    def _values(self, name: str, bits: str) -> Row:
        return self._numbers(name, tokens.bin_values(self._get('dq_ids'), ACTION), 1e-7 if bits == '32' else EXACT)

    def _range(self, scale: Scale) -> float:
        return 1e-4 * float((scale.high - scale.low).max())

    # Prompts

    def _prompt(self, name: str, which: str) -> Row:
        return self._integers(name, self._built(which)[0][None])

    def _built(self, which: str) -> tuple[np.ndarray, int]:
        """Ids, and how many of them are the prompt."""
        texts, scales = self.case['texts'], self.scales
        frames = [tokens.image_ids(codes) for codes in self.codes()]
        views = 2
        state = tokens.block_ids(scales['state'].normalize(self._get('state')), STATE)
        actions = [tokens.block_ids(row, ACTION) for row in scales['action'].normalize(self._get('train_actions'))]
        if which.startswith('wm'):
            words = texts['wm_train'] if which == 'wm_train' else texts['wm_eval']
            ids, blocks = prompt.world_prompt(self.text, frames[:views], actions[0], words), frames[views:]
        else:
            task = texts['vla'].removeprefix(prompt.ACT.partition('{')[0]).removesuffix('?')
            seen = frames[-views:] if which == 'vla_first' else frames
            ids, blocks = prompt.action_prompt(self.text, task, state, seen), actions
        whole = np.concatenate([ids, prompt.answer(blocks)]) if which.endswith('train') else ids
        return whole, len(ids)

    def _labels(self, name: str, which: str) -> Row:
        ids, length = self._built(which)
        return self._integers(name, np.concatenate([np.full(length, losses.IGNORED), ids[length:]])[None])

    def _answer_positions(self, name: str) -> Row:
        ids, length = self._built('wm_train')
        return self._integers(name, np.arange(length - 1, len(ids) - 1))

    # Masks

    def _mask_rows(self, name: str) -> Row:
        mask = chunk_mask(self._get('vla_train_ids')[0])
        return self._integers(name, mask[-len(self._get(name)) :].to(torch.uint8))

    def _toy_mask(self, name: str, which: str) -> Row:
        return self._integers(name, chunk_mask(self._get(f'toy_{which}_ids')).to(torch.uint8))

    # Network

    def _ids(self, name: str) -> Tensor:
        return torch.from_numpy(self._get(name)).long()

    def _states(self, ids: Tensor, chunked: bool = True) -> Tensor:
        """Final hidden states (B, T, d_model) of ids (B, T)."""
        network, length = self.network(), ids.shape[1]
        mask = torch.stack([chunk_mask(row.numpy()) for row in ids])[:, None] if chunked else None
        return network.hidden(network.embed(ids), slice(0, length), length, mask)

    def _hidden(self, name: str, chunked: bool = True) -> Tensor:
        return self._states(self._ids(name), chunked)

    def _probed(self) -> dict[str, Tensor]:
        return layers(self.network(), self._ids('vla_train_ids'), self._ids('probe_positions'))

    def _layer(self, name: str, tensor: str) -> Row:
        return self._numbers(name, self.layers()[tensor], HIDDEN)

    def _vla_hidden(self, name: str) -> Row:
        return self._numbers(name, self.hidden('vla_train_ids'), HIDDEN)

    def _vla_logits(self, name: str, what: str, mask: str) -> Row:
        first, last = self.case['answer_positions']
        h = self.hidden('vla_train_ids', mask == 'chunk')[:, first : last + 1]
        return self._logit_row(name, what, self.network().head(h, EVERYTHING)[0], 'logit_ids')

    def _logit_row(self, name: str, what: str, logits: Tensor, columns: str) -> Row:
        if what == 'argmax':
            return self._integers(name, logits.argmax(-1))
        if what == 'lse':
            return self._numbers(name, logits.logsumexp(-1), LOGITS)
        return self._numbers(name, logits[:, self._ids(columns)], LOGITS)

    def _wm_logits(self, name: str, what: str) -> Row:
        at = self._ids('wm_answer_positions')
        h = self.hidden('wm_train_ids')[:, at[::16] if what == 'logits_every16' else at]
        return self._logit_row(name, what, self.network().head(h, EVERYTHING)[0], 'wm_logit_ids')

    # Action head

    def _prefill(self, name: str) -> Tensor:
        return self._states(self._ids(name), chunked=False)

    def _head_actions(self, name: str, first: str | None, unnorm: str | None) -> Row:
        ours = self.head()(self.prefill('vla_first_ids' if first else 'vla_ids'))[0]
        if unnorm:
            scale = self.scales['action']
            return self._numbers(name, scale.denormalize(ours.numpy()), self._range(scale))
        return self._numbers(name, ours, HIDDEN)

    def _head_queries(self, name: str) -> Row:
        return self._numbers(name, self.head().queries(self.prefill('vla_ids')), HIDDEN)

    def _head_unit(self, name: str) -> Row:
        context = torch.from_numpy(self._get('head_unit_hidden'))[:, :9]
        return self._numbers(name, self.head()(context)[0], HIDDEN)

    # Decoders

    def _chunk(self) -> Tensor:
        return decode.run(answers.chunk(self.network(), self._ids('vla_ids'), self.horizon, self.dims))[0]

    def _dec_ids(self, name: str) -> Row:
        return self._integers(name, self.chunk())

    def _dec_actions(self, name: str, unnorm: str | None) -> Row:
        blocks = self.chunk()[:-1].reshape(self.horizon, -1)[:, 1:-1].numpy()
        values, scale = tokens.bin_values(blocks, ACTION), self.scales['action']
        if unnorm:
            return self._numbers(name, scale.denormalize(values), self._range(scale))
        return self._numbers(name, values, HIDDEN)

    def _dec_logits(self, name: str) -> Row:
        prompt_ids = self._ids('vla_ids')
        whole = torch.cat((prompt_ids, self._ids('dec_ids')[None]), 1)
        h = self._states(whole)[:, prompt_ids.shape[1] - 1 : -1]
        return self._logit_row(name, 'logits', self.network().head(h, EVERYTHING)[0], 'logit_ids')

    def _dec_causal(self, name: str) -> Row:
        """Token by token under the causal mask, with the same grammar."""
        size, count = self.dims + 2, self.horizon * (self.dims + 2)

        def allowed(found: list[int]) -> slice:
            n, at = len(found), len(found) % size
            if n < count and 0 < at < size - 1:
                return ACTION.bins
            token = tokens.TURN_END if n == count else ACTION.start if at == 0 else ACTION.end
            return slice(token, token + 1)

        steps = decode.autoregressive(
            self.network(), tokens.VOCABULARY, self._ids('vla_ids'), frozenset({tokens.TURN_END}), count + 1, allowed
        )
        return self._integers(name, decode.run(steps)[0])

    def _free(self, name: str) -> Row:
        ids = self._ids('vla_ids')
        for _ in range(len(self._get(name))):
            h = self._states(ids)[:, -1:]
            ids = torch.cat((ids, self.network().head(h, EVERYTHING).argmax(-1)), 1)
        return self._integers(name, ids[0, self._ids('vla_ids').shape[1] :])

    def _world(self) -> Tensor:
        sides = [codes.shape for codes in self.codes()[:2]]
        return decode.run(answers.images(self.network(), self._ids('wm_ids'), sides))[0]

    def _wm_gen(self, name: str) -> Row:
        return self._integers(name, self.world())

    def _wm_codes(self, name: str) -> Row:
        return self._integers(name, np.stack(tokens.codes_of(self.world().numpy())).reshape(2, -1))

    def _wm_front(self, name: str) -> Row:
        codes = tokens.codes_of(self._get('wm_gen_ids'))[0]
        return self._steps(name, to_images(self.vqgan().decode(torch.from_numpy(codes[None]).long()))[0, ::4, ::4])

    # Losses

    def _losses(self) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            network, head = self._network(), self._head()
            return batch(network, head, self._ids('loss_ids').clone(), self._ids('loss_labels').clone())

    def _loss(self, name: str, what: str) -> Row:
        if what == 'edge_ce':
            ids, labels = self._ids('loss_edge_ids'), self._ids('loss_edge_labels')[0, 1:]
            learned = labels != losses.IGNORED
            logits = self.network().head(self._states(ids)[:, :-1][:, learned], EVERYTHING)[0]
            return self._numbers(name, losses.token_losses(logits, labels[learned])[0][None], LOGITS)
        return self._numbers(name, self.loss()[what], HIDDEN if 'actions' in what else GRADIENTS)

    def _gradient(self, name: str, what: str) -> Row:
        return self._numbers(name, self.loss()[name], GRADIENTS)

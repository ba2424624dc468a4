"""MolmoAct, tensor by tensor and text by text, against numbers that its public reference made."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_model import decode
from vla_model.bench.parity_case import ParityCase, Row, fill, needed
from vla_model.families.molmoact import answer, depth, preprocess, prompt, tokens, trace
from vla_model.families.molmoact.decode import WithPictures
from vla_model.families.molmoact.grammar import action_words
from vla_model.families.molmoact.tokens import ActionStatistics
from vla_model.families.molmoact.vision import VisionConfig, VisionTower
from vla_model.families.molmoact.weights import VISION, network_config, put, released_shapes
from vla_model.network import Network
from vla_model.tokens.text_tokenizer import TextTokenizer

VIT, FEATURES, LOGITS, DEPTH = 1e-4, 5e-4, 1e-3, 1e-3
EXACT = 1e-9
ANSWERS = slice(0, tokens.VOCABULARY)
EVERY = 29  # patch of a stored picture
SIMULATED = 256  # [px] side of a picture in the reference's steering interface


class MolmoActCase(ParityCase):
    """Pictures, prompts, vision tower, network, answers, actions and depth tokenizer of MolmoAct."""

    def __init__(self, folder: Path, tensors: dict[str, np.ndarray]):
        super().__init__(folder, tensors)
        self.text = TextTokenizer.load(needed(folder / 'tokenizer' / 'tokenizer.json'))
        self.cases = json.loads(needed(folder / 'cases.json').read_text())
        self.salt = self.config['parity']['salt']
        self.network, self.tower = cache(self._network), cache(self._tower)
        self.depth_tokenizer, self.views = cache(self._depth_tokenizer), cache(self._views)
        self.features, self.whole, self.greedy = cache(self._features), cache(self._whole), cache(self._greedy_of)
        self.vit = cache(self._vit_of)
        self.checks = [
            (r'(logit_ids|act_raw|edge_in|logit_pos_\w+|answer_ids_\w+|answer_(bin|depth|trace))', self._input),
            (r'pp_(?P<case>\w+)_grids', self._grids),
            (r'pp_(?P<case>\w+)_pool_idx', self._pooled),
            (r'pp_(?P<case>\w+)_patches_u8', self._patches),
            (r'ids_(?P<case>\w+)', self._ids),
            (r'vit_(?P<case>\w+)', self._vit),
            (r'feat_(?P<case>\w+)', self._feat),
            (r'logits_(?P<case>\w+)', self._logits),
            (r'top_(?P<logits>logits_)?(?P<case>\w+)', self._top),
            (r'greedy_(?P<what>margin|logits)_(?P<case>\w+)', self._greedy_numbers),
            (r'greedy_(?P<case>\w+)', self._greedy),
            (r'answer_(?P<what>nll|argmax)_(?P<case>\w+)', self._answered),
            (r'answer_action', self._answer_action),
            (r'answer_libero_gripper', self._gripper),
            (r'bin_(?P<what>id|value)', self._bins),
            (r'act_(?P<what>q01|q99|normalised|bin)', self._actions),
            (r'edge_bin', self._edges),
            (r'ov_(?P<case>\w+)_(?P<what>yx|rgb|resized_u8)', self._overlay),
            (r'crop90_(?P<case>\w+)_u8', self._crop),
            (r'shrink_u8', self._shrink),
            (r'vq_(?P<case>d\d+)_(?P<what>in|z|codes|out)', self._vq),
            (r'vq_answer_(?P<what>out|unit)', self._vq_answer),
        ]

    def texts(self) -> list[Row]:
        """Rows of what the folder has beside its tensors: texts that are read, hashes of pictures, small rules."""
        rows = [self._read(case) for case in self.cases['reading']]
        rows += [self._hash(name) for name in self.cases['pictures']]
        rows.append(self._same('depth grids', [
            (list(answer.depth_grid(int(n))), grid) for n, grid in self.cases['depth_grid'].items()
        ]))  # fmt: skip
        numbers = [c for c in self.cases['depth_numbers'] if 'value' in c['numbers'] and '<DEPTH_' in c['text']]
        pairs = [(answer.depth_codes(c['text']), c['numbers']['value']) for c in numbers]
        rows.append(self._same('depth numbers', pairs))
        rows.append(self._same('questions', [self._question(case) for case in self.cases['prompts'].values()]))
        rows.append(self._same('trace to pixels', [
            (trace.to_pixels(np.array([c['point']]), c['height'], c['width'])[0].tolist(), c['pixel'])
            for c in self.cases['trace_to_pixels']
        ]))  # fmt: skip
        rows.append(self._same('trace subsample', [
            (trace.subsample(c['points'], c['last'], c['k']), c['result']) for c in self.cases['trace_subsample']
        ]))  # fmt: skip
        return rows

    def _same(self, name: str, pairs: list[tuple[Any, Any]]) -> Row:
        equal = sum(ours == theirs for ours, theirs in pairs) / max(len(pairs), 1)
        return Row(name, equal, None, equal == 1, f'{len(pairs)} cases')

    def _question(self, case: dict[str, Any]) -> tuple[str, str]:
        """Ours and theirs: views and task are read from theirs."""
        theirs = case['question']
        task = theirs.removeprefix('The task is ').partition('. ')[0]
        return prompt.question(task, 2 if 'camera views' in theirs else 1, 'annotated' in theirs), theirs

    # Modules

    def _network(self) -> Network:
        config = network_config(self.config)
        network = Network(config).eval()
        added = self.config['llm_config']['additional_vocab_size']
        for name, shape in released_shapes(config, added).items():
            put(network, name, torch.from_numpy(self.weights.tensor(name, shape, self.salt)))
        return network

    def _tower(self) -> VisionTower:
        tower = VisionTower(VisionConfig.read(self.config))
        return fill(tower, lambda name, shape: self.weights.tensor(name, shape, self.salt), (VISION + '{}').format)

    def _depth_tokenizer(self) -> depth.DepthTokenizer:
        c = self.config['parity']['depth_tokenizer']
        config = depth.DepthConfig(c['hidden_dim'], c['num_resnet_blocks'], c['num_tokens'], c['codebook_dim'])
        made = depth.DepthTokenizer(config)
        return fill(made, lambda name, shape: self.weights.vq_tensor(name, shape, self.salt))

    # Pictures and prompts

    def _pictures(self, case: str) -> list[np.ndarray]:
        return [self._picture(p) for p in self.cases['pictures'][case]['pictures']]

    def _picture(self, p: dict[str, Any]) -> np.ndarray:
        return self.weights.image(p['name'], p['height'], p['width'])

    def _views(self, case: str) -> preprocess.Views:
        """Of a case of pictures, or of a prompt, whose first picture may have a trace drawn on it."""
        if case in self.cases['pictures'] and case not in self.cases['prompts']:
            return preprocess.views(self._pictures(case))
        named = self.cases['prompts'][case]['pictures']
        pictures = self._pictures(named.split(' ')[0])
        if ' ' in named:
            drawn = 'train256' if 'train256' in named else None
            pictures[0] = self._drawn(pictures[0], drawn)
        return preprocess.views(pictures)

    def _drawn(self, picture: np.ndarray, overlay: str | None) -> np.ndarray:
        """With a trace on it: the pixels that the folder stores, or those of the same line."""
        if overlay is None:
            points = self._get('answer_trace')
            same = [k for k, c in self.cases['overlay'].items() if np.array_equal(c['points'], points)]
            if not same:
                raise ValueError('the folder has no picture of this trace')
            overlay = same[0]
        drawn = picture.copy()
        at = self._get(f'ov_{overlay}_yx').astype(int)
        drawn[at[:, 0], at[:, 1]] = self._get(f'ov_{overlay}_rgb')
        return drawn

    def _grids(self, name: str, case: str) -> Row:
        return self._integers(name, self.views(case).grids)

    def _pooled(self, name: str, case: str) -> Row:
        return self._integers(name, self.views(case).pooled)

    def _patches(self, name: str, case: str) -> Row:
        return self._integers(name, self.views(case).patches[::EVERY])

    def _hash(self, case: str) -> Row:
        found = preprocess.pixels(preprocess.views(self._pictures(case)).patches)
        equal = hashlib.sha256(found.tobytes()).hexdigest() == self.cases['pictures'][case]['sha256_float32']
        return Row(f'pixels of {case}', float(equal), None, equal)

    def _ids(self, name: str, case: str) -> Row:
        c = self.cases['prompts'][case]
        return self._integers(name, prompt.prompt(self.text, c['question'], self.views(case).grids, c['nested']))

    # Network

    def _vit_of(self, case: str) -> Tensor:
        return self.tower().features(torch.from_numpy(preprocess.pixels(self.views(case).patches)))

    def _vit(self, name: str, case: str) -> Row:
        return self._numbers(name, self.vit(case)[::EVERY], VIT)

    def _features(self, case: str) -> Tensor:
        return self.tower().tokens(self.vit(case), torch.from_numpy(self.views(case).pooled))

    def _feat(self, name: str, case: str) -> Row:
        ours = self.features(case)
        return self._numbers(name, ours[:: 3 if len(ours[::3]) == len(self._get(name)) else 7], FEATURES)

    def _prompt(self, case: str) -> Tensor:
        return torch.from_numpy(self._get(f'ids_{case}')).long()[None]

    def _whole(self, case: str) -> Tensor:
        """Final hidden states (1, T, d_model) of the prompt."""
        ids = self._prompt(case)
        return WithPictures(self.network(), self.features(case)).hidden(ids, slice(0, ids.shape[1]))

    def _logits(self, name: str, case: str) -> Row:
        at, columns = (torch.from_numpy(self._get(n)).long() for n in (f'logit_pos_{case}', 'logit_ids'))
        return self._numbers(name, self.network().head(self.whole(case)[:, at], ANSWERS)[0][:, columns], LOGITS)

    def _top(self, name: str, logits: str | None, case: str) -> Row:
        best = self.network().head(self.whole(case)[:, -1:], ANSWERS)[0, 0].topk(5)
        return self._numbers(name, best.values, LOGITS) if logits else self._integers(name, best.indices)

    def _greedy_of(self, case: str) -> tuple[Tensor, Tensor]:
        """Ids of a greedy answer, and the logits of each step; keys and values are kept."""
        network = WithPictures(self.network(), self.features(case))
        seen: list[Tensor] = []

        def recording(*args: Any, **more: Any) -> Tensor:
            seen.append(network(*args, **more))
            return seen[-1]

        count = len(self._get(f'greedy_{case}'))
        steps = decode.autoregressive(recording, tokens.VOCABULARY, self._prompt(case), frozenset(), count)
        return decode.run(steps)[0], torch.cat(seen, 1)[0]

    def _greedy(self, name: str, case: str) -> Row:
        return self._integers(name, self.greedy(case)[0])

    def _greedy_numbers(self, name: str, what: str, case: str) -> Row:
        logits = self.greedy(case)[1]
        if what == 'margin':
            best = logits.topk(2).values
            return self._numbers(name, best[:, 0] - best[:, 1], LOGITS)
        columns = torch.from_numpy(self._get('logit_ids')).long()
        return self._numbers(name, logits[[0, 7, 31, 95]][:, columns], LOGITS)

    def _answered(self, name: str, what: str, case: str) -> Row:
        given = torch.from_numpy(self._get(f'answer_ids_{case}')).long()[None]
        ids = torch.cat((self._prompt(case), given), 1)
        rows = slice(ids.shape[1] - given.shape[1] - 1, ids.shape[1] - 1)
        logits = WithPictures(self.network(), self.features(case))(ids, rows, ANSWERS)[0]
        if what == 'argmax':
            return self._integers(name, logits.argmax(-1))
        return self._numbers(name, -logits.log_softmax(-1).gather(-1, given[0][:, None])[:, 0], LOGITS)

    # Answers and actions

    @property
    def words(self) -> dict[str, int]:
        """Bin of each action word."""
        return action_words(self.text)

    def _statistics(self, key: str | None) -> ActionStatistics:
        return ActionStatistics.read(self.config['norm_stats'], key)

    def _read(self, case: dict[str, Any]) -> Row:
        """A text: what is in it as the reference reads it, and its actions, or that they are refused."""
        name, text, theirs = f'text {case["name"]}', case['text'], case['action']
        same = answer.depth_strings(text) == case['depth'] and answer.traces(text) == case['trace']
        try:
            statistics = self._statistics(case['unnorm_key'])
            ours = statistics.denormalize(answer.read(text, self.words, statistics.dims).actions)
        except ValueError as error:
            dangerous = self._dangerous(text, theirs)
            return Row(name, None, None, same and dangerous, f'refused: {str(error)[:40]}')
        good = 'value' in theirs and ours.shape == np.shape(theirs['value'])
        deviation = float(np.abs(ours - theirs['value']).max()) if good else np.inf
        return Row(name, deviation, 1e-6, same and deviation <= 1e-6)

    def _dangerous(self, text: str, theirs: dict[str, Any]) -> bool:
        """Whether a text must be refused: no action in it, a bracket open, or a piece that is no action word."""
        if not theirs.get('value'):
            return True
        groups = [g for g in answer.action_groups(text) if not all(answer._NUMBER.fullmatch(p) for p in g)]
        unknown = any(piece not in self.words for group in groups for piece in group)
        uneven = len({len(group) for group in groups}) > 1
        return unknown or uneven or text.count('[') != text.count(']')

    def _answer_action(self, name: str) -> Row:
        statistics = self._statistics('libero_spatial_no_noops_modified')
        return self._numbers(name, statistics.denormalize(tokens.bin_values(self._get('answer_bin'))), 1e-6)

    def _gripper(self, name: str) -> Row:
        gripper = tokens.bin_values(self._get('answer_bin'))[:, -1]
        return self._numbers(name, -np.sign(2 * gripper - 1), EXACT)

    def _bins(self, name: str, what: str) -> Row:
        bins = np.arange(1, tokens.BINS + 1)
        if what == 'id':
            return self._integers(name, tokens.ACTIONS_END - bins)
        return self._numbers(name, tokens.bin_values(bins), EXACT)

    def _actions(self, name: str, what: str) -> Row:
        raw = self._get('act_raw')
        q01, q99 = (np.quantile(raw, q, axis=0) for q in (0.01, 0.99))
        if what in ('q01', 'q99'):
            return self._numbers(name, q01 if what == 'q01' else q99, 1e-6)
        normalized = tokens.normalize(raw, self._get('act_q01'), self._get('act_q99'))
        if what == 'normalised':
            return self._numbers(name, normalized, 1e-6)
        return self._integers(name, tokens.bins_of(normalized))

    def _edges(self, name: str) -> Row:
        return self._integers(name, tokens.bins_of(self._get('edge_in')))

    # Traces, crops, depth

    def _overlay(self, name: str, case: str, what: str) -> Row:
        if not trace.has_opencv():
            return Row(name, None, None, True, 'not computed: OpenCV is not installed')
        c = self.cases['overlay'][case]
        picture, points = self._picture(c['picture']), np.array(c['points'])
        if c['style'].startswith('steering'):
            places = trace.of_pixels(points, *picture.shape[:2])
            picture = trace.resize_area(picture, SIMULATED)
            if what == 'resized_u8':
                return self._integers(name, picture[::8, ::8])
        else:
            places = points
        drawn = trace.draw(picture, trace.to_pixels(places, *picture.shape[:2]), c['thickness'])
        at = np.argwhere((drawn != picture).any(-1))
        return self._integers(name, at if what == 'yx' else drawn[at[:, 0], at[:, 1]])

    def _crop(self, name: str, case: str) -> Row:
        cropped = trace.centre_crop(self._picture(self.cases['centre_crop'][case]['picture']))
        return self._integers(name, cropped[::8, ::8])

    def _shrink(self, name: str) -> Row:
        return self._integers(name, trace.shrink(self._picture(self.cases['shrink']['picture']))[::8, ::8])

    def _vq(self, name: str, case: str, what: str) -> Row:
        p, tokenizer = self.cases['depth_pictures'][case]['picture'], self.depth_tokenizer()
        given = depth.to_input(self.weights.depth(p['name'], p['height'], p['width']))
        if what == 'in':
            return self._numbers(name, given[0, 0, ::8, ::8], 1e-6)
        if what == 'z':
            return self._numbers(name, tokenizer.encoder(given), DEPTH)
        codes = tokenizer.encode(given)
        if what == 'codes':
            return self._integers(name, codes[0])
        return self._numbers(name, tokenizer.decode(codes)[0, ::4, ::4], DEPTH)

    def _vq_answer(self, name: str, what: str) -> Row:
        rows, columns = answer.depth_grid(len(self._get('answer_depth')))
        codes = torch.from_numpy(self._get('answer_depth')).long().view(1, rows, columns)
        decoded = self.depth_tokenizer().decode(codes)[0]
        return self._numbers(name, (decoded if what == 'out' else depth.to_unit(decoded))[::4, ::4], DEPTH)

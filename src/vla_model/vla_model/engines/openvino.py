"""The engines 'openvino-*': the forward of `act` as a compiled OpenVINO graph on a CPU."""

import contextlib
import hashlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_model.engines import openvino_graph as export
from vla_model.engines.base import Act, Engine
from vla_model.engines.cache import cache_folder, versions
from vla_model.engines.processor import cpu_name
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.network import KeyValues, Network
from vla_model.quantized import is_quantized

_log = logging.getLogger(__name__)
KEPT = 4  # cached graphs for one length of prompt, beside the graph for any length
FORMAT = 3  # of the cached files; grows when openvino_graph.py makes other graphs


class OpenVino(Engine):
    """Runs prompts of any length. The cache folder holds the graph and its check, by the model id."""

    def __init__(
        self,
        precision: str,
        network: Network,
        image_tokenizer: ImageTokenizer,
        act: Act,
        model_id: str,
    ):
        """precision: float32, bfloat16, or int8 (other layers are in bfloat16 where the processor supports it)."""
        import openvino as ov

        super().__init__(network, image_tokenizer)
        self.name = f'openvino-{precision}'
        core = ov.Core()
        self._act, self._rows = act, act.block.stop - act.block.start
        self.folder = cache_folder() / _key(model_id, act)
        self.precision, self._model = precision, self._graph(core, precision)
        self._request = export.compile_for_cpu(self._model, precision)
        self._of_length: dict[int, Any] = {}  # the newest last
        # The same graph may round differently on another processor.
        report = self.folder / f'check-{precision}-{hashlib.sha256(cpu_name().encode()).hexdigest()[:8]}.json'
        known = _known_error(report)
        self.error = export.check(self._run, precision, network, act, report) if known is None else known

    def __call__(
        self,
        ids: Tensor,
        rows: slice | Tensor,
        vocabulary: slice,
        valid: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        same = isinstance(rows, slice) and rows.stop - rows.start == self._rows and vocabulary == self._act.vocabulary
        if not same or valid is not None or cache is not None or len(ids) != 1:
            return super().__call__(ids, rows, vocabulary, valid, cache)
        if ids.shape[1] > self._act.longest:
            raise ValueError(f'the prompt has {ids.shape[1]} tokens, the graph takes up to {self._act.longest}')
        return self._run(ids, export.rows_of(rows))  # type: ignore[arg-type]

    def prepare(self, length: int) -> None:
        """Compile a graph for this length, which is a sixth faster. It is not used where its results differ."""
        if length in self._of_length or length > self._act.longest:
            return
        model = self._model.clone()
        model.reshape({0: [1, length], 1: [self._rows]})
        made = export.compile_for_cpu(model, self.precision)
        ids = torch.full((1, length), 1)
        known = self._act.prompts[0][:, :length]
        ids[:, : known.shape[1]] = known
        rows = torch.arange(length - self._rows, length)
        a, b = (self._infer(request, ids, rows).double() for request in (made, self._request))
        # The limit of openvino_graph.check: the last digit of a sum changes the rounding of numbers.
        limit = export.LIMITS['int8' if is_quantized(self.network) else self.precision]
        difference = float((a - b).norm() / b.norm())
        if not difference <= limit:
            _log.warning(
                'the graph for %d tokens differs from that for any length by %.2g, more than %g: the latter is used',
                length, difference, limit,
            )  # fmt: skip
            made = self._request
        self._of_length[length] = made
        if len(self._of_length) > KEPT:
            del self._of_length[next(iter(self._of_length))]

    def _run(self, ids: Tensor, rows: Tensor) -> Tensor:
        return self._infer(self._of_length.get(ids.shape[1], self._request), ids, rows)

    @staticmethod
    def _infer(request: Any, ids: Tensor, rows: Tensor) -> Tensor:
        request.infer({0: ids.numpy(), 1: rows.numpy()}, share_inputs=True, share_outputs=True)
        return torch.tensor(request.get_output_tensor(0).data)  # a copy: the next call overwrites it

    def _graph(self, core: Any, precision: str) -> Any:
        """Return the graph, from the cache folder or newly exported."""
        import openvino as ov

        file = self.folder / ('network-int8.xml' if precision == 'int8' else 'network.xml')
        if file.is_file():
            with contextlib.suppress(RuntimeError):  # a damaged file is exported again
                return core.read_model(file)
        model = export.to_openvino(self.network, self._act)
        if precision == 'int8' and not is_quantized(self.network):  # a quantized network has its own scales
            export.quantize(model, self.network, self._act)
        with contextlib.suppress(OSError):  # a folder that cannot be written costs an export at every start
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as made:
                temporary = Path(made) / file.name
                ov.save_model(model, temporary, compress_to_fp16=False)
                # The graph is read only where the .xml is: the weights come first.
                temporary.with_suffix('.bin').replace(file.with_suffix('.bin'))
                temporary.replace(file)
        return model


def _key(model_id: str, act: Act) -> str:
    what = f'{FORMAT} {versions()} {act.vocabulary} {act.block.stop - act.block.start} {act.longest}'
    return f'{model_id}-{hashlib.sha256(what.encode()).hexdigest()[:8]}'


def _known_error(report: Path) -> float | None:
    """Return the relative error of an earlier check that passed; None without one."""
    try:
        content = json.loads(report.read_text())
        error, limit = float(content['relative_error']), float(content['limit_of_relative_error'])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return error if error <= limit else None

"""Exports a policy as a folder of ONNX graphs: act, a step of the plan, a step of the image, the image tokenizer.

`manifest.json` lists their inputs. `check` compares the graphs in ONNX Runtime on the CPU with torch.
"""

import importlib.util
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_model.engines.base import Act
from vla_model.engines.cache import write_json
from vla_model.engines.cuda_graph import STEP
from vla_model.engines.image import DTYPES, agreement, picture
from vla_model.engines.onnx_manifest import FORMAT, IMAGES, MANIFEST, WEIGHTS, RequestGraph, read_manifest
from vla_model.families.mmact.policy import MaskedPolicy
from vla_model.quantized import QuantizedLayer
from vla_model.tokens.prompt import Template
from vla_model.tokens.prompt_texts import EXAMPLE

IMAGE_DTYPES = ('float32', 'float16')  # ONNX has no convolution in bfloat16 that both runtimes know
# Largest relative difference of the logits from torch in float32, by the precision of the graph; and where layers are
# rounded with a fixed scale, which a checkpoint may round token by token in torch.
LIMITS = {'float32': 1e-3, 'float16': 0.02, 'rounded': 0.3}


def export(
    policy: MaskedPolicy, folder: Path, dtype: str = 'bfloat16', image_dtype: str = 'float16', plan_tokens: int = 0
) -> dict[str, Any]:
    """Write the folder, and return its manifest. Raises ValueError naming a missing package or a wrong option.

    dtype: of layers that are not quantized. plan_tokens: length of plans; 0: of the checkpoint.
    """
    _need('onnx')
    from vla_model.export import onnx_graph

    if dtype not in DTYPES or image_dtype not in IMAGE_DTYPES:
        raise ValueError(
            f'dtype must be one of {list(DTYPES)} and image_dtype of {list(IMAGE_DTYPES)}, '
            f'got {dtype!r} and {image_dtype!r}'
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # it is written last, when the folder is complete
    requests = _requests(policy, plan_tokens or policy.config.plan_tokens)
    template, rows, vocabulary = requests['act']
    act = Act.of(template, policy.config.vocabulary, policy.prompts.max_tokens)
    largest = onnx_graph.largest_inputs(policy.network, act.prompts, template.block, vocabulary)
    graphs = {}
    with (folder / WEIGHTS).open('wb') as file:
        weights = onnx_graph.Weights(file, WEIGHTS)
        for name, (template, rows, vocabulary) in requests.items():
            longest = _up(policy.prompts.max_tokens + rows)
            model = onnx_graph.network_graph(policy.network, weights, DTYPES[dtype], longest, rows, vocabulary, largest)
            shortest = _up(len(template.ids) - len(policy.text.encode(EXAMPLE)))
            graphs[name] = RequestGraph(
                f'{name}.onnx', rows, (vocabulary.start, vocabulary.stop), shortest, _up(len(template.ids) + 8), longest
            )
            file.flush()
            onnx_graph.save(model, folder / f'{name}.onnx')
        images = onnx_graph.image_graph(policy.image_tokenizer, weights, DTYPES[image_dtype])
        file.flush()
        onnx_graph.save(images, folder / IMAGES)
    quantized = any(isinstance(m, QuantizedLayer) for m in policy.network.modules())
    manifest = {
        'format': FORMAT,
        'model': policy.model_id,
        'dtype': dtype,
        'image_dtype': image_dtype,
        'quantized': quantized,
        'kinds': {name: asdict(graph) for name, graph in graphs.items()},
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


@torch.inference_mode()
def check(policy: MaskedPolicy, folder: Path, prompts: int = 3) -> dict[str, dict[str, float | str]]:
    """Run the graphs in ONNX Runtime on the CPU; return graph -> differences from torch.

    ONNX Runtime has no bfloat16 on a CPU, so that such graphs are exported again in float32 for the check. policy: on
    a CPU in float32. Raises ValueError where a graph differs from torch by more than its limit.
    """
    _need('onnxruntime')
    manifest = read_manifest(folder)
    if manifest['dtype'] == 'bfloat16':
        with tempfile.TemporaryDirectory() as made:
            plan = manifest['kinds']['plan'].rows
            export(policy, Path(made), 'float32', manifest['image_dtype'], plan)
            rows = check(policy, Path(made), prompts)
        return {name: row | {'run as': 'float32'} if name != 'images' else row for name, row in rows.items()}
    results: dict[str, dict[str, float | str]] = {}
    for name, (template, _, vocabulary) in _requests(policy, manifest['kinds']['plan'].rows).items():
        act = Act.of(template, policy.config.vocabulary, policy.prompts.max_tokens, prompts)
        run, ours, theirs = _session(folder / f'{name}.onnx'), [], []
        for ids in act.prompts:
            padded = np.zeros(_up(ids.shape[1]), np.int64)
            padded[: ids.shape[1]] = ids[0].numpy()
            start = np.array([template.block.start])
            ours.append(torch.from_numpy(run({'ids': padded, 'length': np.array([ids.shape[1]]), 'start': start})))
            theirs.append(policy.network(ids, template.block, vocabulary)[0].float())
        a, b = torch.stack(ours), torch.stack(theirs)
        row: dict[str, float | str] = {
            'relative error': float((a - b).norm() / b.norm()),
            'equal tokens': float((a.argmax(-1) == b.argmax(-1)).float().mean()),
            'run as': manifest['dtype'],
        }
        limit = LIMITS['rounded' if manifest['quantized'] else manifest['dtype']]
        if not float(row['relative error']) <= limit:
            raise ValueError(f'{folder / name}.onnx differs from torch by {row["relative error"]:.2g}, limit {limit:g}')
        results[name] = row
    run, side = _session(folder / IMAGES), policy.config.image_tokenizer.resolution
    pictures = [picture(side, i) for i in range(4)]
    same = agreement(lambda p: torch.from_numpy(run({'pixels': p.numpy()})), policy.image_tokenizer.encode, pictures)
    results['images'] = {'equal tokens': same, 'run as': manifest['image_dtype']}
    return results


def _requests(policy: MaskedPolicy, plan_tokens: int) -> dict[str, tuple[Template, int, slice]]:
    """Return request type -> (a prompt, tokens of its block, part of the vocabulary)."""
    v, prompts = policy.config.vocabulary, policy.prompts
    templates = {
        'act': (prompts.action(EXAMPLE), slice(v.bins_offset, v.size)),
        'plan': (prompts.plan(EXAMPLE, plan_tokens), slice(0, v.size)),
        'image': (prompts.image(EXAMPLE), slice(v.image_offset, v.image_offset + v.codes)),
    }
    return {name: (t, t.block.stop - t.block.start, part) for name, (t, part) in templates.items()}


def _session(file: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    return lambda inputs: session.run(None, inputs)[0]


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f'the package {package} is missing: pip install -r requirements/tensorrt.txt')


def _up(tokens: int) -> int:
    return -(-tokens // STEP) * STEP

"""Times the public MM-ACT code in a given checkout, with random weights of a given shape.

It runs in its own process, by a Python with the packages of that code: transformers 4.46 to 4.57, diffusers, einops,
omegaconf, typeguard. The process prints one line of JSON at its end. This file therefore imports nothing of the suite.
"""

import json
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

REPORT = 'timings: '


def time_reference(checkout: Path, python: str, spec: dict[str, Any]) -> dict[str, float]:
    """Return times [ms] of the public code: 'images', 'forward', 'act', 'plan step' and 'imagine step'.

    'images' is of two views; 'act' has images, forward and the prompt on the host. checkout: of MM-ACT. python: an
    interpreter that can import it. spec: see `main`. Raises ValueError with the error of that code.
    """
    if not (checkout / 'models' / 'modeling_mmact.py').is_file():
        raise ValueError(f'{checkout} has no models/modeling_mmact.py: give a checkout of the public MM-ACT code')
    # Its text, not its file: the folder of a file is searched first, and ours has a types.py.
    command = [python, '-c', Path(__file__).read_text(), json.dumps(spec | {'path': str(checkout.resolve())})]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout)
    lines = [line for line in done.stdout.splitlines() if line.startswith(REPORT)]
    if done.returncode or not lines:
        output = (done.stderr.strip().splitlines() or ['no output'])[-1]
        raise ValueError(
            f'the public code does not run with {python} ({output}): give another Python with --reference-python, one '
            'with transformers 4.46 to 4.57 and the packages in its requirements.txt'
        )
    return json.loads(lines[-1].removeprefix(REPORT))


def main(spec: dict[str, Any]) -> dict[str, float]:
    """spec: path, device, dtype, network (fields of NetworkConfig), bins, length (padded prompt), rows, mask,
    plan_length, image_length (prompts of those decoders), images (False leaves out its image tokenizer, which has one
    size only), runs.
    """
    sys.path.insert(0, spec['path'])
    import torch
    from models import MAGVITv2, MMACTConfig, MMACTModelLM
    from models.configuration_llada import ModelConfig

    device, dtype, c = torch.device(spec['device']), getattr(torch, spec['dtype']), spec['network']
    given = {
        **{f.name: f.default for f in fields(ModelConfig) if f.default is not MISSING},
        **{f.name: f.default_factory() for f in fields(ModelConfig) if f.default_factory is not MISSING},
        **c,
    }
    given |= {
        'embedding_size': c['vocab_size'], 'rope': True, 'layer_norm_type': 'rms', 'activation_type': 'silu',
        'block_type': 'llama', 'weight_tying': False, 'include_bias': False, 'bias_for_layer_norm': False,
        'attention_layer_norm': False, 'alibi': False, 'flash_attention': False, 'max_sequence_length': 4096,
        'attention_dropout': 0.0, 'residual_dropout': 0.0, 'embedding_dropout': 0.0, 'init_device': 'cpu',
        'multi_query_attention': None, 'use_cache': False, 'mask_token_id': spec['mask'],
        'eos_token_id': 0, 'pad_token_id': 0,
    }  # fmt: skip
    torch.set_default_dtype(dtype)
    model = MMACTModelLM(MMACTConfig(**given)).to(device).eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0) if p.ndim == 1 else p.normal_(0, 0.02)
    images = MAGVITv2().to(device).eval() if spec['images'] else None
    pixels = [torch.rand(1, 3, 256, 256, device=device) * 2 - 1 for _ in range(2)]
    length, rows, mask = spec['length'], spec['rows'], spec['mask']
    prompt = torch.randint(0, mask, (1, length))
    prompt[0, length - rows - 1 : length - 1] = mask
    valid = torch.ones(1, length, dtype=torch.long)
    valid[0, : length // 3] = 0  # about what is padding there

    def encode() -> list[Any]:
        return [images.get_code(p)[0].cpu() for p in pixels] if images is not None else []

    def act(prompt: Any) -> Any:
        ids = torch.tensor(prompt.tolist()).to(device)  # as its prompts are put together: from lists, on the host
        return model.action_generate(
            ids, attention_mask=valid.to(device), temperature=0.0, prompt_id=length - rows - 2, timesteps=1,
            chunk_size=rows, action_dim=1, mask_token_id=mask, vocab_offset=c['vocab_size'] - spec['bins'],
            action_vocab_size=spec['bins'],
        )  # fmt: skip

    def both() -> Any:
        encode()
        return act(prompt).cpu()

    def forward(n: int) -> Any:
        bias = torch.ones(1, 1, n, n, dtype=torch.bool, device=device)
        return lambda: model(prompt[:, :1].expand(1, n).to(device), attention_bias=bias).logits

    what = {'forward': lambda: act(prompt), 'act': both}
    what |= {'plan step': forward(spec['plan_length']), 'imagine step': forward(spec['image_length'])}
    if images is not None:
        what['images'] = encode
    times: dict[str, float] = {}
    with torch.no_grad():
        for name, run in what.items():
            samples = []
            for _ in range(spec['runs'] + 1):
                if device.type == 'cuda':
                    torch.cuda.synchronize()
                begun = time.perf_counter()
                run()
                if device.type == 'cuda':
                    torch.cuda.synchronize()
                samples.append((time.perf_counter() - begun) * 1e3)
            times[name] = sorted(samples[1:])[spec['runs'] // 2]
    return times


if __name__ == '__main__':
    print(REPORT + json.dumps(main(json.loads(sys.argv[1]))))

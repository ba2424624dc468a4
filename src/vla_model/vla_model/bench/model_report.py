"""The result of bench_model as text."""

from typing import Any


def report(result: dict[str, Any]) -> str:
    """Return the result of bench_model as text."""
    layers, all_layers = result['layers']
    tokens, padded, rows = result['tokens']
    ids, all_ids = result['vocabulary']
    cut = f'{layers} of {all_layers} layers' if layers < all_layers else f'{layers} layers'
    lines = [
        ', '.join(f'{key} {value}' for key, value in result['machine'].items()),
        f'{result["size"]}: {result["parameters"] / 1e6:.1f} M parameters, {cut}, random weights',
        f'baseline {padded} tokens x {all_ids} logits; the others {tokens} tokens, {rows} x {ids} logits',
        '',
        f'{"forward, ids to bins [ms]":28} {"p50":>8} {"p95":>8} {"p99":>8}   {"GFLOP":>8} {"GFLOP/s":>8} '
        f'{"of peak":>8} {"ms/TFLOP":>9} {"baseline/it":>12} {"logit error":>12}',
    ]
    for name, row in result['forward'].items():
        lines.append(
            f'  {name:26} {_times(row)}   {row["gflop"]:8.1f} {row["gflops"]:8.0f} {row["share_of_peak"]:8.0%} '
            f'{row["ms_per_tflop"]:9.1f} {row["speedup"]:11.2f}x {row["error"]:12.1e}'
        )
    if 'extrapolated' in result:
        full = result['extrapolated']
        lines.append(
            f'  with all {all_layers} layers (extrapolated, a measured layer for each left out): baseline '
            f'{full["baseline"]:.0f}, eager {full["eager"]:.0f} ms, {full["speedup"]:.2f}x'
        )
    lines += ['', f'{"act, 2 images to bins [ms]":28} {"p50":>8} {"p95":>8} {"p99":>8}   {"baseline/it":>12}']
    lines += [f'  {name:26} {_times(row)}   {row["speedup"]:11.2f}x' for name, row in result['act'].items()]
    header = f'image to codes, {result["image_gflop"]:.1f} GFLOP [ms]'
    lines += [
        '',
        f'{header:36} {"p50":>8} {"p95":>8} {"p99":>8}   {"base/it":>8} {"equal codes":>12} {"equal bits":>11}',
    ]
    for name, row in result['images'].items():
        same = result['image_agreement'].get(name)
        tail = '' if same is None else f' {same["codes"]:12.2%} {same["bits"]:11.2%}'
        lines.append(f'  {name:34} {_times(row)}   {row["speedup"]:7.2f}x{tail}')
    lines += [f'  {name} left out: {reason}' for name, reason in result['image_left_out'].items()]
    lines += ['', f'{"decoders [ms]":36} {"first":>8} {"later":>8} {"all":>8}   steps']
    lines += [
        f'  {name:34} {row["first"]:8.1f} {row["later"]:8.1f} {row["total"]:8.0f}   {row["steps"]:5}'
        for name, row in result['decoders'].items()
    ]
    if 'reference' in result:
        times = ', '.join(f'{name} {ms:.1f}' for name, ms in result['reference'].items())
        lines += ['', f'the public MM-ACT code, median [ms]: {times}']
    peaks = ', '.join(f'{name} {peak:.0f}' for name, peak in result['peak_gflops'].items())
    lines += ['', f'peak of a square matrix product [GFLOP/s]: {peaks}']
    where = 'GPU' if 'GPU' in result['machine'] else 'process, all contenders together'
    lines.append(f'peak memory ({where}): {result["peak_memory_gib"]:.2f} GiB')
    return '\n'.join(lines)


def _times(row: dict[str, float]) -> str:
    return ' '.join(f'{row[f"p{p}"]:8.1f}' for p in (50, 95, 99))

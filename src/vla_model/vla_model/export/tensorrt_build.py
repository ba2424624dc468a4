"""TensorRT engines from the ONNX graphs of onnx_export.py. Needs the package tensorrt, and a GPU.

Graphs are strongly typed: their precision is what the graph says, in TensorRT 10.3 to 11.x. What was built is kept
beside the graphs, in a folder named by all that it depends on.
"""

import time
from pathlib import Path
from typing import Any

from vla_model.engines.onnx_manifest import IMAGES, Kind, read_manifest
from vla_model.engines.tensorrt_runtime import VERIFIED, _log, _logger, built_in, library


def build(folder: Path, workspace_gib: float = 8.0, level: int = 3) -> dict[str, float]:
    """Builds what is not built yet. Returns the seconds that each graph took, 0 for what was there.

    workspace_gib: most memory that TensorRT may use in between. level: of optimization, 0 to 5; higher ones take
    longer. Raises ValueError or FileNotFoundError naming what is missing, or what TensorRT says of a graph.
    """
    manifest = read_manifest(folder)
    trt = library()
    place = built_in(folder)
    place.mkdir(parents=True, exist_ok=True)
    times: dict[str, float] = {}
    for name, kind in [*manifest['kinds'].items(), ('images', None)]:
        plan, begun, times[name] = place / f'{name}.plan', time.monotonic(), 0.0
        if not plan.is_file():
            (place / VERIFIED).unlink(missing_ok=True)
            built = _build_one(trt, folder / (kind.file if kind else IMAGES), kind, place, workspace_gib, level)
            temporary = plan.with_suffix('.writing')
            temporary.write_bytes(built)
            temporary.replace(plan)
            times[name] = time.monotonic() - begun
    return times


def _build_one(trt: Any, graph: Path, kind: Kind | None, place: Path, workspace_gib: float, level: int) -> Any:
    """The serialized engine."""
    logger = _logger(trt)
    builder = trt.Builder(logger)
    if builder is None:
        raise ValueError('TensorRT could not make a builder: see its messages above')
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):  # from the file, as the weights lie beside it
        errors = '; '.join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ValueError(f'TensorRT {trt.__version__} does not take {graph.name}: {errors}')
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace_gib * 2**30))
    config.builder_optimization_level = level
    times = place / 'timing.cache'  # of single kernels: the layers of the graphs are alike
    cache = config.create_timing_cache(times.read_bytes() if times.is_file() else b'')
    config.set_timing_cache(cache, False)
    if kind is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape('ids', (kind.shortest,), (kind.usual,), (kind.longest,))
        config.add_optimization_profile(profile)
    _log.info('TensorRT builds %s, which can take minutes', graph.name)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError(f'TensorRT {trt.__version__} could not build {graph.name}: see its messages above')
    times.write_bytes(config.get_timing_cache().serialize())
    return plan

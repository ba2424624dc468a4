"""TensorRT engines from the ONNX graphs of onnx_export.py. Needs the package tensorrt, and a GPU.

Graphs are strongly typed: the graph sets the precisions, in TensorRT 10.3 to 11.x. Built engines are kept
beside the graphs, in a folder named by all that it depends on.
"""

import time
from pathlib import Path
from typing import Any

from vla_model.engines.onnx_manifest import IMAGES, RequestGraph, read_manifest
from vla_model.engines.tensorrt_runtime import VERIFIED, _log, _logger, built_in, library


def build(folder: Path, workspace_gib: float = 8.0, level: int = 3) -> dict[str, float]:
    """Build the missing engines of a folder. Return the build time of each graph [s], 0 where its engine was there.

    workspace_gib: limit of TensorRT's temporary memory [GiB]. level: optimization level, 0 to 5; a higher one takes
    longer. Raises ValueError or FileNotFoundError naming the missing file, or TensorRT's error.
    """
    manifest = read_manifest(folder)
    trt = library()
    place = built_in(folder)
    place.mkdir(parents=True, exist_ok=True)
    times: dict[str, float] = {}
    for name, request in [*manifest['kinds'].items(), ('images', None)]:
        plan, begun, times[name] = place / f'{name}.plan', time.monotonic(), 0.0
        if not plan.is_file():
            (place / VERIFIED).unlink(missing_ok=True)
            built = _build_one(
                trt, folder / (request.file if request else IMAGES), request, place, workspace_gib, level
            )
            temporary = plan.with_suffix('.writing')
            temporary.write_bytes(built)
            temporary.replace(plan)
            times[name] = time.monotonic() - begun
    return times


def _build_one(
    trt: Any, graph: Path, request: RequestGraph | None, place: Path, workspace_gib: float, level: int
) -> Any:
    """Return the serialized engine of a graph. Raises ValueError with TensorRT's error."""
    logger = _logger(trt)
    builder = trt.Builder(logger)
    if builder is None:
        raise ValueError('TensorRT could not make a builder: see its messages above')
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):  # from the file, which has its weights beside it
        errors = '; '.join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ValueError(f'TensorRT {trt.__version__} does not take {graph.name}: {errors}')
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace_gib * 2**30))
    config.builder_optimization_level = level
    times = place / 'timing.cache'  # of single kernels: the layers of the graphs are alike
    cache = config.create_timing_cache(times.read_bytes() if times.is_file() else b'')
    config.set_timing_cache(cache, False)
    if request is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape('ids', (request.shortest,), (request.usual,), (request.longest,))
        config.add_optimization_profile(profile)
    _log.info('TensorRT builds %s, which can take minutes', graph.name)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError(f'TensorRT {trt.__version__} could not build {graph.name}: see its messages above')
    times.write_bytes(config.get_timing_cache().serialize())
    return plan

"""The process in which engines are tried: `python -m vla_model.engines.trial_child FOLDER`, started by trial.py.

It writes a line of JSON at the start of each candidate and with its verdict. The parent then knows the candidate at
which this process died.
"""

import ctypes
import faulthandler
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from vla_model.engines.trial import ENGINE, MEMORY, NO_MEMORY, PASSED, REFUSED, REQUEST, RESULTS, Candidate
from vla_model.policy import IMAGE, PLAN, ImageOptions, PlanOptions

PR_SET_PDEATHSIG = 1


def main(folder: Path, parent: int) -> None:
    """Tries the candidates of the request in turn. parent: its process id."""
    _end_with(parent)
    faulthandler.enable()  # the parent logs which call died
    request = json.loads((folder / REQUEST).read_text())
    with (folder / RESULTS).open('a', buffering=1) as results:

        def write(**stage: Any) -> None:
            results.write(json.dumps(stage) + '\n')

        try:
            from vla_model.families.mmact.loading import LoadOptions, load

            options = dict(request['load'])
            policy = load(options.pop('reference'), LoadOptions(**options))
        except Exception as error:
            write(failed=_sentence(error))
            return
        for i, candidate in enumerate(Candidate(**c) for c in request['candidates']):
            write(begin=i)
            write(end=i, verdict=_try(policy, candidate))


def _try(policy: Any, candidate: Candidate) -> dict:
    """Fields of a Verdict."""
    try:
        return {'outcome': PASSED} | (_network if candidate.part == ENGINE else _images)(policy, candidate)
    except Exception as error:
        memory = isinstance(error, MemoryError) or any(word in str(error) for word in NO_MEMORY)
        if memory:
            return {'outcome': MEMORY, 'why': f'ran out of memory ({_sentence(error)})'}
        return {'outcome': REFUSED, 'why': _sentence(error)}


def _network(policy: Any, candidate: Candidate) -> dict[str, float]:
    from vla_model.engines import select as engines
    from vla_model.engines.base import Engine

    eager = Engine(policy.network, policy.image_tokenizer)
    policy.use(candidate.name)
    engine, act = policy.engine, policy.act_request()
    if engine.fixed_shapes:  # capture the graphs of all outputs, as the policy node does
        seen = policy.example()
        for cached in (False, True):
            policy.start(PLAN, seen, PlanOptions(steps=2, cached=cached)).run()
            policy.start(IMAGE, seen, ImageOptions(steps=2, cached=cached)).run()
    engine.prepare(act.prompts[0].shape[1])  # as for an instruction
    policy.warm_up(1)
    times = engines.measure({'eager': eager, 'this': engine}, act)
    return {'ms': times['this'], 'share': times['this'] / times['eager'], 'error': engine.error}


def _images(policy: Any, candidate: Candidate) -> dict[str, float]:
    from vla_model.engines import image as images
    from vla_model.engines.base import ImageEncoder

    policy.use('eager', candidate.dtype, candidate.name)
    policy.warm_up(1)
    made, exact = policy.engine.encoder, ImageEncoder(policy.image_tokenizer)
    pixels = images.picture(policy.config.image_tokenizer.resolution, 0).to(policy.device)[None]
    times = images.measure({'eager': exact, 'this': made}, pixels)
    return {'ms': times['this'], 'share': times['this'] / times['eager'], 'error': 1 - made.agreement}


def _end_with(parent: int) -> None:
    if sys.platform != 'linux':
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent has ended already
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a death is expected here: no dump of gigabytes
    try:
        Path('/proc/self/oom_score_adj').write_text('1000')  # when memory runs out, Linux kills this process first
    except OSError:
        pass


def _sentence(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # a library that dies while it is unloaded has passed its trial

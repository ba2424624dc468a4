"""./vla bench remote: time of a policy behind a server on this machine, against the same policy in this process."""

import asyncio
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from vla_bringup.console import make_console
from vla_model.checkpoints.shipped import RANDOM
from vla_model.loading import LoadOptions, load
from vla_model.policy import Policy, Prediction
from vla_model.remote.serve import PolicyServer
from vla_model.types import Chunk, Observation

TARGET = 5.0  # [ms] median overhead
SIDE = 256  # [px] of the images


@dataclass(frozen=True)
class Options:
    model: str = RANDOM
    calls: int = 200
    out: Path | None = None  # file for the table


class Served:
    """A server of a policy in a thread of this process, and its URL."""

    def __init__(self, policy: Policy) -> None:
        self._loop, self._server = asyncio.new_event_loop(), PolicyServer(policy)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._running = asyncio.run_coroutine_threadsafe(self._server.start('127.0.0.1', 0), self._loop).result(20)
        self.url = f'ws://127.0.0.1:{next(iter(self._running.sockets)).getsockname()[1]}'

    def close(self) -> None:
        """End the server and its thread."""

        async def end() -> None:
            self._running.close()
            await self._running.wait_closed()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(20)
        self._server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)


@dataclass(frozen=True)
class Measured:
    """Times of calls [s], and whether chunks are equal in bits."""

    here: np.ndarray
    there: np.ndarray
    overhead: np.ndarray  # of the calls there: without the time of the policy in the server
    equal: bool


def measure(policy: Policy, calls: int) -> Measured:
    """Measure a policy here and behind a server of it."""
    served = Served(policy)
    try:
        client = load(served.url)
        client.warm_up()
        seen = _observations(policy)
        equal = all(_equal(policy.act(o).chunk, client.act(o).chunk) for o in seen)
        here, there, overhead = [], [], []
        for i in range(calls):  # no call has the image of the call before, which policies keep
            here.append(_timed(policy, seen[2 * i % len(seen)])[0])
            taken, prediction = _timed(client, seen[(2 * i + 1) % len(seen)])
            there.append(taken)
            overhead.append(taken - prediction.timings['server'])
        client.close()
    finally:
        served.close()
    return Measured(np.array(here), np.array(there), np.array(overhead), equal)


def bench_remote(options: Options) -> bool:
    """Measure both and print the table; return whether chunks are equal and the overhead is in TARGET."""
    policy = load(options.model, LoadOptions(engine='eager'))
    policy.warm_up()
    found = measure(policy, options.calls)
    policy.close()
    here, there, equal = found.here, found.there, found.equal
    overhead = found.overhead * 1e3
    median = float(np.median(overhead))
    columns = {
        'policy': policy.info.model_id,
        'calls': str(options.calls),
        'in this process, median': f'{1e3 * np.median(here):.1f} ms',
        'behind the server, median': f'{1e3 * np.median(there):.1f} ms',
        'ratio': f'{np.median(there) / np.median(here):.2f}',
        'overhead, median': f'{median:.2f} ms',
        'p95': f'{np.percentile(overhead, 95):.2f} ms',
        'chunks': 'equal in bits' if equal else 'DIFFERENT',
    }
    console = make_console()
    table = Table(*columns)
    table.add_row(*columns.values())
    console.print(table)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows = (columns, ['---'] * len(columns), columns.values())
        options.out.write_text(''.join(f'| {" | ".join(row)} |\n' for row in rows))
    if median > TARGET:
        console.print(f'the median overhead {median:.2f} ms is above {TARGET:g} ms', style='red')
    return equal and median <= TARGET


def _observations(policy: Policy, count: int = 4) -> list[Observation]:
    """Return observations with images of noise."""
    rng, base = np.random.default_rng(0), replace(policy.example(), instruction='press the red button')
    return [
        replace(
            base,
            images={c: rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for c in policy.info.cameras},
        )
        for _ in range(count)
    ]


def _timed(policy: Policy, observation: Observation) -> tuple[float, Prediction]:
    begun = time.perf_counter()
    prediction = policy.act(observation)
    return time.perf_counter() - begun, prediction


def _equal(a: Chunk, b: Chunk) -> bool:
    return np.array_equal(a.positions, b.positions) and np.array_equal(a.gripper, b.gripper)

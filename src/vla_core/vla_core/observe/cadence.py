"""Cadence of inference: which observations are used for a chunk."""

from vla_core.observe.streams import NS

# Default. The first steps of a chunk must be executed, or a model that has no velocities starts anew for ever.
RATE = 5.0  # [Hz]


class Cadence:
    """Limits inference to `rate` [Hz] of observation time, no set used twice, live and in a replay."""

    def __init__(self, rate: float) -> None:
        # A tenth less, so that frames that jitter around the period are not skipped alternately.
        self.interval = int(0.9 / rate * NS)  # [ns]
        self.last: int | None = None  # t_ref of the set that was used last [ns]

    def due(self, t_ref: int) -> bool:
        """Return whether to use the set of t_ref [ns]. A set from before the last one is used: the clock went back."""
        return self.last is None or not 0 <= t_ref - self.last < self.interval

    def restart(self) -> None:
        """Use the present set again, for another instruction."""
        self.last = None

"""Which reference times are acted on."""

from vla_core.observe.streams import NS

# Unless asked for: what a chunk begins with must be carried out, or a model that sees no velocities begins for ever.
RATE = 5.0  # [Hz]


class Cadence:
    """No set twice, and at most `rate` [Hz] per second of observation time. The same live and in a replay."""

    def __init__(self, rate: float) -> None:
        # A tenth less, so that frames that jitter around the period are not passed over by turns.
        self.interval = int(0.9 / rate * NS)  # [ns]
        self.last: int | None = None  # t_ref of the set that was acted on last [ns]

    def due(self, t_ref: int) -> bool:
        """Whether to act on the set of t_ref [ns]. One from before the last means that the clock went back."""
        return self.last is None or not 0 <= t_ref - self.last < self.interval

    def restart(self) -> None:
        """Another instruction: the set that is there is acted on at once, even if it was before."""
        self.last = None

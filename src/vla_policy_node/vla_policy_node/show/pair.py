"""Which image of the camera belongs beside the one that was imagined."""

import math
from typing import Any

from vla_policy_node.show.sources import Source


class Pairing:
    """Until the time that was imagined comes the newest image is shown, then the one closest to it, which stays."""

    def __init__(self) -> None:
        self._chosen: tuple[int, Any] | None = None  # the time [ns], and the message found for it

    def choose(self, due: int, images: Source) -> Any:
        """The message to show beside what was imagined for `due` [ns]."""
        if self._chosen is not None and self._chosen[0] == due:
            return self._chosen[1]
        stamps = images.stamps
        if stamps[-1] < due:
            return images.newest
        # What came too late for the images that are kept is compared with now, and not held on to.
        if stamps[0] > due:
            return images.newest
        found = images.nearest(due)
        self._chosen = due, found
        return found

    @staticmethod
    def verdict(due: int, surprise: tuple[int, float]) -> str:
        """The line below: surprise is the time [ns] of the comparison that the policy made last, and its result."""
        stamp, value = surprise
        if math.isnan(value):
            return 'surprise: not known yet'
        return f'surprise {value:.2f}' + ('' if stamp == due else f', for {stamp * 1e-9:.2f} s')

    def clear(self) -> None:
        self._chosen = None

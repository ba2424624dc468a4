"""One topic read by several subscriptions, as its publishers offer different QoS: each message once."""

from collections import Counter, deque
from collections.abc import Hashable
from typing import Any

TWICE = 5.0  # [s] in which one message may come by a second subscription


class Once:
    """Passes each message once, though it comes by each of several subscriptions, and equal ones as often as sent."""

    def __init__(self) -> None:
        self._seen: dict[Any, Counter] = {}  # message -> how often it came by each subscription
        self._order: deque[tuple[float, Any, Any]] = deque()  # when, message, subscription

    def first(self, subscription: Any, message: Hashable, now: float) -> bool:
        """Whether the message did not come by another subscription before; now [s] of a clock that is never set."""
        while self._order and now - self._order[0][0] > TWICE:
            _, old, by = self._order.popleft()
            self._seen[old][by] -= 1
            if not +self._seen[old]:
                del self._seen[old]
        counts = self._seen.setdefault(message, Counter())
        passed = max(counts.values(), default=0)
        counts[subscription] += 1
        self._order.append((now, message, subscription))
        return counts[subscription] > passed

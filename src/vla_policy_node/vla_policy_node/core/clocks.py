"""What a stamp may be, and the sentences about one that it may not be.

Policy, executor, converter, replay and doctor use the same limits and the same words.
"""

# [s] A stamp may be ahead of the arrival of its message by this much: what clocks that agree still differ by.
FUTURE_TOLERANCE = 0.1


def ahead(what: str, seconds: float) -> str:
    """The sentence about a stamp that is later than the arrival of its message by `seconds`."""
    return f'{what} is stamped {seconds:.3f} s ahead of the clock: synchronise the clocks'


def set_back(what: str, seconds: float) -> str:
    """The sentence about stamps of one sender that step back by `seconds` from one message to the next."""
    return f'the clock of {what} was set back by {seconds:.3f} s: synchronise the clocks before the arm is driven'

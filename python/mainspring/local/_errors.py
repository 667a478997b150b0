"""The one error type of local models, under the name this package uses.

Invariant: every failure a user can meet while pulling or serving leaves this package as a
`LocalModelError` with a stable code.
"""

from mainspring.errors import LocalModelError

__all__ = ["LocalModelError"]

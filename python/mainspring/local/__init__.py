"""Small open-weight models on this machine: pulled once, checked, served on loopback.

Invariant: nothing here runs code that came with a model, and the serving runtime is imported only
in its own process. Reading starts at `pull` and `LocalServer`.
"""

from mainspring.local._cache import ListedModel, cache_root, installed, listing, locate
from mainspring.local._catalog import (
    CATALOG,
    HubSource,
    ModelEntry,
    RegistryPart,
    RegistrySource,
)
from mainspring.local._errors import LocalModelError
from mainspring.local._limits import PullLimits
from mainspring.local._pull import pull
from mainspring.local._serve import LocalServer, ServerLimits

__all__ = [
    "CATALOG",
    "HubSource",
    "ListedModel",
    "LocalModelError",
    "LocalServer",
    "ModelEntry",
    "PullLimits",
    "RegistryPart",
    "RegistrySource",
    "ServerLimits",
    "cache_root",
    "installed",
    "listing",
    "locate",
    "pull",
]

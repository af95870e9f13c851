"""How hard a run tries: profile, seed, dtypes, devices, backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Profile = Literal["quick", "standard", "deep"]
PROFILES: tuple[Profile, ...] = get_args(Profile)

# Random points per cell. A cell is one property of one function in one dtype; some twenty to forty cells make a kernel
# and dtype, so that "deep" judges more than 10⁶ points for each.
POINTS: dict[Profile, int] = {"quick": 512, "standard": 4096, "deep": 131_072}
# Rows of each real table that are compared with the oracle.
ROWS: dict[Profile, int] = {"quick": 4, "standard": 16, "deep": 256}
# Where nothing else is asked for. The quick profile is for a new kernel: an answer in seconds.
DTYPES: dict[Profile, tuple[str, ...]] = {
    "quick": ("float64", "float32"),
    "standard": ("float64", "float32", "bfloat16", "float16"),
    "deep": ("float64", "float32", "bfloat16", "float16"),
}
BACKENDS: dict[Profile, tuple[str, ...]] = {
    "quick": ("eager",),
    "standard": ("eager", "compile"),
    "deep": ("eager", "compile"),
}
DEVICES: dict[Profile, tuple[str, ...]] = {"quick": ("cpu",), "standard": ("cpu", "cuda"), "deep": ("cpu", "cuda")}


@dataclass(frozen=True)
class Settings:
    """What the user asked for; dtypes, devices and backends are those of the profile where they are left empty.

    `checks` None means every check that applies.
    """

    profile: Profile = "standard"
    seed: int = 0
    dtypes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    checks: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile {self.profile!r}: expected one of {', '.join(PROFILES)}")
        for name, usual in (("dtypes", DTYPES), ("devices", DEVICES), ("backends", BACKENDS)):
            object.__setattr__(self, name, tuple(getattr(self, name)) or usual[self.profile])

    @property
    def points(self) -> int:
        return POINTS[self.profile]

    @property
    def rows(self) -> int:
        return ROWS[self.profile]

"""Exhaustive sweeps: every number of a format, or every pair of 16-bit numbers, against the truth."""

from verify.exhaust.judgement import exhaust
from verify.exhaust.space import Space, default_targets, space_of, targets_of
from verify.exhaust.sweep import Progress, Sweep

__all__ = ["Progress", "Space", "Sweep", "default_targets", "exhaust", "space_of", "targets_of"]

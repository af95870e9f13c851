"""How deep the sums of fused loops are: in how many additions a term takes part at most.

This is what an engine promises, and no more: within it, any order of summation is correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verify.fused.problems import Problem

# Features in one partial sum, and in one logarithm of a product; then the sum of these. On a GPU only for logarithms.
BLOCK = 8
# On a CPU. Components of one partial sum in gradients.
CHUNK = 32
# The exponentials of a chunk: so many sums side by side. Sums of chunks carry what rounding takes from them.
STRANDS = 4
# Sums over samples: those of a tile in the format, in vectors of 32 bytes or more whose lanes add up in halves; sums of
# tiles in float64.
LONGEST_TILE = 512
SHORTEST_VECTOR = 32
# On a GPU. Rows of a tile, which one thread adds up, and its tiles one after the other; then the sums of programs, in
# float64. A program has one tile as long as no more than so many programs are there.
ROWS = 16
PROGRAMS = 2048
PARTS_BYTES = 64 * 2**20  # and the sums of all programs take no more
LANES, LEAST_LANES = 128, 32  # samples or components: padded to whole ones of the first, and at least as many a program


@dataclass(frozen=True)
class Depths:
    """Of one problem and engine.

    Attributes:
        features: of ‖x − μ‖², x·μ, or the energies of features.
        components, samples: in gradients.
        exponentials: of Σ exp(score − largest).
        rescalings: how often that sum is multiplied, as a larger score turns up.
        values: of a mean's gradient times values.
        chunks: of a mean's components: where each begins. None where all are averaged as distances from one number.
    """

    features: int
    components: int
    samples: int
    exponentials: int
    rescalings: int
    values: int = 0
    chunks: Sequence[int] | None = None


def on_a_cpu(problem: Problem, bytes_of_a_number: int) -> Depths:
    """Of `template.cpp` and `posterior.cpp`."""
    count, lanes = len(problem.mu), SHORTEST_VECTOR // bytes_of_a_number
    chunks = -(-count // CHUNK)
    return Depths(
        features=blocked(problem.x.shape[-1], BLOCK),
        components=blocked(count, CHUNK),
        samples=min(len(problem.x), LONGEST_TILE // lanes + lanes.bit_length() - 1) + 1,
        # The last two are the rounding of what was carried, and of its sum with the rest.
        exponentials=blocked(min(count, CHUNK), -(-CHUNK // STRANDS)) + 2,
        rescalings=0 if chunks == 1 else chunks,
        values=blocked(problem.values.shape[-1], BLOCK) + 1,
        chunks=[0, *range(BLOCK, count, CHUNK)],
    )


def on_a_gpu(problem: Problem, bytes_of_a_number: int) -> Depths:
    """Of `template.triton`, whose sums over features go from the first to the last."""
    (n_samples, n_features), count = problem.x.shape, len(problem.mu)
    is_wide = bytes_of_a_number == 8  # nothing is left of the sums of programs in float64 but their rounding, otherwise

    bytes_of_a_lane = bytes_of_a_number * (n_features * (1 + len(problem.parameters)) + 1 + problem.values.shape[-1])

    def over(rows: int, lanes: int) -> int:
        return min(rows, ROWS + _tiles(rows, lanes, bytes_of_a_lane) + (PROGRAMS if is_wide else 0)) + 1

    return Depths(
        features=n_features,
        components=over(count, n_samples),
        samples=over(n_samples, count),
        exponentials=over(count, n_samples),
        rescalings=_tiles(count, n_samples, bytes_of_a_lane) + is_wide,
        values=problem.values.shape[-1] + 2,  # the interpreter rounds a product before it is added
    )


def one_after_the_other(n_features: int) -> Depths:
    """Of a score that is worked out by itself."""
    return Depths(n_features, 0, 0, 0, 0)


def blocked(count: int, block: int) -> int:
    """Where blocks are summed, and then their sums."""
    return min(count, block) + -(-count // block)


def _tiles(rows: int, lanes: int, bytes_of_a_lane: int) -> int:
    """How many tiles a program has at most: tiles of one row and few lanes are the most programs that there can be."""
    blocks = -(-lanes // LANES)
    programs = min(PROGRAMS // (blocks * (LANES // LEAST_LANES)), PARTS_BYTES // (blocks * LANES * bytes_of_a_lane))
    return -(-rows // max(1, programs))

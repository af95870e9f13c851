"""The plain formula of a kernel, as a text book has it: what one would write down without the fused path.

It is read off the kernel's energy alone, so that a new kernel gets its rivals without a line about it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sympy import Expr, Float, Max, Min, Piecewise, Rational, Symbol, lambdify, sqrt
from torch import Tensor

from derivations import u
from derivations.atoms import expand_atoms
from derivations.geometry import log_det, log_prior, square
from implicit_em import invariants
from implicit_em.fused.form import Shape
from verify.bench.problems import Problem

difference = Symbol("u", real=True)
distance_squared = Symbol("q", positive=True)  # so that |√q| is √q and its square q


@dataclass(frozen=True)
class Formula:
    """An energy as an expression in one symbol.

    Attributes:
        shape: what that symbol is: x_i − μ_i, the energies of features adding up; ‖x − μ‖²; or cos θ.
    """

    shape: Shape
    symbol: Symbol
    energy: Expr

    def reduced(self, points: Tensor, problem: Problem) -> Tensor:
        """Points between which a pair is a plain difference or product: cheaper than for each pair."""
        if self.shape == "dot":
            length: Tensor = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
            return points / length
        factor = problem.options.get("precision_cholesky")
        return points if factor is None else points @ factor


def formula_of(problem: Problem) -> Formula:
    """The definition with the values of its parameters in it, exactly those that the fused path is given."""
    kernel = problem.subject.kernel
    energy = expand_atoms(kernel.energy).subs(
        {symbol: Rational(problem.case.fmt.nearest(symbol.default).item()) for symbol in kernel.parameters}
    )
    energy = energy.replace(Max, _largest).replace(Min, _smallest)
    if problem.case.lift == "sum":
        return Formula("features", difference, energy.subs(u, difference))
    if problem.case.lift == "radial":
        return Formula("square", distance_squared, energy.subs(u, sqrt(distance_squared)))
    if kernel.geometry.name == "direction":
        (cosine,) = kernel.geometry.coordinates
        return Formula("dot", cosine, energy)
    volume = invariants.log_det(problem.options["precision_cholesky"]).item()
    return Formula(
        "square", distance_squared, energy.subs({log_det: Float(volume), log_prior: 0, square: distance_squared})
    )


def plain(problem: Problem, by_product: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, μ) ↦ log Σ_k π_k exp(−d(x_n, μ_k)) in torch, with the matrix of energies.

    Args:
        by_product: whether squared distances are ‖x‖² − 2 x·μ + ‖μ‖², which loses digits far from the origin.
    """
    formula = formula_of(problem)
    energy = lambdify(formula.symbol, formula.energy, modules="torch", cse=True)

    def log_partition(x: Tensor, mu: Tensor) -> Tensor:
        x, mu = formula.reduced(x, problem), formula.reduced(mu, problem)
        if formula.shape == "dot":
            energies = energy(x @ mu.mT)
        elif formula.shape == "square" and by_product:
            squares = x.square().sum(-1, keepdim=True) - 2 * (x @ mu.mT) + mu.square().sum(-1)
            energies = energy(squares.clamp(min=0))
        elif formula.shape == "square":
            energies = energy((x[:, None] - mu).square().sum(-1))
        else:
            energies = energy(x[:, None] - mu).sum(-1)
        return torch.logsumexp(torch.log_softmax(problem.mixing_logits, -1) - energies, -1)

    return log_partition


def _largest(first: Expr, *rest: Expr) -> Expr:
    """max as cases: torch has none of a tensor and a number, KeOps none between features."""
    for other in rest:
        first = Piecewise((first, first >= other), (other, True))
    return first


def _smallest(first: Expr, *rest: Expr) -> Expr:
    return -_largest(-first, *(-other for other in rest))

"""All results that correct fused loops can have: their operations, one by one, on rounding-aware intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from implicit_em.fused.form import Form, terms_of
from implicit_em.fused.program import Program
from verify.fused.depths import BLOCK, Depths, on_a_cpu, on_a_gpu, one_after_the_other
from verify.fused.means import Means
from verify.fused.points import BY_GEOMETRY, WIDE, Points
from verify.fused.problems import Problem
from verify.fused.products import PRODUCTS, Product, squares
from verify.fused.truth import MEAN
from verify.fused.weights import Weights
from verify.rounded import Arithmetic, Rounded, TorchFunctions, arithmetic_of, gradients, run, run_program
from verify.subject import Subject

Budgets = Mapping[str, Rounded]

# How far the largest score may be off to be corrected wholly: where it is further off, so are the others.
CORRECTED = 1

# What the last few operations in float64 err, before L is rounded: relative to the largest number among them.
WIDE_ROOM = np.ldexp(np.longdouble(1), -50)


def arithmetic_of_loops(dtype: str, device: str, backend: str) -> Arithmetic:
    """What the energies in the loops are computed in: Inductor's primitives, but for those that the loops bring.

    Raises:
        MissingTable: the rounding errors of its primitives were not measured.
    """
    arithmetic = arithmetic_of(dtype, device, backend)
    table = arithmetic.table
    if backend == "compile":
        own = {"log1p": table["fused_log1p"]}
    else:
        # A quotient by what many pairs have in common may be a product with its reciprocal.
        by_reciprocal = table["reciprocal"].relative + table["mul"].relative + 1
        own = {"fused_exp": table["exp"], "div": replace(table["div"], relative=by_reciprocal)}
    return replace(arithmetic, table=replace(table, primitives={**table.primitives, **own}))


def budgets(
    subject: Subject,
    form: Form,
    problem: Problem,
    plain: Arithmetic,
    arithmetic: Arithmetic,
    wide: Arithmetic | None,
    precision: str = "subtract",
) -> Budgets:
    """For each of `truths`, the interval of results, and nothing where none is correct.

    Args:
        plain: what the loops' arguments are worked out in.
        arithmetic: what the loops compute in.
        wide: what the largest score is worked out in again; None where it is not.
        precision: of squared distances, out of `PRODUCTS`.
    """
    with np.errstate(all="ignore"):
        call = BY_GEOMETRY[subject.kernel.geometry.name](problem, plain)
        terms = terms_of(form, [call.taken.parameters[name].low.ndim for name in form.parameters])
        if arithmetic.table.backend == "triton":
            depths, product = on_a_gpu(problem, arithmetic.fmt.torch_dtype.itemsize), PRODUCTS[precision]
            loops = Loops(subject, form, call, arithmetic, depths, terms, product)
            return {**loops.of_partition(None), **({} if product else loops.of_mean())}
        depths = on_a_cpu(problem, arithmetic.fmt.torch_dtype.itemsize)
        loops = Loops(subject, form, call, arithmetic, depths, terms)
        alone = one_after_the_other(problem.x.shape[-1])
        return {**loops.of_partition(Loops(subject, form, call, wide, alone) if wide else None), **loops.of_mean()}


class Loops:
    """Arrays are [sample, component, feature], or [sample, component] where the last has been summed."""

    def __init__(
        self,
        subject: Subject,
        form: Form,
        call: Points,
        arithmetic: Arithmetic,
        depths: Depths,
        terms: Program | None = None,
        product: Product | None = None,
    ) -> None:
        self.subject, self.form, self.call, self.arithmetic, self.depths = subject, form, call, arithmetic, depths
        self.problem, taken = call.problem, call.taken
        trailing = 1 if form.shape == "features" else 0

        def of(value: Rounded, *added: None) -> Rounded:
            low = value.low[(..., *added)]
            return Rounded(arithmetic, low, low if value.low is value.high else value.high[(..., *added)])

        self.parameters = {name: of(taken.parameters[name], *[None] * trailing) for name in form.parameters}
        self.x, self.mu = of(taken.x), of(taken.mu)
        self.gap = self.x - self.mu
        if product:
            found = squares(product, self.x, self.mu)
            self.gap, self.points = found.gap, [found.square]
        elif form.shape == "features":
            self.points = [self.x, self.mu]
        elif form.shape == "square":
            self.points = [self.summed(self.gap * self.gap, -1, depths.features)]
        else:
            self.points = [self.summed(self.x * self.mu, -1, depths.features)]
        arguments = [*self.points, *self.parameters.values()]
        if form.energy_in_square:
            self.pairs = run(subject.code.module.energy_of_square, [self.gap * self.gap, *arguments[2:]])
        else:
            self.pairs = run(form.function, arguments)
        self.pairs = _at(self.pairs, (self.gap if form.shape == "features" else self.points[0]).low.shape)
        self.terms = run_program(terms, arguments) if terms else None

    @cached_property
    def scores(self) -> Rounded:
        energies, taken = self.energies(), self.call.taken.log_weights
        low, high = (np.where(self.problem.impossible, 0, end) for end in (taken.low, taken.high))
        if self.arithmetic.fmt is not WIDE:
            low, high = self.arithmetic.widen("add", low, high)
        shape = energies.low.shape
        return Rounded(self.arithmetic, np.broadcast_to(low, shape), np.broadcast_to(high, shape)) - energies

    def energies(self) -> Rounded:
        if self.form.shape != "features":
            return self.pairs
        if self.terms is None:
            return self.summed(self.pairs, -1, self.depths.features)
        starts = range(0, self.gap.low.shape[-1], BLOCK)
        blocks = [self.block_of_energies(slice(first, first + BLOCK)) for first in starts]
        low, high = np.stack([block.low for block in blocks], -1), np.stack([block.high for block in blocks], -1)
        return self.summed(Rounded(self.arithmetic, low, high), -1, len(blocks))

    def block_of_energies(self, features: slice) -> Rounded:
        """Σ rest + factor · log Π(1 + inside), or with Σ log(1 + inside) where the product overflows."""
        rest, inside, factor = (_part(_at(term, self.gap.low.shape), features) for term in self.terms or ())
        product = self.arithmetic.point(np.zeros(inside.low.shape[:-1]))
        for index in range(inside.low.shape[-1]):
            each = _part(inside, index)
            product = self.fused(each, product + 1.0, product)
        fits, overflows = np.isfinite(product.high), np.isinf(product.low)
        most = self.arithmetic.fmt.max
        product = Rounded(self.arithmetic, np.minimum(product.low, most), np.minimum(product.high, most))
        usual, safe = TorchFunctions.log1p(product), self.summed(TorchFunctions.log1p(inside), -1, BLOCK)
        low = np.where(fits, usual.low, np.where(overflows, safe.low, np.minimum(usual.low, safe.low)))
        high = np.where(fits, usual.high, np.where(overflows, safe.high, np.maximum(usual.high, safe.high)))
        return self.fused(_part(factor, 0), Rounded(self.arithmetic, low, high), self.summed(rest, -1, BLOCK))

    def fused(self, a: Rounded, b: Rounded, c: Rounded) -> Rounded:
        """a·b + c, rounded once; in Triton's interpreter twice."""
        if self.arithmetic.table.backend == "triton":
            return a * b + c
        exact = np.stack([x * y for x in (a.low, a.high) for y in (b.low, b.high)])
        low, high = self.arithmetic.widen("add", exact.min(0) + c.low, exact.max(0) + c.high)
        return Rounded(self.arithmetic, low, high)

    @cached_property
    def impossible(self) -> Any:
        return np.broadcast_to(self.problem.impossible, self.scores.low.shape)

    @cached_property
    def top(self) -> Rounded:
        """The largest score of each sample."""
        ends = (np.where(self.impossible, -np.inf, side) for side in (self.scores.low, self.scores.high))
        return Rounded(self.arithmetic, *(end.max(-1) for end in ends))

    @cached_property
    def weights(self) -> Weights:
        return Weights(self, self.scores, self.top, self.impossible)

    def of_partition(self, wide: Loops | None) -> Budgets:
        """L and its gradients; `wide` works the largest score out again, where that is done."""
        scores, known, weights = self.scores, [None, None], self.weights
        if wide is not None:
            scores, *known = self.with_peak(self.scores, self.top, self.impossible, wide)
            weights = Weights(self, scores, self.top, self.impossible)
        share = weights.shares * self.arithmetic.point(self.problem.towards[:, None])
        value = self.log_partition(scores, self.top, self.impossible, *known)
        return {"log_partition": value, **self.towards_scores(share, self.impossible)}

    def of_mean(self) -> Budgets:
        """A posterior mean and its gradients."""
        means, towards = Means(self), self.problem.towards_mean[:, None]
        own = {
            "values": self.summed(_wide(self.weights.shares) * self.arithmetic.point(towards), 0, self.depths.samples),
            **self.towards_scores(means.towards_scores, self.impossible, means),
        }
        return {MEAN: means.mean(), **{f"{MEAN}/{name}": value for name, value in own.items()}}

    def towards_scores(self, share: Rounded, impossible: Any, means: Means | None = None) -> Budgets:
        """What a function of the scores has as gradient in the call's arguments, given its derivative in every score.

        Args:
            means: the function, if it is a mean: of that more is known where components are summed over.
        """
        share = _absent(share, impossible)
        towards_x, towards_mu = self.point_terms(share, impossible)
        if means:
            fixed = _absent(means.fixed_towards_scores, impossible)
            one = self.arithmetic.point(~impossible)
            towards_x, slopes = (self.point_terms(each, impossible)[0] for each in (fixed, one))
        x = self.summed(towards_x, 1, self.depths.components)
        found = {
            "x": _moved(x, *means.spread(slopes)) if means else x,
            "mu": self.summed(towards_mu, 0, self.depths.samples),
            "log_weights": self.summed(share, 0, self.depths.samples),
        }
        for name in self.form.parameters:
            is_shared = not self.call.taken.parameters[name].low.ndim
            terms = self.parameter_terms(name, fixed if means and is_shared else share, impossible)
            total = self.over_features_exactly(self.summed(terms, 0, self.depths.samples))
            if is_shared:
                total = _exact_sum(total, -1)
            if means and is_shared:
                slopes = self.over_features_exactly(self.parameter_terms(name, one, impossible))
                total = _moved(total, *(end.sum() for end in means.spread(slopes)))
            found[name] = self.rounded_once(total)
        return self.call.given(found)

    def with_peak(self, scores: Rounded, top: Rounded, impossible: Any, wide: Loops) -> tuple[Rounded, Any, Any]:
        """The scores with the largest as it is when worked out again; where that is certain, and how far off it was.

        Scores that are equal to the largest take its place, too. Where it is far off, so may be what it is then.
        """
        exact, can_be_top = wide.scores, ~impossible & (scores.high >= top.low[:, None])
        off = np.where(can_be_top, np.maximum(exact.high - scores.low, scores.high - exact.low), 0).max(-1)
        is_exact = can_be_top & (can_be_top.sum(-1, keepdims=True) == 1) & (off <= CORRECTED)[:, None]
        least = np.where(can_be_top, exact.low, np.inf).min(-1, keepdims=True)
        most = np.where(can_be_top, exact.high, -np.inf).max(-1, keepdims=True)
        low = np.where(can_be_top, np.minimum(scores.low, least), scores.low)
        high = np.where(can_be_top, np.maximum(scores.high, most), scores.high)
        low, high = np.where(is_exact, exact.low, low), np.where(is_exact, exact.high, high)
        return Rounded(self.arithmetic, low, high), is_exact, off

    def log_partition(self, scores: Rounded, top: Rounded, impossible: Any, is_exact: Any, off: Any) -> Rounded:
        """log Σ exp(score); the last two as `with_peak` gives them, or None where no score is worked out again.

        The largest score is taken from all and added again, so what it errs cancels: terms are of exp(score) itself.
        """
        unit = self.arithmetic.fmt.unit_roundoff
        relative, floor, _ = self.arithmetic.rounding("fused_exp")
        reference = top.low[:, None]
        gap = np.maximum(np.maximum(top.high[:, None] - scores.low, scores.high - reference), 0)
        room = self.rescaling(gap) + relative + gap * unit
        least, most = np.exp(scores.low - reference), np.exp(scores.high - reference)
        flushed = floor * np.exp(top.high[:, None] - reference)
        if is_exact is not None:
            room, flushed = np.where(is_exact, 0, room), np.where(is_exact, 0, flushed)
        least, most = np.maximum(least * (1 - room) - flushed, 0), most * (1 + room)
        least, most = (np.where(impossible, 0, side) for side in (least, most))
        size = self.arithmetic.gamma(self.depths.exponentials) * most.sum(-1)
        least_log, most_log, reference = np.log(least.sum(-1) - size), np.log(most.sum(-1) + size), reference[:, 0]
        # The logarithm is taken of a sum between 1 and the number of components.
        largest = np.log(np.longdouble(scores.low.shape[-1]))
        size = largest + np.maximum(np.abs(least_log), np.abs(most_log))
        is_wide = is_exact is not None
        room = (size + np.abs(reference)) * WIDE_ROOM if is_wide else size * self.arithmetic.rounding("log")[0]
        low, high = reference + least_log - room, reference + most_log + room
        if is_wide:
            # Others are moved along by what is left of the largest score's error; that logarithm errs by less than 1.
            low = np.where(off > CORRECTED, top.low - off - 1, low)
            high = np.where(off > CORRECTED, top.high + largest + off + 1, high)
        of_all = self.call.taken.of_all
        return Rounded(self.arithmetic, *self.arithmetic.widen("add", low - of_all, high + of_all))

    def rescaling(self, gap: Any) -> Any:
        """What the factors exp(old top − new top) err together, relatively.

        Their exponents are rounded, too; all are of one sign, and add up to the whole gap to the largest score.
        """
        if not self.depths.rescalings:
            return np.zeros_like(gap)
        relative, _, _ = self.arithmetic.rounding("fused_exp")
        return (
            self.depths.rescalings * (relative + self.arithmetic.fmt.unit_roundoff)
            + gap * self.arithmetic.fmt.unit_roundoff
        )

    @cached_property
    def slope(self) -> Rounded:
        """ψ(u) of each feature, or what the form has as the slope of a pair."""
        module, parameters = self.subject.code.module, list(self.parameters.values())
        if self.form.shape == "features":
            return self.influence(parameters)
        if hasattr(module, "weight_of_square"):
            return run(module.weight_of_square, [*self.points, *parameters])
        (point,) = self.points
        pulled = gradients(run(self.form.function, [point, *parameters]), {"point": point})["point"]
        pulled = _at(pulled, point.low.shape)
        return pulled if self.form.shape == "dot" else pulled * 2.0

    @cached_property
    def parameter_slopes(self) -> Mapping[str, Rounded]:
        found = gradients(self.pairs, self.parameters)
        return {name: _at(found[name], self.pairs.low.shape) for name in self.parameters}

    def point_terms(self, share: Rounded, impossible: Any) -> tuple[Rounded, Rounded]:
        """What ∂/∂x and ∂/∂μ are the sums of, from the weight of each pair."""
        if self.form.shape == "features":
            terms = _wide(share) * self.slope
        elif self.form.shape == "dot":
            weight = _wide(_absent(share * self.slope, impossible))
            return -(weight * self.mu), -(weight * self.x)
        else:
            # Where a square is 0, the slope counts as 0, too.
            weight, square = share * self.slope, self.points[0]
            low = np.where(square.low <= 0, np.minimum(weight.low, 0), weight.low)
            high = np.where(square.low <= 0, np.maximum(weight.high, 0), weight.high)
            terms = _wide(_absent(Rounded(self.arithmetic, low, high), square.high <= 0)) * self.gap
        terms = _absent(terms, np.broadcast_to(impossible[..., None], terms.low.shape))
        return -terms, terms

    def influence(self, parameters: Sequence[Rounded]) -> Rounded:
        """ψ of each feature."""
        module = self.subject.code.module
        if not self.form.slope_in_square:
            return run(module.influence, [self.gap, *parameters])
        square = self.gap * self.gap
        weight = run(module.weight_of_square, [square, *parameters])
        return _absent(weight * self.gap, (square.low <= 0) & (square.high <= 0))

    def parameter_terms(self, name: str, share: Rounded, impossible: Any) -> Rounded:
        slope = self.parameter_slopes[name]
        if self.form.shape == "features":
            share, impossible = _wide(share), np.broadcast_to(impossible[..., None], slope.low.shape)
        return -_absent(share * slope, impossible)

    def over_features_exactly(self, terms: Rounded) -> Rounded:
        return _exact_sum(terms, -1) if self.form.shape == "features" else terms

    def rounded_once(self, total: Rounded) -> Rounded:
        return Rounded(self.arithmetic, *self.arithmetic.widen("add", total.low, total.high))

    def summed(self, terms: Rounded, axis: int, depth: int) -> Rounded:
        """Σ along an axis, where no term takes part in more than `depth` additions: off by γ_depth Σ|terms| at most."""
        gamma = self.arithmetic.gamma(min(depth, terms.low.shape[axis]))
        size = np.maximum(np.abs(terms.low), np.abs(terms.high)).sum(axis) * gamma
        return Rounded(self.arithmetic, terms.low.sum(axis) - size, terms.high.sum(axis) + size)


def _at(value: Rounded, shape: tuple[int, ...]) -> Rounded:
    low, high = value.ends(shape)
    return Rounded(value.arithmetic, low, high, value.parents)


def _part(value: Rounded, features: int | slice) -> Rounded:
    return Rounded(value.arithmetic, value.low[..., features], value.high[..., features])


def _moved(value: Rounded, less: Any, more: Any) -> Rounded:
    return Rounded(value.arithmetic, value.low + less, value.high + more)


def _wide(value: Rounded) -> Rounded:
    return Rounded(value.arithmetic, value.low[..., None], value.high[..., None])


def _absent(value: Rounded, where: Any) -> Rounded:
    """0 where a term is absent."""
    return Rounded(value.arithmetic, np.where(where, 0, value.low), np.where(where, 0, value.high))


def _exact_sum(value: Rounded, axis: int) -> Rounded:
    """In float64, whose rounding is far below the format's, or its own."""
    room = (
        np.maximum(np.abs(value.low), np.abs(value.high)).sum(axis) * value.low.shape[axis] * np.finfo(np.float64).eps
    )
    return Rounded(value.arithmetic, value.low.sum(axis) - room, value.high.sum(axis) + room)

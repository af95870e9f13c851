"""From a trace to a list that a reader can use: one row per meaningful operation, with its role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch

from verify.audit.gradients import Em, Evidence, at_pair, at_region
from verify.audit.interfaces import Experiments, Region, batch_dims, regions
from verify.audit.operations import HALF_DIGITS, Behaviour, Kind, behaviour, deactivate, replay
from verify.audit.trace import LOSS, Call, Trace, Value

Role = Literal[
    "affine",
    "competition",
    "posterior_summary",
    "independent_nonlinearity",
    "hard_gate",
    "unnormalized",
    "loss",
    "other",
]
ROLES: tuple[Role, ...] = get_args(Role)
CONDITIONS = ("discrete", "energy", "exponentiated", "normalized", "log_sum_exp")

_ROLE_OF: Mapping[Kind, Role] = {
    "smooth": "independent_nonlinearity",
    "gate": "hard_gate",
    "selection": "hard_gate",
    "decision": "hard_gate",
    "exponential": "unnormalized",
}
_FOLDED: tuple[Kind, ...] = ("move", "affine")
_SUMMARY_REACH = 4  # operations between a product with responsibilities and the sum over hypotheses


@dataclass(frozen=True)
class Operation:
    """One row of the audit.

    Attributes:
        name: the qualified name of the module, or of the one whose parameter it uses.
        op: the ATen operations, in order.
        shape: of the tensor that `dim` counts in: the scores of a competition; else of the output.
        dim: the hypotheses' dimension, from the right; None where no axis counts hypotheses.
        conditions: which of the five the operation meets, by name.
        sources: the rows that feed it; −1 is the input.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    role: Role
    dim: int | None = None
    conditions: Mapping[str, bool] = field(default_factory=lambda: _conditions())
    em: Em = "none"
    evidence: Evidence = field(default_factory=lambda: Evidence("none"))
    twins: float | None = None
    calls: tuple[Call, ...] = ()
    sources: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        evidence = {
            "max_error": self.evidence.max_error,
            "ulps": self.evidence.ulps,
            "sum_error": self.evidence.sum_error,
            "bound": self.evidence.bound,
            "twins": self.twins,
            "note": self.evidence.note,
        }
        return {
            "name": self.name,
            "op": self.op,
            "shape": list(self.shape),
            "role": self.role,
            "dim": self.dim,
            "conditions": dict(self.conditions),
            "em": self.em,
            "evidence": evidence,
            "sources": list(self.sources),
        }


def rows(base: Trace, experiments: Experiments, seed: int) -> tuple[list[Operation], int]:
    """The rows in the order of execution, and the number of operations that they leave out."""
    assert base.loss is not None
    deactivate(base.calls, seed)
    calls = _leading_to(base.loss)
    seen = {call: behaviour(call, seed) for call in calls}
    found = regions(base, [call for call in calls if seen[call].kind != "move"], experiments)
    examples = batch_dims(experiments.runner, base)
    assembly = _Assembly(base, experiments, calls, seen, found, examples)
    return assembly.rows(), len(calls) - len(assembly.owner)


def _leading_to(loss: Value) -> list[Call]:
    """The operations on data or parameters that the loss depends on, in order."""
    found: dict[int, Call] = {}
    pending = [loss]
    while pending:
        call = pending.pop().producer
        if call is not None and call.number not in found:
            found[call.number] = call
            pending += call.active_inputs
    return [found[number] for number in sorted(found)]


def _conditions(*held: str) -> dict[str, bool]:
    return {name: name in held for name in CONDITIONS}


class _Assembly:
    """Gives every operation that matters to one row."""

    def __init__(
        self,
        base: Trace,
        experiments: Experiments,
        calls: Sequence[Call],
        seen: Mapping[Call, Behaviour],
        found: Sequence[Region],
        examples: Mapping[Value, set[int]],
    ) -> None:
        self.base, self.experiments, self.calls, self.seen = base, experiments, calls, seen
        self.regions, self.examples = found, examples
        self.within = {call: region for region in found for call in region.calls}
        self.consumers: dict[Value, list[Call]] = {}
        for call in calls:
            for value in call.inputs:
                self.consumers.setdefault(value, []).append(call)
        self.owner: dict[Call, Operation] = {}
        # Detached numbers, such as the shift inside of a stable log-sum-exp, are constants to the loss.
        self.learning = {
            call
            for call in calls
            if any(output.edge is not None for output in call.outputs) or base.loss in call.outputs
        }

    def rows(self) -> list[Operation]:
        made: list[Operation] = []

        def add(row: Operation) -> None:
            made.append(row)
            self.owner.update(dict.fromkeys(row.calls, row))

        loss_calls, loss_regions, tail = self._loss()
        for region in self.regions:
            if region.form != "posterior" and region in loss_regions:
                add(self._region_row(region, "loss", tail))
            else:
                add(self._region_row(region, "competition" if region.form != "log_sum" else "other", ()))
        for region in self.regions:
            for chain in self._summaries(region) if region.form == "posterior" else ():
                if not any(call in self.owner for call in chain):
                    add(self._summary_row(region, chain))
        if loss_calls:
            add(self._loss_row(loss_calls))
        for call in self.calls:
            if call not in self.owner:
                row = self._single(call)
                if row is not None:
                    add(row)
        made.sort(key=lambda row: max(call.number for call in row.calls))
        places = {id(row): place for place, row in enumerate(made)}
        return [replace(row, sources=self._sources(row, places)) for row in made]

    def _region_row(self, region: Region, role: Role, tail: Sequence[Call]) -> Operation:
        evidence = at_region(region, self.base, self.experiments)
        held = (
            {"discrete", "energy", "exponentiated", "normalized"}
            if region.sign
            else {"discrete", "energy", "normalized"}
        )
        if self.examples.get(region.scores) == {region.dim}:
            # The alternatives are other examples: nothing competes for a point.
            held.discard("discrete")
            evidence = replace(evidence, em="none", note=f"dim {region.dim} counts the batch's examples")
        if evidence.em == "exact":
            held.add("log_sum_exp")
        calls = tuple(sorted(region.calls, key=lambda call: call.number))
        last = [call for call in tail if self._sums_up(call) == {region}]
        return Operation(
            _name(calls[-1]),
            self._names([*calls, *last]),
            tuple(region.scores.tensor.shape),
            role,
            region.dim,
            _conditions(*held),
            evidence.em,
            evidence,
            calls=(*calls, *(call for call in last if call not in self.owner)),
        )

    def _names(self, calls: Sequence[Call]) -> str:
        """The operations by name, once each, without views and copies."""
        bare = [call for call in calls if self.seen[call].kind != "move" and call in self.learning] or calls
        return "·".join(dict.fromkeys(call.name for call in bare))

    def _sums_up(self, call: Call) -> set[Region | Call]:
        """The regions, and the single operations that bend, whose results a sum or a scaling in the loss takes up."""
        found: set[Region | Call] = set()
        pending = [value.producer for value in call.active_inputs]
        while pending:
            maker = pending.pop()
            if maker is None:
                continue
            if maker in self.within or self.seen[maker].kind not in _FOLDED:
                found.add(self.within.get(maker, maker))
            else:
                pending += [value.producer for value in maker.active_inputs]
        return found

    def _loss(self) -> tuple[list[Call], list[Region], list[Call]]:
        """Walks up from the loss: what bends there, the log-sum-exps that are reached, and what sums them up."""
        assert self.base.loss is not None
        bends: dict[Call, None] = {}
        reached: dict[Region, None] = {}
        tail: dict[Call, None] = {}
        pending, visited = [(self.base.loss, True)], set()
        while pending:
            value, last = pending.pop()
            call = value.producer
            if call is None or call not in self.learning or (call, last) in visited:
                continue
            visited.add((call, last))
            region = self.within.get(call)
            if region is not None:
                if region.form != "posterior":
                    reached[region] = None
                continue
            if call.declared or self._is_affine_layer(call):
                continue
            if self.seen[call].kind not in _FOLDED:
                if not last and call.module != LOSS:
                    continue
                bends[call] = None
                last = False
            elif self.seen[call].kind == "affine" and call.module == LOSS:
                tail[call] = None
            pending += [(each, last) for each in call.active_inputs]
        order = sorted(tail, key=lambda call: call.number)
        return sorted(bends, key=lambda call: call.number), list(reached), order

    def _loss_row(self, calls: Sequence[Call]) -> Operation:
        """What is left of the loss: a mean square, or the logarithm of a posterior; or terms beside a log-sum-exp."""
        evidence, shape = Evidence("none"), calls[0].outputs[0].tensor.shape
        for value in dict.fromkeys(
            value for call in calls for value in call.inputs if value.from_data and value.floating
        ):
            found = at_pair(value, self.experiments)
            if found is not None:
                evidence, shape = found, value.tensor.shape
                break
        held = CONDITIONS if evidence.em == "exact" else ()
        return Operation(
            LOSS,
            self._names(calls),
            tuple(shape),
            "loss",
            None,
            _conditions(*held),
            evidence.em,
            evidence,
            calls=tuple(calls),
        )

    def _is_affine_layer(self, call: Call) -> bool:
        """Affine in what comes from data, with a parameter in it; a table that data look up is one too."""
        data = any(value.from_data for value in call.inputs)
        own = any(value.from_parameters and not value.from_data for value in call.inputs)
        seen = self.seen[call]
        return data and own and seen.kind in _FOLDED and not seen.additive and call.operation is not None

    def _summaries(self, region: Region) -> Iterable[list[Call]]:
        """Where responsibilities weigh values, and the sum over hypotheses is taken."""
        carriers, pending = {region.output}, [region.output]
        while pending:
            value = pending.pop()
            for call in self.consumers.get(value, ()):
                others = [v for v in call.inputs if v.floating and v.active and v not in carriers]
                if call in self.within or call.operation is None:
                    continue
                if not others and self.seen[call].kind in _FOLDED:
                    fresh = [output for output in call.outputs if output not in carriers]
                    carriers.update(fresh)
                    pending += fresh
                elif len(others) == 1 and self.seen[call].kind in ("bilinear", "affine"):
                    chain = self._contraction(value, others[0], call)
                    if chain:
                        yield chain

    def _contraction(self, weights: Value, values: Value, call: Call) -> list[Call] | None:
        """The operations from a product to the sum over hypotheses: with all values 1, it leaves Σ_j w_j.

        Of weights drawn afresh, so that sums along other dimensions differ.
        """
        generator = torch.Generator().manual_seed(call.number)
        drawn = torch.rand(weights.tensor.shape, generator=generator, dtype=torch.float64)
        ones = torch.ones(values.tensor.shape, dtype=torch.float64)
        if bool(replay([call], {weights: 0 * drawn, values: ones})[call.outputs[0]].any()):
            return None  # a sum, not a product
        chain = [call]
        while len(chain) <= _SUMMARY_REACH:
            left = replay(chain, {weights: drawn, values: ones})[chain[-1].outputs[0]].flatten()
            for dim in range(drawn.ndim):
                sums = drawn.sum(dim).flatten()
                if (
                    drawn.shape[dim] > 1
                    and left.numel() % sums.numel() == 0
                    and bool(((left[:, None] - sums).abs().amin(1) <= HALF_DIGITS * drawn.shape[dim]).all())
                ):
                    return chain
            followers = self.consumers.get(chain[-1].outputs[0], [])
            if (
                len(followers) != 1
                or self.seen[followers[0]].kind not in _FOLDED
                or self._is_affine_layer(followers[0])
            ):
                return None
            chain.append(followers[0])
        return None

    def _summary_row(self, region: Region, chain: Sequence[Call]) -> Operation:
        said = next(row.name for call, row in self.owner.items() if call in region.calls)
        shape = tuple(region.output.tensor.shape)
        evidence = Evidence("none", note=f"Σ r·v, r from {said}")
        calls = tuple(call for call in chain)
        return Operation(
            _name(calls[0]), self._names(calls), shape, "posterior_summary", region.dim, evidence=evidence, calls=calls
        )

    def _single(self, call: Call) -> Operation | None:
        shape = tuple(call.outputs[0].tensor.shape) if call.outputs else ()
        seen = self.seen[call]
        if call.declared:
            note = "declared by audit_role, not measured"
            return Operation(
                _name(call), call.name, shape, _role(call.declared), evidence=Evidence("none", note=note), calls=(call,)
            )
        if self._is_affine_layer(call):
            return Operation(_name(call), call.name, shape, "affine", calls=(call,))
        moved = seen.kind in _FOLDED or call not in self.learning
        if moved or not any(value.from_data for value in call.inputs):
            return None
        role = _ROLE_OF.get(seen.kind, "other")
        evidence = Evidence("none", note=seen.note)
        held: Sequence[str] = ("energy", "exponentiated") if role == "unnormalized" else ()
        if role == "independent_nonlinearity":
            (value,) = (value for value in call.inputs if value.from_data and value.floating)
            found = at_pair(value, self.experiments)
            if found is not None:
                evidence, held = found, CONDITIONS
        return Operation(
            _name(call), call.name, shape, role, None, _conditions(*held), evidence.em, evidence, calls=(call,)
        )

    def _sources(self, row: Operation, places: Mapping[int, int]) -> tuple[int, ...]:
        """The earlier rows, or the input, that feed a row, through all that is left out."""
        found, visited = set(), set()
        pending = [value for call in row.calls for value in call.active_inputs]
        while pending:
            value = pending.pop()
            if value in visited:
                continue
            visited.add(value)
            call = value.producer
            feeding = self.owner.get(call) if call is not None else None
            if call is None:
                found |= {-1} if value.from_data else set()
            elif feeding is None or id(feeding) == id(self.owner[row.calls[0]]):
                pending += call.active_inputs if feeding is None else []
            else:
                found.add(places[id(feeding)])
        return tuple(sorted(place for place in found if place < places[id(row)]))


def _role(name: str) -> Role:
    return next(role for role in ROLES if role == name)


def _name(call: Call) -> str:
    """The module's qualified name; that of the parameter's owner where an operation uses one directly."""
    for value in call.inputs:
        leaf = leaf_of(value)
        if leaf and value.tensor.ndim > 1:
            return leaf.rpartition(".")[0] or call.module or leaf
    return call.module or "model"


def leaf_of(value: Value) -> str | None:
    """The parameter that a value is, or is a transpose or a view of."""
    while value.from_parameters and not value.from_data:
        if value.leaf:
            return value.leaf
        if value.producer is None or len(value.producer.active_inputs) != 1:
            return None
        (value,) = value.producer.active_inputs
    return None

"""Programs as Triton functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from implicit_em.fused.program import Operand, Program, Statement, is_constant, names_known

# `libdevice` is CUDA's library on a GPU; where Triton's interpreter runs, the template puts NumPy in its place.
# DTYPE and WHOLE are the template's.
_TEXT: Mapping[str, str] = {
    "abs": "tl.abs({0})",
    "add": "{0} + {1}",
    "asinh": "libdevice.asinh({0})",
    "cosh": "libdevice.cosh({0})",
    "div": "{0} / {1}",
    "eq": "{0} == {1}",
    "erf": "tl.erf({0})",
    "exp": "tl.exp({0})",
    "expm1": "libdevice.expm1({0})",
    "ge": "{0} >= {1}",
    "gt": "{0} > {1}",
    "hypot": "libdevice.hypot({0}, {1})",
    "isinf": 'tl.abs({0}) == float("inf")',
    "le": "{0} <= {1}",
    "log": "tl.log({0})",
    "log1p": "libdevice.log1p({0})",
    "logical_and": "{0} & {1}",
    "logical_not": "{0} == 0",
    "logical_or": "{0} | {1}",
    "lt": "{0} < {1}",
    "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "mul": "{0} * {1}",
    "ne": "{0} != {1}",
    "neg": "-{0}",
    "pow": "libdevice.pow({0}, {1})",
    "reciprocal": "1.0 / {0}",
    "rsqrt": "tl.rsqrt({0})",
    "sigmoid": "1.0 / (1.0 + tl.exp(-{0}))",
    "sign": "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0)).to(DTYPE)",
    "sinh": "libdevice.sinh({0})",
    "sqrt": "square_root({0})",
    "sub": "{0} - {1}",
    "tanh": "libdevice.tanh({0})",
    "where": "tl.where({0}, {1}, {2})",
}
# Those whose results are rounded.
FUNCTIONS: Mapping[str, str] = {
    name: _TEXT[name]
    for name in (
        "add", "sub", "mul", "div", "hypot", "reciprocal", "sqrt", "exp", "expm1", "log", "log1p", "tanh", "sinh",
        "asinh", "cosh", "sigmoid", "erf",
    )
}  # fmt: skip
# A division by what is the same for many pairs: one reciprocal for all of them. Costs a rounding, and saves ten steps.
_BY_A_FIXED_DIVISOR = "{0} * reciprocal({1})"


def statements(program: Program, fixed: Collection[str] = ()) -> list[str]:
    """The program's lines; its arguments are names in scope, of which `fixed` do not vary over pairs."""
    known, lines = set(fixed), []
    for each in program.statements:
        constant = [is_constant(value, known) for value in each.operands]
        text = _TEXT[each.operation]
        if all(constant):
            known.add(each.target)
        elif each.operation == "div" and constant[1]:
            text = _BY_A_FIXED_DIVISOR
        lines.append(f"{each.target} = {text.format(*map(operand, each.operands))}")
    return lines


def operand(value: Operand) -> str:
    """A name, or a number in the format's own precision."""
    if isinstance(value, str):
        return value
    number = repr(value)
    return f"tl.full((), {number if value - value == 0 else f'float({number!r})'}, DTYPE)"


def scaled(program: Program, fixed: Collection[str]) -> tuple[Program, Program]:
    """A program as one of all of its arguments and, of that one's result, a product with fixed factors.

    Σ_i f(u_i)/b is (Σ_i f(u_i))/b: factors that are the same for all of a sum are left to its end. `fixed` are the
    arguments that are. The second program's first argument is the sum.
    """
    known = names_known(program, fixed)
    made = {each.target: each for each in program.statements}
    (result,), factors = program.results, list[Statement]()
    while (last := made.get(str(result))) is not None and last.operation in ("mul", "div"):
        varying = [value for value in last.operands if not is_constant(value, known)]
        if len(varying) != 1 or (last.operation == "div" and varying[0] != last.operands[0]):
            break
        factors.insert(0, last)
        (result,) = varying
    if not factors:
        return program, Program(("total", *fixed), (), ("total",))
    early = tuple(each for each in program.statements if each.target in known)
    renamed = {result: "total"}
    late = tuple(
        Statement(each.target, each.operation, tuple(renamed.get(value, value) for value in each.operands))
        for each in factors
    )
    start = tuple(each for each in program.statements if each not in factors)
    return (
        Program(program.arguments, start, (result,)),
        Program(("total", *fixed), (*early, *late), program.results),
    )

"""Programs as C++ functions of PyTorch's own vectors, `at::vec::Vectorized`."""

from __future__ import annotations

from collections.abc import Mapping

from implicit_em.fused.program import Operand, Program

# The vector functions are those that eager torch and Inductor use, from SLEEF, but for `log_one_plus` of `vectors.cpp`.
_TEXT: Mapping[str, str] = {
    "abs": "{0}.abs()",
    "add": "{0} + {1}",
    "asinh": "{0}.asinh()",
    "cosh": "{0}.cosh()",
    "div": "{0} / {1}",
    "eq": "{0} == {1}",
    "erf": "{0}.erf()",
    "exp": "{0}.exp()",
    "expm1": "{0}.expm1()",
    "ge": "{0} >= {1}",
    "gt": "{0} > {1}",
    "hypot": "{0}.hypot({1})",
    "isinf": "{0}.abs() == V(std::numeric_limits<T>::infinity())",
    "le": "{0} <= {1}",
    "log": "{0}.log()",
    "log1p": "log_one_plus({0})",
    "logical_and": "{0} & {1}",
    "logical_not": "{0} == V(0)",
    "logical_or": "{0} | {1}",
    "lt": "{0} < {1}",
    "maximum": "at::vec::maximum({0}, {1})",
    "minimum": "at::vec::minimum({0}, {1})",
    "mul": "{0} * {1}",
    "ne": "{0} != {1}",
    "neg": "{0}.neg()",
    "pow": "{0}.pow({1})",
    "reciprocal": "V(1) / {0}",
    "rsqrt": "V(1) / {0}.sqrt()",
    "sigmoid": "V(1) / (V(1) + {0}.neg().exp())",
    "sign": "V::blendv(V::blendv(V(0), V(1), {0} > V(0)), V(-1), {0} < V(0))",
    "sinh": "{0}.sinh()",
    "sqrt": "{0}.sqrt()",
    "sub": "{0} - {1}",
    "tanh": "{0}.tanh()",
    "where": "V::blendv({2}, {1}, {0})",
}


def statements(program: Program) -> list[str]:
    """The program's lines; its arguments are names in scope."""
    return [
        f"const V {statement.target} = {_TEXT[statement.operation].format(*map(operand, statement.operands))};"
        for statement in program.statements
    ]


def operand(value: Operand) -> str:
    """A name, or a number in the format's own precision."""
    return value if isinstance(value, str) else f"V(T({value!r}))".replace("inf", "std::numeric_limits<T>::infinity()")

"""Printers: programs as torch source, expressions as LaTeX and as text. Closed lists; unknown nodes raise."""

from __future__ import annotations

from typing import Any

from sympy import Basic, Expr, Symbol
from sympy.printing.latex import LatexPrinter
from sympy.printing.str import StrPrinter

from derivations.parameter import KernelError
from derivations.program import Operand, Operation, Program

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "logical_and": "&",
    "logical_or": "|",
}
_CALLS = {
    "abs": "torch.abs",
    "sign": "torch.sign",
    "exp": "torch.exp",
    "expm1": "torch.expm1",
    "log": "torch.log",
    "log1p": "torch.log1p",
    "tanh": "torch.tanh",
    "sinh": "torch.sinh",
    "cosh": "torch.cosh",
    "asinh": "torch.asinh",
    "erf": "torch.erf",
    "lgamma": "torch.lgamma",
    "hypot": "torch.hypot",
    "sqrt": "torch.sqrt",
    "sigmoid": "torch.sigmoid",
    "scaled_k1": "scaled_k1",
    "saturated": "saturated",
    "bounded": "bounded",
    "tanh_ratio": "tanh_ratio",
    "dominated_difference": "dominated_difference",
}


def torch_source(name: str, program: Program, doc: str) -> str:
    """One torch function. Every argument is a tensor; all have one dtype and broadcast together."""
    signature = ", ".join(f"{argument}: Tensor" for argument in program.arguments)
    lines = [f"def {name}({signature}) -> Tensor:", f'    """{doc}"""']
    lines += [f"    {operation.target} = {torch_expression(operation, program)}" for operation in program.operations]
    used = {operand.text for operation in program.operations for operand in operation.operands} | {program.result.text}
    result = program.result.text
    if program.result.is_constant:
        result = f"torch.full_like({program.arguments[0]}, {result})"
    unused = [argument for argument in program.arguments if argument not in used]
    if unused:
        # A function that is constant in an argument still has that argument's shape.
        result = " + ".join([result, *(f"torch.zeros_like({argument})" for argument in unused)])
    return "\n".join([*lines, f"    return {result}"])


def torch_expression(operation: Operation, program: Program) -> str:
    """The right-hand side of one operation."""
    texts = [operand.text for operand in operation.operands]
    if operation.primitive in _INFIX:
        left, right = texts
        return f"{left} {_INFIX[operation.primitive]} {right}"
    if operation.primitive == "neg":
        return f"-{texts[0]}"
    if operation.primitive in ("maximum", "minimum"):
        bound = "min" if operation.primitive == "maximum" else "max"
        if operation.operands[1].is_constant:
            return f"torch.clamp({texts[0]}, {bound}={texts[1]})"
        return f"torch.{operation.primitive}({', '.join(_tensor(o, program) for o in operation.operands)})"
    if operation.primitive == "where":
        condition, yes, no = operation.operands
        if yes.is_constant and no.is_constant:
            return f"torch.where({condition.text}, {_tensor(yes, program)}, {_tensor(no, program)})"
        return f"torch.where({', '.join(texts)})"
    if operation.primitive in _CALLS:
        return f"{_CALLS[operation.primitive]}({', '.join(_tensor(o, program) for o in operation.operands)})"
    raise KernelError(f"torch printer: the primitive {operation.primitive} is not on the whitelist")


def _tensor(operand: Operand, program: Program) -> str:
    """A constant as a tensor of the arguments' dtype, where torch takes no Python number."""
    return f"torch.full_like({program.arguments[0]}, {operand.text})" if operand.is_constant else operand.text


class _Text(StrPrinter):  # type: ignore[misc]
    """As in a text book, on one line."""

    _names = {"logcosh": "log cosh", "log1p_square": "log1p_square"}  # noqa: RUF012

    def _print_Abs(self, expr: Basic) -> str:
        return f"|{self._print(expr.args[0])}|"


class _Latex(LatexPrinter):  # type: ignore[misc]
    """SymPy's LaTeX, with the field's notation for the atoms."""

    def _call(self, name: str, expr: Basic, exponent: str | None = None) -> str:
        arguments = ", ".join(self._print(argument) for argument in expr.args)
        call = rf"\operatorname{{{name}}}\left({arguments}\right)"
        return call if exponent is None else rf"{call}^{{{exponent}}}"

    def _print_sigmoid(self, expr: Basic, exp: str | None = None) -> str:
        call = rf"\sigma\left({self._print(expr.args[0])}\right)"
        return call if exp is None else rf"{call}^{{{exp}}}"

    def _print_ratio(self, expr: Basic, exp: str | None = None) -> str:
        call = rf"\frac{{{self._print(expr.args[0])}}}{{{self._print(expr.args[1])}}}"
        return call if exp is None else rf"\left({call}\right)^{{{exp}}}"

    def _print_product(self, expr: Basic, exp: str | None = None) -> str:
        call = rf"\left({self._print(expr.args[0])}\right) \left({self._print(expr.args[1])}\right)"
        return call if exp is None else rf"\left({call}\right)^{{{exp}}}"

    def _print_exp_times(self, expr: Basic, exp: str | None = None) -> str:
        call = rf"e^{{{self._print(expr.args[0])}}} \left({self._print(expr.args[1])}\right)"
        return call if exp is None else rf"\left({call}\right)^{{{exp}}}"

    def _print_minus(self, expr: Basic, exp: str | None = None) -> str:
        call = rf"\left({self._print(expr.args[0])} - {self._print(expr.args[1])}\right)"
        return call if exp is None else rf"{call}^{{{exp}}}"

    _print_dominated_difference = _print_minus


def _plain_call(name: str) -> Any:
    return lambda self, expr, exp=None: self._call(name, expr, exp)


for _atom, _shown in {
    "softplus": "softplus",
    "logcosh": r"log\,cosh",
    "logcosh_absolute": r"log\,cosh",
    "sech2": r"sech^{2}",
    "sech2_times": r"sech2\_times",
    "scaled_logcosh": r"scaled\_logcosh",
    "logcosh_difference": r"logcosh\_difference",
    "tanh_difference": r"tanh\_difference",
    "tanh_ratio": r"tanh\_ratio",
    "clip": "clip",
    "log1p_square": "log1p\\_square",
    "log1p": "log1p",
    "expm1": "expm1",
    "hypot": "hypot",
    "saturated": "saturated",
    "bounded": "bounded",
    "scaled_k1": "scaled\\_k1",
}.items():
    setattr(_Latex, f"_print_{_atom}", _plain_call(_shown))


def latex(expr: Any) -> str:
    """LaTeX of an expression or relation, natural logarithm written log."""
    return str(_Latex({"ln_notation": False, "fold_short_frac": False, "symbol_names": _SYMBOLS}).doprint(expr))


def text(expr: Any) -> str:
    """One line of text."""
    return str(_Text().doprint(expr))


_SYMBOLS = {Symbol("log_det", real=True): r"\log|\Sigma|", Symbol("log_prior", real=True): r"\log\pi_k"}


def describe(expr: Expr, limit: int = 96) -> str:
    """The text of an expression, or its beginning where it is long."""
    line = text(expr)
    return line if len(line) <= limit else line[: limit - 1] + "…"

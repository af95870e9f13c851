"""The plain formula as KeOps takes it: SymPy's expression, operation by operation, on its LazyTensors."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from operator import add, mul
from pathlib import Path
from typing import Any

import torch
from sympy import Abs, Basic, Expr, Ge, Gt, Le, Lt, Piecewise, S, Symbol, cosh, exp, log, sign, sinh, tanh
from torch import Tensor

from verify.bench.formula import formula_of
from verify.bench.problems import Problem
from verify.primitives import cache_directory

Lazy = Any  # a LazyTensor, or a number where the expression is one


class NoLazyForm(LookupError):
    """The expression holds a function that KeOps does not have; the message names it."""


def is_installed() -> bool:
    return importlib.util.find_spec("pykeops") is not None


def lazy(problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, μ) ↦ log Σ_k π_k exp(−d(x_n, μ_k)) by KeOps.

    Raises:
        NoLazyForm: KeOps has no such formula.
    """
    with _settings():
        from pykeops.torch import LazyTensor

    formula = formula_of(problem)
    energy = _compiled(formula.energy)

    def log_partition(x: Tensor, mu: Tensor) -> Tensor:
        x, mu = formula.reduced(x, problem), formula.reduced(mu, problem)
        samples, components = LazyTensor(x[:, None]), LazyTensor(mu[None])
        if formula.shape == "dot":
            energies = energy((samples * components).sum(-1))
        elif formula.shape == "square":
            energies = energy(((samples - components) ** 2).sum(-1))
        else:
            energies = energy(samples - components).sum(-1)
        log_weights = LazyTensor(torch.log_softmax(problem.mixing_logits, -1)[None, :, None])
        result: Tensor = (log_weights - energies).logsumexp(dim=1)
        return result.squeeze(-1)

    return log_partition


def flags() -> str:
    """What KeOps' code is compiled with besides its own choice: the user's CXXFLAGS."""
    return os.environ.get("CXXFLAGS", "")


@contextmanager
def _settings() -> Iterator[None]:
    """KeOps reads the environment once, when it is imported; what the user has set stays."""
    # Its cache does not tell flags apart.
    folder = cache_directory() / "keops" / hashlib.sha256(flags().encode()).hexdigest()[:8]
    _drop_unfinished(folder)
    wanted = {
        "KEOPS_VERBOSE": "0",
        "PYKEOPS_VERBOSE": "0",
        "CXXFLAGS": flags(),
        "KEOPS_CACHE_FOLDER": str(folder),
    }
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _drop_unfinished(folder: Path) -> None:
    """An interrupted compiler leaves an empty library behind, which KeOps would load."""
    for library in folder.rglob("*.so"):
        if library.stat().st_size == 0:
            library.unlink()


_METHODS: Mapping[type[Basic], str] = {exp: "exp", log: "log", Abs: "abs", sign: "sign"}
_BY_EXP = (tanh, sinh, cosh)


def _compiled(expr: Expr) -> Callable[[Lazy], Lazy]:
    """The expression as a function of a LazyTensor; NoLazyForm before anything runs."""
    if isinstance(expr, Symbol):
        return lambda pair: pair
    if expr.is_number:
        value = float(expr)
        return lambda pair: value
    if isinstance(expr, _BY_EXP):
        return _compiled(expr.rewrite(exp))
    if isinstance(expr, Piecewise):
        return _cases(expr)
    if expr.is_Pow:
        return _power(_compiled(expr.base), expr.exp)
    arguments = [_compiled(argument) for argument in expr.args]
    if expr.is_Add or expr.is_Mul:
        step = add if expr.is_Add else mul
        return lambda pair: reduce(step, (argument(pair) for argument in arguments))
    if type(expr) not in _METHODS:
        raise NoLazyForm(f"KeOps has no {type(expr).__name__}")
    method, (argument,) = _METHODS[type(expr)], arguments
    return lambda pair: getattr(argument(pair), method)()


def _power(base: Callable[[Lazy], Lazy], exponent: Expr) -> Callable[[Lazy], Lazy]:
    if not exponent.is_number:
        raise NoLazyForm("KeOps has no power with an exponent that varies")
    if exponent == S.Half:
        return lambda pair: base(pair).sqrt()
    if exponent == -1:
        return lambda pair: 1 / base(pair)
    power = int(exponent) if exponent.is_Integer else float(exponent)
    return lambda pair: base(pair) ** power


def _cases(expr: Piecewise) -> Callable[[Lazy], Lazy]:
    *cases, (last, _) = expr.args
    result = _compiled(last)
    for value, condition in reversed(cases):
        result = _case(_compiled(value), condition, result)
    return result


def _case(value: Callable[[Lazy], Lazy], condition: Basic, otherwise: Callable[[Lazy], Lazy]) -> Callable[[Lazy], Lazy]:
    """KeOps' only condition is ≥ 0: a strict one is the other way round, with its cases exchanged."""
    if not isinstance(condition, Ge | Gt | Le | Lt):
        raise NoLazyForm(f"KeOps has no case {condition}")
    gap = condition.lhs - condition.rhs
    known = _compiled(gap if isinstance(condition, Ge | Lt) else -gap)
    if isinstance(condition, Ge | Le):
        return lambda pair: known(pair).ifelse(value(pair), otherwise(pair))
    return lambda pair: known(pair).ifelse(otherwise(pair), value(pair))

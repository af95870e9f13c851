"""The bench: rivals compute the same, errors are seen, what is not run says why, and what was finished is kept."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sympy import Max, Piecewise, Symbol, erf, lambdify, tanh
from torch import Tensor

import verify.bench.command as command
import verify.bench.lazy as lazy_module
from implicit_em.fused.form import form_of
from verify.bench import bench, bench_table, write_plot
from verify.bench.formula import formula_of, plain
from verify.bench.lazy import NoLazyForm
from verify.bench.memory import _on_cpu, peak
from verify.bench.passes import run_of
from verify.bench.problems import Case, Size, cases, problem
from verify.bench.results import Bench, Row
from verify.bench.rivals import FUSED, RIVALS, Function, NotRun, functions_of, fused
from verify.bench.roofline import Peaks, Work, work_of
from verify.bench.room import bounded, resident
from verify.bench.timing import interleaved, ratio
from verify.bench.truth import Error, Errors, truth_of
from verify.cli import HELD, INTERRUPTED, WRONG, main

SMALL = Size(33, 5, 3)
EVERY = cases((), (), (SMALL,), dtype="float32", device="cpu", seed=0)
GAUSSIAN = Case("gaussian", "radial", SMALL)


def named(case: Case) -> str:
    return f"{case.spec}-{case.lift}"


@pytest.fixture
def without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the rivals that compile for seconds."""
    monkeypatch.delitem(RIVALS, "torch.compile")  # type: ignore[arg-type]
    monkeypatch.delitem(RIVALS, "KeOps")  # type: ignore[arg-type]


@pytest.mark.parametrize("case", EVERY, ids=named)
def test_the_plain_formula_and_the_fused_path_agree(case: Case) -> None:
    """To two thirds of the digits: both are right, so neither can be wrong in the same way."""
    given = problem(case)
    for one, other in zip(*(run_of("gradient", make(given), given)() for make in (fused, plain)), strict=True):
        size = other.abs().amax(-1, keepdim=True).clamp(min=1)
        assert ((one - other).abs() <= torch.finfo(other.dtype).eps ** (2 / 3) * size).all()


@pytest.mark.parametrize("case", [case for case in EVERY if case.lift != "sum"], ids=named)
def test_a_product_in_the_place_of_differences_is_the_same_formula(case: Case) -> None:
    given = problem(case)
    one, other = (plain(given, by_product)(given.x, given.mu) for by_product in (False, True))
    assert ((one - other).abs() <= torch.finfo(other.dtype).eps ** (2 / 3) * other.abs().clamp(min=1)).all()
    assert torch.equal(one, other) == (formula_of(given).shape != "square")


def test_the_gradient_in_mu_is_that_of_both() -> None:
    given = problem(GAUSSIAN)
    both, alone = (run_of(name, plain(given), given)() for name in ("gradient", "mu"))
    assert all(torch.equal(a, b) for a, b in zip((both[0], both[2]), alone, strict=True))


def test_every_lift_of_every_kernel_but_the_learned_is_timed() -> None:
    names = {named(case) for case in EVERY}
    assert {"gaussian-radial", "gaussian-sum", "cosine-own", "mahalanobis-own", "logistic-sum"} <= names
    assert "logistic-radial" not in names
    assert not any(case.spec == "learned" for case in EVERY)


class FakeLazy:
    """What the printer uses of a LazyTensor, on a tensor."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def ifelse(self, yes: Any, no: Any) -> FakeLazy:
        return FakeLazy(torch.where(self.value >= 0, *(getattr(each, "value", each) for each in (yes, no))))

    def __getattr__(self, name: str) -> Callable[[], FakeLazy]:
        return lambda: FakeLazy(getattr(self.value, name)())

    def _with(name: str) -> Any:
        return lambda self, *given: FakeLazy(
            getattr(self.value, name)(*(getattr(each, "value", each) for each in given))
        )

    for _name in ("add", "radd", "mul", "rmul", "pow", "neg", "truediv", "rtruediv"):
        locals()[f"__{_name}__"] = _with(f"__{_name}__")


@pytest.mark.parametrize("case", EVERY, ids=named)
def test_keops_is_given_the_same_formula(case: Case) -> None:
    formula = formula_of(problem(case))
    values = torch.linspace(0.05, 3, 64, dtype=torch.float64) * (1 if formula.shape == "square" else -1)
    right = lambdify(formula.symbol, formula.energy, modules="numpy")(values.numpy())
    got = lazy_module._compiled(formula.energy)(FakeLazy(values)).value
    np.testing.assert_allclose(got.numpy(), right, rtol=torch.finfo(torch.float64).eps ** (2 / 3))


@pytest.mark.parametrize("below", [True, False])
def test_a_strict_case_keeps_its_side(below: bool) -> None:
    u = Symbol("u", real=True)
    condition = u < 1 if below else u > 1
    got = lazy_module._compiled(Piecewise((2, condition), (3, True)))(FakeLazy(torch.tensor([0.0, 1.0, 2.0])))
    assert got.value.tolist() == ([2, 3, 3] if below else [3, 3, 2])


def test_what_an_interrupted_compiler_left_is_compiled_again(tmp_path: Path) -> None:
    (tmp_path / "finished.so").write_bytes(b"code")
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / "unfinished.so").touch()
    lazy_module._drop_unfinished(tmp_path)
    assert [path.name for path in tmp_path.rglob("*.so")] == ["finished.so"]


def test_what_keops_lacks_is_named() -> None:
    u = Symbol("u", real=True)
    with pytest.raises(NoLazyForm, match="KeOps has no erf"):
        lazy_module._compiled(erf(u) + u**2)
    assert lazy_module._compiled(tanh(u))(FakeLazy(torch.zeros(1))).value.item() == 0


def test_a_users_maximum_has_a_plain_formula(tmp_path: Path) -> None:
    file = tmp_path / "hinge.py"
    file.write_text(
        "from sympy import Abs, Max\nfrom derivations import Kernel, u\n"
        "KERNEL = Kernel(name='hinge', energy=Max(Abs(u) - 1, 0), source='a test')\n"
    )
    given = problem(Case(str(file), "sum", SMALL))
    assert not formula_of(given).energy.has(Max)
    own, other = fused(given)(given.x, given.mu), plain(given)(given.x, given.mu)
    assert ((own - other).abs() <= torch.finfo(own.dtype).eps ** (2 / 3) * own.abs().clamp(min=1)).all()


@pytest.mark.parametrize("case", EVERY, ids=named)
def test_intervals_hold_the_truth(case: Case) -> None:
    given = problem(case)
    truth = truth_of(given, gradients=False)
    wide = problem(replace(case, dtype="float64"))
    # The same numbers, in float64: off by their own rounding only.
    exact = replace(wide, x=given.x.double(), mu=given.mu.double(), mixing_logits=given.mixing_logits.double())
    exact = replace(exact, options={name: part.double() for name, part in given.options.items()})
    got = plain(exact)(exact.x, exact.mu)[truth.rows].numpy()
    room = np.finfo(np.float64).eps ** (2 / 3) * np.maximum(np.abs(got), 1)
    assert truth.basis == "intervals"
    assert ((truth.low - room <= got) & (got <= truth.high + room)).all()
    assert (truth.high - truth.low <= room).all()


def test_a_function_without_intervals_is_held_to_float64(tmp_path: Path) -> None:
    file = tmp_path / "bell.py"
    file.write_text(
        "from sympy import erf\nfrom derivations import Kernel, u\n"
        "KERNEL = Kernel(name='bell', energy=u**2 + erf(u) ** 2, source='a test')\n"
    )
    given = problem(Case(str(file), "sum", SMALL))
    truth = truth_of(given, gradients=True)
    assert truth.basis == "float64"
    right = truth.errors(run_of("gradient", plain(given), given)(), "gradient")
    assert max(error.largest for error in (right.value, *right.gradients.values())) < torch.finfo(
        torch.float32
    ).eps ** (-1 / 3)


def off(problem: Any) -> Function:
    """A planted fault: a rival whose result is off by a thousandth."""
    return lambda x, mu: plain(problem)(x, mu) * (1 + 2.0**-10)


@pytest.mark.usefixtures("without_compiling")
def test_a_wrong_rival_is_seen_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RIVALS, "eager torch", off)  # type: ignore[arg-type]
    found, finished = bench([GAUSSIAN], repeats=1)
    assert finished
    errors = {(row.rival, row.pass_name): row.judged for row in found.rows}
    for pass_name in ("forward", "gradient"):
        for own, other in zip(errors[FUSED, pass_name], errors["eager torch", pass_name], strict=True):
            assert own < 2.0**10 < other
    text = shown(found)
    assert re.search(r"fused .*✓.*✓.*✓", text)
    assert "error is the smallest, or equal to it, in 3 of 3" in text


@pytest.mark.usefixtures("without_compiling")
def test_a_wrong_fused_path_is_seen_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RIVALS, FUSED, off)  # type: ignore[arg-type]
    found, _ = bench([GAUSSIAN], ("forward",), repeats=1)
    assert re.search(r"fused .* !", shown(found))
    assert "error is the smallest, or equal to it, in 0 of 1" in shown(found)


def test_nan_is_as_wrong_as_can_be() -> None:
    given = problem(GAUSSIAN)
    nothing = torch.full((SMALL.samples,), torch.nan)
    assert truth_of(given, gradients=False).errors((nothing,), "forward").value == (np.inf, np.inf)


def shown(found: Bench) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False, emoji=False)
    for renderable in bench_table(found):
        console.print(renderable)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def full(memory: bool) -> Bench:
    """Rows as wide as they get."""
    case, wide = Case("student_t_density", "radial", Size(1_000_000, 65_536, 1024)), Error(8.38e6, 8.38e6)
    rows = [
        Row(case, name, rival, None, (98.76, 98.76), 1234.5, Errors(wide, {"x": wide, "mu": wide}), "intervals")
        for rival in RIVALS
        for name in ("forward", "gradient")
    ]
    rows = [replace(row, peak=12_345_678_901 if memory else None) for row in rows]
    about: dict[str, Any] = {
        "seed": 0,
        "threads": 64,
        "repeats": 7,
        "torch": "2.13.0+cpu",
        "pykeops": "2.3",
        "cpu": "a processor",
    }
    about["keops_flags"] = "-march=native -ffast-math"
    return Bench(about | {"reproduce": "implicit-em bench" + " --size 1000000,65536,1024" * 4}, rows, None, [])


@pytest.mark.parametrize("memory", [True, False])
def test_the_table_fits_80_columns(memory: bool) -> None:
    lines = shown(full(memory)).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_plot_names_everything(suffix: str, tmp_path: Path) -> None:
    path = write_plot(full(memory=False), tmp_path / f"ratios{suffix}")
    start = path.read_bytes()[:8]
    assert start.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")


KEYS = {
    "spec", "lift", "samples", "components", "features", "dtype", "device", "seed", "pass", "rival", "status", "reason",
    "seconds", "median", "ratio", "error", "error_x", "error_mu", "truth", "peak_bytes", "peak_reason",
}  # fmt: skip


def test_the_command_writes_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("verify.bench.rivals.is_installed", lambda: False)
    path = tmp_path / "bench.json"
    words = ["bench", "gaussian", "--lift", "radial", "--size", "40,3,2", "--pass", "forward", "--repeats", "2"]
    assert main([*words, "--json", str(path), "--plot", str(tmp_path / "bench.svg")]) == HELD
    out = capsys.readouterr().out
    assert "KeOps         not run: pykeops is not installed" in out
    assert "reached" in out
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["schema"] == 2
    assert {"torch", "pykeops", "threads", "seed", "repeats", "reproduce", "cpu"} <= found["environment"].keys()
    assert [row["rival"] for row in found["rows"]] == list(RIVALS)
    for row in found["rows"]:
        assert row.keys() >= KEYS
        timed = row["rival"] != "KeOps"
        assert row["status"] == ("timed" if timed else "not_run")
        assert len(row["seconds"]) == (2 if timed else 0)
        assert (row["error"] is not None) == timed
    (bound,) = found["roofline"]
    assert 0 < bound["least_seconds"] < float("inf")
    assert {"bytes", "multiply_adds", "special"} <= found["peaks"].keys()


MISTAKES = {
    "gausian": "gaussian",
    "learned": "learned cannot be fused, its energy is a callable",
    "missing.py": "no such file",
    "logistic --lift radial": "has the lift radial: expected one of sum",
    "gaussian --lift flat": "expected one of radial, sum, own",
    "gaussian --size 20,4": "expected N,K,D",
    "gaussian --size 20,0,4": "expected N,K,D",
    "gaussian --size a,b,c": "expected N,K,D",
    "gaussian --plot bench.pdf": ".svg or .png",
    "gaussian --pass backward": "forward",
    "gaussian --repeats 0": "--repeats",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments.split()]) == WRONG
    error = capsys.readouterr().err
    assert error.startswith("implicit-em: ")
    assert error.count("\n") == 1
    assert MISTAKES[arguments] in error


def test_subnormal_numbers_are_kept_whatever_a_rival_loads() -> None:
    def flushing(given: Any) -> Function:
        torch.set_flush_denormal(True)
        return plain(given)

    command._first_run(flushing, "forward", problem(GAUSSIAN))
    smallest = torch.tensor(torch.finfo(torch.float32).smallest_normal)
    assert smallest / 2 > 0


BY_PRODUCTS = ["matmul", "fused expand", "fused tf32x3", "fused tf32", "fused bf16"]


@pytest.mark.parametrize(
    ("case", "others"),
    [
        (GAUSSIAN, []),
        (replace(GAUSSIAN, device="cuda"), BY_PRODUCTS),
        (replace(GAUSSIAN, device="cuda", dtype="float64"), BY_PRODUCTS[:2]),
        (replace(GAUSSIAN, device="cuda", lift="sum"), []),
        (replace(GAUSSIAN, device="cuda", spec="cosine", lift="own"), []),
    ],
)
def test_on_a_gpu_each_precision_is_timed(case: Case, others: list[str]) -> None:
    assert list(functions_of(case)) == [*RIVALS, *others]


def test_a_precision_is_shown_and_is_no_rival() -> None:
    """Neither faster nor closer counts in the verdict."""
    case = replace(GAUSSIAN, device="cuda")
    rows = [
        Row(case, "forward", name, None, (1.0,), ratio, Errors(Error(typical, typical)), "intervals")
        for name, ratio, typical in ((FUSED, 1.0, 2.0), ("eager torch", 3.0, 4.0), ("fused bf16", 0.5, 1.0))
    ]
    text = shown(Bench(full(memory=False).environment, rows, None, []))
    assert re.search(r"fused bf16 .* 0.50 ", text)
    assert re.search(r"fused  .*✓", text)
    assert "fastest in 1 of 1" in text
    assert "equal to it, in 1 of 1" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_cuda_device_nothing_is_run_on_one() -> None:
    found, finished = bench([replace(GAUSSIAN, device="cuda")], repeats=1)
    assert finished
    assert {row.reason for row in found.rows} == {"device cuda: torch sees no CUDA device on this machine"}
    assert "nothing was compared" in shown(found)


@pytest.mark.usefixtures("without_compiling")
def test_an_interrupt_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = iter([interleaved])

    def interrupted(*given: Any) -> dict[str, list[float]]:
        for run in turns:
            return run(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "interleaved", interrupted)
    path = tmp_path / "bench.json"
    words = ["bench", "gaussian", "--lift", "radial", "--size", "40,3,2", "--repeats", "1", "--json", str(path)]
    assert main(words) == INTERRUPTED
    assert "interrupted: what was finished is shown" in capsys.readouterr().err
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [(row["pass"], row["status"], row["reason"]) for row in rows] == [
        *[("forward", "timed", None)] * 2,
        *[("gradient", "not_run", "interrupted")] * 2,
    ]


def test_runs_take_turns_and_ratios_are_of_the_same_round() -> None:
    order: list[str] = []
    interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 2, "cpu")
    assert order == list("aabbaabb")
    assert ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_what_does_not_fit_is_refused_and_not_killed() -> None:
    with pytest.raises(NotRun, match="needs more memory than"), bounded("cpu"):
        torch.empty(2**50, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="another"), bounded("cpu"):
        raise RuntimeError("another")


@pytest.mark.skipif(resident() is None, reason="the system does not tell what is resident")
def test_the_peak_is_that_of_the_run_besides_its_results() -> None:
    size = 2**26

    def run() -> tuple[Tensor, ...]:
        kept = torch.ones(size // 4, dtype=torch.uint8)
        torch.ones(size, dtype=torch.uint8)
        return (kept,)

    slack = size // 8  # pages that others of this process touch
    assert abs(_on_cpu(run) - size) < slack


@pytest.mark.skipif(resident() is None, reason="the system does not tell what is resident")
def test_the_plain_formula_holds_the_differences() -> None:
    size = Size(4096, 64, 16)
    assert peak(replace(GAUSSIAN, size=size), "forward", "eager torch") >= 4 * np.prod(size)


class TestTheRoofline:
    def test_work_grows_with_pairs(self) -> None:
        one, two = (work_of(problem(replace(GAUSSIAN, size=Size(n, 8, 4))), "forward") for n in (64, 128))
        assert two.multiply_adds == 2 * one.multiply_adds
        assert two.special["exp"] == 2 * one.special["exp"]
        assert one.bytes == 4 * (64 * 4 + 8 * 4 + 8 + 64)

    def test_gradients_cost_more(self) -> None:
        for case in EVERY:
            forward, of_mu, gradient = (work_of(problem(case), name) for name in ("forward", "mu", "gradient"))
            assert gradient.multiply_adds > of_mu.multiply_adds > 2 * forward.multiply_adds, case
            assert gradient.special["exp"] >= 2 * forward.special["exp"], case

    def test_every_special_function_has_a_rate(self) -> None:
        names = {name for case in EVERY for name in work_of(problem(case), "gradient").special}
        assert all(callable(getattr(torch, name)) for name in names)
        assert not names & {"add", "mul", "where"}

    def test_what_depends_on_parameters_alone_is_free(self) -> None:
        given = problem(GAUSSIAN)
        program = form_of(given.subject.code, "radial", torch.float32).energy
        assert len(program.statements) > 0
        work = work_of(given, "forward")
        pairs = SMALL.samples * SMALL.components
        assert work.special["exp"] == pairs

    def test_the_least_time_is_that_of_the_scarcest(self) -> None:
        peaks = Peaks(bytes=10.0, multiply_adds=4.0, special={"exp": 2.0})
        assert peaks.seconds(Work(100, 4, {"exp": 2})) == 10.0
        assert peaks.seconds(Work(1, 4, {"exp": 2})) == 2.0

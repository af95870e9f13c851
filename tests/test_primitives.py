"""The tables of rounding errors, and the code that measures them: it must see faults that are planted."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from verify.formats import FORMATS
from verify.primitives import (
    OPERATIONS,
    MissingTable,
    Operation,
    Primitive,
    Table,
    cache_directory,
    errors,
    load_table,
    measure,
    measurement,
    operations,
    samples,
    store,
    tables,
    unmeasured,
)

DTYPES = ("float64", "float32")
Planted = Callable[[str, operations.Function, str], Primitive]
# Arb takes its time: some of each kind for float64.
QUICK = {
    "float32": tuple(operations.operations_of("eager")),
    "float64": ("add", "div", "hypot", "exp", "log1p", "sinh", "sigmoid", "lgamma", "softmax_exp"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of one's own, empty."""
    monkeypatch.setenv("IMPLICIT_EM_CACHE", str(tmp_path))
    return tmp_path


def measured(operation: Operation, dtype: str) -> Primitive:
    """The row of a small table for an operation that need not be in OPERATIONS, judged by the one that is."""
    fmt = FORMATS[dtype]
    if dtype == "float64":
        return measurement.summary(operation, fmt, measurement.sampled_errors(operation, fmt, 0, 0), {}, None, {})
    inputs = samples.sample(operation, fmt, 0, 0)
    results = {name: apply(operation.function, *inputs) for name, apply in operation.layouts.items()}
    sound = OPERATIONS[operation.name]
    exact = next(iter(sound.layouts.values()))(sound.function, *(each.double() for each in inputs))
    tallies = {name: errors.judge_by_float64(operation, fmt, inputs, result, exact) for name, result in results.items()}
    return measurement.summary(operation, fmt, tallies, {}, None, {})


# --- tables


def seen_at_least(row: Primitive, kind: str) -> float:
    """An error without what the reference may err, which another processor's reference errs otherwise."""
    error: float = getattr(row, kind)
    return error - row.allowance


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quick_table_never_exceeds_the_stored_one(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full = load_table(dtype)
    seen: list[tuple[str, float]] = []
    monkeypatch.setattr(samples, "PATTERN_STEP", 1 << 14)
    quick = measure(
        dtype,
        seed=full["exp"].origin["seed"],
        depth="quick",
        names=QUICK[dtype],
        progress=lambda *at: seen.append(at),
    )
    for name, row in quick.items():
        for kind in ("relative", "absolute", "early_overflow"):
            assert seen_at_least(row, kind) <= getattr(full[name], kind), (name, kind)
        assert bool(row.nan_errors) <= bool(full[name].nan_errors), name
        assert row.keeps_sign >= full[name].keeps_sign
        assert row.range_ok >= full[name].range_ok
        assert row.basis == "sampled"
    assert {name for name, _ in seen} == set(quick) == set(QUICK[dtype])
    assert seen[-1][1] == 1.0


def test_another_seed_stays_within_what_is_exhaustive() -> None:
    full = load_table("float32")
    names = [name for name, row in full.items() if row.basis == "exhaustive" and name not in ("scaled_k1", "lgamma")]
    quick = measure("float32", seed=1234, depth="quick", names=names[:4])
    for kind in ("relative", "absolute"):
        assert all(seen_at_least(quick[name], kind) <= getattr(full[name], kind) for name in quick)


@pytest.mark.parametrize("backend", ["eager", "compile"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_stored_table_says_what_it_rests_on(dtype: str, backend: str) -> None:
    table = load_table(dtype, backend=backend)
    assert set(table) == set(operations.operations_of(backend))
    for name, row in table.items():
        unary = OPERATIONS[name].arguments == 1
        domain = 2**32 if OPERATIONS[name].domain == "real" else 2**31 - 1
        layouts = set(OPERATIONS[name].layouts)
        if dtype == "float32" and unary:
            assert row.basis == "exhaustive"
            assert row.cases >= domain
        else:
            assert row.basis == "sampled"
            assert row.cases >= 200_000
        assert row.worst["relative"]
        assert set(row.layouts) <= layouts
        assert backend == "compile" or set(row.layouts) == layouts
        assert math.isfinite(row.relative)
    for name in ("add", "sub", "mul", "div"):  # rounded correctly: u/(1 + u) at most, and half a quantum
        assert table[name].relative <= 1 + table[name].allowance
        assert table[name].absolute <= math.nextafter(0.5 + table[name].allowance, 1)


def test_another_torch_version_has_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "1.0.0+cpu")
    with pytest.raises(MissingTable) as caught:
        load_table("float32")
    message = str(caught.value)
    assert "torch 1.0.0" in message
    assert "run `implicit-em primitives --dtype float32 --missing`" in message
    assert "\n" not in message


def test_another_capability_and_backend_have_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingTable, match="triton"):
        load_table("float32", backend="triton")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    with pytest.raises(MissingTable, match="ABACUS"):
        load_table("float32")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table of one row, with an infinite error."""
    monkeypatch.setattr(tables, "OPERATIONS", {"mul": OPERATIONS["mul"]})
    monkeypatch.setattr(tables, "operations_of", lambda _: ["mul"])
    table = measure("float64", seed=5, depth="quick", names=["mul"])
    row = replace(table["mul"], relative=math.inf, origin=table["mul"].origin | {"depth": "full"})
    return replace(table, primitives={"mul": row})


def test_what_is_stored_is_loaded_and_the_users_table_comes_first(small: Table, cache: Path) -> None:
    path = store(small, cache_directory())
    assert path.parent == cache
    assert load_table("float64") == small
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert json.loads(path.read_text()) == json.loads(json.dumps(small.as_dict()))
    assert [each.name for each in cache.iterdir()] == [path.name]


def test_a_quick_row_does_not_take_the_place_of_a_full_one(small: Table) -> None:
    quick = replace(small["mul"], origin=small["mul"].origin | {"depth": "quick"})
    store(replace(small, primitives={"mul": quick}), cache_directory())
    assert load_table("float64")["mul"].origin["depth"] == "full"
    assert math.isfinite(load_table("float64")["mul"].relative)


def test_a_row_is_replaced_by_one_of_the_same_code_only(small: Table) -> None:
    elsewhere = replace(small["mul"], fingerprint="measured elsewhere")
    better = replace(small["mul"], relative=2.0)
    for row in (small["mul"], elsewhere, better):
        path = store(replace(small, primitives={"mul": row}), cache_directory())
    assert sorted(row["fingerprint"] for row in json.loads(path.read_text())["primitives"]) == sorted(
        [small["mul"].fingerprint, "measured elsewhere"]
    )
    assert load_table("float64")["mul"] == better


# --- other machines


@pytest.fixture
def other_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor on which torch's logarithm is now and then one digit off what it is here."""

    def log(x: torch.Tensor) -> torch.Tensor:
        result = torch.log(x)
        rarely = x.view(torch.int32 if x.itemsize == 4 else torch.int64) % 1009 == 0
        return torch.where(rarely, result * (1 + torch.finfo(x.dtype).eps), result)

    monkeypatch.setitem(OPERATIONS, "log", replace(OPERATIONS["log"], function=log))
    operations.fingerprint.cache_clear()
    yield
    operations.fingerprint.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_measured_on_other_code_are_refused_by_name(dtype: str, other_log: None) -> None:
    assert unmeasured(dtype) == ["log"]
    with pytest.raises(MissingTable, match=r"the code this processor runs of log: run `.* --missing`"):
        load_table(dtype)


def test_measuring_what_is_missing_completes_the_table(other_log: None) -> None:
    store(measure("float64", seed=0, depth="quick", names=unmeasured("float64")), cache_directory())
    table = load_table("float64")
    assert unmeasured("float64") == []
    assert table["log"].relative > 2.0
    assert (table["log"].origin["depth"], table["exp"].origin["depth"], table.depth) == ("quick", "full", "quick")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fingerprint_tells_one_changed_result_in_a_thousand(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = OPERATIONS[name]
    here = operations.fingerprint(name, dtype)
    operations.fingerprint.cache_clear()
    assert operations.fingerprint(name, dtype) == here

    def changed(*arguments: torch.Tensor, **options: int) -> torch.Tensor:
        result = operation.function(*arguments, **options)
        flat = result.flatten()
        normal = torch.nonzero(flat.isfinite() & (flat.abs() > 1e-30)).flatten()
        flat[normal[:: max(len(normal) // 16, 1)]] *= 1 + 2 * torch.finfo(result.dtype).eps
        return flat.view_as(result)

    monkeypatch.setitem(OPERATIONS, name, replace(operation, function=changed))
    operations.fingerprint.cache_clear()
    assert operations.fingerprint(name, dtype) != here
    operations.fingerprint.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_probes_reach_every_kind_of_number(dtype: str) -> None:
    fmt = FORMATS[dtype]
    (x,) = operations.probes(OPERATIONS["exp"], fmt)
    assert len(x) == operations.PROBES
    magnitude = x.abs()[x.isfinite()]
    assert float(magnitude.min()) < float(fmt.min_normal)
    assert float(magnitude.max()) > 0.4 * float(fmt.max)
    assert int(((magnitude > 2.0**-16) & (magnitude < 2.0**16)).sum()) > operations.PROBES // 2


@pytest.mark.parametrize(
    "text", ["", "{}", '{"schema": 1, "primitives": {}}', '{"schema": 2, "primitives": [{"name": "exp"}]}', "[]"]
)
def test_a_file_that_is_no_table_is_named(text: str, cache: Path) -> None:
    path = cache / tables.file_name("float32", "cpu", "eager")
    path.write_text(text)
    with pytest.raises(MissingTable, match="is no table of rounding errors") as caught:
        load_table("float32")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a format out of"):
        measure("float8", seed=0)
    with pytest.raises(ValueError, match="expected float64 or float32, got float16: nothing is computed in it"):
        measure("float16", seed=0)
    with pytest.raises(ValueError, match="expected a depth out of full, quick, got 'deep'"):
        measure("float32", seed=0, depth="deep")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"expected a device and backend out of cpu eager, cpu compile, .*, got cuda compile"
    ):
        measure("float32", "cuda", "compile", seed=0)


# --- planted faults


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of ten thousand inputs or so."""
    monkeypatch.setattr(samples, "PATTERN_STEP", 1 << 18)
    monkeypatch.setitem(samples.PAIRS, "float32", 1 << 14)
    monkeypatch.setattr(samples, "PER_BUSY_BINADE", 16)


@pytest.fixture
def planted(coarse: None) -> Planted:
    """Measures an operation with another function in torch's place."""
    return lambda name, function, dtype: measured(replace(OPERATIONS[name], function=function), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_half_precision_step_is_seen(planted: Planted, dtype: str) -> None:
    row = planted("tanh", lambda x: torch.tanh(x.half().to(x.dtype)), dtype)
    assert row.relative * float(FORMATS[dtype].unit_roundoff) > 2.0**-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_flush_to_zero_is_seen_below_the_normal_range_only(planted: Planted, dtype: str) -> None:
    fmt = FORMATS[dtype]
    tiny = float(fmt.min_normal)
    row = planted("exp", lambda x: torch.where(torch.exp(x) < tiny, 0.0, torch.exp(x)), dtype)
    assert row.absolute > 0.9 * float(fmt.min_normal / fmt.min_subnormal)
    assert row.relative < 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_naive_log1p_is_seen(planted: Planted, dtype: str) -> None:
    row = planted("log1p", lambda x: torch.log(1 + x), dtype)
    assert row.relative >= 1 / float(FORMATS[dtype].unit_roundoff)
    x = abs(float.fromhex(row.worst["relative"][0]))
    assert x <= float(FORMATS[dtype].unit_roundoff)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_naive_hypot_is_seen(planted: Planted, dtype: str) -> None:
    row = planted("hypot", lambda x, y: torch.sqrt(x * x + y * y), dtype)
    assert row.early_overflow > math.sqrt(float(FORMATS[dtype].max)) / 4  # from huge² on, not from huge on
    assert row.relative >= 1 / float(FORMATS[dtype].unit_roundoff)  # tiny² is 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flipped_sign_is_seen(planted: Planted, dtype: str) -> None:
    row = planted("expm1", lambda x: torch.where(x.abs() < 1e-30, -torch.expm1(x), torch.expm1(x)), dtype)
    assert not row.keeps_sign


@pytest.mark.parametrize("dtype", DTYPES)
def test_leaving_the_range_is_seen(planted: Planted, dtype: str) -> None:
    eps = torch.finfo(FORMATS[dtype].torch_dtype).eps
    row = planted("tanh", lambda x: torch.tanh(x) * (1 + eps), dtype)
    assert not row.range_ok
    assert row.relative < 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda x: torch.exp(x) * (x - x + 1), id="NaN for a number"),
        pytest.param(lambda x: torch.exp(x.nan_to_num()), id="a number for NaN"),
    ],
)
def test_a_wrong_nan_is_counted(planted: Planted, dtype: str, fault: operations.Function) -> None:
    row = planted("exp", fault, dtype)
    assert row.nan_errors > 0
    assert row.worst["nan_errors"][0] in ("inf", "-inf", "nan")


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_that_comes_early_or_not_at_all_is_seen(planted: Planted, dtype: str) -> None:
    early = planted("cosh", lambda x: (torch.exp(x) + torch.exp(-x)) / 2, dtype)
    assert 1.9 < early.early_overflow <= 2
    largest = float(FORMATS[dtype].max)
    late = planted("exp", lambda x: torch.exp(x).clamp(max=largest), dtype)
    assert late.relative == math.inf  # exp(inf) came out finite


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layout_of_its_own_error_is_told_apart(dtype: str) -> None:
    def exp(x: Tensor) -> Tensor:
        return torch.exp(x) if x.is_contiguous() else torch.exp(x) * (1 + 2.0**-20)

    operation = replace(OPERATIONS["exp"], function=exp)
    tallies = measurement.sampled_errors(operation, FORMATS[dtype], 0, 0)
    assert measurement.layouts_to_sweep(tallies) == ("contiguous", "strided")
    assert tallies["short_rows"].differs["contiguous"] > 0
    assert tallies["short_rows"].differs["strided"] == 0
    assert tallies["strided"].relative > tallies["contiguous"].relative


def test_a_sweep_finds_the_one_bad_input() -> None:
    bad = 1.2345678806304932

    def log(x: Tensor) -> Tensor:
        return torch.log(x) + 1e-3 * (x == bad) * (x.dtype == torch.float32)

    pattern = int(np.float32(bad).view(np.int32))
    first, last = pattern - measurement.CHUNK - 5, pattern + 2 * measurement.CHUNK
    tallies = measurement.swept_errors(replace(OPERATIONS["log"], function=log), ("contiguous",), first, last)
    assert tallies["contiguous"].cases == last - first
    assert tallies["contiguous"].relative[1] == (bad.hex(),)
    sound = measurement.swept_errors(OPERATIONS["log"], ("contiguous",), first, last)
    assert sound["contiguous"].relative[0] < 2


def test_processes_find_what_one_process_finds() -> None:
    sweep = partial(measurement._sweep_task, "sqrt", "cpu", "eager", ("contiguous",))
    tasks = [("sqrt", partial(sweep, first, first + 50_000)) for first in (-25_000, 2**30)]
    seen: list[float] = []
    apart = measurement._gathered(tasks, 2, lambda name, fraction: seen.append(fraction))
    assert apart == measurement._gathered(tasks, 1, lambda name, fraction: None)
    assert apart["sqrt"]["contiguous"].cases == 100_000
    assert seen == [0.5, 1.0]


# --- the two judges, and what they are given


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "scaled_k1"])
def test_arb_and_float64_agree_on_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, fmt = OPERATIONS[name], FORMATS["float32"]
    monkeypatch.setattr(samples, "PATTERN_STEP", 1 << 22)
    monkeypatch.setitem(samples.PAIRS, "float32", 1 << 10)
    inputs = samples.sample(operation, fmt, 3, 0)
    results = {layout: apply(operation.function, *inputs) for layout, apply in operation.layouts.items()}
    exact = next(iter(operation.layouts.values()))(operation.function, *(each.double() for each in inputs))
    by_arb = errors.judge_by_arb(operation, fmt, inputs, results)
    for layout, computed in results.items():
        by_double = errors.judge_by_float64(operation, fmt, inputs, computed, exact)
        arb = by_arb[layout]
        assert by_double.relative[0] == pytest.approx(arb.relative[0], rel=1e-7, abs=1e-7)
        assert by_double.absolute[0] == pytest.approx(arb.absolute[0], rel=1e-7, abs=1e-7)
        assert by_double.early_overflow[0] == pytest.approx(arb.early_overflow[0], rel=1e-12)
        assert by_double.nan_errors[0] == arb.nan_errors[0]
        assert (by_double.keeps_sign, by_double.range_ok) == (arb.keeps_sign, arb.range_ok)


@pytest.mark.parametrize("name", ["tanh", "cosh", "log", "lgamma"])
def test_the_short_cut_for_chunks_that_are_alike_changes_nothing(name: str) -> None:
    operation, fmt = OPERATIONS[name], FORMATS["float32"]
    x = torch.linspace(8, 9, 10_001)
    computed, exact = operation.function(x), operation.function(x.double())
    arguments = (operation, fmt, (x,), computed, exact, errors.NOTHING_SEEN)
    short = errors._plain_tally(*arguments)
    assert short is not None
    assert short == errors._full_tally(*arguments)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1.0])
def test_the_short_cut_for_one_result_throughout_still_compares(value: float) -> None:
    fmt, x = FORMATS["float32"], torch.ones(100)
    exact = torch.full((100,), value, dtype=torch.float64)
    right = errors.judge_by_float64(OPERATIONS["log"], fmt, (x,), exact.float(), exact)
    assert right == errors.Tally(cases=100)
    computed = exact.float()
    computed[17] = -2.0
    wrong = errors.judge_by_float64(OPERATIONS["log"], fmt, (x,), computed, exact)
    assert wrong.nan_errors[0] + wrong.relative[0] + wrong.absolute[0] > 0


def test_poles_and_outsides_of_domains_are_as_ieee_has_them() -> None:
    def exact(name: str, *point: float) -> float:
        return float(errors.enclosure(OPERATIONS[name], point, 60))

    assert (exact("reciprocal", 0.0), exact("reciprocal", -0.0)) == (math.inf, -math.inf)
    assert (exact("log", 0.0), exact("log1p", -1.0)) == (-math.inf, -math.inf)
    assert (exact("div", -1.0, 0.0), exact("hypot", math.nan, math.inf)) == (-math.inf, math.inf)
    assert all(map(math.isnan, (exact("log", -1.0), exact("div", 0.0, 0.0), exact("sub", math.inf, math.inf))))
    assert (exact("tanh", -math.inf), exact("sigmoid", -math.inf), exact("softmax_exp", math.inf)) == (
        -1,
        0,
        0,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sample_has_every_binade_and_all_special_values(dtype: str) -> None:
    fmt = FORMATS[dtype]
    (x,) = samples.sample(OPERATIONS["exp"], fmt, 0, 0)
    assert x.dtype == fmt.torch_dtype
    for side in (x, -x):
        positive = side[(side > 0) & side.isfinite()]
        exponents = set(torch.frexp(positive).exponent.tolist())
        assert exponents == set(range(math.frexp(fmt.min_subnormal)[1], math.frexp(fmt.max)[1] + 1))
        assert bool((side == math.inf).any())
        assert float(positive.min()) == float(fmt.min_subnormal)
        assert float(positive.max()) == float(fmt.max)
    assert bool(x.isnan().any())
    (positive_only,) = samples.sample(OPERATIONS["lgamma"], fmt, 0, 0)
    assert bool((positive_only[~positive_only.isnan()] > 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_can_be_broadcast_and_meet_at_the_edges(dtype: str) -> None:
    fmt = FORMATS[dtype]
    first, second = samples.sample(OPERATIONS["mul"], fmt, 0, 0)
    runs = second.view(-1, operations.RUN)
    assert bool(((runs == runs[:, :1]) | runs.isnan()).all())
    product = first.double().abs().log2() + second.double().abs().log2()
    for edge in (fmt.max, fmt.min_normal, fmt.min_subnormal):
        assert bool(((product - float(np.log2(edge))).abs() < 1).any())

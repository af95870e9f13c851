"""Sweeps: nothing is left out, what is planted is found, what misleads the measuring is seen, a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from derivations import KernelError
from verify.cli import HELD, INTERRUPTED, WRONG, main
from verify.exhaust import Progress, Space, Sweep, exhaust, judgement, space_of
from verify.exhaust import sweep as sweeping
from verify.exhaust.command import contradicted
from verify.exhaust.sweep import Ulps
from verify.finding import Cell, Finding
from verify.formats import FORMATS
from verify.oracle import Enclosures
from verify.subject import Subject, load_subject

BF16, F16, F32 = (FORMATS[name] for name in ("bfloat16", "float16", "float32"))
LAPLACE = load_subject("laplace")


def cell(function: str, dtype: str, backend: str = "eager") -> Cell:
    return Cell("exhaust", "laplace", function, dtype, "cpu", backend)


def swept(subject: Subject, function: str, space: Space, backend: str = "eager") -> Finding:
    return exhaust(subject, cell(function, space.fmt.name, backend), space, Progress.start(space))


def few(space: Space, seconds: tuple[int, ...]) -> Space:
    return replace(space, seconds=seconds)


class TestTheSpace:
    @pytest.mark.parametrize("fmt", [BF16, F16])
    def test_every_pattern_of_16_bits_is_in_it(self, fmt: Any) -> None:
        column = blocks_of(space_of(LAPLACE, "influence", fmt), 0, 1)["u"]
        assert column.shape == (1, 1 << 16)
        assert len(set(column.view(torch.int16).flatten().tolist())) == 1 << 16

    def test_every_pattern_of_32_bits_is_in_it(self) -> None:
        space = space_of(LAPLACE, "activation", F32)
        assert space.cases == 1 << 32
        firsts = [
            blocks_of(space, block, 1)["z"].view(torch.int32)[0, 0].item() for block in (0, 1, 0x7FFF, 0x8000, 0xFFFF)
        ]
        assert firsts == [0, 1 << 16, 0x7FFF << 16, -(1 << 31), -(1 << 16)]
        block = blocks_of(space, 0xFFFF, 1)["z"].view(torch.int32)
        assert torch.equal(block, torch.arange(-(1 << 16), 0, dtype=torch.int32)[None])

    def test_every_pair_with_a_half_width_in_its_domain_is_in_it(self) -> None:
        space = space_of(LAPLACE, "activation", BF16)
        halves = blocks_of(space, 0, space.blocks)["m"].flatten().float()
        assert space.swept == ("z", "m")
        assert halves.isfinite().all()
        assert (halves > 0).all()
        assert halves.min() == float(BF16.min_subnormal)
        assert halves.max() == float(BF16.max)
        assert len(halves) == 0x7F7F

    def test_single_places_are_those_of_the_blocks(self) -> None:
        for function, fmt in (("activation", F32), ("activation", F16), ("energy", BF16), ("influence", BF16)):
            space = space_of(LAPLACE, function, fmt)
            block = min(77, space.blocks - 1)
            columns = blocks_of(space, block, 1)
            single = space.at(np.array([block]), np.array([4321]))
            for name, column in columns.items():
                whole = torch.broadcast_to(column, (1, 1 << 16))
                assert fmt.array(whole)[0, 4321] == single[name][0]

    def test_a_value_for_no_argument_is_refused(self) -> None:
        with pytest.raises(KernelError, match="expected one of m, b"):
            space_of(LAPLACE, "activation", F32, {"nu": 2.0})


def test_ulps_are_those_of_the_oracle() -> None:
    rng = np.random.default_rng(0)
    for fmt in (BF16, F16, F32):
        spread = np.exp2(rng.uniform(-160, 140, 4000)) * rng.choice([-1, 1], 4000)
        truth = np.concatenate([spread, [0.0, 1.5, float(fmt.max), float(fmt.overflow) * 4]])
        got = fmt.nearest(truth * (1 + rng.normal(0, 4 * float(fmt.unit_roundoff), truth.shape)))
        exact = Enclosures(truth.astype(np.longdouble), *np.zeros((2, len(truth)), np.longdouble), truth == truth)
        found = Ulps.of(fmt).error(torch.from_numpy(got.astype(np.float64)), torch.from_numpy(truth)).numpy()
        # The one rounding in float64 is that of the difference: scaling by a power of two is exact.
        right = exact.ulp_error(got, fmt)
        assert (np.abs(found - right) <= 2.0**-53 * right).all()


def test_an_ulp_at_a_power_of_two_is_that_of_the_binade_below() -> None:
    """Float64 cannot tell 1 − 10⁻³⁰ from 1, and an error there must not be taken for half of what it is."""
    right = torch.tensor([1.0, 1 - 2.0**-53, 1 + 2.0**-52, 1 + 2.0**-40], dtype=torch.float64)
    found = Ulps.of(F32).error(right - 2.0**-24, right)
    assert found.tolist() == [1.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(("given", "right", "error"), [
    (np.nan, 1.0, np.inf), (1.0, np.nan, np.inf), (np.nan, np.nan, 0.0), (np.inf, np.inf, 0.0), (np.inf, 1e300, 0.0),
])  # fmt: skip
def test_what_is_no_number_has_a_rule(given: float, right: float, error: float) -> None:
    tensors = (torch.tensor([value], dtype=torch.float64) for value in (given, right))
    assert Ulps.of(F32).error(*tensors).item() == error


@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_right_code_passes_and_says_what_it_rests_on(backend: str) -> None:
    space = few(space_of(LAPLACE, "activation", BF16), tuple(range(0x3F00, 0x3F10)))
    finding = swept(LAPLACE, "activation", space, backend)
    assert (finding.status, finding.basis, finding.cases) == ("passed", "exhaustive", 16 << 16)
    assert 0.49 < (finding.largest or 0) <= 0.51
    assert "reference within" in (finding.reason or "")


def blocks_of(space: Space, first: int, count: int) -> dict[str, Tensor]:
    return space.columns(space.keys(first, count), space.still)


def planted(wrong: Callable[[Tensor, Tensor], Tensor]) -> Subject:
    """The Laplace activation, with `wrong(z, result)` in place of its result."""
    right = LAPLACE.program("activation")

    def activation(z: Tensor, m: Tensor, b: Tensor) -> Tensor:
        z32, m32, b32 = (each.float() for each in (z, m, b))
        return wrong(z32, right(z32, m32, b32)).to(z.dtype)

    return replace(LAPLACE, handwritten={"activation": activation})


ONE_INPUT = 0.3671875  # a number of both 16-bit formats
FAULTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a single wrong input": lambda z, a: torch.where(z == ONE_INPUT, a * 1.05, a),
    "NaN at a single input": lambda z, a: torch.where(z == ONE_INPUT, torch.nan, a),
    "infinity at a single input": lambda z, a: torch.where(z == ONE_INPUT, torch.inf, a),
    "NaN at zero": lambda z, a: a * (z / z),
    "subnormals flushed": lambda z, a: torch.where(a.abs() < 2.0**-120, 0.0, a),
    "a wrong limit": lambda z, a: torch.where(z.isinf(), 0.75, a),
    "NaN that is answered with a number": lambda z, a: torch.nan_to_num(a),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    space = few(space_of(LAPLACE, "activation", BF16), (0x3F80,))
    finding = swept(planted(FAULTS[fault]), "activation", space)
    assert finding.status == "failed", finding
    if "single" in fault:
        assert finding.worst is not None
        assert float.fromhex(finding.worst["z"]) == ONE_INPUT


def test_infinite_inputs_may_round_as_others_do() -> None:
    # Block 0x7f80 holds +∞ alone; its result, tanh 1, is rounded in float32 and in the float64 reference.
    space = space_of(LAPLACE, "activation", F32)
    progress = Progress.start(space)
    progress.done[:] = True
    progress.places[0x7F80], progress.errors[0x7F80] = 0, 0.341
    finding = exhaust(LAPLACE, cell("activation", "float32"), space, progress)
    assert "points err" not in (finding.reason or "")


def test_the_right_code_by_hand_passes() -> None:
    space = few(space_of(LAPLACE, "activation", BF16), (0x3F80,))
    assert swept(planted(lambda z, a: a), "activation", space).status == "passed"


def _same_precision(self: Sweep, keys: Tensor, still: dict[str, Tensor], got: Tensor) -> tuple[Tensor, Tensor]:
    """A planted fault: the reference is the code under test in its own precision."""
    columns = self.space.columns(keys, still)
    reference = self._under_test(*columns.values()).double()
    worst = self._ulps.error(got.double(), reference).to(torch.float32).max(-1)
    return worst[0], worst[1]


def _finite_only(self: Sweep, keys: Tensor, still: dict[str, Tensor], got: Tensor) -> tuple[Tensor, Tensor]:
    """A planted fault: what is not finite is left out."""
    columns = self.space.columns(keys, still)
    reference = self._reference(*(column.double() for column in columns.values()))
    error = torch.where(got.isfinite(), self._ulps.error(got.double(), reference), 0.0)
    worst = error.to(torch.float32).max(-1)
    return worst[0], worst[1]


class TestFaultsInTheMeasuring:
    SPACE = few(space_of(LAPLACE, "activation", BF16), (0x3F80, 0x3F90))
    # More blocks than the oracle goes through by itself.
    MANY = few(space_of(LAPLACE, "activation", BF16), tuple(range(0x3F80, 0x3F80 + judgement.RETRIED + 1)))

    def test_a_reference_in_the_precision_under_test(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Sweep, "_compared", _same_precision)
        finding = swept(LAPLACE, "activation", self.MANY)
        assert finding.status == "undecided"
        assert "above the largest" in (finding.reason or "")

    def test_a_coarse_reference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        exact = Sweep.references
        monkeypatch.setattr(Sweep, "references", lambda self, columns: exact(self, columns) * (1 + 2.0**-13))
        finding = swept(LAPLACE, "activation", self.MANY)
        assert finding.status == "undecided"
        assert "too coarse" in (finding.reason or "")

    def test_a_reference_that_is_coarse_in_places(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """There the oracle goes through all numbers, and finds what the loop did not."""
        wrong = planted(FAULTS["NaN at a single input"])
        monkeypatch.setattr(Sweep, "_compared", _finite_only)
        exact = Sweep.references
        monkeypatch.setattr(Sweep, "references", lambda self, columns: exact(self, columns) * (1 + 2.0**-13))
        finding = swept(wrong, "activation", self.SPACE)
        assert finding.status == "failed"
        assert "2 blocks of 65,536 number by number" in (finding.reason or "")

    def test_a_mask_of_finite_results(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = planted(FAULTS["NaN at a single input"])
        assert swept(wrong, "activation", self.MANY).status == "failed"
        monkeypatch.setattr(Sweep, "_compared", _finite_only)
        finding = swept(wrong, "activation", self.MANY)
        assert finding.status == "undecided"
        assert "above the largest" in (finding.reason or "")

    def test_ulps_of_another_format(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong_format = Ulps.of(F16)
        monkeypatch.setattr(Ulps, "of", staticmethod(lambda fmt: wrong_format))
        finding = swept(LAPLACE, "activation", self.MANY)
        assert finding.status == "undecided"
        assert "above the largest" in (finding.reason or "")


class TestResuming:
    SPACE = few(space_of(LAPLACE, "activation", F16), tuple(range(0x3800, 0x380A)))

    def test_an_interrupted_sweep_loses_at_most_one_chunk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweeping, "CHUNK", 2)
        path = tmp_path / "state.npz"
        sweep = Sweep(LAPLACE, "activation", self.SPACE, "eager")
        seen: list[int] = []
        chunk = sweep.chunk

        def counted(first: int) -> Any:
            if len(seen) == 3:
                seen.append(-1)
                raise KeyboardInterrupt
            seen.append(first)
            return chunk(first)

        monkeypatch.setattr(sweep, "chunk", counted)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(Progress.start(self.SPACE, path))
        resumed = Progress.start(self.SPACE, path, resume=True)
        assert resumed.done.tolist() == [True] * 3 + [False] * 2
        sweep.run(resumed)
        assert seen == [0, 2, 4, -1, 6, 8]

        whole = Progress.start(self.SPACE)
        Sweep(LAPLACE, "activation", self.SPACE, "eager").run(whole)
        np.testing.assert_array_equal(resumed.errors, whole.errors)
        np.testing.assert_array_equal(resumed.places, whole.places)

    def test_without_resume_it_starts_anew(self, tmp_path: Path) -> None:
        progress = Progress.start(self.SPACE, tmp_path / "state.npz")
        progress.done[:] = True
        progress.store()
        assert not Progress.start(self.SPACE, progress.path).done.any()


def test_a_sweep_and_a_bound_may_not_contradict_each_other() -> None:
    found = swept(LAPLACE, "influence", space_of(LAPLACE, "influence", BF16))
    large = replace(found, largest=3.0, worst={"u": (2.0).hex(), "b": (1.0).hex()})
    bound = replace(found, status="passed", basis="proved", budget=2.0, unit="ulp", reason="boxes")
    domain = {"u": (-4.0, 4.0), "b": (1.0, 1.0)}
    assert contradicted(large, domain, bound).status == "failed"
    assert "proved bound of 2 ulp" in (contradicted(large, domain, bound).reason or "")
    assert contradicted(large, domain, replace(bound, budget=3.5)) is large
    assert contradicted(large, {"u": (-1.0, 1.0), "b": (1.0, 1.0)}, bound) is large
    assert contradicted(large, domain, replace(bound, unit="u")) is large


class TestTheCommand:
    def test_it_writes_a_report_and_a_table(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("IMPLICIT_EM_CACHE", str(tmp_path / "cache"))
        command = ["exhaust", "laplace.influence", "--dtype", "bfloat16", "--backend", "eager"]
        assert main([*command, "--json", "found.json", "--markdown", "table.md"]) == HELD
        page = Path("table.md").read_text(encoding="utf-8")
        assert "implicit-em exhaust laplace.influence --dtype bfloat16 --backend eager --markdown table.md" in page
        assert "## laplace\n" in page
        assert "| influence | bfloat16 | eager | 0 | u = `0x0p+0`, b = `0x1p+0` |" in page
        assert "| exhaustive, 65,536 |" in page
        assert "implicit-em exhaust laplace.influence" in Path("found.json").read_text(encoding="utf-8")
        assert not list((tmp_path / "cache").rglob("*.npz"))
        assert "65,536 inputs" in capsys.readouterr().out

    def test_float64_is_bounded_and_not_swept(self, tmp_path: Path, capsys: Any) -> None:
        found = tmp_path / "found.json"
        command = ["exhaust", "laplace.activation", "--dtype", "float64", "--backend", "eager", "--at", "m=2"]
        assert main([*command, "--json", str(found), "--markdown", str(tmp_path / "page.md")]) == HELD
        findings = json.loads(found.read_text(encoding="utf-8"))["findings"]
        assert [finding["function"] for finding in findings] == ["activation/line", "activation/box"]
        assert "m = 2, b = 1" in findings[0]["reason"]
        assert "m in [1, 4], b in [0.5, 2]" in findings[1]["reason"]
        assert all(0 < finding["measured"] <= finding["budget"] < 8 for finding in findings)
        assert "| searched |" in (tmp_path / "page.md").read_text(encoding="utf-8")
        assert "bound" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["laplace.activatoin"], "unknown function"),
            (["laplce"], "did you mean laplace?"),
            (["laplace.log_normalizer"], "expected a function of a coordinate"),
            (["laplace.activation", "--at", "m"], "expected NAME=VALUE"),
            (["laplace.activation", "--at", "nu=2"], "expected one of m, b"),
            (["laplace", "--dtype", "float128"], "expected one of float64, float32, bfloat16, float16"),
        ],
    )
    def test_a_mistake_is_one_line(self, arguments: list[str], said: str, capsys: Any) -> None:
        assert main(["exhaust", *arguments]) == WRONG
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line

    def test_an_interrupt_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        monkeypatch.setenv("IMPLICIT_EM_CACHE", str(tmp_path))

        def stop(*_: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(Sweep, "chunk", stop)
        assert main(["exhaust", "laplace.influence", "--dtype", "float16", "--backend", "eager"]) == INTERRUPTED
        assert "--resume goes on" in capsys.readouterr().err

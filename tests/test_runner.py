"""The runner brings every planned cell home, whatever the checks do."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from derivations import KernelError
from verify.finding import Cell, Finding
from verify.journal import Journal
from verify.runner import Interrupted, plan, run
from verify.settings import Settings
from verify.workers import Task, Workbench, _Queue, reproduce

SETTINGS = Settings(profile="quick", dtypes=("float64", "float32"))


@dataclass(frozen=True)
class FakeCheck:
    """A check of two numeric cells for each kernel, which says, or does, always the same."""

    name: str
    act: Any

    def cells(self, subject: Any, settings: Settings) -> list[Cell]:
        return [
            Cell(self.name, subject.name, "activation", dtype, device, backend)
            for dtype in settings.dtypes
            for device in settings.devices
            for backend in settings.backends
        ]

    def run(self, subject: Any, cell: Cell, settings: Settings) -> Finding:
        finding: Finding = self.act(cell)
        return finding


def _passes(cell: Cell) -> Finding:
    return Finding(cell, "passed", "sampled", 512, 1.0, 2.0, 1.5, "ulp", {"z": "0x1p+0"})


def _fails(cell: Cell) -> Finding:
    return Finding(cell, "failed", "sampled", 512, 9.0, 2.0, 9.0, "ulp", {"z": "0x1.8p+1"}, "beyond the budget")


def _undecided(cell: Cell) -> Finding:
    return Finding(cell, "undecided", None, 0, reason="the enclosure stays wide")


def _raises(cell: Cell) -> Finding:
    raise ZeroDivisionError("division\nby zero")


def _answers_something_else(cell: Cell) -> Finding:
    return _passes(Cell(cell.check, "another kernel", cell.function, cell.dtype))


def _answers_what_json_cannot_carry(cell: Cell) -> Finding:
    return Finding(cell, "passed", "sampled", 1, measured=1 + 2j)  # type: ignore[arg-type]


def _passes_beyond_its_budget(cell: Cell) -> Finding:
    return Finding(cell, "passed", "sampled", 1, measured=3.0, budget=2.0, unit="ulp")


def _passes_without_a_bound(cell: Cell) -> Finding:
    return Finding(cell, "passed", "sampled", 1, measured=math.inf, budget=math.inf, unit="ulp")


def _passes_on_nan(cell: Cell) -> Finding:
    return Finding(cell, "passed", "sampled", 1, measured=math.nan, unit="ulp")


def _kills_the_process(cell: Cell) -> Finding:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def _interrupts(cell: Cell) -> Finding:
    raise KeyboardInterrupt


def load_fake(spec: str) -> Any:
    if spec == "unknown":
        raise KernelError("unknown kernel 'unknown'")
    return SimpleNamespace(name=Path(spec).stem, kernel=SimpleNamespace(expected_failures={}))


def fake_page(subject: Any, settings: Settings) -> Mapping[str, Any]:
    if subject.name == "huber":
        raise RuntimeError("no page today")
    return {"energy_latex": "u", "seed": subject.name}


def _checks(**acts: Any) -> dict[str, FakeCheck]:
    return {name: FakeCheck(name, act) for name, act in acts.items()}


def honest() -> dict[str, FakeCheck]:
    return _checks(passes=_passes)


def mixed() -> dict[str, FakeCheck]:
    return _checks(passes=_passes, fails=_fails, undecided=_undecided, raises=_raises)


def deadly() -> dict[str, FakeCheck]:
    return _checks(passes=_passes, deadly=_kills_the_process)


def interrupting() -> dict[str, FakeCheck]:
    return _checks(passes=_passes, interrupts=_interrupts, later=_passes)


def dishonest() -> dict[str, FakeCheck]:
    return _checks(elsewhere=_answers_something_else, imaginary=_answers_what_json_cannot_carry)


def contradictory() -> dict[str, FakeCheck]:
    return _checks(beyond=_passes_beyond_its_budget, unbounded=_passes_without_a_bound, nan=_passes_on_nan)


def bench(checks: Any) -> Workbench:
    return Workbench(load=load_fake, checks=checks, page=fake_page)


KERNELS = ("gaussian", "huber", "laplace")


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_planned_cell_is_counted_once(jobs: int) -> None:
    report = run(KERNELS, SETTINGS, jobs=jobs, bench=bench(mixed))
    summary = report.summary
    assert [finding.cell for finding in report.findings] == [cell for _, cell in plan(KERNELS, SETTINGS, bench(mixed))]
    assert summary["planned"] == 24 == sum(summary[key] for key in summary if key not in ("planned", "cases"))
    assert (summary["passed"], summary["failed"], summary["undecided"]) == (6, 12, 6)
    assert not report.ok


def test_a_check_that_raises_is_a_failed_finding_that_names_the_error() -> None:
    report = run(["gaussian"], SETTINGS, jobs=1, bench=bench(mixed))
    crashed = [finding for finding in report.findings if finding.cell.check == "raises"]
    assert [finding.status for finding in crashed] == ["failed", "failed"]
    assert crashed[0].reason == "crashed: ZeroDivisionError: division by zero"
    assert crashed[0].reproduce == "implicit-em verify gaussian --check raises --dtype float64 --profile quick --seed 0"


def test_an_answer_about_another_cell_or_without_json_is_a_failure() -> None:
    report = run(["gaussian"], SETTINGS, jobs=1, bench=bench(dishonest))
    assert report.summary["failed"] == report.planned == 4
    assert all((finding.reason or "").startswith("crashed: TypeError") for finding in report.findings)


def test_a_pass_that_its_own_numbers_contradict_is_a_failure() -> None:
    report = run(["gaussian"], SETTINGS, jobs=1, bench=bench(contradictory))
    assert report.summary["failed"] == report.planned == 6
    assert report.findings[0].reason == "crashed: ValueError: passed with 3.0 measured and 2.0 allowed"


def test_a_worker_that_dies_costs_its_own_cell_and_no_other() -> None:
    report = run(KERNELS, SETTINGS, jobs=2, bench=bench(deadly))
    assert {finding.reason for finding in report.findings if finding.cell.check == "deadly"} == {
        "crashed: the worker died of SIGKILL"
    }
    assert {finding.status for finding in report.findings if finding.cell.check == "passes"} == {"passed"}
    assert len(report.findings) == 12


def test_an_interrupt_keeps_what_was_finished() -> None:
    with pytest.raises(Interrupted) as stop:
        run(["gaussian"], SETTINGS, jobs=1, bench=bench(interrupting))
    report = stop.value.report
    assert [finding.status for finding in report.findings] == ["passed", "passed", *["not_run"] * 4]
    assert report.findings[-1].reason == "interrupted"
    assert report.planned == 6


def test_an_interrupt_ends_the_workers() -> None:
    seen: list[Finding] = []

    def stop_at_first(spec: str, finding: Finding) -> None:
        seen.append(finding)
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stop:
        run(KERNELS, SETTINGS, jobs=2, bench=bench(honest), on_finding=stop_at_first)
    assert len(seen) == 1
    assert stop.value.report.summary["passed"] == 1


def test_what_is_done_is_not_run_again() -> None:
    done = run(["gaussian"], SETTINGS, jobs=1, bench=bench(honest)).findings
    told: list[Finding] = []
    report = run(
        ["gaussian"],
        SETTINGS,
        jobs=1,
        bench=bench(mixed),
        done=done,
        on_finding=lambda spec, finding: told.append(finding),
    )
    assert list(report.findings[:2]) == list(done)
    assert len(told) == report.planned == 8


def test_a_backend_that_is_not_there_is_counted_as_not_run() -> None:
    settings = Settings(dtypes=("float32",), devices=("cpu",), backends=("eager", "triton"))
    report = run(["gaussian"], settings, jobs=1, bench=bench(honest))
    eager, triton = report.findings
    assert eager.status == "passed"
    assert triton.status == "not_run"
    assert triton.reason == "backend triton: needs a CUDA device, and the tensors are on cpu"


def test_the_plan_refuses_two_kernels_of_one_name() -> None:
    with pytest.raises(KernelError, match=r"kernel huber is given by huber and by my/huber\.py"):
        plan(["huber", "my/huber.py"], SETTINGS, bench(honest))
    assert len(plan(["huber", "huber"], SETTINGS, bench(honest))) == 2


def test_only_the_chosen_checks_are_planned() -> None:
    settings = Settings(profile="quick", dtypes=("float32",), checks=("fails",))
    assert [cell.check for _, cell in plan(["huber"], settings, bench(mixed))] == ["fails"]


def test_a_page_that_crashes_is_told_and_costs_no_finding() -> None:
    report = run(["gaussian", "huber"], SETTINGS, jobs=1, bench=bench(honest), pages=True)
    assert report.kernels["gaussian"]["seed"] == "gaussian"
    assert report.kernels["huber"] == {"crashed": "crashed: RuntimeError: no page today"}
    assert report.summary["passed"] == 4


def test_the_environment_says_what_the_run_stood_on() -> None:
    environment = run(["gaussian"], SETTINGS, jobs=1, bench=bench(honest)).environment
    for key in ("python", "torch", "sympy", "flint", "numpy", "hypothesis", "platform", "device", "cpu", "started"):
        assert environment[key]
    assert (environment["seed"], environment["profile"], environment["jobs"]) == (0, "quick", 1)


def test_a_worker_stays_with_its_kernel_and_slow_tasks_go_first() -> None:
    symbolic = Cell("proof", "huber", "activation", "exact", "any", "symbolic")
    numeric = [Task("huber", Cell("c", "huber", f"f{i}", "float32")) for i in range(3)]
    other = Task("laplace", Cell("c", "laplace", "f", "float32"))
    queue = _Queue([*numeric, other, Task("huber", symbolic)])
    assert queue.take(None) == Task("huber", symbolic)  # the longest kernel first, its proof before all
    assert queue.take(None) == other
    assert queue.take("huber") == numeric[0]
    assert queue.take("laplace") == numeric[2]  # helps from the far end, where no proofs are
    assert queue.take("huber") == numeric[1]
    assert queue.take("huber") is None


def test_no_worker_repeats_a_derivation_unless_the_one_that_had_it_died() -> None:
    proofs = [Task("huber", Cell("proof", "huber", f"f{i}", "exact", "any", "symbolic")) for i in range(3)]
    queue = _Queue(proofs)
    assert queue.take(None) == proofs[0]
    assert queue.take(None) is None
    queue.release("huber")
    assert queue.take(None) == proofs[1]
    assert queue.take("huber") == proofs[2]


def test_reproduce_leaves_out_what_is_the_default() -> None:
    cell = Cell("posterior_mean.accuracy", "student_t", "activation", "float32")
    assert reproduce("student_t", cell, Settings(profile="quick")) == (
        "implicit-em verify student_t --check posterior_mean.accuracy --dtype float32 --profile quick --seed 0"
    )
    # The standard profile runs both backends, and plans for both devices: which one it was must be said.
    assert reproduce("student_t", cell, Settings()) == (
        "implicit-em verify student_t --check posterior_mean.accuracy --dtype float32"
        " --device cpu --backend eager --seed 0"
    )
    proof = Cell("form", "k", "energy", "exact", "any", "symbolic")
    assert (
        reproduce("my kernel.py", proof, Settings(seed=7)) == "implicit-em verify 'my kernel.py' --check form --seed 7"
    )


def test_the_journal_gives_back_what_was_finished_on_the_same_specification(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("energy = 1")
    spec = str(path)
    report = run([spec], SETTINGS, jobs=1, bench=bench(mixed))
    journal = Journal(tmp_path / "findings.jsonl", SETTINGS)
    for finding in report.findings:
        journal.add(spec, finding)
    kept = [finding for finding in report.findings if finding.cell.check != "raises"]  # a crash is tried again
    assert Journal(tmp_path / "findings.jsonl", SETTINGS).finished([spec]) == kept

    other = Settings(profile="quick", seed=1)
    assert Journal(tmp_path / "findings.jsonl", other).finished([spec]) == []


def test_the_journal_forgets_an_edited_kernel_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    path.write_text("energy = 1")
    cell = Cell("passes", "edited", "activation", "float32")
    journal = Journal(tmp_path / "findings.jsonl", SETTINGS)
    journal.add(str(path), _passes(cell))
    with (tmp_path / "findings.jsonl").open("a") as file:
        file.write('{"key": "abc", "fin')
    assert journal.finished([str(path)]) == [_passes(cell)]

    from verify.journal import fingerprint

    fingerprint.cache_clear()  # as in another process
    path.write_text("energy = 2")
    assert journal.finished([str(path)]) == []
    journal.clear()
    assert journal.finished([str(path)]) == []

"""The command line: parse, call, print, exit code. The only place that prints."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from verify.settings import PROFILES, Settings

if TYPE_CHECKING:
    from verify.bench import Size
    from verify.finding import Finding, Report
    from verify.journal import Journal

# 0 all held, 1 something was found, 2 the call itself is wrong, 130 interrupted.
HELD, FOUND, WRONG, INTERRUPTED = 0, 1, 2, 130

# So many names are all told to someone who gave a wrong one; of more, those that come close.
_FEW = 6

Command = TypeVar("Command", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status. A user's mistake is one line on stderr, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without ∞ shows ?, and that is no reason to stop
    try:
        status: int | None = commands.main(args=arguments, prog_name="implicit-em", standalone_mode=False)
    except click.ClickException as error:
        return _mistake(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        return _mistake(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, LookupError) as error:
        if not isinstance(error, _users_mistakes()):
            raise
        return _mistake(str(error))
    return status or HELD


def _users_mistakes() -> tuple[type[Exception], ...]:
    """The errors whose message is one line written for the user. Imported late: they bring SymPy and torch along."""
    from derivations import KernelError
    from verify.audit import AuditError
    from verify.primitives import MissingTable
    from verify.report.document import UnreadableReport

    return AuditError, KernelError, MissingTable, UnreadableReport


def _mistake(message: str) -> int:
    one_line = " ".join(message.split()).removesuffix(".")
    click.echo(f"implicit-em: {one_line}", err=True)
    return WRONG


class _InOrder(click.Group):
    """Lists its commands as they are defined, the way they are used, and not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: implicit-em verify gaussian --profile quick --report reports",
    invoke_without_command=True,
)
@click.version_option(package_name="implicit-em", message="%(package)s %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """One line of SymPy in; a proved derivation, stable torch code and a certificate of its accuracy out."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _print(*renderables: RenderableType) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    for renderable in renderables:
        console.print(renderable)


def _write(text: str, path: Path | None) -> None:
    """To the file, or to stdout where there is none."""
    if path is None:
        click.echo(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
    _print(f"wrote {path}")


def _write_json(document: Mapping[str, Any], path: Path | None) -> None:
    from verify.report.document import write_json

    if path is not None:
        write_json(document, path)


_FILE = click.Path(dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)
json_option = click.option("--json", "json_path", type=_FILE, metavar="FILE", help="Write the same as JSON.")


def _names_option(
    name: str, known: Callable[[], Iterable[str]], help_text: str, **settings: Any
) -> Callable[[Command], Command]:
    """An option that takes names, repeated or with commas between, each of them a known one."""

    def split(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
        given = [word.strip() for value in values for word in value.split(",") if word.strip()]
        return tuple(dict.fromkeys(_known_name(name, word, tuple(known())) for word in given))

    return click.option(name, multiple=True, callback=split, help=help_text, **settings)


def _known_name(option: str, word: str, known: Sequence[str]) -> str:
    if word in known:
        return word
    near = dict.fromkeys(get_close_matches(word, known, n=3)) if len(known) > _FEW else []
    expected = f"did you mean {', '.join(near)}?" if near else f"expected one of {', '.join(known)}"
    raise click.UsageError(f"{option} {word}: {expected}")


def _dtypes() -> Iterable[str]:
    from verify.formats import FORMATS

    return FORMATS


def _computing() -> Iterable[str]:
    from verify.formats import WIDE

    return WIDE


def _measured_backends() -> Iterable[str]:
    return [backend for backend in _backends() if backend != "triton"]


def _devices() -> Iterable[str]:
    from verify.environment import DEVICES

    return DEVICES


def _lifts() -> Iterable[str]:
    from verify.bench import LIFTS

    return LIFTS


def _backends() -> Iterable[str]:
    from verify.environment import BACKENDS

    return BACKENDS


dtype_option = _names_option(
    "--dtype", _dtypes, "float64, float32, bfloat16 or float16; quick: the first two.", metavar="DTYPE"
)
device_option = _names_option("--device", _devices, "cpu or cuda; quick: cpu.", metavar="DEVICE")
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all samples.")


@commands.command(short_help="List the kernels.", epilog="Example: implicit-em kernels --json kernels.json")
@json_option
def kernels(json_path: Path | None) -> None:
    """List the kernels: energy, parameters with domains and defaults, variants."""
    from derivations import kernel_names, load_kernel
    from verify.listing import kernel_row, kernel_table

    rows = [kernel_row(load_kernel(name)) for name in kernel_names()]
    _print(kernel_table(rows))
    _write_json({"kernels": rows}, json_path)


@commands.command(
    short_help="Show the derivation of a kernel.",
    epilog="Example: implicit-em derive student_t --format latex -o student_t.tex",
)
@click.argument("specs", nargs=-1, required=True, metavar="KERNEL|FILE.py...")
@click.option(
    "--format", "form", type=click.Choice(["text", "latex", "json", "torch"]), default="text", show_default=True
)
@click.option("--theorems", is_flag=True, help="First, the identities that hold for every kernel.")
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write to a file, not to the terminal.")
def derive(specs: Sequence[str], form: str, theorems: bool, output: Path | None) -> int:
    """Derive what follows from an energy, each step with its verdict; as torch, the code that comes of it.

    Exits with 1 where a step is not proved by both checks.
    """
    from derivations import derive as derive_kernel
    from derivations import load_kernel
    from derivations.generate import module_source
    from derivations.theorems import prove_theorems
    from verify.report.derivation import RENDERERS, Section

    kernels = [load_kernel(spec) for spec in specs]
    if form == "torch":
        _write("\n\n".join(module_source(kernel) for kernel in kernels), output)
        return HELD
    with Console(stderr=True).status("proving what holds for every kernel") as status:
        sections = [Section("every kernel", None, "", prove_theorems())] if theorems else []
        for kernel in kernels:
            status.update(f"deriving {kernel.name}")
            sections.append(Section.of(kernel, derive_kernel(kernel)))
    _write(RENDERERS[form](sections), output)
    return HELD if all(section.proved == len(section.steps) for section in sections) else FOUND


@commands.command(short_help="Write the generated torch code.", epilog="Example: implicit-em generate --check")
@click.option("--check", is_flag=True, help="Write nothing; print a diff and exit with 1 where the code is stale.")
def generate(check: bool) -> int:
    """Write the torch code of every built-in kernel to implicit_em/_generated."""
    from derivations import generate as generator

    if check:
        difference = generator.diff()
        click.echo(difference or "the generated code is fresh", nl=not difference)
        return FOUND if difference else HELD
    written = [f"wrote {path}" for path in generator.write()]
    _print(*(written or ["nothing to do: the generated code is fresh"]))
    return HELD


def _check_names(chosen: Sequence[str]) -> tuple[str, ...] | None:
    """The checks of these names; the first part of a name stands for all checks that begin with it."""
    if not chosen:
        return None
    from verify.checks import CHECKS

    groups = {name.partition(".")[0] for name in CHECKS}
    named = [_known_name("--check", name, (*CHECKS, *sorted(groups))) for name in chosen]
    return tuple(check for check in CHECKS if any(check == name or check.startswith(f"{name}.") for name in named))


@commands.command(
    short_help="Check kernels against the truth.",
    epilog="Example: implicit-em verify student_t cauchy.py --profile quick --report reports",
)
@click.argument("specs", nargs=-1, metavar="[KERNEL|FILE.py]...")
@click.option("--profile", type=click.Choice(PROFILES), default="standard", show_default=True, help="How hard to try.")
@dtype_option
@device_option
@_names_option("--backend", _backends, "eager, compile or triton; quick: eager.", metavar="BACKEND")
@click.option("--check", "checks", multiple=True, metavar="CHECK", help="Only this check, or all of one property.")
@seed_option
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Processes; as many as processors by default.")
@json_option
@click.option("--report", "report_path", type=_DIRECTORY, metavar="DIR", help="Write index.html and report.json.")
@click.option("--resume", is_flag=True, help="Keep what an interrupted run with this --report has finished.")
def verify(
    specs: Sequence[str],
    profile: Any,
    dtype: tuple[str, ...],
    device: tuple[str, ...],
    backend: tuple[str, ...],
    checks: Sequence[str],
    seed: int,
    jobs: int | None,
    json_path: Path | None,
    report_path: Path | None,
    resume: bool,
) -> int:
    """Check kernels against the truth: the built-in ones, or FILE.py with a KERNEL of your own.

    Without a name it checks every built-in kernel. --check, --dtype, --device and --backend may be
    repeated. Exits with 0 where all held, with 1 where something was found.
    """
    from derivations import kernel_names
    from verify.journal import Journal
    from verify.table import summary

    if resume and report_path is None:
        raise click.UsageError("--resume: expected --report DIR, the report of the run to go on with")
    settings = Settings(
        profile=profile,
        seed=seed,
        dtypes=dtype,
        devices=device,
        backends=backend,
        checks=_check_names(checks),
    )
    for directory in filter(None, (report_path, json_path and json_path.parent)):
        directory.mkdir(parents=True, exist_ok=True)  # better refused now than after the run
    _measure_what_is_lacking(settings)
    journal = Journal(report_path / "findings.jsonl", settings) if report_path else None
    if journal and not resume:
        journal.clear()
    elif journal and not journal.finished(specs or kernel_names()):
        click.echo(
            f"--resume: nothing in {report_path} is of these kernels with this profile, seed and code: all is run",
            err=True,
        )
    report, finished = _run(specs or kernel_names(), settings, jobs, journal)
    _print(*summary(report, _write_report(report, report_path, json_path)))
    if not finished:
        hint = (
            "the same command with --resume goes on from here" if report_path else "--report DIR makes a run resumable"
        )
        click.echo(f"implicit-em: interrupted: {hint}", err=True)
        return INTERRUPTED
    return HELD if report.ok else FOUND


def _measure_what_is_lacking(settings: Settings) -> None:
    """Budgets rest on a table for this very processor and torch: one that nobody has measured is measured, and said."""
    from verify.environment import place_of, primitive_tables
    from verify.primitives import cache_directory, measure, store, unmeasured

    _, lacking = primitive_tables(settings.dtypes, settings.backends, settings.devices)
    # float64 first: it is what float32 is measured against.
    for (dtype, *place), message in sorted(lacking.items(), reverse=True):
        click.echo(f"{message}; a quick measurement stands in for it", err=True)
        names = unmeasured(dtype, *place)
        with _fraction(f"measuring {dtype} {place_of(*place)}") as advance:
            table = measure(dtype, *place, seed=settings.seed, depth="quick", names=names, progress=advance)
        store(table, cache_directory())


def _run(specs: Sequence[str], settings: Settings, jobs: int | None, journal: Journal | None) -> tuple[Report, bool]:
    """Runs with a progress bar, from where the journal ends and on into it; says whether it was left to finish."""
    from verify.runner import Interrupted, run

    done = journal.finished(specs) if journal else []
    kept = {finding.cell for finding in done}
    with _progress() as (planned, settled):

        def on_finding(spec: str, finding: Finding) -> None:
            if journal and finding.cell not in kept:
                journal.add(spec, finding)
            settled(finding)

        def on_plan(cells: int) -> None:
            if not cells:
                raise click.UsageError("nothing to verify: no check applies to these kernels with these options")
            planned(cells)

        try:
            report = run(
                specs, settings, jobs=jobs, on_plan=on_plan, on_finding=on_finding, done=done, pages=journal is not None
            )
        except Interrupted as stop:
            return stop.report, False
    return report, True


def _write_report(report: Report, directory: Path | None, json_path: Path | None) -> list[str]:
    """Writes what was asked for, and returns the paths."""
    from verify.report import write_html
    from verify.report.document import write_json

    document = report.as_dict()
    written = []
    if directory is not None:
        write_json(document, directory / "report.json")
        written += [write_html(report, directory / "index.html"), directory / "report.json"]
    if json_path is not None and json_path not in written:
        written.append(write_json(document, json_path))
    return [str(path) for path in written]


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int], None], Callable[[Finding], None]]]:
    """A bar on stderr, or, where that is no terminal, a line at every tenth of the way.

    Yields:
        What to call with the number of cells, and what to call with each finding.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _plain_progress()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[found]}", style="bold red"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("planning", total=None, found="")
        failed = 0

        def planned(cells: int) -> None:
            progress.update(bar, total=cells, description="verifying")

        def settled(finding: Finding) -> None:
            nonlocal failed
            failed += finding.status == "failed"
            progress.update(bar, advance=1, found=f"{failed} failed" if failed else "")

        yield planned, settled


def _plain_progress() -> tuple[Callable[[int], None], Callable[[Finding], None]]:
    total = settled_cells = failed = 0

    def planned(cells: int) -> None:
        nonlocal total
        total = cells
        click.echo(f"verifying {cells} cell{'s' * (cells != 1)}", err=True)

    def settled(finding: Finding) -> None:
        nonlocal settled_cells, failed
        settled_cells += 1
        failed += finding.status == "failed"
        tenth = settled_cells * 10 // total
        if tenth > (settled_cells - 1) * 10 // total:
            click.echo(f"{tenth * 10:3d} %  {settled_cells} of {total} cells, {failed} failed", err=True)

    return planned, settled


@commands.command(
    short_help="Try every input of a format.",
    epilog="Example: implicit-em exhaust gaussian.activation --dtype float32",
)
@click.argument("targets", nargs=-1, metavar="[KERNEL[.FUNCTION]|FILE.py[:FUNCTION]]...")
@_names_option("--dtype", _dtypes, "float32 by default; of float64, only bounds.", metavar="DTYPE")
@_names_option("--backend", _measured_backends, "eager or compile; compile by default.", metavar="BACKEND")
@click.option("--at", "fixed", metavar="NAME=VALUE,...", help="Where the arguments stand that are not swept.")
@seed_option
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Threads; as many as processors by default.")
@click.option("--compare", is_flag=True, help="Also time the same pass in eager torch, in turns with the compiled one.")
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run has finished.")
@click.option("--markdown", type=_FILE, metavar="FILE", help="Write the table as Markdown.")
@json_option
def exhaust(
    targets: Sequence[str],
    dtype: tuple[str, ...],
    backend: tuple[str, ...],
    fixed: str | None,
    seed: int,
    jobs: int | None,
    compare: bool,
    resume: bool,
    markdown: Path | None,
    json_path: Path | None,
) -> int:
    """Try every number of a format on functions of one coordinate, or every pair of 16-bit numbers on those of two.

    Beside each sweep stands a bound of the error, proved box by box: on the line that is swept, and with m and the
    parameters within a factor of 2 of their values. Float64 has too many numbers to try, and bounds all the same.

    A kernel without a function stands for its activations and their slopes, no kernel for every built-in one of a
    scalar. The results are kept chunk by chunk: --resume goes on after Ctrl-C, or after a crash.
    """
    from verify.exhaust.command import planned, sweep_all
    from verify.exhaust.listing import exhaust_table, markdown_page

    dtypes, backends = dtype or ("float32",), backend or ("compile",)
    plan = planned(targets, dtypes, backends, _values(fixed), Settings(seed=seed), resume=resume)
    _measure_what_is_lacking(Settings(dtypes=dtypes, backends=backends))
    with _fraction("sweeping") as advance:
        report, finished = sweep_all(plan, jobs=jobs, compare=compare, on_progress=advance)
    _print(*exhaust_table(report.findings))
    _write_json(report.as_dict(), json_path)
    if markdown is not None:
        words = ["implicit-em", "exhaust", *targets, "--dtype", ",".join(dtypes), "--backend", ",".join(backends)]
        words += [*(["--at", fixed] if fixed else []), "--markdown", str(markdown)]
        _write(markdown_page(report, shlex.join(words)), markdown)
    if not finished:
        click.echo("implicit-em: interrupted: the same command with --resume goes on from here", err=True)
        return INTERRUPTED
    return HELD if report.ok else FOUND


def _values(text: str | None) -> dict[str, float]:
    """NAME=VALUE pairs, with commas between."""
    found = {}
    for pair in filter(None, (text or "").split(",")):
        name, equals, value = pair.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise click.UsageError(f"--at {pair}: expected NAME=VALUE, as in --at m=2,nu=4")
    return found


@commands.command(
    short_help="Measure torch's rounding errors.",
    epilog="Example: implicit-em primitives --dtype float32 --depth quick",
)
@_names_option("--dtype", _computing, "float64 or float32, in which all is computed; both by default.", metavar="DTYPE")
@_names_option("--device", _devices, "cpu or cuda; cpu by default.", metavar="DEVICE")
@_names_option(
    "--backend", _backends, "eager, compile or, on cuda, triton; all that there are by default.", metavar="BACKEND"
)
@click.option(
    "--depth",
    type=click.Choice(["full", "quick"]),
    default="full",
    show_default=True,
    help="full tries every float32 input and takes minutes, quick takes seconds.",
)
@click.option("--missing", is_flag=True, help="Only those of which no table holds for this processor.")
@seed_option
@click.option(
    "-o", "--output", type=_DIRECTORY, metavar="DIR", help="Where the tables go; the user's cache by default."
)
@json_option
def primitives(
    dtype: tuple[str, ...],
    device: tuple[str, ...],
    backend: tuple[str, ...],
    depth: Any,
    missing: bool,
    seed: int,
    output: Path | None,
    json_path: Path | None,
) -> None:
    """Measure the rounding error of each torch primitive on this machine; budgets rest on it."""
    from verify.environment import missing as lacking
    from verify.environment import place_of
    from verify.listing import primitive_table
    from verify.primitives import MEASURED, cache_directory, measure, operations_of, store, unmeasured

    places = [(on, kind) for on, kind in MEASURED if on in (device or ("cpu",)) and kind in (backend or _backends())]
    if not places:
        among = ", ".join(" ".join(place) for place in MEASURED)
        raise click.UsageError(
            f"--device {','.join(device)} --backend {','.join(backend)}: expected one out of {among}"
        )
    tables = []
    # float64 first: it is what float32 is measured against.
    for (on, kind), name in product(places, sorted(dtype or _computing(), reverse=True)):
        if reason := lacking(on, "triton" if on == "cuda" else kind):
            raise click.UsageError(reason)
        label = f"{name} {place_of(on, kind)}"
        chosen = unmeasured(name, on, kind) if missing else operations_of(kind)
        if not chosen:
            click.echo(f"{label}: all {len(operations_of(kind))} primitives are measured as this processor runs them")
            continue
        with _fraction(f"measuring {label}") as advance:
            table = measure(name, on, kind, seed=seed, depth=depth, names=chosen, progress=advance)
        _print(primitive_table(table), f"wrote {store(table, output or cache_directory())}", "")
        tables.append(table.as_dict())
    _write_json({"tables": tables}, json_path)


@contextmanager
def _fraction(what: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr for work that tells the fraction that is done; without a terminal, a line for each part."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    told = ""

    def advance(name: str, done: float) -> None:
        nonlocal told
        if console.is_terminal:
            progress.update(bar, completed=done, description=f"{what}: {name}")
        elif name != told:
            click.echo(f"{done * 100:3.0f} %  {what} {name}", err=True)
        told = name

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=1.0)
        yield advance


@commands.command(
    short_help="Show where EM lives in a torch model.",
    epilog="Example: implicit-em audit path/to/models.py:transformer --picture transformer.svg",
)
@click.argument("target", metavar="MODULE:FACTORY")
@seed_option
@click.option("--picture", type=_FILE, metavar="FILE.svg", help="Draw the network, coloured by role.")
@json_option
def audit(target: str, seed: int, picture: Path | None, json_path: Path | None) -> None:
    """Show where EM lives in a torch model: the role of each operation, and what gradient arrives there.

    FACTORY, a function of a module or of a FILE.py, takes nothing and returns (model, example_batch, loss):
    a torch.nn.Module, its input or a tuple of inputs, and loss(output) or loss(output, *inputs), a scalar.

    Roles are measured and names decide nothing. Exits with 0 when the audit ran, whatever it found.
    """
    from verify.audit import audit_factory, audit_picture, audit_table

    found = audit_factory(target, seed=seed)
    _print(*audit_table(found))
    _write_json(found.as_dict(), json_path)
    if picture is not None:
        _write(audit_picture(found), picture)


@commands.command(
    short_help="Time the fused log-partition beside others.",
    epilog="Example: implicit-em bench gaussian --size 5000,64,8 --pass forward --repeats 3",
)
@click.argument("specs", nargs=-1, metavar="[KERNEL|FILE.py]...")
@click.option("--size", "sizes", multiple=True, metavar="N,K,D", help="Samples, components, features; repeatable.")
@_names_option("--lift", _lifts, "radial, sum or own; every one that a kernel has by default.", metavar="LIFT")
@click.option(
    "--pass",
    "which",
    type=click.Choice(["forward", "mu", "both"]),
    default="both",
    show_default=True,
    help="L alone; L with its gradient in mu; or L alone and L with its gradients in x and mu.",
)
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=7, show_default=True, help="Rounds in turns.")
@click.option("--memory", is_flag=True, help="Also the peak memory, each in a process of its own.")
@click.option("--plot", type=_FILE, metavar="FILE.svg|png", help="Draw the ratios.")
@seed_option
@json_option
def bench(
    specs: Sequence[str],
    sizes: Sequence[str],
    lift: tuple[str, ...],
    which: str,
    dtype: str,
    device: str,
    repeats: int,
    memory: bool,
    plot: Path | None,
    seed: int,
    json_path: Path | None,
) -> int:
    """Time mixture_log_partition beside torch.compile, eager torch and KeOps of the plain formula, in one run.

    On the same data, in turns: times as ratios to the fused path, and beside each the largest error. Then what the
    problem takes at the rates that torch's own loops show in the same run. Without a kernel it takes every
    built-in one that can be fused. What cannot run is shown as not run. Exits with 0 whatever is the fastest.
    """
    from verify.bench import PASSES, bench_table, cases, write_plot
    from verify.bench import bench as run_bench

    _check_plot(plot)
    plan = cases(specs, lift, [_size(text) for text in sizes], dtype=dtype, device=device, seed=seed)
    for path in filter(None, (json_path, plot)):
        path.parent.mkdir(parents=True, exist_ok=True)  # better refused now than after the run
    passes = PASSES if which == "both" else (which,)
    words = ["implicit-em", "bench", *specs, *(word for text in sizes for word in ("--size", text))]
    words += [*(["--lift", ",".join(lift)] if lift else []), "--pass", which, "--dtype", dtype, "--device", device]
    words += ["--repeats", str(repeats), "--seed", str(seed), *(["--memory"] if memory else [])]
    with _fraction("timing") as advance:
        found, finished = run_bench(
            plan, passes, repeats=repeats, memory=memory, reproduce=shlex.join(words), on_progress=advance
        )
    _print(*bench_table(found))
    _write_json(found.as_dict(), json_path)
    if plot is not None:
        _print(f"wrote {write_plot(found, plot)}")
    if not finished:
        click.echo("implicit-em: interrupted: what was finished is shown", err=True)
        return INTERRUPTED
    return HELD


def _size(text: str) -> Size:
    from verify.bench import Size

    parts = text.split(",")
    if len(parts) != len(Size._fields) or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.UsageError(f"--size {text}: expected N,K,D, three positive whole numbers")
    return Size(*map(int, parts))


def _check_plot(path: Path | None) -> None:
    from verify.bench import SUFFIXES, can_plot

    if path is None:
        return
    if path.suffix not in SUFFIXES:
        raise click.UsageError(f"--plot {path}: expected a file that ends in {' or '.join(SUFFIXES)}")
    if not can_plot():
        raise click.UsageError("--plot: Matplotlib is not installed: expected the extra implicit-em[plots]")


@commands.command(
    short_help="Write a kernel file to start from.",
    epilog="Example: implicit-em new cauchy && implicit-em verify cauchy.py",
)
@click.argument("name")
def new(name: str) -> None:
    """Write NAME.py, a commented kernel file to start from."""
    from derivations import kernel_names
    from verify.template import kernel_file

    path = Path(f"{name}.py")
    if name in kernel_names():
        raise click.UsageError(f"{name}: a built-in kernel has that name: expected another one")
    if path.exists():
        raise click.UsageError(f"{path}: exists already: expected a new name")
    path.write_text(kernel_file(name), encoding="utf-8")
    _print(f"wrote {path}; next: implicit-em verify {path} --profile quick")


@commands.command(short_help="Render a stored report again.", epilog="Example: implicit-em report reports")
@click.argument("directory", type=_DIRECTORY, metavar="DIR")
def report(directory: Path) -> None:
    """Render DIR/report.json again, to DIR/index.html."""
    from verify.report import write_html
    from verify.report.document import read_report

    stored = read_report(directory / "report.json")
    _print(f"wrote {write_html(stored, directory / 'index.html')}")


@commands.command(
    short_help="Show what runs here and what does not.", epilog="Example: implicit-em doctor --json doctor.json"
)
@json_option
def doctor(json_path: Path | None) -> None:
    """Show versions, devices and backends, and what will not be run here, and why."""
    from verify.listing import doctor_report, doctor_table

    found = doctor_report()
    _print(*doctor_table(found))
    _write_json(found, json_path)

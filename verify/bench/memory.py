"""Peak memory of one pass over its inputs and outputs, in a fresh process for each function.

A process's peak never falls, and a child begins with its parent's where it is read by getrusage. So the child warms up,
returns what it has freed to the system, sets its peak to what is resident then, and runs once more.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from verify.bench.passes import Results, run_of
from verify.bench.problems import Case, problem
from verify.bench.rivals import NotRun, functions_of
from verify.bench.room import bounded, forget_peak, peak_resident, resident
from verify.bench.timing import finish


def peak(case: Case, pass_name: str, rival: str) -> int:
    """Bytes held at the worst moment, besides inputs and results.

    Raises:
        NotRun: it does not run here, or the system does not tell.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(there, case, pass_name, rival, torch.get_num_threads()))
    child.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        child.join()
        raise NotRun(_end(child.exitcode)) from None
    except KeyboardInterrupt:
        child.terminate()
        raise
    child.join()  # and not ended: KeOps writes its cache at exit
    if isinstance(found, str):
        raise NotRun(found)
    return int(found)


def _end(status: int | None) -> str:
    if status is not None and status < 0:
        return f"its process was killed by {signal.Signals(-status).name}, as for want of memory"
    return f"its process failed, with exit status {status}"


def _answer(connection: Connection, case: Case, pass_name: str, rival: str, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends this process
    torch.set_num_threads(threads)
    try:
        with bounded(case.device):
            connection.send(_measured(case, pass_name, rival))
    except NotRun as error:
        connection.send(str(error))


def _measured(case: Case, pass_name: str, rival: str) -> int:
    given = problem(case)
    run = run_of(pass_name, functions_of(given.case)[rival](given), given)
    run()
    return _on_gpu(run) if case.device == "cuda" else _on_cpu(run)


def _on_cpu(run: Callable[[], Results]) -> int:
    gc.collect()
    _return_freed()
    if resident() is None:
        raise NotRun("the system does not tell what is resident: expected Linux")
    forget_peak()
    before = resident() or 0
    results = run()
    return max(0, (peak_resident() or 0) - before - _size(results))


def _on_gpu(run: Callable[[], Results]) -> int:
    finish("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run()
    finish("cuda")
    return max(0, torch.cuda.max_memory_allocated() - before - _size(results))


def _size(results: Results) -> int:
    return sum(result.numel() * result.element_size() for result in results)


def _return_freed() -> None:
    """glibc keeps what was freed, and would hand it out again without the peak moving."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

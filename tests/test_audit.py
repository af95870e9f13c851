"""Audits of models whose answer is known: every row, the evidence against a second opinion, and faults that show."""

from __future__ import annotations

import io
import json
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

import implicit_em
from verify.audit import Audit, AuditError, audit, audit_picture, audit_table
from verify.audit import known_models as models
from verify.audit.factory import loss_call
from verify.audit.known_answers import CROSS_ENTROPY, KNOWN, answers
from verify.audit.listing import letters, verdict
from verify.audit.operations import behaviour
from verify.audit.picture import FILLS
from verify.audit.rows import CONDITIONS, ROLES
from verify.audit.trace import Runner
from verify.cli import HELD, WRONG, main

PATH = Path(models.__file__)
EPS = torch.finfo(torch.float32).eps


@cache
def audited(name: str) -> Audit:
    return audit(*getattr(models, name)(), name=name)


@pytest.mark.parametrize("name", KNOWN)
def test_every_row_is_as_known(name: str) -> None:
    assert answers(audited(name)) == KNOWN[name]


@pytest.mark.parametrize("name", KNOWN)
def test_evidence_stays_within_what_rounding_allows(name: str) -> None:
    """A responsibility errs by the roundings of a sum of K terms, eight others, and those of differences of scores.

    Scores of the experiments are drawn with a spread of 2, so hardly beyond 10; those of a trained model hardly too.
    """
    for row in audited(name).operations:
        evidence = row.evidence
        if row.em == "none":
            continue
        hypotheses = 2 if row.dim is None else row.shape[row.dim]
        assert evidence.max_error is not None
        assert evidence.bound is not None
        assert evidence.ulps == pytest.approx(evidence.max_error / EPS)
        assert evidence.max_error <= evidence.bound <= EPS * (hypotheses + 8 + 4 * 20)
        if row.dim is not None:
            assert evidence.sum_error is not None
            assert evidence.sum_error <= hypotheses * evidence.bound


def test_a_second_opinion_on_cross_entropy() -> None:
    """The gradient of the logits in float64, by hand: what float32 measured differs from it by the audited error."""
    model, (x,), _ = models.relu()
    target = models.digits()[1][-models.BATCH :]
    logits = model(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, target), [logits])
    exact = torch.softmax(logits.detach().double(), -1) - models.one_hot(target).double()
    error = float((gradient.double() * models.BATCH - exact).abs().max())
    row = audited("relu").operations[-1]
    assert row.evidence.max_error is not None
    # The audit tries other logits too, and finds at least this error but for its own rounding of the scale 1/N.
    assert error <= row.evidence.max_error + EPS
    assert row.evidence.note == "r − target, one scale"


@pytest.mark.parametrize(
    ("name", "place", "note"),
    [
        ("mixture_density", -1, "−r, one scale"),
        ("partition", -1, "−r, one scale, by this way alone"),
        ("mixture_density", 3, "g − rΣg"),
        ("transformer", 3, "r(g − ḡ)"),
        ("binary", -1, "σ − target, one scale"),
        ("over_the_batch", 3, "dim -2 counts the batch's examples"),
    ],
)
def test_the_gradients_form_is_named(name: str, place: int, note: str) -> None:
    assert audited(name).operations[place].evidence.note == note


def test_a_wrong_backward_is_told_from_a_right_one() -> None:
    wrong, right = audited("wrong_gradient").operations[3], audited("softmax_by_hand").operations[3]
    assert wrong.evidence.max_error is not None
    assert wrong.evidence.bound is not None
    assert wrong.evidence.max_error > 100 * wrong.evidence.bound
    assert "autograd disagrees" in str(wrong.evidence.note)
    assert right.em == "exact"
    assert "3 competes without them" in verdict(audited("wrong_gradient"))


@pytest.mark.parametrize(
    ("name", "place"), [("relu", 0), ("tanh", 0), ("convolution", 0), ("transformer", 7), ("mixture_density", 0)]
)
def test_hidden_units_that_coincide_stay_so(name: str, place: int) -> None:
    """Claim C6: the two units run through the same operations, so not even rounding parts them."""
    assert audited(name).operations[place].twins == 0


def test_twins_that_do_not_coincide_are_seen() -> None:
    """The positive control: a dropout mask in between is not the same for both."""
    model = nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 10))
    x, y = models.digits()
    rows = audit(model, x[:16], lambda z: functional.cross_entropy(z, y[:16])).operations
    assert rows[0].twins is not None
    assert rows[0].twins > 0


def _focal(z: Tensor, y: Tensor, gamma: float = 2.0) -> Tensor:
    log_p = z.log_softmax(-1).gather(1, y[:, None])
    return -((1 - log_p.exp()) ** gamma * log_p).mean()


LOSSES = {
    "label smoothing": (lambda z, y: functional.cross_entropy(z, y, label_smoothing=0.1), "exact"),
    "a sum": (lambda z, y: functional.cross_entropy(z, y, reduction="sum"), "exact"),
    "a temperature": (lambda z, y: functional.cross_entropy(z / 3, y), "exact"),
    "class weights": (lambda z, y: functional.cross_entropy(z, y, weight=torch.arange(1.0, 11.0)), "exact"),
    "ignored rows": (lambda z, y: functional.cross_entropy(z, y.where(y > 2, -100)), "exact"),
    "logsumexp by hand": (lambda z, y: (z.exp().sum(-1).log() - z.gather(1, y[:, None])[:, 0]).mean(), "exact"),
    "margin-less energies": (lambda z, y: torch.logsumexp(-z, -1).mean(), "exact"),
    "focal": (_focal, "responsibilities_only"),
    "all but cross-entropy": (lambda z, y: _focal(z, y, 0.001), "responsibilities_only"),
    "square of a logsumexp": (lambda z, y: torch.logsumexp(z, -1).square().mean(), "responsibilities_only"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_exact_where_the_gradient_is_and_nowhere_else(name: str) -> None:
    loss, em = LOSSES[name]
    torch.manual_seed(1)
    x, y = models.digits()
    found = audit(nn.Linear(64, 10), x[:12], lambda z: loss(z, y[:12]))
    assert [row.em for row in found.operations if row.dim == -1] == [em]


# Compensated, with mixing logits, it is not recognized: what rounding lost is computed from the scores once more, so
# that replaced scores look like a huge rounding error.
@pytest.mark.parametrize(("mixing", "compensated"), [(False, False), (True, False), (False, True)])
def test_the_librarys_log_partition_is_exact(mixing: bool, compensated: bool) -> None:
    """With ∂L/∂d = −r for L to be maximized, so r, or −r on scores log π − d, for −L."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(64, 5)
            self.mixing_logits = nn.Parameter(torch.randn(5)) if mixing else None

        def forward(self, x: Tensor) -> Tensor:
            return implicit_em.log_partition(self.body(x).square(), self.mixing_logits, compensated=compensated)

    torch.manual_seed(0)
    found = audit(Mixture(), models.digits()[0][:8], lambda value: -value.mean())
    rows = [(row.role, row.dim, letters(row), row.em) for row in found.operations if row.shape == (8, 5)]
    assert rows[-1] == CROSS_ENTROPY


class Gated(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * (z > 0)


@pytest.mark.parametrize(
    ("module", "role"),
    [
        (nn.ReLU(), "hard_gate"),
        (nn.ReLU6(), "hard_gate"),
        (nn.Hardtanh(), "hard_gate"),
        (nn.Hardshrink(), "hard_gate"),
        (Gated(), "hard_gate"),
        (nn.LeakyReLU(), "independent_nonlinearity"),
        (nn.GELU(), "independent_nonlinearity"),
        (nn.GELU("tanh"), "independent_nonlinearity"),
        (nn.ELU(), "independent_nonlinearity"),
        (nn.Softplus(), "independent_nonlinearity"),
        (nn.Tanhshrink(), "independent_nonlinearity"),
        (nn.LayerNorm(16), "other"),
        (nn.Softmax(-1), "competition"),
        (nn.LogSoftmax(-1), "competition"),
        (nn.Softmin(-1), "competition"),
    ],
)
def test_roles_of_single_modules(module: nn.Module, role: str) -> None:
    model = nn.Sequential(nn.Linear(64, 16), module, nn.Linear(16, 10))
    x, y = models.digits()
    found = audit(model, x[:8], lambda z: functional.cross_entropy(z, y[:8]))
    assert found.operations[1].role == role


def test_names_decide_nothing() -> None:
    """A module called Softmax that is none, and a softmax that no module or function is called by."""

    class Softmax(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(z)

    x, y = models.digits()
    found = audit(nn.Sequential(nn.Linear(64, 10), Softmax()), x[:8], lambda z: functional.cross_entropy(z, y[:8]))
    assert [row.role for row in found.operations] == ["affine", "independent_nonlinearity", "loss"]
    assert audited("softmax_by_hand").operations[3].role == "competition"


def test_dropout_is_folded_and_attention_still_summarizes() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.2)
    x, y = models.digits()
    found = audit(model, x[:8].reshape(-1, 8, 8), lambda z: functional.cross_entropy(z.mean(1), y[:8] % 8))
    assert [row.role for row in found.operations].count("posterior_summary") == 1
    assert not any("dropout" in row.name for row in found.operations)


def test_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 10))
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y = models.digits()
    drawn = torch.random.get_rng_state()
    audit(model, x[:8], lambda z: functional.cross_entropy(z, y[:8]))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(drawn, torch.random.get_rng_state())


def test_an_audit_repeats() -> None:
    assert audit(*models.transformer()).as_dict()["operations"] == audited("transformer").as_dict()["operations"]


def test_the_trace_of_an_in_place_operation_keeps_both_values() -> None:
    model, batch, loss = models.relu()
    trace, _ = Runner(model, batch, loss_call(loss, "relu"), 0).run()
    call = next(call for call in trace.calls if call.mutates)
    assert bool((call.inputs[0].tensor < 0).any())
    assert bool((call.outputs[0].tensor >= 0).all())
    assert behaviour(call, 0).kind == "gate"


def test_the_table_fits_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    for part in audit_table(audited("transformer")):
        console.print(part)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "block.self_attn.out_proj" in text
    assert "EM is exact at loss; responsibility-weighted gradients arrive at block.self_attn" in " ".join(text.split())


def test_a_verdict_says_where_and_where_not() -> None:
    assert verdict(audited("tanh")) == "EM is exact at loss; nothing competes in 1."
    assert verdict(audited("unnormalized")).startswith("EM is exact nowhere")


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("name", ["transformer", "experts", "partition"])
def test_the_picture_is_readable(name: str) -> None:
    """Well-formed, a title for every box, legible ink (4.5 : 1, WCAG 2.1), and nothing from elsewhere."""
    text = audit_picture(audited(name))
    tree = ElementTree.fromstring(text)
    titles = [element.text or "" for element in tree.iter("{http://www.w3.org/2000/svg}title")]
    rows = audited(name).operations
    assert len(titles) == len(rows) + 2  # the picture's own, and that of the input
    assert all(any(title.startswith(f"{row.name}: {row.op}") for title in titles) for row in rows)
    assert "href" not in text
    assert "<script" not in text
    for fill, _ in FILLS.values():
        for ink in ("#1c2024", "#4a5058"):
            light, dark = sorted((_luminance(fill), _luminance(ink)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert set(FILLS) == set(ROLES)


def test_the_command_writes_table_json_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, picture = tmp_path / "audit.json", tmp_path / "audit.svg"
    target = f"{PATH}:transformer"
    assert main(["audit", target, "--json", str(document), "--picture", str(picture), "--seed", "3"]) == HELD
    assert "EM is exact at loss" in capsys.readouterr().out
    assert picture.read_text().startswith("<svg")
    found = json.loads(document.read_text())
    assert found["schema"] == 1
    assert found["model"] == target
    for row in found["operations"]:
        assert {"name", "op", "shape", "role", "dim", "conditions", "em", "evidence"} <= row.keys()
        assert row["role"] in ROLES
        assert row["dim"] is None or -len(row["shape"]) <= row["dim"] < 0
        assert list(row["conditions"]) == list(CONDITIONS)
        assert all(isinstance(held, bool) for held in row["conditions"].values())
        assert row["em"] in ("exact", "responsibilities_only", "none")
        assert {"max_error", "ulps", "sum_error"} <= row["evidence"].keys()


USERS_FILE = """
import torch
from torch import nn

def fails(): raise KeyError("weights.pt")
def asks(size): return None
def single(): return nn.Linear(2, 2)
def not_a_model(): return (1, torch.ones(2, 2), torch.sum)
def no_batch(): return (nn.Linear(2, 2), "text", torch.sum)
def no_examples(): return (nn.Linear(2, 2), torch.ones(0, 2), torch.sum)
def no_loss(): return (nn.Linear(2, 2), torch.ones(2, 2), 3)
def vector(): return (nn.Linear(2, 2), torch.ones(2, 2), lambda z: z)
def number(): return (nn.Linear(2, 2), torch.ones(2, 2), lambda z: 1.0)
def nan(): return (nn.Linear(2, 2), torch.ones(2, 2), lambda z: z.sum() * float("nan"))
def detached(): return (nn.Linear(2, 2), torch.ones(2, 2), lambda z: z.detach().sum())
def misshaped(): return (nn.Linear(2, 2), torch.ones(2, 3), torch.sum)
def greedy(): return (nn.Linear(2, 2), torch.ones(2, 2), lambda z, a, b, c: z.sum())
def narrow(): return (nn.Linear(2, 2).bfloat16(), torch.ones(2, 2).bfloat16(), torch.sum)
def misdeclared():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[1].audit_role = "gate"
    return model, torch.ones(2, 2), torch.sum
value = 3
"""

MISTAKES = {
    "models.py": "expected MODULE:FACTORY",
    "models.py:": "expected MODULE:FACTORY",
    "missing.py:make": "missing.py: no such file",
    "no_such_package.models:make": "no module named no_such_package",
    "broken.py:make": "broken.py: cannot be imported: SyntaxError",
    "models.py:mke": "expected a factory, found the functions fails",
    "models.py:value": "expected a function, found int",
    "models.py:fails": "the factory fails: KeyError: 'weights.pt'",
    "models.py:asks": "expected a function without arguments",
    "models.py:single": "expected (model, example_batch, loss), got Linear",
    "models.py:not_a_model": "expected a torch.nn.Module as the model, got int",
    "models.py:no_batch": "expected a tensor or a tuple of inputs",
    "models.py:no_examples": "expected a batch with examples in it",
    "models.py:no_loss": "expected a callable loss, got int",
    "models.py:vector": "expected a scalar loss, got shape (2, 2)",
    "models.py:number": "expected the loss to be a tensor, got float",
    "models.py:nan": "expected a finite loss, got nan",
    "models.py:detached": "the loss has no gradient",
    "models.py:misshaped": "fails on the example batch: RuntimeError",
    "models.py:greedy": "got a loss of 4 arguments",
    "models.py:narrow": "expected float32 or float64, found bfloat16",
    "models.py:misdeclared": "1.audit_role = 'gate': expected one of affine",
}


@pytest.mark.parametrize("target", MISTAKES)
def test_a_users_mistake_is_one_line(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(USERS_FILE)
    (tmp_path / "broken.py").write_text("def make(:\n")
    assert main(["audit", target]) == WRONG
    error = capsys.readouterr().err
    assert error.startswith("implicit-em: ")
    assert error.count("\n") == 1
    assert MISTAKES[target] in error


def test_a_dotted_name_is_found_where_the_command_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn, ones\n"
        "def make():\n"
        "    return nn.Linear(2, 2), ones(2, 2), lambda z, x: (z - x).square().sum()\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "nets_of_mine:make"]) == HELD
    assert "EM is exact nowhere" in capsys.readouterr().out


def test_a_model_that_does_not_repeat_is_refused() -> None:
    class Restless(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.tanh() if self.calls % 2 else x.sin().cos()

    with pytest.raises(AuditError, match=re.escape("two runs with one seed did different operations")):
        audit(Restless(), torch.ones(2, 2), torch.sum)

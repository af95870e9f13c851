"""What an audit must answer for the models in `known_models`, row by row, known from how they are built."""

from __future__ import annotations

from collections.abc import Mapping

from verify.audit.command import Audit
from verify.audit.listing import letters

# Role, dimension of the hypotheses, conditions, and where EM is.
Verdict = tuple[str, int | None, str, str]
# A module, the operations in it, and the verdict on them.
Answer = tuple[str, str, Verdict]

AFFINE: Verdict = ("affine", None, "·····", "none")
SMOOTH: Verdict = ("independent_nonlinearity", None, "·····", "none")
GATE: Verdict = ("hard_gate", None, "·····", "none")
OTHER: Verdict = ("other", None, "·····", "none")
CROSS_ENTROPY: Verdict = ("loss", -1, "DEXNL", "exact")
PAIRS: Verdict = ("loss", None, "DEXNL", "exact")
PLAIN_LOSS: Verdict = ("loss", None, "·····", "none")
INNER_SOFTMAX: Verdict = ("competition", -1, "DEXN·", "responsibilities_only")
SUMMARY: Verdict = ("posterior_summary", -1, "·····", "none")

# Every row of every model.
KNOWN: Mapping[str, list[Answer]] = {
    "relu": [
        ("0", "addmm", AFFINE),
        ("1", "relu", GATE),
        ("2", "addmm", AFFINE),
        ("loss", "log_softmax·nll_loss_forward", CROSS_ENTROPY),
    ],
    "tanh": [
        ("0", "addmm", AFFINE),
        ("1", "tanh", SMOOTH),
        ("2", "addmm", AFFINE),
        ("loss", "log_softmax·nll_loss_forward", CROSS_ENTROPY),
    ],
    "binary": [
        ("0", "addmm", AFFINE),
        ("1", "gelu", SMOOTH),
        ("2", "addmm", AFFINE),
        ("loss", "binary_cross_entropy_with_logits", PAIRS),
    ],
    # The hidden sigmoid and that of the outputs are one function; the loss makes a posterior of the second.
    "sigmoid_outputs": [
        ("0", "addmm", AFFINE),
        ("1", "sigmoid", SMOOTH),
        ("2", "addmm", AFFINE),
        ("3", "sigmoid", ("independent_nonlinearity", None, "DEXNL", "exact")),
        ("loss", "binary_cross_entropy", PLAIN_LOSS),
    ],
    "transformer": [
        ("embed", "addmm", AFFINE),
        ("block.self_attn", "mm", AFFINE),
        ("block.self_attn", "bmm", OTHER),
        ("block.self_attn", "softmax", INNER_SOFTMAX),
        ("block.self_attn", "bmm", SUMMARY),
        ("block.self_attn.out_proj", "addmm", AFFINE),
        ("block.norm1", "native_layer_norm", OTHER),
        ("block.linear1", "addmm", AFFINE),
        ("block", "relu", GATE),
        ("block.linear2", "addmm", AFFINE),
        ("block.norm2", "native_layer_norm", OTHER),
        ("head", "addmm", AFFINE),
        ("loss", "log_softmax·nll_loss_forward", CROSS_ENTROPY),
    ],
    "experts": [
        *[(f"experts.{index}", "addmm", AFFINE) for index in range(4)],
        ("gate", "addmm", AFFINE),
        ("model", "softmax", INNER_SOFTMAX),
        ("model", "mul·sum", SUMMARY),
        ("loss", "log_softmax·nll_loss_forward", CROSS_ENTROPY),
    ],
    "mixture_density": [
        ("body", "addmm", AFFINE),
        ("model", "tanh", SMOOTH),
        ("means", "addmm", AFFINE),
        ("model", "log_softmax", INNER_SOFTMAX),
        ("loss", "pow", SMOOTH),
        ("loss", "logsumexp·mean·neg", CROSS_ENTROPY),
    ],
    "sparsemax": [
        ("0", "addmm", AFFINE),
        ("1", "tanh", SMOOTH),
        ("2", "addmm", AFFINE),
        ("3", "sort·cumsum·sub·mul·gather·div·clamp", ("competition", -1, "DE·N·", "none")),
        ("loss", "pow", PLAIN_LOSS),
    ],
    "convolution": [
        ("0", "convolution", AFFINE),
        ("1", "silu", SMOOTH),
        ("2", "convolution", AFFINE),
        ("3", "max_pool2d_with_indices", GATE),
        ("5", "addmm", AFFINE),
        ("loss", "log_softmax·nll_loss_forward", CROSS_ENTROPY),
    ],
    "over_the_batch": [
        ("0", "addmm", AFFINE),
        ("1", "tanh", SMOOTH),
        ("2", "addmm", AFFINE),
        ("3", "softmax", ("competition", -2, "·EXN·", "none")),
        ("loss", "log", PLAIN_LOSS),
    ],
    "square_of_softmax": [
        ("0", "addmm", AFFINE),
        ("1", "tanh", SMOOTH),
        ("2", "addmm", AFFINE),
        ("3", "softmax", INNER_SOFTMAX),
        ("loss", "mse_loss", PLAIN_LOSS),
    ],
    "softmax_by_hand": [
        ("0", "addmm", AFFINE),
        ("1", "tanh", SMOOTH),
        ("2", "addmm", AFFINE),
        ("3", "amax·sub·exp·sum·div", ("competition", -1, "DEXNL", "exact")),
        ("loss", "log", PLAIN_LOSS),
    ],
    "unnormalized": [
        ("0", "addmm", AFFINE),
        ("1", "tanh", SMOOTH),
        ("2", "addmm", AFFINE),
        ("3", "exp", ("unnormalized", None, "·EX··", "none")),
        ("loss", "mse_loss", PLAIN_LOSS),
    ],
    "wrong_gradient": [
        ("0", "addmm", AFFINE),
        ("1", "tanh", SMOOTH),
        ("2", "addmm", AFFINE),
        ("3", "softmax", ("competition", -1, "DEXN·", "none")),
        ("loss", "log", PLAIN_LOSS),
    ],
    "opaque": [
        ("0", "addmm", AFFINE),
        ("1", "Opaque", SMOOTH),
        ("2", "addmm", AFFINE),
        ("loss", "log_softmax·nll_loss_forward", CROSS_ENTROPY),
    ],
    # d = ½‖x − μ‖² comes as √ of a sum of squares, squared again.
    "competitive": [
        ("0", "addmm", AFFINE),
        ("1", "div", OTHER),
        ("1", "pow", SMOOTH),
        ("1", "sqrt", SMOOTH),
        ("1", "mul", OTHER),
        ("1", "mul", OTHER),
        ("1", "neg·softmax", INNER_SOFTMAX),
        ("1", "bmm", SUMMARY),
        ("2", "addmm", AFFINE),
        ("loss", "log_softmax·nll_loss_forward", CROSS_ENTROPY),
    ],
    "partition": [
        ("0.layer", "addmm", AFFINE),
        ("1", "tanh", SMOOTH),
        ("2", "addmm", AFFINE),
        ("loss", "log_softmax·nll_loss_forward", CROSS_ENTROPY),
        ("0", "neg·sub·logsumexp·mul", CROSS_ENTROPY),
    ],
    "hypothesis_normalization": [
        ("0", "addmm", AFFINE),
        ("1", "neg·softmax", INNER_SOFTMAX),
        ("2", "addmm", AFFINE),
        ("loss", "log_softmax·nll_loss_forward", CROSS_ENTROPY),
    ],
}


def answers(audit: Audit) -> list[Answer]:
    """The rows of an audit in the same form."""
    return [
        # One softmax has two names in torch; the safe one differs where all scores are −∞.
        (row.name, row.op.replace("safe_softmax", "softmax"), (row.role, row.dim, letters(row), row.em))
        for row in audit.operations
    ]

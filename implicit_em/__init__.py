"""Implicit EM in torch: energies, the competition between them, and the activations that follow from both.

Imports torch and nothing symbolic: the kernels' functions are generated code.
"""

from implicit_em.activations import PosteriorMeanActivation
from implicit_em.competition import log_partition, posterior_mean, responsibilities
from implicit_em.invariants import cosine, log_det, mahalanobis_square, precision_cholesky, precision_inner
from implicit_em.kernels import Kernel, Parameter, from_module, from_source, kernel, kernel_names
from implicit_em.lifts import lifted_energy

__all__ = [
    "Kernel",
    "Parameter",
    "PosteriorMeanActivation",
    "cosine",
    "from_module",
    "from_source",
    "kernel",
    "kernel_names",
    "lifted_energy",
    "log_det",
    "log_partition",
    "mahalanobis_square",
    "posterior_mean",
    "precision_cholesky",
    "precision_inner",
    "responsibilities",
]

"""Implicit EM in torch: energies, the competition between them, the activations that follow, and EM on mixtures.

Imports torch and nothing symbolic: the kernels' functions are generated code.
"""

from implicit_em.activations import PosteriorMeanActivation
from implicit_em.competition import log_partition, posterior_mean, responsibilities
from implicit_em.em import EMState, em_step
from implicit_em.fused.partition import mixture_log_partition
from implicit_em.fused.posterior import mixture_posterior_mean
from implicit_em.invariants import cosine, log_det, mahalanobis_square, precision_cholesky, precision_inner
from implicit_em.kernels import Kernel, Parameter, from_module, from_source, kernel, kernel_names
from implicit_em.layers import CompetitiveLayer, HypothesisNormalization, PartitionLoss, auxiliary_loss
from implicit_em.lifts import lifted_energy
from implicit_em.operator import EMOperator, NotAtFixedPoint
from implicit_em.redundancy import coincident_pairs, effective_rank

__all__ = [
    "CompetitiveLayer",
    "EMOperator",
    "EMState",
    "HypothesisNormalization",
    "Kernel",
    "NotAtFixedPoint",
    "Parameter",
    "PartitionLoss",
    "PosteriorMeanActivation",
    "auxiliary_loss",
    "coincident_pairs",
    "cosine",
    "effective_rank",
    "em_step",
    "from_module",
    "from_source",
    "kernel",
    "kernel_names",
    "lifted_energy",
    "log_det",
    "log_partition",
    "mahalanobis_square",
    "mixture_log_partition",
    "mixture_posterior_mean",
    "posterior_mean",
    "precision_cholesky",
    "precision_inner",
    "responsibilities",
]

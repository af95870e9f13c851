"""Student-t energy as the seed writes it: without (ν + 1)/2 it is a Cauchy law of scale σ√ν."""

from sympy import log, pi, sqrt

from derivations.atoms import hypot
from derivations.geometry import m, u, z
from derivations.kernel import Fact, Kernel
from derivations.parameter import Parameter

nu = Parameter("nu", positive=True, default=3.0, doc="degrees of freedom in name; only νσ² is identified")
sigma = Parameter("sigma", positive=True, doc="scale, unit of z")

# h² = νσ² + m² + z², and r² = νσ² + m²: where |z| = r the activation turns.
r = hypot(m, sqrt(nu) * sigma)
h = hypot(r, z)

KERNEL = Kernel(
    name="student_t",
    energy=log(1 + u**2 / (nu * sigma**2)),
    parameters=[nu, sigma],
    source="Cauchy (1853), in the parameters of Student (1908)",
    stable={"activation": 2 * m * z / h**2, "activation_grad": 2 * m * (r - z) * (r + z) / h**4},
    facts=(
        Fact("normalizer", {nu: 4, sigma: 3}, 6 * pi, "Cauchy density of scale 6: 1/(6π(1 + u²/36))"),
        Fact(
            "activation",
            {z: 2, m: 1, nu: 1, sigma: 1},
            "2/3",
            "Cauchy laws at ±1 seen from 2: odds of 1/2 to 1/10",
        ),
    ),
    seed="log(1 + (z − μ)²/(νσ²)), called Student-t noise",
    notes="ν and σ are not identified: only νσ² enters. The density with (ν + 1)/2 is student_t_density.",
)

"""Posterior-mean activations as torch modules."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from implicit_em import PosteriorMeanActivation, kernel, kernel_names, responsibilities

LOCATION = [name for name in kernel_names() if kernel(name).geometry == "location"]
Z = torch.tensor([-4.7, -2.3, -1.1, -0.35, 0.2, 0.9, 1.6, 3.1, 5.2], dtype=torch.float64)


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("name", LOCATION)
class TestEveryKernel:
    def test_is_the_posterior_mean_of_the_sign(self, name: str, learnable: bool) -> None:
        act = PosteriorMeanActivation(name, m=1.0, learnable=learnable)
        energies = torch.stack([kernel(name).energy(Z, 1.0), kernel(name).energy(Z, -1.0)], -1)
        r = responsibilities(energies)
        got = act(Z).detach()
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, r[:, 0] - r[:, 1], rtol=2e-6 if learnable else 1e-12, atol=1e-14)

    def test_twice_differentiable(self, name: str, learnable: bool) -> None:
        act = PosteriorMeanActivation(name, m=0.77, learnable=learnable).double()
        names = [n for n, _ in act.named_parameters()]
        inputs = (Z[2:7].clone().requires_grad_(), *act.parameters())

        def call(z, *values):
            return torch.func.functional_call(act, dict(zip(names, values, strict=True)), (z,))

        assert len(names) == (1 + len(kernel(name).parameters) if learnable else 0)
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)

    def test_round_trips(self, name: str, learnable: bool) -> None:
        act = PosteriorMeanActivation(name, m=0.3, learnable=learnable)
        again = PosteriorMeanActivation(name, m=0.3 if not learnable else 5.0, learnable=learnable)
        stored = io.BytesIO()
        torch.save(act.state_dict(), stored)
        stored.seek(0)
        again.load_state_dict(torch.load(stored, weights_only=True))
        for other in (again, copy.deepcopy(act), pickle.loads(pickle.dumps(act))):
            assert torch.equal(other(Z), act(Z))
            assert other.kernel is act.kernel
            assert repr(other) == repr(act)


class TestLearnable:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_values_come_back_to_rounding(self, dtype: torch.dtype) -> None:
        limits = torch.finfo(dtype)
        for value in (1e-30, 1e-3, 0.1, 0.5, 1.0, 2.0, math.pi, 1e3, 1e30):
            act = PosteriorMeanActivation("gaussian", m=torch.tensor(value, dtype=dtype), learnable=True, sigma=1.0)
            assert act.m.dtype == dtype
            # log is held to ½ulp of itself, exp adds its own: the relative error is that of |log v| ulps.
            allowed = limits.eps * (1 + abs(math.log(value)))
            assert abs(act.m.item() / value - 1) <= allowed
        assert PosteriorMeanActivation("gaussian", m=1.0, learnable=True).m.item() == 1.0

    def test_numbers_are_held_in_the_default_dtype(self) -> None:
        act = PosteriorMeanActivation("student_t_density", learnable=True, nu=0.1)
        assert {p.dtype for p in act.parameters()} == {torch.get_default_dtype()}
        assert act.params["nu"].item() == pytest.approx(0.1, rel=3e-7)

    def test_no_step_leaves_the_domain(self) -> None:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            act = PosteriorMeanActivation("student_t_density", learnable=True).to(dtype)
            for size in (-1e4, 1e4):
                with torch.no_grad():
                    for p in act.parameters():
                        p.fill_(size)
                for value in (act.m, *act.params.values()):
                    assert 0 < value.item() < float("inf")

    def test_learns(self) -> None:
        target = PosteriorMeanActivation("student_t", m=2.0)
        act = PosteriorMeanActivation("student_t", m=0.5, learnable=True).double()
        optimizer = torch.optim.Adam(act.parameters(), lr=0.05)
        losses = []
        for _ in range(60):
            loss = (act(Z) - target(Z)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None and bool(p.grad.isfinite()) for p in act.parameters())
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 20

    def test_tensor_values_per_channel(self) -> None:
        m = torch.tensor([0.5, 1.0, 2.0])
        act = PosteriorMeanActivation("laplace", m=m, learnable=True)
        z = torch.randn(4, 3)
        torch.testing.assert_close(act(z), kernel("laplace").activation(z, m))
        assert [p.shape for p in act.parameters()] == [(3,), ()]

    def test_a_value_on_the_edge_of_the_domain(self) -> None:
        with pytest.raises(ValueError, match=r"^expected a learnable m strictly inside \[0, inf\), got 0$"):
            PosteriorMeanActivation("gaussian", m=0.0, learnable=True)
        with pytest.raises(ValueError, match=r"^expected a learnable sigma strictly inside \(0, inf\), got -1$"):
            PosteriorMeanActivation("gaussian", learnable=True, sigma=torch.tensor(-1.0))


class TestFixed:
    def test_numbers_are_not_rounded_by_a_change_of_dtype(self) -> None:
        act = PosteriorMeanActivation("gaussian", m=0.1, sigma=0.3).to(torch.bfloat16)
        assert torch.equal(act(Z), kernel("gaussian").activation(Z, 0.1, sigma=0.3))
        assert not list(act.parameters())
        assert not act.state_dict()
        assert (act.m, act.params) == (0.1, {"sigma": 0.3})

    def test_tensors_are_buffers(self) -> None:
        act = PosteriorMeanActivation("gaussian", m=torch.tensor([1.0, 2.0])).double()
        assert list(act.state_dict()) == ["fixed_m"]
        assert act.m.dtype == torch.float64
        assert not list(act.parameters())


class TestAsAModule:
    def test_in_a_network(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), PosteriorMeanActivation("pseudo_huber", learnable=True), nn.Linear(8, 1))
        net(torch.randn(5, 3)).sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
    def test_the_output_has_the_dtype_of_the_input(self, dtype: torch.dtype) -> None:
        for learnable in (False, True):
            assert PosteriorMeanActivation("gaussian", learnable=learnable)(Z.to(dtype)).dtype == dtype

    @pytest.mark.parametrize("learnable", [False, True])
    def test_compiles_without_a_break(self, learnable: bool) -> None:
        act = PosteriorMeanActivation("student_t", m=0.7, learnable=learnable)
        compiled = torch.compile(act, fullgraph=True, backend="aot_eager")
        z = Z.clone().requires_grad_()
        (expected,) = torch.autograd.grad(act(z).sum(), z)
        (got,) = torch.autograd.grad(compiled(z).sum(), z)
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-16)

    def test_repr(self) -> None:
        assert (
            repr(PosteriorMeanActivation("gaussian", m=2, sigma=0.5))
            == "PosteriorMeanActivation(gaussian, m=2, sigma=0.5)"
        )
        act = PosteriorMeanActivation("gaussian", m=torch.ones(3), learnable=True)
        assert repr(act) == "PosteriorMeanActivation(gaussian, m=tensor(3,), sigma=1, learnable)"

    def test_takes_a_kernel_object(self) -> None:
        assert PosteriorMeanActivation(kernel("gaussian")).kernel is kernel("gaussian")

    def test_what_is_refused(self) -> None:
        with pytest.raises(
            ValueError, match=r"^expected an elementwise kernel, cosine is one of vectors \(direction\)$"
        ):
            PosteriorMeanActivation("cosine")
        with pytest.raises(TypeError, match=r"^the activation of gaussian takes m, sigma; sigam is unknown$"):
            PosteriorMeanActivation("gaussian", sigam=1.0)
        with pytest.raises(ValueError, match=r"^expected sigma in \(0, inf\), got -1$"):
            PosteriorMeanActivation("gaussian", sigma=-1.0)
        with pytest.raises(ValueError, match=r"^expected m in \[0, inf\), got -1$"):
            PosteriorMeanActivation("gaussian", m=-1.0)

"""One run of a model and its loss, written down: every tensor operation, its numbers, and the loss's true gradients.

The run is eager and real. A dispatch mode sits below autograd, so it sees what is executed whoever asked for it, a
custom `autograd.Function` from inside too; autograd itself is untouched, so gradients are those that training gets.
A tensor may be replaced on the way: what then changes, and what does not, is how roles are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

LOSS = "loss"  # the name of what runs after the model has returned


@dataclass(eq=False, repr=False)
class Value:
    """A tensor at one moment: in-place operations make a new value.

    Attributes:
        number: values are numbered as they appear, alike in every run of the same operations.
        tensor: a copy, without history.
        producer: the operation that made it; None for parameters, inputs and constants.
        leaf: the name of a parameter, or "input 0"; None for what operations make, and for constants.
        from_data, from_parameters: whether it depends on the example batch, or on a parameter.
        edge: where autograd keeps ∂loss/∂value; None where no gradient passes.
    """

    number: int
    tensor: Tensor
    producer: Call | None = None
    leaf: str | None = None
    from_data: bool = False
    from_parameters: bool = False
    edge: GradientEdge | None = None

    @property
    def active(self) -> bool:
        return self.from_data or self.from_parameters

    @property
    def floating(self) -> bool:
        return self.tensor.is_floating_point()


@dataclass(eq=False, repr=False)
class Call:
    """One executed operation.

    Attributes:
        operation: the ATen operator; None for a module that declares its role.
        arguments: (args, kwargs) with a Value in place of every tensor.
        module: the qualified name of the innermost module; `LOSS` after the model.
        declared: the role that a module declares by its attribute `audit_role`.
    """

    number: int
    name: str
    operation: Any
    arguments: tuple[Sequence[Any], Mapping[str, Any]]
    inputs: tuple[Value, ...]
    module: str
    declared: str | None = None
    outputs: tuple[Value, ...] = ()

    @property
    def active_inputs(self) -> list[Value]:
        return [value for value in self.inputs if value.active]

    @property
    def mutates(self) -> bool:
        return self.operation is not None and self.operation._schema.is_mutable


@dataclass
class Trace:
    """What one run did."""

    calls: list[Call] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    loss: Value | None = None

    def gradient(self, value: Value) -> Tensor | None:
        """∂loss/∂value as autograd gives it; None where none arrives."""
        assert self.loss is not None
        return self.pull_back(self.loss, torch.ones_like(self.loss.tensor), value)

    def pull_back(self, output: Value, weight: Tensor, value: Value) -> Tensor | None:
        """weightᵀ ∂output/∂value by autograd; None where the two are not connected."""
        if output.edge is None or value.edge is None:
            return None
        (found,) = torch.autograd.grad([output.edge], [value.edge], [weight], retain_graph=True, allow_unused=True)
        return found

    def follows(self, other: Trace) -> bool:
        """Whether both runs did the same operations on the same shapes: else their values do not correspond."""
        return [call.name for call in self.calls] == [call.name for call in other.calls] and [
            value.tensor.shape for value in self.values
        ] == [value.tensor.shape for value in other.values]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes operations into a trace, and replaces the values that it was told to."""

    def __init__(self, trace: Trace, replaced: Mapping[int, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.replaced = replaced
        self.modules: list[str] = []
        self.opaque = 0
        # Tensors are kept alive, or another one might get the same id.
        self._known: dict[int, tuple[Tensor, Value]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.opaque:
            return func(*args, **kwargs)
        call = self._call(func._schema.name.partition("::")[2].strip("_"), func, args, kwargs)
        result = func(*args, **kwargs)
        self.write(call, [item for item in tree_flatten(result)[0] if isinstance(item, Tensor)])
        return result

    def _call(self, name: str, operation: Any, args: Any, kwargs: Any) -> Call:
        arguments = tree_map(lambda item: self.value(item) if isinstance(item, Tensor) else item, (args, kwargs))
        inputs = tuple(dict.fromkeys(item for item in tree_flatten(arguments)[0] if isinstance(item, Value)))
        module = self.modules[-1] if self.modules else ""
        return Call(len(self.trace.calls), name, operation, arguments, inputs, module)

    def declared(self, name: str, role: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """A module that says what it is, in place of all that it did."""
        call = self._call(name, None, tuple(inputs), {})
        call.declared = role
        self.write(call, outputs)

    def write(self, call: Call, results: Sequence[Tensor]) -> None:
        if call.mutates:
            mutated = [tensor for tensor in results if id(tensor) in self._known]
            storages = {tensor.untyped_storage()._cdata for tensor in mutated}
            # Views of what was changed have changed with it.
            others = [tensor for tensor, _ in self._known.values() if tensor.untyped_storage()._cdata in storages]
            results = [*results, *(tensor for tensor in others if all(tensor is not each for each in results))]
        self.trace.calls.append(call)
        call.outputs = tuple(self._made(tensor, call) for tensor in results)

    def _made(self, tensor: Tensor, call: Call) -> Value:
        number = len(self.trace.values)
        if number in self.replaced:
            tensor.data.copy_(self.replaced[number])
        value = self._new(tensor)
        value.producer = call
        value.from_data = any(each.from_data for each in call.inputs)
        value.from_parameters = any(each.from_parameters for each in call.inputs)
        return value

    def _new(self, tensor: Tensor) -> Value:
        value = Value(len(self.trace.values), tensor.detach().clone())
        self.trace.values.append(value)
        self._known[id(tensor)] = tensor, value
        return value

    def value(self, tensor: Tensor) -> Value:
        """The value of a tensor as it is now; a constant where nobody has made it."""
        known = self._known.get(id(tensor))
        value = known[1] if known else self._new(tensor)
        # In-place operations give a tensor another place in the graph: this is the place it is used from.
        if value.edge is None and tensor.requires_grad and tensor.grad_fn is not None:
            value.edge = get_gradient_edge(tensor)
        return value

    def leaf(self, tensor: Tensor, name: str, *, data: bool) -> None:
        number = len(self.trace.values)
        if number in self.replaced:
            tensor.data.copy_(self.replaced[number])
        value = self._new(tensor)
        value.leaf, value.from_data, value.from_parameters = name, data, not data
        if tensor.requires_grad:
            value.edge = get_gradient_edge(tensor)


class Runner:
    """Runs a model and its loss on a batch, alike each time: same seed, same parameters, same buffers."""

    def __init__(
        self, model: nn.Module, inputs: Sequence[Any], call_loss: Callable[[Any, Sequence[Any]], Any], seed: int
    ) -> None:
        self.model, self.inputs, self.call_loss, self.seed = model, inputs, call_loss, seed
        self._names = {module: name for name, module in model.named_modules()}

    def run(self, replaced: Mapping[int, Tensor] | None = None) -> tuple[Trace, Any]:
        """The trace and what the loss returned; `replaced` gives the values of these numbers other contents."""
        trace = Trace()
        recorder = _Recorder(trace, replaced or {})
        inputs = [_fresh(item) for item in self.inputs]
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(_unchanged(self.model))
            stack.enter_context(_unfused())
            torch.manual_seed(self.seed)
            for name, parameter in self.model.named_parameters():
                recorder.leaf(parameter, name, data=False)
            for place, tensor in enumerate(item for item in tree_flatten(inputs)[0] if isinstance(item, Tensor)):
                recorder.leaf(tensor, f"input {place}", data=True)
            stack.enter_context(self._named(recorder))
            copies = any(number < len(trace.values) for number in recorder.replaced)
            stack.enter_context(_saved(recorder, copies=copies))
            with recorder:
                output = self.model(*inputs)
                recorder.modules = [LOSS]
                loss = self.call_loss(output, inputs)
                if isinstance(loss, Tensor):
                    trace.loss = recorder.value(loss)
        return trace, loss

    @contextmanager
    def _named(self, recorder: _Recorder) -> Iterator[None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            outer = recorder.modules[-1] if recorder.modules else ""
            recorder.modules.append(self._names.get(module, outer))
            recorder.opaque += hasattr(module, "audit_role")

        def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if hasattr(module, "audit_role"):
                recorder.opaque -= 1
                if not recorder.opaque:
                    tensors = [
                        [t for t in tree_flatten(each)[0] if isinstance(t, Tensor)] for each in (inputs, outputs)
                    ]
                    own = list(module.parameters())
                    recorder.declared(type(module).__name__, str(module.audit_role), [*tensors[0], *own], tensors[1])
            recorder.modules.pop()

        hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def _unfused() -> Iterator[None]:
    """Attention as matrix products and a softmax between them, not as one fused kernel."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _saved(recorder: _Recorder, *, copies: bool) -> Iterator[None]:
    """What autograd keeps for the way back, unseen by the recorder.

    Copies where a parameter or an input is replaced: it has its contents back before any gradient is asked for.
    """

    def keep(tensor: Tensor) -> Tensor:
        recorder.opaque += 1
        kept = tensor.detach().clone() if copies else tensor.detach()
        recorder.opaque -= 1
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Gives parameters and buffers (a batch norm's averages) their contents back."""
    tensors = [*model.parameters(), *model.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, copy in zip(tensors, kept, strict=True):
            tensor.data.copy_(copy)


def _fresh(item: Any) -> Any:
    """A copy of an input, with a gradient where it can have one."""

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().clone().requires_grad_(leaf.is_floating_point())

    return tree_map(copied, item)

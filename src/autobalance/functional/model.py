r"""A network as a function of its weights: logits f(theta), J v and J^T u with J = df/dtheta.

Nothing that is computed here changes the network. BatchNorm keeps no statistics, other buffers are
written to in copies, and the random draws of all passes through one batch are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from autobalance._validation import InputError
from autobalance.functional.batch_norm import (
    BATCH_NORMS,
    normalize_batch,
    normalize_dual_batch,
    normalize_over_processes,
    replace_forward,
)
from autobalance.functional.module_state import AttributeSnapshot, RandomState, traits_of
from autobalance.functional.outputs import compute_logits
from autobalance.functional.processes import ALONE, Processes

T = TypeVar("T")

Derivative = Literal["forward", "double backward", "central difference"]


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training moves, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of the tensors in one vector; sparse gradients are made dense."""
    return torch.cat([(t.to_dense() if t.is_sparse else t).reshape(-1) for t in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Inverse of `flatten`: parts of the vector in the shapes of these tensors."""
    parts = vector.split([t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)]


class _Host(nn.Module):
    """Runs any function while a network within has other weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, action: Callable[[], Any]) -> Any:
        """What the function returns."""
        return action()


class FunctionalModel:
    """A network's logits at other parameters; its weights and buffers stay as they are.

    The network is looked through once, so that a pass costs little beside its kernels: on a GPU small
    networks wait for what starts them.

    Parameters
    ----------
    model : nn.Module
        Its modules' modes at the time of a pass are those that count.
    processes : Processes
        Those that train it together, over which SyncBatchNorm takes its statistics.
    derivative : {"forward", "double backward", "central difference"}, optional
        How J v is computed; by default the first of these that agrees with the reverse gradient.

    Attributes
    ----------
    parameters : dict of str to Tensor
        Those that training moves, see `trainable`.
    traits : NetworkTraits
        What is known of the network.

    Raises
    ------
    InputError
        If a part of the model is scripted, or has not been built yet.
    """

    def __init__(
        self,
        model: nn.Module,
        processes: Processes = ALONE,
        *,
        derivative: Derivative | None = None,
    ) -> None:
        self.model, self.processes, self.traits = model, processes, traits_of(model)
        self.derivative: Derivative | None = derivative
        self.modules = list(model.modules())
        _check_parts(model, self.modules)
        plain = [m for m in self.modules if type(m) in BATCH_NORMS]
        self._batch_norms: list[Any] = [m for m in plain if "forward" not in vars(m)]
        self._synchronised = [m for m in self.modules if isinstance(m, nn.SyncBatchNorm)]
        theirs = {id(b) for m in self._batch_norms for b in m.buffers(recurse=False)}
        named = list(model.named_parameters(remove_duplicate=False))
        first: dict[int, str] = {}
        self._ties = [(n, first[id(p)]) for n, p in named if first.setdefault(id(p), n) != n]
        names = set(first.values())
        self.parameters: dict[str, Tensor] = {
            n: p for n, p in named if p.requires_grad and n in names
        }
        self.frozen = {n: p for n, p in named if not p.requires_grad and n in names}
        self._buffers = [
            (name, b)
            for name, b in model.named_buffers(remove_duplicate=False)
            if id(b) not in theirs
        ]
        self._host = _Host(model)

    def lend_parameters(self) -> dict[str, Tensor]:
        """The trainable parameters as leaves for a pass: themselves, or copies for a network that writes."""
        if not self.traits.needs_copies:
            return self.parameters
        return {name: _copy_of_leaf(p) for name, p in self.parameters.items()}

    def copy_state(self) -> dict[str, Tensor]:
        """Copies of what a forward pass may write to beside the trainable parameters."""
        copies = {id(b): b.clone() for _, b in self._buffers}
        state = {name: copies[id(b)] for name, b in self._buffers}
        if self.traits.needs_copies:
            state |= {name: p.detach().clone() for name, p in self.frozen.items()}
        return state

    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Any,
        *,
        dual: bool = False,
        state: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits at these parameters, by name; others are the model's own.

        With `dual`, in which parameters are dual numbers and nothing has a graph, BatchNorm has a
        forward-mode rule of three kernels for torch's some twenty. `state` is what `copy_state` returned,
        for those who want to know what the pass wrote to it.
        """
        if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point():
            # Convolutions follow their input's layout; this one is faster in all our passes.
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        state = self.copy_state() if state is None else state
        logits = self.within(
            {**state, **parameters}, lambda: compute_logits(self.model, inputs), dual=dual
        )
        # Autocast's logits are half precision; what follows, the upper level, is not.
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def within(
        self, tensors: Mapping[str, Tensor], action: Callable[[], T], *, dual: bool = False
    ) -> T:
        """Call `action` while the network holds these parameters and buffers, by name.

        A backward pass belongs in here too: activation checkpointing runs parts of the forward pass again
        inside it, which must see the same weights and write to nothing of the network's own.
        """
        given = {name: tensors[first] for name, first in self._ties if first in tensors}
        given = {f"network.{name}": t for name, t in {**given, **tensors}.items()}
        with ExitStack() as stack:
            attributes = AttributeSnapshot(self.modules)
            stack.callback(attributes.restore)
            training = [m for m in self._batch_norms if m.training]
            rule = normalize_dual_batch if dual else normalize_batch
            stack.enter_context(replace_forward(training, rule))
            if self.processes.group is not None:
                over_all = partial(normalize_over_processes, processes=self.processes)
                stack.enter_context(replace_forward(self._synchronised, over_all))
            return functional_call(self._host, given, (action,), tie_weights=False)


class Linearization:
    """A network at its weights, on one batch: the logits f, J v and J^T u.

    All passes draw the same random numbers, so that dropout masks are those of one function.

    Parameters
    ----------
    network : FunctionalModel
        In the mode of its modules.
    inputs : Tensor or mapping
        What the network is called with.
    keep_graph : bool
        Keep the graph of the forward pass for later products; otherwise each builds its own.
    at : dict of str to Tensor, optional
        Leaves in place of the network's trainable parameters.
    """

    def __init__(
        self,
        network: FunctionalModel,
        inputs: Any,
        *,
        keep_graph: bool = True,
        at: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.network, self.inputs, self.keep_graph = network, inputs, keep_graph
        self.derivative: Derivative = network.derivative or "forward"
        self._at = at
        self._random: RandomState | None = None
        self._value: Tensor | None = None
        self._graph: tuple[Tensor, dict[str, Tensor], dict[str, Tensor]] | None = None

    @property
    def value(self) -> Tensor:
        """The logits, without a graph."""
        if self._value is None:
            self.logits_with_leaves()
            if not self.keep_graph:
                self.forget_graph()
        assert self._value is not None  # set by every pass
        return self._value

    def evaluate(self) -> Tensor:
        """The logits by a pass that builds no graph."""
        with torch.no_grad():
            self._set_value(self._call(self._own()))
        return self.value

    def forget_graph(self) -> None:
        """Free the graph that is kept, before a computation that needs the memory."""
        self._graph = None

    def logits_with_leaves(self) -> tuple[Tensor, list[Tensor]]:
        """Logits with their graph, and the leaves that it begins at."""
        if self._graph is not None:
            return self._graph[0], list(self._graph[1].values())
        leaves = dict(self.network.lend_parameters() if self._at is None else self._at)
        state = self.network.copy_state()
        logits = self._call(leaves, state=state)
        self._set_value(logits)
        self._graph = logits, leaves, state
        return logits, list(leaves.values())

    def gradient(
        self, outputs: Tensor, along: Tensor | None = None, **options: Any
    ) -> list[Tensor]:
        """Derivative by the leaves of outputs that were made from `logits_with_leaves`.

        Unused parameters have a gradient of zeros. The graph is freed unless it is to be kept.
        """
        assert self._graph is not None
        leaves = list(self._graph[1].values())
        retain = self.keep_graph or options.get("create_graph", False)
        options = {"retain_graph": retain, "materialize_grads": True, **options}
        pulled = self._backward(lambda: torch.autograd.grad(outputs, leaves, along, **options))
        if not retain:
            self._graph = None
        return list(pulled)

    def vjp(self, cotangent: Tensor) -> Tensor:
        """J^T u by a reverse pass through this process's rows, flat.

        Raises
        ------
        InputError
            If the logits do not depend on any trainable weight.
        """
        logits, _ = self.logits_with_leaves()
        if not logits.requires_grad:
            mode = "training" if self.network.model.training else "evaluation"
            raise InputError(
                f"In {mode} mode the network's logits have no gradient by any trainable weight: its forward "
                "pass runs under torch.no_grad() or detaches them. Compute gradients in both modes."
            )
        cotangent = cotangent.to(logits.dtype)
        try:
            if self.network.traits.accumulates:
                pulled = self._accumulate(cotangent)
            else:
                pulled = self.gradient(logits, cotangent)
        except RuntimeError as error:
            if "use_reentrant" not in str(error) or self.network.traits.accumulates:
                raise
            self.network.traits.needs_copies = self.network.traits.accumulates = True
            self.forget_graph()
            return self.vjp(cotangent)
        return flatten(pulled)

    def jvp(self, vector: Tensor) -> Tensor:
        """J v of this process's rows, shape ``(n, k)``, in the way that `derivative` says."""
        directions = unflatten(vector, list(self.network.parameters.values()))
        if self.derivative == "forward":
            return self._forward_mode(directions)
        if self.derivative == "double backward":
            return self._double_backward(directions)
        return self._central_difference(vector, directions)

    def logits_moved(self, vector: Tensor, step: float, inputs: Any) -> Tensor:
        """Logits of these inputs at the weights moved by ``step * vector``."""
        directions = unflatten(vector, list(self.network.parameters.values()))
        return self._call(self._moved(directions, step), inputs)

    def moved(self, vector: Tensor, step: float) -> Linearization:
        """The same function, with the same random numbers, at the weights moved by ``step * vector``."""
        directions = unflatten(vector, list(self.network.parameters.values()))
        at = {name: p.requires_grad_() for name, p in self._moved(directions, step).items()}
        other = Linearization(self.network, self.inputs, keep_graph=False, at=at)
        other.derivative, other._random = self.derivative, self._random
        return other

    def within(self, action: Callable[[], T]) -> T:
        """Run a backward pass of logits that did not come from `logits_with_leaves`."""
        return self.network.within({**self.network.copy_state(), **self._own()}, action)

    def _own(self) -> Mapping[str, Tensor]:
        return self.network.lend_parameters() if self._at is None else self._at

    def _moved(self, directions: Sequence[Tensor], step: float) -> dict[str, Tensor]:
        pairs = zip(self._own().items(), directions, strict=True)
        return {name: p.detach() + step * t for (name, p), t in pairs}

    def _forward_mode(self, directions: list[Tensor]) -> Tensor:
        with torch.no_grad(), forward_ad.dual_level():
            # A part of a larger tensor would be copied, each by kernels of its own.
            own = [torch.empty_like(t) for t in self.network.parameters.values()]
            _copy_all(own, directions)
            duals = {
                name: forward_ad.make_dual(p.detach(), t)
                for (name, p), t in zip(self._own().items(), own, strict=True)
            }
            primal, tangent = forward_ad.unpack_dual(self._call(duals, dual=True))
        self._set_value(primal)
        return torch.zeros_like(primal) if tangent is None else tangent

    def _double_backward(self, directions: list[Tensor]) -> Tensor:
        logits, _ = self.logits_with_leaves()
        dummy = torch.zeros_like(logits, requires_grad=True)
        pulled = self.gradient(logits, dummy, create_graph=True)
        graph = [(p, t) for p, t in zip(pulled, directions, strict=True) if p.requires_grad]
        if not graph:
            return torch.zeros_like(logits)
        pulled, directions = ([*part] for part in zip(*graph, strict=True))
        tangent = self._backward(
            lambda: torch.autograd.grad(
                pulled, dummy, directions, retain_graph=self.keep_graph, materialize_grads=True
            )
        )[0]
        if not self.keep_graph:
            self._graph = None
        return tangent

    def _central_difference(self, vector: Tensor, directions: list[Tensor]) -> Tensor:
        r"""``(f(theta + h v) - f(theta - h v)) / 2 h``, with h v about the cube root of the precision."""
        size = float(vector.norm())
        if size == 0.0:
            return torch.zeros_like(self.evaluate())
        weights = float(flatten([p.detach() for p in self._own().values()]).norm())
        step = torch.finfo(vector.dtype).eps ** (1 / 3) * (0.1 + weights) / size
        if self._value is None:
            self.evaluate()
        with torch.no_grad():
            sides = [self._call(self._moved(directions, s)) for s in (step, -step)]
        return (sides[0] - sides[1]) / (2 * step)

    def _backward(self, action: Callable[[], T]) -> T:
        """Run a backward pass while the network holds what it held in the forward pass."""
        assert self._graph is not None
        _, leaves, state = self._graph
        if self.network.traits.needs_copies:
            leaves = {name: _copy_of_leaf(p) for name, p in leaves.items()}
        fresh = {name: t.clone() for name, t in state.items()}
        with _unfused(self.derivative == "double backward"):
            return self.network.within({**fresh, **leaves}, action)

    def _accumulate(self, cotangent: Tensor) -> list[Tensor]:
        """J^T u by `backward`, for checkpointing that knows no other way: it writes to copies' `.grad`."""
        assert self._graph is not None
        logits, leaves, state = self._graph
        again = {name: _copy_of_leaf(p) for name, p in leaves.items()}
        fresh = {name: t.clone() for name, t in state.items()}
        self.network.within(
            {**fresh, **again},
            lambda: logits.backward(cotangent, retain_graph=self.keep_graph),
        )
        if not self.keep_graph:
            self._graph = None
        pulled = []
        for name, leaf in leaves.items():
            parts = [p.grad for p in (leaf, again[name]) if p.grad is not None]
            pulled.append(sum(parts[1:], parts[0]) if parts else torch.zeros_like(leaf))
            leaf.grad = None
        return pulled

    def _set_value(self, logits: Tensor) -> None:
        if self._value is None:
            self._value = logits.detach()

    def _call(self, parameters: Mapping[str, Tensor], inputs: Any = None, **options: Any) -> Tensor:
        if self._random is None:
            device = next(iter(self.network.parameters.values())).device
            self._random = RandomState(device, host=self.network.traits.draws_on_host is True)
        self._random.set()
        with _unfused(self.derivative == "double backward"):
            return self.network(parameters, self.inputs if inputs is None else inputs, **options)


def _check_parts(model: nn.Module, modules: Sequence[nn.Module]) -> None:
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{type(module).__name__} is a scripted or traced module, whose weights cannot be exchanged "
                "for a derivative. Give the Python module that it was made from."
            )
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        raise InputError(
            "The network has lazy layers that have not been built yet. Pass one batch through it first."
        )


def _copy_of_leaf(leaf: Tensor) -> Tensor:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source to its target, in one kernel where this torch has one for lists."""
    copy = getattr(torch, "_foreach_copy_", None)
    if copy is not None:
        copy(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


@contextmanager
def _unfused(active: bool) -> Iterator[None]:
    """Without the fused recurrent layers, which lack second derivatives too; torch's own have them."""
    if not active:
        yield
        return
    mkldnn = torch.backends.mkldnn
    before = mkldnn.enabled
    mkldnn.enabled = False  # `mkldnn.flags` would set TF32 as well, which warns on a CPU
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        mkldnn.enabled = before

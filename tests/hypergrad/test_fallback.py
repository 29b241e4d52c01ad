"""Networks with operations that lack a forward-mode derivative, and those that only seem to."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autobalance.data.batches import Batch
from autobalance.functional.model import flatten
from autobalance.hypergrad.implicit import hypergradient
from autobalance.hypergrad.solvers import ConjugateGradient, Exact, Nystrom, SingleLoop, Solver
from autobalance.objectives.aggregates import BalancedError
from helpers import NUM_CLASSES, class_loss, dense_hypergradient, images

NOTICE = "no forward-mode derivative; hypergradients use double backward"


class _Tanh(torch.autograd.Function):
    """Differentiable twice, but without jvp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (1 - torch.tanh(x) ** 2)


class TanhWithoutJvp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Tanh.apply(x))


class WithSpare(nn.Module):
    """Dropout and BatchNorm around an activation, and weights that the logits do not use."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16, 5),
            nn.BatchNorm1d(5),
            activation,
            nn.Dropout(0.2),
            nn.Linear(5, NUM_CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Recurrent(nn.Module):
    """The images' rows in turn."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(4, 3, batch_first=True)
        self.head = nn.Linear(3, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.flatten(0, 1))[0][:, -1])


class Attention(nn.Module):
    """The images' rows attend to each other; without the weights, by torch's fused kernel."""

    def __init__(self, dropout: float, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        return self.head(self.attention(x, x, x, need_weights=self.need_weights)[0].mean(dim=1))


class Transformer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.flatten(0, 1)).mean(dim=1))


class Parametrized(nn.Sequential):
    """Spectral norm's power iteration writes to its buffers, by an operation without forward mode."""

    def __init__(self) -> None:
        norm = nn.utils.parametrizations
        super().__init__(
            nn.Flatten(),
            norm.spectral_norm(nn.Linear(16, 4)),
            nn.Tanh(),
            norm.weight_norm(nn.Linear(4, NUM_CLASSES)),
        )


def built(make: Callable[[], nn.Module], seed: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def found_by(model: nn.Module, solver: Solver, dtype: torch.dtype = torch.float64) -> Tensor:
    batches = [images(10), images(15, seed=5)]
    train, held = (Batch(b.inputs.to(dtype), b.target) for b in batches)
    loss = class_loss().to(dtype)
    given = {"solver": solver, "weight_decay": 0.05}
    return flatten(hypergradient(model, loss, BalancedError(), train, held, **given).gradients)


def expected_of(model: nn.Module) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # the oracle differentiates twice
        return dense_hypergradient(
            model, class_loss(), BalancedError(), images(10), images(15, seed=5), 0.06
        )


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# With forward mode: not a word ----------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recurrent(nn.LSTM),
        lambda: Recurrent(nn.GRU),
        lambda: Attention(0.0, need_weights=False),
        lambda: Attention(0.3, need_weights=False),
        lambda: Attention(0.3, need_weights=True),
        lambda: Transformer(0.0),
        lambda: Transformer(0.3),
    ],
    ids=["lstm", "gru", "mha", "mha-dropout", "mha-weights", "transformer", "transformer-dropout"],
)
def test_recurrent_layers_and_attention_have_forward_mode(make: Callable[[], nn.Module]) -> None:
    """The fused kernel of attention, which has none, is replaced; a warning would be an error."""
    model = built(make)
    assert gap(found_by(model, Exact(damping=0.01)), expected_of(model)) < 1e-10


def test_attention_is_left_with_the_kernels_it_had() -> None:
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    found_by(built(lambda: Transformer(0.0)), SingleLoop())
    after = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    assert after == before == (True, True)


# Without --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [lambda: WithSpare(TanhWithoutJvp()), Parametrized, lambda: Transformer(0.0).eval()],
    ids=["custom-function", "parametrized", "fused-in-evaluation-mode"],
)
def test_double_backward_equals_dense_algebra(make: Callable[[], nn.Module]) -> None:
    model = built(make)
    with pytest.warns(UserWarning, match=NOTICE):
        found = found_by(model, Exact(damping=0.01))
    assert gap(found, expected_of(model)) < 1e-10


@pytest.mark.parametrize(
    "solver",
    [
        SingleLoop(),
        ConjugateGradient(),
        ConjugateGradient(curvature="hessian", damping=5.0),
        Nystrom(),
    ],
    ids=["single-loop", "cg", "hessian", "nystrom"],
)
def test_a_function_without_jvp_gives_what_its_twin_with_one_gives(solver: Solver) -> None:
    twin, model = (built(lambda a=a: WithSpare(a)) for a in (nn.Tanh(), TanhWithoutJvp()))
    expected = found_by(twin, solver)
    with pytest.warns(UserWarning, match=NOTICE):
        found = found_by(model, solver)
    assert gap(found, expected) < 1e-10


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN's fused LSTM")
@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_the_fused_lstm_of_float32(curvature: Any) -> None:
    """It has neither forward mode nor second derivatives; float64's, which is not fused, has."""
    model = built(lambda: Recurrent(nn.LSTM))
    solver = Exact(damping=2.0, curvature=curvature)
    expected = found_by(model, solver)
    enabled = torch.backends.mkldnn.enabled
    with pytest.warns(UserWarning, match=NOTICE):
        found = found_by(model.float(), solver, torch.float32)
    assert gap(found.double(), expected) < 1e-4
    assert torch.backends.mkldnn.enabled is enabled


def test_the_notice_is_given_once_for_each_model() -> None:
    model = built(lambda: WithSpare(TanhWithoutJvp()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for _ in range(3):
            found_by(model, ConjugateGradient())
        assert len([w for w in caught if NOTICE in str(w.message)]) == 1
        found_by(copy.deepcopy(model), ConjugateGradient())
    notices = [str(w.message) for w in caught if NOTICE in str(w.message)]
    assert len(notices) == 2
    assert "jvp" in notices[0]  # torch's own reason


class Failing(nn.Module):
    """Fails in training mode, not in the validation pass."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise self.error
        return self.net(x)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("sizes do not match"), NotImplementedError("no such padding")],
    ids=lambda e: type(e).__name__,
)
def test_other_errors_are_not_swallowed(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        found_by(built(lambda: Failing(error)), SingleLoop())

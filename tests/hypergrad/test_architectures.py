"""Sixty and more architectures: the hypergradient is that of the reverse gradient, or it is refused.

The oracle needs no derivative but the one that training uses: J b row by row, one reverse pass a logit.
"""

from __future__ import annotations

import copy
import importlib
import random
import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from autobalance._validation import InputError
from autobalance.data.batches import Batch
from autobalance.functional.model import flatten
from autobalance.hypergrad.implicit import hypergradient
from autobalance.hypergrad.solvers import Identity
from autobalance.objectives.aggregates import BalancedError
from helpers import NUM_CLASSES as K, class_loss
from torchvision_operators import define_missing_operators

Inputs = Callable[[int], Any]


def rows(*shape: int) -> Inputs:
    return lambda n: torch.randn(n, *shape, dtype=torch.float64)


def tokens(n: int) -> Any:
    return {"ids": torch.randint(0, 11, (n, 4))}


def bags(n: int) -> Any:
    return {"ids": torch.randint(0, 11, (4 * n,)), "offsets": 4 * torch.arange(n)}


class Sign(torch.autograd.Function):
    """A straight-through estimator: the true derivative is 0, training uses 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Opaque(torch.autograd.Function):
    """A tanh whose backward autograd cannot see into, as that of a compiled extension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.from_numpy(gradients[0].detach().numpy() * (1 - y.detach().numpy() ** 2))


class OpaqueSign(torch.autograd.Function):
    """Straight-through and opaque: no way agrees with what trains."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.from_numpy(gradients[0].detach().numpy().copy())


class Apply(nn.Module):
    """Any function as a layer."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class Net(nn.Module):
    """Named parts, and a forward pass that is given as a function of them."""

    def __init__(self, run: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        return self.run(self, *inputs, **named)


def mlp(*middle: Any, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), *middle, nn.Linear(width, K))


def function(f: Callable[[Tensor], Any]) -> nn.Module:
    return mlp(Apply(cast(Any, f)))


def without_gradient(m: Any, x: Tensor) -> Tensor:
    h = torch.tanh(m.a(x))
    with torch.no_grad():
        scale = h.norm(dim=1, keepdim=True)
    return m.c(h / scale)


def clipped(m: Any, x: Tensor) -> Tensor:
    """Weights clipped in place, by `.data`."""
    m.a.weight.data.renorm_(2, 0, 0.5)
    return m.c(torch.tanh(m.a(x)))


def counting(m: Any, x: Tensor) -> Tensor:
    """Every kind of state that a forward pass may change."""
    with torch.no_grad():
        m.seen += 1
        m.mean.mul_(0.9).add_(m.a(x).mean(), alpha=0.1)
        m.frozen.mul_(0.99)
    m.calls = getattr(m, "calls", 0) + 1
    m.history[m.calls] = m.calls
    return m.c(torch.tanh(m.a(x)) * m.frozen + m.mean)


def mixture(m: Any, x: Tensor) -> Tensor:
    gate = m.gate(x).softmax(1)
    best = gate.topk(2, dim=1)
    expert = torch.stack([e(x) for e in m.experts], 1)
    picked = expert.gather(1, best.indices[..., None].expand(-1, -1, K))
    return (best.values[..., None] * picked).sum(1)


class Merging(nn.Linear):
    """An adapter that `eval` merges into a frozen weight and `train` takes out again."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.requires_grad_(False)
        self.merged = False
        self.down, self.up = (nn.Parameter(0.3 * torch.randn(s)) for s in ((2, 6), (6, 2)))

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.up @ self.down).detach()
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.weight, self.bias)
        return h if self.merged else h + x @ self.down.T @ self.up.T


def checkpointed(reentrant: bool) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.c(checkpoint(m.b, h, use_reentrant=reentrant))

    block = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh())
    return Net(run, a=nn.Linear(6, 6), b=block, c=nn.Linear(6, K))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, K))
    model[2].weight = model[0].weight
    return model


def lazily_built() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(K))
    model(torch.zeros(2, 6))
    return model


def with_old_norm(norm: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(norm(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, K))


def recurrent(kind: Any, **options: Any) -> nn.Module:
    return Net(
        lambda m, x: m.head(m.rnn(x)[0][:, -1]),
        rnn=kind(3, 4, batch_first=True, **options),
        head=nn.Linear(4 * (2 if options.get("bidirectional") else 1), K),
    )


def quantized(m: Any, x: Tensor) -> Tensor:
    weight = torch.fake_quantize_per_tensor_affine(m.a.weight, 0.05, 0, -128, 127)
    return m.c(torch.tanh(F.linear(x, weight, m.a.bias)))


def embedding(**options: Any) -> nn.Module:
    return Net(
        lambda m, ids: m.head(m.e(ids).mean(1)),
        e=nn.Embedding(11, 5, **options), head=nn.Linear(5, K),
    )  # fmt: skip


def bag(mode: str, sparse: bool = False) -> nn.Module:
    return Net(
        lambda m, ids, offsets: m.head(m.e(ids, offsets)),
        e=nn.EmbeddingBag(11, 5, mode=mode, sparse=sparse), head=nn.Linear(5, K),
    )  # fmt: skip


def scripted_draws(m: Any, x: Tensor) -> Tensor:
    keep = random.random() * float(np.random.rand()) if m.training else 1.0
    return m.c(torch.tanh(m.a(x)) * keep)


P = nn.utils.parametrizations
image = rows(3, 8, 8)
pair = {"a": lambda: nn.Linear(6, 6), "c": lambda: nn.Linear(6, K)}


def two(run: Callable[..., Tensor], **more: Any) -> nn.Module:
    return Net(run, a=nn.Linear(6, 6), c=nn.Linear(6, K), **more)


def convolutional(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *middle, nn.Flatten(), nn.LazyLinear(K))


CASES: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "linear": (lambda: nn.Linear(6, K), rows(6)),
    **{
        f"mlp-{type(a).__name__}": (lambda a=a: mlp(a), rows(6))
        for a in (nn.ReLU(), nn.GELU(), nn.SiLU(), nn.PReLU(), nn.Softplus(), nn.Hardswish(),
                  nn.LayerNorm(6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.AlphaDropout(0.3),
                  nn.RReLU(), nn.SELU(), nn.Mish(), nn.GroupNorm(2, 6), nn.RMSNorm(6))
    },
    "glu": (lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, K)), rows(6)),
    "bilinear": (lambda: Net(lambda m, x: m.b(x, x), b=nn.Bilinear(6, 6, K)), rows(6)),
    "batch-norm": (lambda: convolutional(nn.BatchNorm2d(4), nn.ReLU()), image),
    "batch-norm-subclass": (
        lambda: convolutional(type("Own", (nn.BatchNorm2d,), {})(4), nn.ReLU()), image),
    "instance-norm": (lambda: convolutional(nn.InstanceNorm2d(4, True, True), nn.ReLU()), image),
    "pooling": (lambda: convolutional(nn.MaxPool2d(2), nn.AvgPool2d(2)), image),
    "adaptive-pooling": (lambda: convolutional(nn.AdaptiveMaxPool2d(2)), image),
    "grouped": (lambda: convolutional(nn.Conv2d(4, 4, 3, groups=4), nn.PixelShuffle(2)), image),
    "transposed": (lambda: convolutional(nn.ConvTranspose2d(4, 2, 3, stride=2)), image),
    "upsampled": (lambda: convolutional(nn.Upsample(scale_factor=2, mode="bilinear")), image),
    "local-response": (lambda: convolutional(nn.LocalResponseNorm(2)), image),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, K)),
        rows(3, 6)),
    "rnn": (lambda: recurrent(nn.RNN), rows(5, 3)),
    "lstm": (lambda: recurrent(nn.LSTM, num_layers=2, dropout=0.2), rows(5, 3)),
    "gru": (lambda: recurrent(nn.GRU, bidirectional=True), rows(5, 3)),
    "attention": (
        lambda: Net(lambda m, x: m.h(m.a(x, x, x, need_weights=False)[0].mean(1)),
                    a=nn.MultiheadAttention(4, 2, batch_first=True), h=nn.Linear(4, K)),
        rows(5, 4)),
    "transformer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(),
                              nn.Linear(20, K)),
        rows(5, 4)),
    "scaled-dot-product": (
        lambda: two(lambda m, x: m.c(F.scaled_dot_product_attention(m.a(x), x, x))), rows(6)),
    "mixture": (
        lambda: Net(mixture, gate=nn.Linear(6, 3),
                    experts=nn.ModuleList(nn.Linear(6, K) for _ in range(3))), rows(6)),
    "quantization-aware": (lambda: two(quantized), rows(6)),
    "straight-through": (lambda: function(Sign.apply), rows(6)),
    "straight-through-detach": (lambda: function(lambda h: h + (h.round() - h).detach()), rows(6)),
    "opaque": (lambda: function(Opaque.apply), rows(6)),
    "opaque-sign": (lambda: function(OpaqueSign.apply), rows(6)),
    "weight-norm": (lambda: mlp(P.weight_norm(nn.Linear(6, 6))), rows(6)),
    "spectral-norm": (lambda: mlp(P.spectral_norm(nn.Linear(6, 6))), rows(6)),
    "orthogonal": (lambda: mlp(P.orthogonal(nn.Linear(6, 6))), rows(6)),
    "old-weight-norm": (lambda: with_old_norm(nn.utils.weight_norm), rows(6)),
    "old-spectral-norm": (lambda: with_old_norm(nn.utils.spectral_norm), rows(6)),
    "tied": (tied, rows(6)),
    "lazily-built": (lazily_built, rows(6)),
    "embedding": (embedding, tokens),
    "embedding-sparse": (lambda: embedding(sparse=True), tokens),
    "embedding-max-norm": (lambda: embedding(max_norm=0.5), tokens),
    "embedding-by-frequency": (lambda: embedding(scale_grad_by_freq=True), tokens),
    **{f"bag-{mode}": (lambda mode=mode: bag(mode), bags) for mode in ("sum", "mean", "max")},
    "bag-sparse": (lambda: bag("mean", sparse=True), bags),
    "merging-adapter": (
        lambda: nn.Sequential(Merging(), nn.Tanh(), nn.Linear(6, K)), rows(6)),
    "checkpointed": (lambda: checkpointed(False), rows(6)),
    "checkpointed-reentrant": (lambda: checkpointed(True), rows(6)),
    "no-grad-block": (lambda: two(without_gradient), rows(6)),
    "no-grad-behind-zeros": (
        lambda: two(lambda m, x: m.c(x) + m.z * without_gradient(m, x),
                    z=nn.Parameter(torch.zeros(K))), rows(6)),
    "clipped-in-place": (lambda: two(clipped), rows(6)),
    "counting": (
        lambda: two(counting, seen=torch.zeros(()), mean=torch.zeros(()), history={},
                    frozen=nn.Parameter(torch.ones(6), requires_grad=False)), rows(6)),
    "in-place-activations": (lambda: mlp(nn.ReLU(inplace=True), nn.Tanh()), rows(6)),
    "random-of-python-and-numpy": (lambda: two(scripted_draws), rows(6)),
    "data-parallel": (lambda: nn.DataParallel(mlp(nn.Tanh())), rows(6)),
    "fourier": (
        lambda: two(lambda m, x: m.c(torch.fft.fft(m.a(x)).abs())), rows(6)),
    "determinant": (
        lambda: two(lambda m, x: m.c(x @ torch.linalg.inv(m.a.weight + 3 * torch.eye(6).to(x)))),
        rows(6)),
    "sorted": (lambda: function(lambda h: h.sort(dim=1).values.cumsum(1)), rows(6)),
    "scatter": (lambda: function(lambda h: torch.zeros_like(h).index_add(1, torch.arange(6) // 2, h)),
                rows(6)),
}  # fmt: skip
REFUSED = {"opaque-sign", "embedding-by-frequency"}  # what trains them is no gradient of theirs


def state_of(model: nn.Module) -> list[Any]:
    return [
        [(n, p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()],
        [(n, b.clone()) for n, b in model.named_buffers()],
        [None if p.grad is None else p.grad.to_dense().clone() for p in model.parameters()],
        [m.training for m in model.modules()],
        [sorted(k for k in vars(m)) for m in model.modules()],
        [copy.copy(getattr(m, "history", None)) for m in model.modules()],
        torch.random.get_rng_state(),
        list(random.getstate()[1]),
        torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
    ]


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, tensors within lists and tuples included."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also where old norms keep a weight that is no leaf."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(module)[name] = value.detach()
    return copy.deepcopy(model)


def expected_of(model: nn.Module, train: Batch, held: Batch) -> Tensor:
    """The hypergradient of the identity solver by reverse passes alone."""
    model = getattr(model, "module", model) if isinstance(model, nn.DataParallel) else model
    loss = class_loss()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, twin = copied(model), copied(model)
    for m in plain.modules():  # without merging, by which the adapters' gradient would be lost
        m.training = m.training and isinstance(m, Merging)

    def gradients(network: nn.Module, inputs: Any, pulls: Callable[[Tensor], Any]) -> Any:
        output = network(**inputs) if isinstance(inputs, dict) else network(inputs)
        logits = getattr(output, "logits", output)
        leaves = [p for p in network.parameters() if p.requires_grad]
        found = []
        for value in pulls(logits):
            for p in leaves:
                p.grad = None
            value.backward(retain_graph=True)
            grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in leaves]
            found.append(flatten([g.clone() for g in grads]))
        return logits.detach(), found

    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    _, [b] = gradients(plain, held.inputs, lambda f: [BalancedError()(f, held.target)])
    torch.random.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    logits, jacobian = gradients(twin, train.inputs, lambda f: list(f.reshape(-1)))
    torch.random.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    tangent = (torch.stack(jacobian) @ b).view(logits.shape)
    leaf = logits.requires_grad_()
    value = loss.at(loss.space(), leaf, train.target)
    slope = torch.autograd.grad(value, leaf, create_graph=True)[0]
    design = list(loss.space.parameters())
    return -flatten(torch.autograd.grad((slope * tangent).sum(), design, materialize_grads=True))


def check(
    name: str, make: Callable[[], nn.Module], inputs: Inputs, refused: bool = False, times: int = 2
) -> None:
    """Compare with the oracle twice, and see that nothing of the network has changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = make().double().train()
        train = Batch(inputs(6), torch.arange(6) % K)
        held = Batch(inputs(8), torch.arange(8) % K)
        if any(nn.parameter.is_lazy(p) for p in model.parameters()):
            model(train.inputs)
        before = state_of(model)
        given = (model, class_loss(), BalancedError(), train, held)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*; hypergradients use")
            warnings.filterwarnings(
                "ignore", message=".*[Ss]parse|.*use_reentrant|.*None of the inputs"
            )
            if refused:
                with pytest.raises(InputError, match="The cause is the layer"):
                    hypergradient(*given, solver=Identity())
            else:
                for _ in range(times):
                    found = flatten(hypergradient(*given, solver=Identity()).gradients)
                    assert same(state_of(model), before)
                    expected = expected_of(model, train, held)
                    assert float(expected.norm()) > 1e-9, "an oracle of zero proves nothing"
                    assert float((found - expected).norm() / expected.norm()) < 1e-4, name
        assert same(state_of(model), before)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reverse_gradient_or_is_refused(name: str) -> None:
    check(name, *CASES[name], refused=name in REFUSED)


# Networks of torchvision, timm, transformers and peft ----------------------------------------------


def vision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        define_missing_operators()
        models = importlib.import_module("torchvision.models")
        return getattr(models, name)(weights=None, num_classes=K, **options)

    return make


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        vision("resnet18")  # timm imports torchvision
        return importlib.import_module("timm").create_model(name, num_classes=K, **options)

    return make


def language(kind: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = importlib.import_module("transformers")
        config = getattr(library, f"{kind}Config")(
            vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=16, num_labels=K, pad_token_id=0, **options,
        )  # fmt: skip
        return getattr(library, f"{kind}ForSequenceClassification")(config)

    return make


def adapted(kind: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        peft = importlib.import_module("peft")
        config = getattr(peft, kind)(target_modules=["0"], modules_to_save=["2"], **options)
        return peft.get_peft_model(mlp(nn.Tanh()), config)

    return make


def input_ids(n: int) -> Any:
    return {"input_ids": torch.randint(1, 11, (n, 5))}


HEAVY: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "regnet": (vision("regnet_x_400mf"), rows(3, 32, 32)),
    "squeezenet": (vision("squeezenet1_1"), rows(3, 32, 32)),
    "shufflenet": (vision("shufflenet_v2_x0_5"), rows(3, 32, 32)),
    "mobilenet": (vision("mobilenet_v3_small"), rows(3, 32, 32)),
    "mnasnet": (vision("mnasnet0_5"), rows(3, 32, 32)),
    "timm-vit": (
        timm_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=2),
        rows(3, 32, 32)),
    "timm-convnext": (
        timm_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), rows(3, 32, 32)),
    "timm-ghostnet": (timm_model("ghostnet_050"), rows(3, 32, 32)),
    "bert": (language("Bert"), input_ids),
    "distilled": (language("Roberta", type_vocab_size=1), input_ids),
    "electra": (language("Electra", embedding_size=8), input_ids),
    "lora": (adapted("LoraConfig", r=2, init_lora_weights=False), rows(6)),
    "ia3": (adapted("IA3Config", feedforward_modules=[]), rows(6)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_networks_of_other_libraries(name: str) -> None:
    check(name, *HEAVY[name], times=1)

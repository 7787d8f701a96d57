"""Which units a module has. Truth: tables written by hand from the modules' definitions, loops over indices, torch's own attention, and outputs of the narrow module."""

from __future__ import annotations

import itertools

import pytest
import torch
from problems import F64, SelfAttention, close, draw, filled
from torch import Tensor, nn
from torch.nn import functional

from landscape import networks, units
from landscape.errors import UsageError
from landscape.objectives import Objective, Rows
from landscape.seeds import global_stream

# outputs of the widened module differ by the order of sums of at most 100 terms of size 1, through at most 20 layers: 2,000 eps = 4e-13
SAME = 1e-12


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Written(nn.Module):
    """Attention as people write it: sizes as numbers, a scale that hangs on the heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (part(x).view(n, t, self.heads, d // self.heads).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).reshape(n, t, d))


class Packed(nn.Module):
    """q, k and v in one layer, torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.o = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).reshape(n, t, d))


class Stream(nn.Module):
    """A residual stream that two layers write and two read; one of them reads it and writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inside, self.leave = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.leave(h + torch.tanh(self.inside(h)))


class Block(nn.Module):
    """A transformer block, norms on the stream."""

    def __init__(self, attention: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.norm, self.attention, self.glu, self.out = (
            nn.LayerNorm(width),
            attention,
            SwiGLU(width, 3),
            nn.Linear(width, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return self.out((x + self.glu(x)).mean(1))


class Bare(nn.Module):
    """Parameters of its own, products written out."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.a = nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(5))
        self.b = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w.T + self.b) @ self.a


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2)
    )  # fmt: skip


def _made(make, *args) -> nn.Module:
    with global_stream(0, "units"):
        return filled(make(*args)).eval()


# copies and readers: (tensor, axis, repeats, units, block), read off the definitions
CASES = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
        (3,),
        {"0": ("dense", "tanh", {("0.weight", 0, 1, 5, 1), ("0.bias", 0, 1, 5, 1)}, {("2.weight", 1, 1, 5, 1)})},
    ),
    "one unit": (
        lambda: nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)),
        (1,),
        {"0": ("dense", "tanh", {("0.weight", 0, 1, 1, 1), ("0.bias", 0, 1, 1, 1)}, {("2.weight", 1, 1, 1, 1)})},
    ),
    "conv": (
        _conv,
        (1, 6, 6),
        {
            "0": (
                "channel",
                "tanh",
                {("0.weight", 0, 1, 2, 1), ("0.bias", 0, 1, 2, 1)}
                | {(f"1.{name}", 0, 1, 2, 1) for name in ("weight", "bias", "running_mean", "running_var")},
                {("5.weight", 1, 1, 2, 4)},  # 2 x 2 pixels a channel after pooling
            ),
            "5": ("dense", "relu", {("5.weight", 0, 1, 3, 1), ("5.bias", 0, 1, 3, 1)}, {("7.weight", 1, 1, 3, 1)}),
        },
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.GELU(), nn.ConvTranspose1d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)),
        (2, 4),
        {
            "0": ("channel", "gelu", {("0.weight", 0, 1, 3, 1), ("0.bias", 0, 1, 3, 1)}, {("2.weight", 0, 1, 3, 1)}),
            "2": ("channel", "relu", {("2.weight", 1, 1, 2, 1), ("2.bias", 0, 1, 2, 1)}, {("5.weight", 1, 1, 2, 4)}),
        },
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2)),
        (1, 3, 3, 3),
        {"0": ("channel", "tanh", {("0.weight", 0, 1, 2, 1), ("0.bias", 0, 1, 2, 1)}, {("4.weight", 1, 1, 2, 1)})},
    ),
    "packed gated": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2)),
        (3,),
        {"0": ("glu", "sigmoid", {("0.weight", 0, 2, 4, 1), ("0.bias", 0, 2, 4, 1)}, {("2.weight", 1, 1, 4, 1)})},
    ),
    "torch's attention": (
        SelfAttention,
        (3, 4),
        {
            "attention": (
                "head",
                "attention",
                {("attention.in_proj_weight", 0, 3, 2, 2), ("attention.in_proj_bias", 0, 3, 2, 2)},
                {("attention.out_proj.weight", 1, 1, 2, 2)},
            ),
            "attention.out_proj": (
                "dense",
                "identity",
                {("attention.out_proj.weight", 0, 1, 4, 1), ("attention.out_proj.bias", 0, 1, 4, 1)},
                {("out.weight", 1, 1, 4, 1)},
            ),
        },
    ),
    "written attention": (
        lambda: Block(Written(4, 2)),
        (3, 4),
        {
            "attention.q": (
                "head",
                "identity",
                {(f"attention.{part}.{name}", 0, 1, 2, 2) for part in "qkv" for name in ("weight", "bias")},
                {("attention.o.weight", 1, 1, 2, 2)},
            ),
            "attention.v": (  # one number of all heads' values
                "dense",
                "identity",
                {(f"attention.v.{name}", 0, 2, 2, 1) for name in ("weight", "bias")},
                {("attention.o.weight", 1, 2, 2, 1)},
            ),
            "glu.gate": ("glu", "silu", {("glu.gate.weight", 0, 1, 3, 1), ("glu.up.weight", 0, 1, 3, 1)}, {("glu.down.weight", 1, 1, 3, 1)}),
        },
    ),
    "packed attention": (
        lambda: Block(Packed(4, 2)),
        (3, 4),
        {
            "attention.qkv": (
                "head",
                "identity",
                {(f"attention.qkv.{name}", 0, 3, 2, 2) for name in ("weight", "bias")},
                {("attention.o.weight", 1, 1, 2, 2)},
            ),
            "glu.gate": ("glu", "silu", {("glu.gate.weight", 0, 1, 3, 1), ("glu.up.weight", 0, 1, 3, 1)}, {("glu.down.weight", 1, 1, 3, 1)}),
        },
    ),
    "stream": (
        Stream,
        (3,),
        {
            "enter": (
                "dense",
                "tanh",
                {(f"{part}.{name}", 0, 1, 4, 1) for part in ("enter", "inside") for name in ("weight", "bias")},
                {("inside.weight", 1, 1, 4, 1), ("leave.weight", 1, 1, 4, 1)},
            )
        },
    ),
    "bare": (
        Bare,
        (3,),
        {"w": ("dense", "tanh", {("w", 0, 1, 5, 1), ("b", 0, 1, 5, 1)}, {("a", 0, 1, 5, 1)})},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_layers_are_those_of_the_definition(name: str) -> None:
    make, shape, truth = CASES[name]
    found = units.layers(_made(make), draw(3, *shape))

    def written(parts):
        return {(part.name, part.axis, part.repeats, part.size, part.block) for part in parts}

    assert {
        layer.name: (layer.kind, layer.activation, written(layer.copies), written(layer.scaled)) for layer in found
    } == truth
    assert not any(layer.refusals for layer in found)


@pytest.mark.parametrize("name", CASES)
def test_a_widened_network_answers_the_same_on_other_rows_and_batches(name: str) -> None:
    make, shape, _ = CASES[name]
    module = _made(make)
    for layer in units.layers(module, draw(3, *shape)):
        wide = units.widened(module, layer, 2)
        again = units.find(units.layers(wide, draw(2, *shape)), layer.name)
        assert again.size == layer.size + 2
        for rows in (1, 5):
            x = draw(rows, *shape, seed=rows)
            with torch.no_grad():
                close(wide(x), module(x), SAME)
                close(units.widened(wide, again, 1)(x), module(x), SAME)


def test_the_index_of_a_unit_is_that_of_loops() -> None:
    part = units.Slice("w", 1, size=3, block=2, repeats=2)
    shape = (2, 12, 2)
    flat = torch.arange(48).reshape(shape)
    for unit in range(3):
        # repeat r, pixel b and the other axes i, j, in any one order that is the same for all units
        truth = [int(flat[i, (r * 3 + unit) * 2 + b, j]) for r, b, i, j in itertools.product(range(2), repeat=4)]
        assert part.index(unit, shape).tolist() == truth
    for unit, wrong in ((3, shape), (-1, shape), (0, (2, 11, 2))):
        with pytest.raises(UsageError, match="no unit"):
            part.index(unit, wrong)


# -- what is refused --------------------------------------------------------------------------------------------------


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)).sum(1)


class Joined(Summed):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([x, torch.tanh(self.inner(x))], 1))


class Fourier(Summed):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.fft.fft(self.inner(x)).real)


class Hidden(Fourier):
    """What the units pass through leaves torch and comes back."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.from_numpy(self.inner(x).detach().numpy() * 1.0))


class Tied(Fourier):
    """One layer passed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.again(torch.tanh(self.again(self.inner(x)))))


class Placed(Fourier):
    """Units are written into a part of another tensor."""

    def forward(self, x: Tensor) -> Tensor:
        room = torch.zeros(len(x), 2, 4, dtype=x.dtype)
        room[:, 0] = self.inner(x)
        return self.out(room.mean(1))


class Weighed(Fourier):
    """The reader is a function of its parameters that is not linear."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.inner(x), self.out.weight.exp())


REFUSED = {
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)), (3,), "layer_norm"),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2)), (1, 3, 3), "group_norm"),
    "tied": (Tied, (3,), "tied"),
    "groups": (lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.Conv1d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(8, 2)), (2, 3), "grouped"),
    "summed": (Summed, (3,), "sum over its units"),
    "joined": (Joined, (3,), "joined with others"),
    "operation": (Fourier, (3,), "'fft_fft' is not known"),
    "recurrent": (lambda: nn.Sequential(nn.LSTM(3, 4)), (2, 3), "'lstm' is not known"),
    "hidden": (Hidden, (3,), "nothing that reads it"),
    "placed": (Placed, (3,), "'setitem' is not known"),
    "not linear": (Weighed, (3,), "not linear in one parameter"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_the_principle_is_refused_with_the_reason(name: str) -> None:
    make, shape, reason = REFUSED[name]
    first = units.layers(_made(make), draw(3, *shape))[0]
    assert any(reason in found for found in first.refusals), first.refusals
    with pytest.raises(UsageError, match=f"layer {first.name} cannot be split"):
        units.widened(_made(make), first, 1)


def test_dropout_is_refused_in_train_mode_only() -> None:
    module = _made(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)))
    assert not units.layers(module, draw(3, 3))[0].refusals
    assert "module.eval()" in units.layers(module.train(), draw(3, 3))[0].refusals[0]
    assert module.training


def test_a_wrong_reading_is_found_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    # softmax over units, taken for an entrywise function: a unit more would change all others
    monkeypatch.setattr(units, "_ENTRYWISE", units._ENTRYWISE | {"softmax"})
    module = _made(lambda: nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 2)))
    (layer,) = units.layers(module, draw(3, 3))
    assert "changes the outputs" in layer.refusals[0]


# -- torch's attention, and built-in networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
def test_heads_are_torchs_attention(batch_first: bool) -> None:
    attention = _made(lambda: nn.MultiheadAttention(6, 3, batch_first=batch_first))
    q, k = draw(4, 4, 6), draw(4, 4, 6, seed=1)
    heads = units.Heads(attention)
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    padded = torch.zeros(4, 4, dtype=torch.bool)
    padded[1, 3] = True
    for masks in ({}, {"attn_mask": causal}, {"attn_mask": draw(4, 4)}, {"key_padding_mask": padded}):
        # softmax and two sums of 6 terms
        close(heads(q, k, k, **masks)[0], attention(q, k, k, **masks)[0], SAME)


@pytest.mark.parametrize("name", ["mlp", "lenet-300-100", "conv2", "conv3", "conv4", "vgg16", "resnet20", "resnet18", "resnet50"])  # fmt: skip
def test_built_in_networks_answer_with_layers_or_reasons(name: str) -> None:
    shape = (1, 16, 16)
    for norm in ("layer", None) if name in ("mlp", "conv4", "resnet20") else (None,):
        with global_stream(0, "units"):
            module = networks.build(name, inputs=shape, outputs=2, width=0.05, norm=norm)
        found = units.layers(module, torch.randn(2, *shape))
        weights = [n for n, p in module.named_parameters() if p.ndim > 1]
        # every weight but the output's writes one layer
        written = [part.name for layer in found for part in layer.copies if part.name in weights]
        assert sorted(written) == sorted(weights[:-1])
        assert all(bool(layer.refusals) == (norm == "layer") for layer in found)


def test_a_wide_module_takes_many_points_at_once() -> None:
    module = _made(lambda: Block(Written(4, 2)))
    layer = units.find(units.layers(module, draw(3, 3, 4)), "attention.k")  # any writer's name will do
    f, theta = Objective.of(units.widened(module, layer, 1), "mse", Rows(draw(3, 3, 4), draw(3, 2)), dtype=F64)
    points = theta + 0.1 * draw(2, f.dim)
    close(f(points), torch.stack([f(point) for point in points]), SAME)


# -- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.jit is on its way out
def test_bad_input() -> None:
    module = _made(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    (layer,) = found = units.layers(module, draw(2, 3))
    with pytest.raises(UsageError, match="unknown hidden layer '2'"):
        units.find(found, "2")
    with pytest.raises(UsageError, match="no hidden layer was found"):
        units.find((), "2")
    with pytest.raises(UsageError, match="has no unit 4"):
        layer.checked(4)
    with pytest.raises(UsageError, match="cannot be widened to 3"):
        units.resized(module, {layer: 3})
    with pytest.raises(UsageError, match="failed on the example"):
        units.layers(module, draw(2, 5))
    with pytest.raises(UsageError, match="TorchScript"):
        units.layers(torch.jit.trace(module, draw(2, 3)), draw(2, 3))
    other = _made(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)))
    with pytest.raises(UsageError, match="Name the layers of this very network"):
        units.widened(other, layer, 1)
    with pytest.raises(UsageError, match="has no tensor"):
        units.widened(_made(Bare), layer, 1)

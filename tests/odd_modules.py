"""Unusual modules, what is unusual about each, and what an export says about it."""

# ruff: noqa: ARG005 (one signature for what is made of a mixer)

from __future__ import annotations

import dataclasses
import itertools
import random
import sys
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pom_export import PolynomialMixer

WIDTH = 8


def example() -> Tensor:
    """Return two rows of five tokens."""
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A mixer, and a function of its output, which is called with the module, that output and the input."""

    def __init__(self, make: Callable[[Any, Tensor, Tensor], Any], **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = PolynomialMixer(WIDTH, 2, 1)
        self.make = make
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.make(self, self.mix(x), x)


def same(_: Any, y: Tensor, __: Tensor) -> Tensor:
    """Return the mixer's output."""
    return y


@dataclasses.dataclass(frozen=True)
class Result:
    """A result that people return instead of a tuple."""

    logits: Tensor
    hidden: Any = None
    length: int = 0


Pair = namedtuple("Pair", "left right")


class Fields(NamedTuple):
    """The same with field types."""

    first: Tensor
    second: Tensor


class Mapped(OrderedDict[str, Any]):
    """A mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Holder:
    """An object of a class that torch does not know."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Uncopyable(nn.Module):
    """Refuses to be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("there is one of me")

    def forward(self, x: Tensor) -> Tensor:
        return x


def _count(module: Any, y: Tensor, _: Tensor) -> Tensor:
    module.calls = getattr(module, "calls", 0) + 1
    return y * module.calls


def _endless(_: Any, y: Tensor, x: Tensor) -> Tensor:
    return _endless(_, y, x)


def _seeded(_: Any, y: Tensor, __: Tensor) -> Tensor:
    torch.manual_seed(0)
    return y + torch.rand(WIDTH)


def _with_other_data(_: Any, y: Tensor, __: Tensor) -> Tensor:
    y.data = 2 * y
    return y


class QuantizationScheme:
    """A double of what compressed-tensors attaches to each layer that it quantizes."""

    __module__ = "compressed_tensors.quantization.quant_scheme"


class Int8Tensor(Tensor):
    """A double of torchao's tensors of int8."""

    __module__ = "torchao.quantization"


def _compressed() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    del layer.weight  # it is packed, under another name
    layer.quantization_scheme = QuantizationScheme()
    return Net(lambda m, y, x: y, part=layer)


def _of_torchao() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Int8Tensor), requires_grad=False)
    return Net(lambda m, y, x: m.part(y), part=layer)


def _quantized() -> nn.Module:
    with torch.random.fork_rng():
        model = Net(lambda m, y, x: m.linear(y), linear=nn.Linear(WIDTH, WIDTH))
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def _sparse() -> nn.Module:
    model = Net(lambda m, y, x: torch.sparse.mm(m.weight, y[0].T).T)
    model.register_buffer("weight", torch.eye(WIDTH).to_sparse())
    return model


_times = itertools.count()

# What is refused before torch traces anything: how the module is made, and words of the error.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no tensor": (lambda: Net(lambda m, y, x: x.shape[1]), "returns no tensor"),
    "a set": (lambda: Net(lambda m, y, x: {y, 2 * y}), "output y is a set"),
    "a generator": (lambda: Net(lambda m, y, x: (part for part in (y,))), "output y is a generator"),
    "an array": (lambda: Net(lambda m, y, x: (y, y.numpy(force=True))), "output y_1 is a NumPy value"),
    "an object": (lambda: Net(lambda m, y, x: (y, Holder([y]))), "output y_1 is a Holder"),
    "complex": (lambda: Net(lambda m, y, x: torch.fft.rfft(y)), "output y is complex"),
    "sparse": (lambda: Net(lambda m, y, x: {"s": y.to_sparse()}), "output s is a sparse tensor"),
    "dropout": (
        lambda: Net(lambda m, y, x: functional.dropout(y, 0.5, training=True)),
        r"draws random numbers: aten\.bernoulli_, odd_modules\.py line",
    ),
    "noise": (lambda: Net(lambda m, y, x: y + 1e-3 * torch.randn(WIDTH)), "draws random numbers: aten.randn"),
    "random of Python": (lambda: Net(lambda m, y, x: y * random.random()), "PyTorch itself gives different outputs"),
    "global counter": (lambda: Net(lambda m, y, x: y * next(_times)), "PyTorch itself gives different outputs"),
    "counter": (lambda: Net(_count), "called a second time: it keeps calls"),
    "attribute error": (lambda: Net(lambda m, y, x: y.nothing), r"no attribute 'nothing', odd_modules\.py line"),
    "key error": (lambda: Net(lambda m, y, x: {}["absent"]), "fails on the example inputs: KeyError 'absent'"),
    "recursion": (lambda: Net(_endless), "calls itself without end"),
    "item under vmap": (
        lambda: Net(lambda m, y, x: torch.vmap(lambda row: row * row.sum().item())(y)),
        r"depends on the values of a tensor .*odd_modules\.py line .*torch\.where",
    ),
    "selection under vmap": (
        lambda: Net(lambda m, y, x: torch.vmap(lambda row: row[row > 0].sum())(y)),
        r"depends on the values of a tensor .*torch\.where",
    ),
    "memory": (lambda: Net(lambda m, y, x: torch.empty(1 << 50)), "not enough memory"),
    "exit": (lambda: Net(lambda m, y, x: sys.exit(3)), "fails on the example inputs: 3"),
    "iterator": (lambda: Net(same, things=(i for i in ())), "model's things is a generator"),
    "iterator in a list": (lambda: Net(same, things=[(i for i in ())]), r"model's things\[0\] is a generator"),
    "uncopyable": (lambda: Net(same, part=Uncopyable()), r"part \(Uncopyable\) can't be copied: there is one of me"),
    "scripted": (
        lambda: Net(lambda m, y, x: m.part(y), part=torch.jit.script(nn.Linear(WIDTH, WIDTH))),
        r"part \(Linear\) is a TorchScript module",
    ),
    "quantized": (_quantized, r"\(Linear\) holds quantized weights, which only torch\.ao.*dtype='float16'"),
    "compressed": (_compressed, r"\(Linear\) holds quantized weights, which only compressed_tensors's .*quantize`"),
    "torchao": (_of_torchao, r"weight is quantized by torchao: Int8Tensor\. Replace it by its dequantize\(\)"),
    "meta": (lambda: Net(same).to("meta"), "has no values"),
    "lazy": (lambda: Net(lambda m, y, x: m.part(y), part=nn.LazyLinear(4)), "part.weight has no size yet"),
    "sparse weights": (_sparse, "weight is sparse"),
    "no forward": (nn.Module, "Module has no forward"),
    "no mixer": (lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH)), "contains none of our mixers"),
}

# What only tracing reveals.
REFUSED_BY_TORCH: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "branch on values": (
        lambda: Net(lambda m, y, x: y * 2 if y.sum() > 0 else y),
        r"depends on the values of a tensor .* odd_modules\.py line .*torch\.where",
    ),
    "no such operator": (
        lambda: Net(lambda m, y, x: torch.linalg.svd(y)[1]),
        r"ONNX has no operator for aten\._linalg_svd.* odd_modules\.py line",
    ),
    "bool under vmap": (
        lambda: Net(lambda m, y, x: torch.vmap(lambda row: row * row.bool())(y)),
        r"another type inside torch\.vmap .*odd_modules\.py line .*Convert it before torch\.vmap",
    ),
    "data replaced": (
        lambda: Net(_with_other_data),
        r"^the model replaces a tensor's data .*odd_modules\.py line .*Assign the result",
    ),
    "seeded": (lambda: Net(_seeded), r"draws random numbers: RandomUniform"),
}


class Everything(nn.Module):
    """Many unusual things at once, exported nevertheless."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = PolynomialMixer(WIDTH, 2, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.lock, self.module, self.function = threading.Lock(), sys, lambda x: 2 * x
        self.held = Holder({"lock": threading.Lock()})

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        guided, plain = self.mix(torch.cat([x, 0 * x])).chunk(2)
        y = self.norm((plain + 4 * (guided - plain)).transpose(1, 2)).transpose(1, 2)
        pair = Pair(self.function(y), torch.split(torch.cat([y, x]), x.shape[0])[1])
        return Mapped(
            out=Result(y, pair, x.shape[1]), scale=self.scale, best=y.max(-1), count=3, x=x, odd={("a", 2): y}
        )

"""The moves a random network is grown by: one short function each, listed with their weights at the end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.fuzz.growth import Growth
from tests.fuzz.networks import BATCH_CUTS, Step

Move = Callable[[Growth], bool]
CONV = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
CONV_T = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
WIDTHS = (2, 3, 4, 6, 8)


def channels(g: Growth, n: int) -> int:
    return g.values[n].shape[1]


def conv(g: Growth) -> bool:
    n = g.pick(3, 4, 5)
    if n is None:
        return False
    inputs, outputs = channels(g, n), g.one(WIDTHS)
    fitting = [k for k in (2, 3) if inputs % k == outputs % k == 0]
    groups = g.one(fitting) if fitting and g.chance(0.3) else 1
    if g.chance(0.15):
        outputs = groups = inputs
    kernel = g.one((1, 1, 2, 3))
    padding: int | str = g.one((0, kernel // 2, 1, "same"))
    mode = g.one(("zeros", "zeros", "zeros", "reflect", "circular", "replicate")) if padding else "zeros"
    stride = 1 if padding == "same" else g.one((1, 1, 2))
    module = CONV[g.values[n].ndim](
        inputs, outputs, kernel, stride, padding, g.one((1, 1, 1, 2)), groups, g.chance(0.5), mode
    )
    return g.layer(module, "conv", n)


def conv_transpose(g: Growth) -> bool:
    n = g.pick(3, 4, 5)
    if n is None:
        return False
    inputs, outputs = channels(g, n), g.one(WIDTHS)
    groups = 2 if inputs % 2 == outputs % 2 == 0 and g.chance(0.5) else 1
    kernel, stride = g.one((1, 2, 3)), g.one((1, 2))
    cut = min(g.one((0, 0, 1)), kernel - 1)  # (more would take away what was put in, and with it any padding)
    module = CONV_T[g.values[n].ndim](
        inputs, outputs, kernel, stride, cut, g.one((0, stride - 1)), groups, g.chance(0.5)
    )
    return g.layer(module, "conv_transpose", n)


def linear(g: Growth) -> bool:
    n = g.pick(2, 3)
    if n is None:
        return False
    outputs = g.one((*WIDTHS, g.values[n].shape[1]))
    return g.layer(nn.Linear(g.values[n].shape[-1], outputs, g.chance(0.5)), "linear", n)


def norm(g: Growth) -> bool:
    n = g.pick(2, 3, 4, 5)
    if n is None:
        return False
    rank = g.values[n].ndim
    kind = nn.SyncBatchNorm if g.chance(0.05) else NORM[rank]
    module = kind(
        channels(g, n),
        eps=g.one((1e-5, 1e-3, 0.1)),
        momentum=g.one((0.1, None)),
        affine=g.chance(0.85),
        track_running_stats=g.chance(0.96),
    )
    return g.layer(module, "norm", n)


def instance_norm(g: Growth) -> bool:
    n = g.pick(3, 4, 5)
    if n is None:
        return False
    kind = INSTANCE[g.values[n].ndim]
    return g.layer(kind(channels(g, n), affine=g.chance(0.7), track_running_stats=g.chance(0.8)), "norm", n)


def conv_norm(g: Growth) -> bool:
    """The plain pair, so that there is always something to fold."""
    return (linear(g) if g.values[-1].ndim == 2 else conv(g)) and norm(g)


def other_norm(g: Growth) -> bool:
    n = g.pick(2, 3, 4)
    if n is None:
        return False
    if g.chance(0.5):
        return g.layer(nn.GroupNorm(1, channels(g, n)), "group_norm", n)
    return g.layer(nn.LayerNorm(g.values[n].shape[-1]), "layer_norm", n)


def module_activation(g: Growth) -> bool:
    n = g.pick(2, 3, 4, 5)
    kinds = (
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Identity(),
        nn.PReLU(),
        nn.Dropout(inplace=True),
    )
    return n is not None and g.layer(g.one(kinds), "module", n)


def activation(g: Growth) -> bool:
    n = g.pick(2, 3, 4, 5)
    return n is not None and g.emit(g.one(("relu", "relu", "relu_", "sigmoid", "gelu", "leaky", "neg")), n)


def scalar(g: Growth) -> bool:
    n = g.pick(2, 3, 4, 5)
    op = g.one(("scalar_mul", "scalar_add", "scalar_div", "scalar_mul_"))
    return n is not None and g.emit(op, n, by=g.one((0.5, -1.5, 2)))


def pair(g: Growth) -> bool:
    n = g.pick(2, 3, 4, 5)
    if n is None:
        return False
    return g.emit(g.one(("add", "add", "add", "add_", "add_alpha", "sub", "mul")), n, g.partner(n))


def concat(g: Growth) -> bool:
    n = g.pick(2, 3, 4, 5)
    if n is None:
        return False
    tail, rank = g.values[n].shape[2:], g.values[n].ndim
    same = [
        m
        for m, v in enumerate(g.values)
        if v.ndim == rank and v.shape[2:] == tail and len(v) == len(g.values[n])
    ]
    return g.emit(g.one(("cat", "cat_keyword")), n, *(g.one(same) for _ in range(g.one((1, 1, 2)))))


def slices(g: Growth) -> bool:
    n = g.pick(2, 3, 4, 5)
    if n is None or channels(g, n) < 2:
        return False
    width = channels(g, n)
    size = g.rng.randrange(1, width)
    op = g.one(("head_slice", "tail_slice", "chunk", "split"))
    if op == "chunk":
        return g.emit(op, n, part=0) and g.emit(op, n, part=1)
    if op == "split":
        sizes = [size, width - size]
        return g.emit(op, n, sizes=sizes, part=0) and g.emit(op, n, sizes=sizes, part=1)
    return g.emit(op, n, size=size)


def examples(g: Growth) -> bool:
    """Some batches one after the other, and a part of them."""
    n = g.pick(2, 3, 4, 5)
    if n is None:
        return False
    batches = [n, *(g.partner(n) for _ in range(g.one((1, 1, 2, 4))))]
    g.rng.shuffle(batches)
    cut = g.one((*BATCH_CUTS,))
    return g.emit("cat_batch", *batches) and g.emit(cut, len(g.values) - 1, size=g.one((1, 2, 3, 4, 5)))


def layout(g: Growth) -> bool:
    n = g.pick(3, 4, 5)
    if n is None:
        return False
    width, rank = channels(g, n), g.values[n].ndim
    options = ["flatten", "tokens", "flip", "roll", "contiguous"]
    options += ["pixel_shuffle"] * (rank == 4 and width % 4 == 0)
    options += ["pixel_unshuffle"] * (rank == 4 and all(s % 2 == 0 for s in g.values[n].shape[2:]))
    op = g.one(options)
    if width % 2 == 0 and g.chance(0.2):
        return g.emit("shuffle", n, groups=2)
    return g.emit(op, n)


def tokens(g: Growth) -> bool:
    n = g.pick(3)
    return n is not None and g.emit(g.one(("channels_first", "merge_tokens", "detach")), n)


def token_norm(g: Growth) -> bool:
    """linear -> flatten -> norm -> back, as LeViT writes it."""
    n = g.pick(3)
    if n is None or not g.layer(nn.Linear(g.values[n].shape[-1], g.one(WIDTHS), g.chance(0.5)), "linear", n):
        return False
    after = len(g.values) - 1
    if not g.emit("merge_tokens", after) or not norm_on(g, after + 1):
        return False
    return g.emit("reshape_as", after + 2, after)


def norm_on(g: Growth, n: int) -> bool:
    return g.layer(NORM[g.values[n].ndim](channels(g, n)), "norm", n)


def attention(g: Growth) -> bool:
    n = g.pick(3)  # (of one place all attention is on that, whatever it is)
    return n is not None and g.values[n].shape[1] > 1 and g.emit("attend", n, n, g.partner(n))


def pool(g: Growth) -> bool:
    n = g.pick(3, 4, 5)
    if n is None:
        return False
    rank = g.values[n].ndim - 2
    if g.chance(0.2):
        return g.emit("mean", n, dims=tuple(range(2, rank + 2)))
    if g.chance(0.2):
        return g.emit("avg_pool", n, pool=f"adaptive_avg_pool{rank}d", output_size=g.one((1, 2)))
    sizes = {"kernel_size": g.one((2, 3)), "stride": g.one((1, 2)), "padding": g.one((0, 0, 1))}
    if g.chance(0.5) and max(g.values[n].shape[2:]) > 1:  # (of one place it is that place, at this size)
        return g.emit("max_pool", n, pool=f"max_pool{rank}d", **sizes)
    return g.emit("avg_pool", n, pool=f"avg_pool{rank}d", count_include_pad=g.chance(0.5), **sizes)


def cast(g: Growth) -> bool:
    """Networks of low precision may go on in another one; float64 ones stay exact."""
    n = g.pick(2, 3, 4)
    if n is None or g.values[0].dtype == torch.float64:
        return False
    return g.emit("cast", n, dtype=g.one((torch.float32, torch.bfloat16)))


def resize(g: Growth) -> bool:
    n = g.pick(4)
    if n is None:
        return False
    if g.chance(0.5):
        return g.emit("upsample", n, mode=g.one(("nearest", "bilinear")))
    return g.emit("pad", n, mode=g.one(("constant", "reflect", "replicate")))


def functional(g: Growth) -> bool:
    n = g.pick(2, 4)
    if n is None:
        return False
    name, net = f"f{len(g.values)}", g.net
    inputs, outputs = channels(g, n), g.one(WIDTHS)
    kernel = (1, 1) if g.chance(0.5) else (2, 2)
    shape = (outputs, inputs, *(kernel if g.values[n].ndim == 4 else ()))
    net.register_parameter(f"{name}_weight", nn.Parameter(g.random(*shape, scale=inputs**-0.5)))
    bias = nn.Parameter(g.random(outputs)) if g.chance(0.5) else None
    net.register_parameter(f"{name}_bias", bias)
    return g.emit("functional_conv", n, name=name, keyword=g.chance(0.5), **factor(g, f"{name}_weight"))


def factor(g: Growth, weight: str) -> dict[str, str | float]:
    """What a functional layer multiplies its weight by: nothing, a mask, a number."""
    mask = f"{weight}_mask{len(g.values)}"
    times = g.one(("", "", mask, -1.5))
    if times == mask:
        drawn = g.random(*getattr(g.net, weight).shape) > -0.5
        g.net.register_buffer(mask, drawn.to(g.values[0].dtype))
    return {"times": times} if times else {}


def functional_again(g: Growth) -> bool:
    """The same weight once more, maybe under another mask, for the same or another value."""
    calls = [s for s in g.net.steps if s.op == "functional_conv"]
    if not calls:
        return False
    name, n = (call := g.one(calls)).args["name"], call.inputs[0]
    n = g.partner(n) if g.chance(0.5) else n
    return g.emit("functional_conv", n, name=name, keyword=False, **factor(g, f"{name}_weight"))


def functional_norm(g: Growth) -> bool:
    n = g.pick(2, 3, 4)
    if n is None:
        return False
    name, width, net = f"f{len(g.values)}", channels(g, n), g.net
    net.register_buffer(f"{name}_mean", g.random(width))
    net.register_buffer(f"{name}_var", torch.exp(g.random(width)))
    affine = g.chance(0.7)
    net.register_parameter(f"{name}_weight", nn.Parameter(g.random(width)) if affine else None)
    net.register_parameter(f"{name}_bias", nn.Parameter(g.random(width)) if affine else None)
    return g.emit("functional_norm", n, name=name, keyword=g.chance(0.5))


def layer_scale(g: Growth) -> bool:
    n = g.pick(2, 3, 4, 5)
    if n is None:
        return False
    name, rank = f"gamma{len(g.values)}", g.values[n].ndim
    g.net.register_parameter(name, nn.Parameter(g.random(channels(g, n), *(1,) * (rank - 2))))
    return g.emit("layer_scale", n, name=name)


def weight_read(g: Growth) -> bool:
    """Somebody else reads a layer's weight."""
    layers = [s.layer for s in g.net.steps if s.op in ("conv", "linear")]
    n = g.pick(2, 3, 4, 5)
    return bool(layers) and n is not None and g.emit("weight_read", n, name=g.one(layers))


def tie(g: Growth) -> bool:
    """Two layers get one weight tensor."""
    layers = [(s.layer, g.net.get_submodule(s.layer)) for s in g.net.steps if s.op in ("conv", "linear")]
    for name, a in layers:
        for other, b in layers:
            if name < other and type(a) is type(b) and a.weight.shape == b.weight.shape:
                b.weight = a.weight
                return True
    return False


def parametrized(g: Growth) -> bool:
    layers = [s.layer for s in g.net.steps if s.op in ("conv", "linear")]
    if not layers:
        return False
    module = g.net.get_submodule(g.one(layers))
    if hasattr(module, "parametrizations"):
        return False
    wrap = parametrizations.weight_norm if g.chance(0.7) else parametrizations.spectral_norm
    wrap(module)
    return True


def double_output(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
    return output * 2 + 1


def shift_input(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    return (args[0] + 0.5,) if args else None


def hook(g: Growth) -> bool:
    """A hook on a layer that a fold would like to change."""
    layers = [s.layer for s in g.net.steps if s.layer]
    if not layers:
        return False
    module = g.net.get_submodule(g.one(layers))
    if g.chance(0.5):
        module.register_forward_hook(double_output)
    else:
        module.register_forward_pre_hook(shift_input)
    return True


def train_mode(g: Growth) -> bool:
    """One norm is left in train mode."""
    norms = [s.layer for s in g.net.steps if s.op == "norm"]
    if norms:
        g.net.get_submodule(g.one(norms)).train()
    return bool(norms)


def observed(g: Growth) -> bool:
    """The output of the last conv or norm is also an output of the network."""
    n = g.rng.randrange(1, len(g.values)) if len(g.values) > 1 else 0
    g.net.outputs.append(n)
    return True


def shared_pair(g: Growth) -> bool:
    """conv -> norm called once more, as in a siamese network."""
    steps = g.net.steps
    pairs = [
        (steps[s.inputs[0] - 1], s)
        for s in steps
        if s.op == "norm" and s.inputs[0] > 0 and steps[s.inputs[0] - 1].layer
    ]
    n = g.pick(2, 3, 4, 5)
    if not pairs or n is None:
        return False
    first, second = g.one(pairs)
    return g.accept(Step(first.op, (n,), first.layer, first.args)) and g.accept(
        Step(second.op, (len(g.values) - 1,), second.layer, second.args)
    )


MOVES: tuple[tuple[Move, float], ...] = (
    (conv, 5),
    (norm, 6),
    (conv_norm, 5),
    (linear, 4),
    (conv_transpose, 2),
    (instance_norm, 0.5),
    (other_norm, 0.5),
    (activation, 2.5),
    (module_activation, 2),
    (scalar, 1),
    (pair, 4),
    (concat, 2.5),
    (slices, 1.5),
    (examples, 0.6),
    (layout, 2),
    (tokens, 1),
    (token_norm, 2),
    (attention, 0.7),
    (pool, 2.5),
    (resize, 1),
    (cast, 1),
    (functional, 0.8),
    (functional_norm, 0.8),
    (functional_again, 0.4),
    (layer_scale, 0.8),
    (weight_read, 0.4),
    (tie, 0.5),
    (parametrized, 0.4),
    (hook, 0.3),
    (train_mode, 0.2),
    (observed, 0.6),
    (Growth.again, 1.5),
    (shared_pair, 1.5),
)

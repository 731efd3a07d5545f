"""Table: torch functions, methods and modules -> the neutral vocabulary of `graphs.base`."""

from __future__ import annotations

from torch import nn

from bntool.graphs import fx_layers as layers
from bntool.graphs import fx_ops as ops
from bntool.graphs.fx_baked import has_own_forward, is_torchs_own, own_type
from bntool.graphs.fx_calls import names
from bntool.graphs.fx_layers import RANKS, Build

LAYOUT = names(
    "reshape view flatten unflatten ravel permute transpose swapaxes swapdims movedim moveaxis t squeeze "
    "unsqueeze expand expand_as broadcast_to view_as reshape_as repeat tile narrow select getitem roll flip "
    "rot90 adjoint pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle index_select unfold "
    "repeat_interleave diagonal"
)


#: give a tuple of pieces: the pieces are the values
PIECES = ("split", "chunk", "unbind", "tensor_split", "split_with_sizes", "hsplit", "vsplit", "dsplit")


#: attributes of a tensor that are data movement
LAYOUT_ATTRIBUTES = ("T", "mT", "H", "mH")


FUNCTIONS: dict[str, Build] = {
    **{f"conv{r}d": layers.conv(r) for r in (1, 2, 3)},
    **{f"conv_transpose{r}d": layers.conv_transpose(r) for r in (1, 2, 3)},
    **{f"max_pool{r}d": ops.max_pool(r) for r in (1, 2, 3)},
    **{f"adaptive_max_pool{r}d": ops.max_pool(r) for r in (1, 2, 3)},
    **{f"avg_pool{r}d": ops.avg_pool(r) for r in (1, 2, 3)},
    **{f"adaptive_avg_pool{r}d": ops.one("avg_pool", dims=tuple(range(-r, 0))) for r in (1, 2, 3)},
    **dict.fromkeys(LAYOUT, ops.one("layout")),
    **dict.fromkeys(("relu", "leaky_relu"), ops.one("relu")),
    **dict.fromkeys(("clamp", "clamp_min", "clip"), ops.clamp),
    **dict.fromkeys(
        ("contiguous", "clone", "detach", "alias", "positive", "requires_grad"), ops.one("identity")
    ),
    **dict.fromkeys(("cuda", "cpu"), ops.one("identity")),
    **dict.fromkeys(("to", "type", "float", "double", "half", "bfloat16", "type_as"), ops.cast),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), ops.dropout),
    **dict.fromkeys(("feature_alpha_dropout", "feature_dropout"), ops.dropout),
    **dict.fromkeys(("add", "iadd", "radd"), ops.binary("add")),
    **dict.fromkeys(("sub", "isub", "subtract"), ops.binary("sub")),
    **dict.fromkeys(("mul", "imul", "multiply"), ops.binary("mul")),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide", "true_divide"), ops.binary("div")),
    **dict.fromkeys(("neg", "negative"), ops.negative),
    **dict.fromkeys(("matmul", "bmm", "mm"), ops.matmul),
    **dict.fromkeys(("cat", "concat", "concatenate"), ops.concat),
    "linear": layers.linear,
    "prelu": ops.prelu,
    "rrelu": ops.rrelu,
    "mean": ops.mean,
    "amax": ops.amax,
    "interpolate": ops.interpolate,
    "pad": ops.pad,
    "scaled_dot_product_attention": ops.attention,
    "group_norm": layers.affine_function("group_norm"),
    "layer_norm": layers.affine_function("layer_norm"),
    "batch_norm": layers.norm_function("batch_norm", 5, 7, "training"),
    "instance_norm": layers.norm_function("instance_norm", 5, 7, "use_input_stats"),
    "softmax": ops.one("softmax"),
}


MODULES: dict[type[nn.Module], Build] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), layers.conv_module),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), layers.conv_module),
    **dict.fromkeys(RANKS, layers.norm_module),
    nn.Linear: layers.linear_module,
    nn.Embedding: layers.embedding_module,
    nn.LayerNorm: layers.layer_norm_module,
    nn.GroupNorm: layers.affine_module("group_norm"),
}


#: modules of torch itself that are not looked into: their forward leaves Python, or reads others' parameters
TORCH_LEAVES = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Transformer, nn.TransformerEncoderLayer)


def is_leaf(module: nn.Module, path: str) -> bool:
    """Modules whose call is one node: those of the table by exact type, and what cannot be looked into."""
    if has_own_forward(module):
        return False
    if own_type(module) in MODULES:
        return is_torchs_own(module)
    torch_own = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    return torch_own and (isinstance(module, TORCH_LEAVES) or not _simple(module))


def _simple(module: nn.Module) -> bool:
    """torch's own modules that only wrap a function, or hold others."""
    return not list(module.children()) or isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))

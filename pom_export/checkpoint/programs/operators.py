"""The functions that a program may call: only those that compute tensors from tensors.

An operator is on the list if it only reads its arguments and its own memory: it opens no file, takes no seed, changes
nothing but its first argument, returns only what it has computed, and checks that its arguments fit together. Some that
decompositions call (native_batch_norm, attention's kernels) do not: they read past the end of a weight that is too
short.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

import pom_export.mixer  # noqa: F401 (registers the op that programs may hold)
from pom_export.checkpoint.programs.checks import MalformedError, UnsafeError, shown
from pom_export.errors import printable

_ELEMENTWISE: Final = """
    abs absolute acos acosh add addcdiv addcmul arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan
    atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu
    clamp clamp_max clamp_min clip conj copy copysign cos cosh deg2rad digamma div divide elu eq erf erfc erfinv exp
    exp2 expm1 fill fix floor floor_divide fmax fmin fmod frac ge gelu glu greater greater_equal gt hardshrink
    hardsigmoid hardswish hardtanh heaviside hypot isfinite isinf isnan isneginf isposinf ldexp le leaky_relu lerp
    less less_equal lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or
    logical_xor logit lt maximum minimum mish mul multiply nan_to_num ne neg negative nextafter not_equal positive
    pow prelu rad2deg real reciprocal relu relu6 remainder round rsqrt rsub selu sgn sigmoid sign signbit silu sin
    sinc sinh softplus softshrink special_erf special_expit special_log1p special_logit sqrt square sub subtract tan
    tanh threshold true_divide trunc where xlogy _prelu_kernel imag complex polar angle
"""
_REDUCTIONS: Final = """
    all amax amin aminmax any argmax argmin argsort count_nonzero cummax cummin cumprod cumsum dist kthvalue
    logcumsumexp logsumexp max mean median min mode nanmean nansum norm prod sort std std_mean sum topk var var_mean
    linalg_vector_norm msort
"""
_LAYERS: Final = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _log_softmax _safe_softmax _softmax _to_copy _fused_rms_norm
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d addmm addmv
    addr alpha_dropout avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bmm channel_shuffle conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d convolution cosine_similarity cross dot dropout einsum
    embedding feature_dropout grid_sampler group_norm im2col col2im inner instance_norm layer_norm linalg_cross
    linear log_softmax matmul max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices mm mv
    native_dropout native_group_norm native_layer_norm one_hot outer pairwise_distance pixel_shuffle pixel_unshuffle
    rms_norm scaled_dot_product_attention softmax special_log_softmax special_softmax tensordot trace unfold
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d vdot l1_loss mse_loss smooth_l1_loss
"""
_SHAPES: Final = """
    adjoint alias as_strided as_strided_copy atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors
    broadcast_to bucketize cat chunk clone column_stack concat concatenate constant_pad_nd contiguous detach
    detach_copy diag diag_embed diagonal diagonal_copy diagonal_scatter dstack expand expand_as expand_copy flatten
    flip fliplr flipud gather hstack index index_add index_copy index_fill index_put index_select lift_fresh
    lift_fresh_copy masked_fill masked_scatter meshgrid mH moveaxis movedim mT narrow narrow_copy numpy_T pad
    permute permute_copy pixel_shuffle ravel reflection_pad1d reflection_pad2d reflection_pad3d repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as resolve_conj
    resolve_neg roll rot90 scatter scatter_add scatter_reduce searchsorted select select_copy select_scatter slice
    slice_copy slice_scatter split split_copy split_with_sizes split_with_sizes_copy squeeze squeeze_copy stack
    swapaxes swapdims t t_copy take take_along_dim tile to transpose transpose_copy tril triu type_as unbind
    unbind_copy unflatten unsqueeze unsqueeze_copy view view_as view_as_complex view_as_real view_copy vstack
    _unsafe_view _reshape_copy _unsafe_index _unsafe_masked_index matrix_H
"""
_MADE: Final = """
    arange eye full full_like linspace logspace new_full new_ones new_zeros ones ones_like scalar_tensor
    tril_indices triu_indices zeros zeros_like
"""
_SIZES: Final = """
    _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size sym_numel sym_size
    sym_storage_offset sym_stride
"""
_ATEN: Final = frozenset(" ".join((_ELEMENTWISE, _REDUCTIONS, _LAYERS, _SHAPES, _MADE, _SIZES)).split())
# Operators that change their first argument, in addition to in-place forms of the ones above.
_IN_PLACE: Final = frozenset({"copy_", "fill_", "zero_", "squeeze_", "unsqueeze_", "t_", "transpose_", "detach_"})
_PRIMS: Final = frozenset({"broadcast_in_dim", "convert_element_type", "view_of"})
_OURS: Final = frozenset({"polynomial_aggregation"})
_BY_NAMESPACE: Final = {"aten": _ATEN, "prims": _PRIMS, "pom": _OURS}

# Functions that torch uses to compute sizes.
_COMPARED: Final = {"eq", "ne", "le", "ge", "lt", "gt", "and_", "or_"}
_COMPUTED: Final = {"neg", "pos", "mul", "add", "sub", "floordiv", "mod", "truediv", "pow"}
_SYMBOLIC: Final = {"sym_not", "sym_int", "sym_float", "sym_ite", "sym_max", "sym_min"}
_ARITHMETIC: Final = frozenset(
    {f"_operator.{name}" for name in _COMPARED | _COMPUTED} | {f"torch.{name}" for name in _SYMBOLIC} | {"math.trunc"}
)
# Blocks of a program in another mode; their contents are checked like the rest.
_BLOCKS: Final = frozenset(
    f"torch.ops.higher_order.{name}" for name in ("wrap_with_set_grad_enabled", "wrap_with_autocast")
)
_DEVICES: Final = ("cpu", "cuda")
# Arguments whose values are text.
_TEXTS: Final = frozenset(
    {"approximate", "rounding_mode", "mode", "reduction", "equation", "assert_msg", "indexing", "padding", "side"}
)
# Other overloads of the same names are TorchScript's, for Python lists and text.
_RETURNED: Final = frozenset({"Tensor", "List[Tensor]"})
_ONE: Final = frozenset({"as_int", "as_sym_int"})
_ANY: Final = _ONE | {"as_float", "as_sym_float", "as_bool", "as_sym_bool", "as_complex"}
_LIST: Final = frozenset({"as_ints", "as_sym_ints"})
# Kinds of values for each argument type. torch would accept any integer as a type of values, and read beyond its
# tables.
_KINDS: Final[dict[str, frozenset[str]]] = {
    "Tensor": _ANY | {"as_tensor", "as_optional_tensor"},
    "List[Tensor]": frozenset({"as_tensors"}),
    "List[Optional[Tensor]]": frozenset({"as_tensors", "as_optional_tensors"}),
    "int": _ONE,
    "SymInt": _ONE,
    "number": _ANY,
    "float": _ANY - {"as_complex"},
    "bool": frozenset({"as_bool", "as_sym_bool"}),
    "str": frozenset({"as_string"}),
    "List[int]": _ONE | _LIST,
    "List[SymInt]": _ONE | _LIST,
    "List[float]": _LIST | {"as_floats", "as_sym_floats", "as_float"},
    "List[bool]": frozenset({"as_bools", "as_sym_bools"}),
    "ScalarType": frozenset({"as_scalar_type"}),
    "Layout": frozenset({"as_layout"}),
    "MemoryFormat": frozenset({"as_memory_format"}),
    "Device": frozenset({"as_device"}),
}


def check_call(target: str, arguments: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the call of a function.

    Args:
        target: its name in the file.
        arguments: arguments by name, each a table of its kind and value.

    Raises:
        UnsafeError: it is not on the list.
        MalformedError: it has no such overload or argument.
    """
    if target in _BLOCKS:
        return _check_block(target, list(arguments.values()))
    for name, argument in arguments.items():
        if "as_graph" in argument:
            raise UnsafeError(f"a block of code for {name} of {target}")
    if target not in _ARITHMETIC:
        _check_arguments(target, _overload(target), arguments)
    return None


def _overload(target: str) -> torch._ops.OpOverload:
    """Return an operator from the list."""
    match target.split("."):
        case ["torch", "ops", ("aten" | "prims" | "pom") as namespace, name, form]:
            pass
        case _:
            raise UnsafeError(f"the function {shown(target)}, which is not a tensor operator")
    if namespace == "pom" and name not in _OURS:
        raise MalformedError(f"there is no operator pom::{printable(name, 80)}")
    if name not in _BY_NAMESPACE[namespace] and not (namespace == "aten" and _is_in_place(name)):
        raise UnsafeError(f"the operator {shown(target)}, not on the list of those that only compute")
    packet = getattr(getattr(torch.ops, namespace), name)
    # TorchScript's overloads accept numbers as types, and read beyond a table for a wrong one.
    if form not in packet.overloads() or form.startswith("prim_"):
        raise MalformedError(f"{namespace}::{name} has no form {shown(form)}")
    return getattr(packet, form)


def _is_in_place(name: str) -> bool:
    return name in _IN_PLACE or (name.endswith("_") and name[:-1] in _ATEN)


def _check_arguments(target: str, op: torch._ops.OpOverload, arguments: Mapping[str, Mapping[str, Any]]) -> None:
    """Check what the list of names does not ensure: that this overload only writes to its first argument, if at all."""
    returned = {str(value.type) for value in op._schema.returns}
    if returned - _RETURNED and op._schema.name.partition("::")[2] not in _SIZES.split():
        raise UnsafeError(f"the operator {target}, which gives no tensors")
    declared = {argument.name: argument for argument in op._schema.arguments}
    first = next(iter(declared), None)
    for name, argument in declared.items():
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes and not (name == first and op._schema.name.endswith("_")):
            raise UnsafeError(f"the operator {target} and its output {name}")
    for name, value in arguments.items():
        if name not in declared:
            raise MalformedError(f"{target} has no argument {shown(name)}")
        _check_argument(f"{name} of {target}", str(declared[name].real_type), value)
        if "as_string" in value and name not in _TEXTS:
            raise UnsafeError(f"{name} {shown(value['as_string'])} of the operator {target}")


def _check_argument(what: str, declared: str, value: Mapping[str, Any]) -> None:
    """Check that an argument has its declared type."""
    ((kind, content),) = value.items()
    if optional := declared.startswith("Optional["):
        declared = declared.removeprefix("Optional[").removesuffix("]")
    if kind == "as_none" and optional:
        return
    if not content and isinstance(content, list) and declared.startswith("List["):
        return
    if kind not in _KINDS.get(declared, ()):
        raise MalformedError(f"{what} is {kind}, not {declared}")


def _check_block(target: str, arguments: list[Mapping[str, Any]]) -> None:
    kinds = [next(iter(argument)) for argument in arguments]
    block = kinds.index("as_graph") if "as_graph" in kinds else -1
    texts = [argument["as_string"] for argument in arguments if "as_string" in argument]
    if kinds.count("as_graph") != 1 or block > 4 or any(text not in _DEVICES for text in texts):
        raise MalformedError(f"{target} is called with {', '.join(kinds)}")

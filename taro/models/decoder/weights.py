"""A language model's weights as the decoder multiplies with them: q, k and v in one matrix, gate and up in another.

There is one copy of them. `pack` lays such weights behind one another in memory once and makes the module's parameters
views of that; the one matrix is a view of the same memory. So an update, a merge or a loaded checkpoint, which write
into the parameters, are in the matrix at once, and nothing is refreshed. Parameters that were moved since (another
device, another dtype) are found by their addresses, and packed anew.
Left out: sharded parameters, which stay apart and are multiplied with one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import silu

from taro.models.language_model import LanguageModel

__all__ = ["Layer", "Shape", "joined", "layers_of", "pack", "shape_of"]


class Shape(NamedTuple):
    """What all layers have in common: heads, key-value heads, width of a head, the epsilons of layer and head norms,
    the MLP's activation."""

    H: int
    K: int
    d: int
    eps: float
    head_eps: float
    activation: Callable[[torch.Tensor], torch.Tensor]


class Layer(NamedTuple):
    """The weights of a layer. qkv, qkv_bias, gate_up: one tensor where packed, else one each; biases may be none."""

    norm: torch.Tensor
    qkv: tuple[torch.Tensor, ...]
    qkv_bias: tuple[torch.Tensor, ...]
    head_norms: tuple[torch.Tensor, ...]
    out: torch.Tensor
    out_bias: tuple[torch.Tensor, ...]
    mlp_norm: torch.Tensor
    gate_up: tuple[torch.Tensor, ...]
    down: torch.Tensor


def shape_of(model: LanguageModel) -> Shape:
    """Of the stock Qwen layers that both families have."""
    config, layer = model.lm.config, model.lm.layers[0]
    head_norm = getattr(layer.self_attn, "q_norm", None)
    activation = silu if config.hidden_act == "silu" else layer.mlp.act_fn  # one function, for one compiled body
    return Shape(config.num_attention_heads, config.num_key_value_heads, layer.self_attn.head_dim,
                 layer.input_layernorm.variance_epsilon, getattr(head_norm, "variance_epsilon", 0.0), activation)


def layers_of(model: LanguageModel, dtype: torch.dtype, *, fused: bool = True) -> list[Layer]:
    """The layers' weights, matrices and their biases in `dtype`, which costs a copy where they are in another.

    Args:
        fused: pack projections that have one input; else they stay apart."""
    return [_layer(layer, dtype, fused=fused) for layer in model.lm.layers]


def _layer(layer: Any, dtype: torch.dtype, *, fused: bool) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    inputs, gates = (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)

    def together(parameters: Sequence[torch.nn.Parameter]) -> tuple[torch.Tensor, ...]:
        if fused and joined(parameters) is None:
            pack(parameters)
        whole = joined(parameters) if fused else None
        return tuple(one.detach().to(dtype) for one in (parameters if whole is None else [whole]))

    biases = [one.bias for one in inputs if one.bias is not None]
    assert len(biases) in (0, len(inputs)), "q, k and v have a bias all or none"
    norms = [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
    out_bias = () if attention.o_proj.bias is None else (attention.o_proj.bias.detach().to(dtype),)
    return Layer(layer.input_layernorm.weight.detach(), together([one.weight for one in inputs]),
                 together(biases) if biases else (), tuple(one.weight.detach() for one in norms),
                 attention.o_proj.weight.detach().to(dtype), out_bias,
                 layer.post_attention_layernorm.weight.detach(), together([one.weight for one in gates]),
                 mlp.down_proj.weight.detach().to(dtype))


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """All rows of `parts` as one view, where they lie behind one another in one memory; else None."""
    first = parts[0].detach()
    if any(type(one.detach()) is not torch.Tensor or not one.is_contiguous() or one.dtype != first.dtype
           for one in parts):
        return None
    memory, at = first.untyped_storage().data_ptr(), first.storage_offset()
    for one in parts:
        if one.untyped_storage().data_ptr() != memory or one.storage_offset() != at:
            return None
        at += one.numel()
    return first.as_strided((sum(len(one) for one in parts), *first.shape[1:]), first.stride())


@torch.no_grad()
def pack(parts: Sequence[torch.nn.Parameter]) -> None:
    """Makes parameters views of one memory, behind one another; their values and who holds them stay. For a moment
    there are two copies of these few. Does nothing to sharded parameters."""
    if any(type(one.data) is not torch.Tensor or one.dtype != parts[0].dtype for one in parts):
        return
    whole = torch.empty((sum(len(one) for one in parts), *parts[0].shape[1:]), dtype=parts[0].dtype,
                        device=parts[0].device)
    at = 0
    for one in parts:
        view = whole[at : at + len(one)]
        view.copy_(one)
        one.data = view
        at += len(one)

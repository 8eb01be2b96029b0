"""The planner: a GLM language model over text and image tokens that plans an image token by token.

Follows transformers 5.23 `modeling_glm_image.py`; attribute names are the checkpoint's keys. What differs: keys and
values live in a preallocated cache, one step of decoding is a function of its own without shapes or values read
back, and q, k and v can share one product (`Planner.fuse`).
Shapes: B batch, L tokens, S cache slots read, H hidden size, D head dim, R rotary channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..devices import kernels
from ..devices.layer_offload import visiting
from .config import RopeConfig, TextConfig, VisionLanguageConfig
from .kv_cache import KVCache
from .vision_tokenizer import VisionModel, VQModel
from .weight_forms import W8Linear, joined, packs_for_cpu

VISION = ("model.visual.", "model.vqmodel.")  # beginnings of the vision tokenizer's keys
# What an accelerator needs for prompts only: the vision tokenizer, and the embeddings of text.
ON_HOST = (*VISION, "model.language_model.embed_tokens.")
PREFILL_CHUNK = 2048  # prompt tokens in one pass; bounds the mask's memory for prompts with many references


class Attention(nn.Module):
    def __init__(self, config: TextConfig, *, operations=nn, **factory):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        width, kv_width, bias = self.heads * self.head_dim, self.kv_heads * self.head_dim, config.attention_bias
        self.q_proj = operations.Linear(config.hidden_size, width, bias=bias, **factory)
        self.k_proj = operations.Linear(config.hidden_size, kv_width, bias=bias, **factory)
        self.v_proj = operations.Linear(config.hidden_size, kv_width, bias=bias, **factory)
        self.o_proj = operations.Linear(width, config.hidden_size, bias=False, **factory)
        self.fused: tuple[torch.Tensor, torch.Tensor | None] | None = None  # weight and bias of all three at once
        self.qkv_proj: W8Linear | None = None  # of codes, in place of all three

    def forward(self, x, cos, sin, mask, cache: KVCache, layer: int, position, read: int) -> torch.Tensor:
        """(B, L, H) -> (B, L, H); keys and values go into the cache from slot `position` on, `read` slots are seen."""
        batch, length, _ = x.shape
        qk, v = self._project(x)
        qk = kernels.rope(qk.view(batch, length, -1, self.head_dim).transpose(1, 2), cos, sin)
        v = v.view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = qk.split((self.heads, self.kv_heads), dim=1)
        k, v = cache.update(layer, k, v, position, read)
        if isinstance(position, torch.Tensor) and position.ndim > 1:
            out = kernels.window_attention(q, k, v, mask)
            return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        if length == 1:
            # Query heads that share a key head become queries of one head: keys are read once and never repeated.
            q = q.reshape(batch, self.kv_heads, -1, self.head_dim)
            return self.o_proj(kernels.attention(q, k, v, mask).reshape(batch, 1, -1))
        out = kernels.attention(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L, H) -> queries and keys side by side, values."""
        kv_width = self.kv_heads * self.head_dim
        if self.fused is not None or self.qkv_proj is not None:
            qkv = self.qkv_proj(x) if self.fused is None else F.linear(x, *self.fused)
            return qkv.split((qkv.shape[-1] - kv_width, kv_width), dim=-1)
        return torch.cat((self.q_proj(x), self.k_proj(x)), dim=-1), self.v_proj(x)

    def fuse(self) -> None:
        """Join the three projections' weights; the layers' own parameters become views, so no memory is added."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        whole = {"weight": None, "bias": None}
        for name in whole:
            parts = [getattr(layer, name) for layer in layers]
            if all(part is None for part in parts):
                continue
            parts = [layer.weight.new_zeros(len(layer.weight)) if p is None else p for layer, p in zip(layers, parts)]
            whole[name] = torch.cat([part.detach() for part in parts])
            for layer, view in zip(layers, whole[name].split([len(part) for part in parts])):
                setattr(layer, name, nn.Parameter(view, requires_grad=False))
        self.fused = whole["weight"], whole["bias"]

    def join_codes(self) -> None:
        """Put one layer in place of all three where they are codes that `pack` readies for a CPU, without a LoRA."""
        layers = [self.q_proj, self.k_proj, self.v_proj]
        if all(packs_for_cpu(layer) and layer.lora_up is None for layer in layers):
            self.qkv_proj = joined(layers)
            self.q_proj = self.k_proj = self.v_proj = None

    def _apply(self, function, recurse=True):
        self.fused = None  # moving or casting gives the layers weights of their own again
        return super()._apply(function, recurse)


class MLP(nn.Module):
    def __init__(self, config: TextConfig, *, operations=nn, **factory):
        super().__init__()
        self.gate_up_proj = operations.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False, **factory)
        self.down_proj = operations.Linear(config.intermediate_size, config.hidden_size, bias=False, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(kernels.swiglu(self.gate_up_proj(x)))


class DecoderLayer(nn.Module):
    """Norms before and after both halves (a sandwich)."""

    def __init__(self, config: TextConfig, *, operations=nn, **factory):
        super().__init__()
        self.self_attn = Attention(config, operations=operations, **factory)
        self.mlp = MLP(config, operations=operations, **factory)
        self.input_layernorm = _norm(config, operations, factory)
        self.post_attention_layernorm = _norm(config, operations, factory)
        self.post_self_attn_layernorm = _norm(config, operations, factory)
        self.post_mlp_layernorm = _norm(config, operations, factory)

    def linears(self) -> list[nn.Module]:
        attention, mlp = self.self_attn, self.mlp
        own = [attention.qkv_proj, attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        return [*(layer for layer in own if layer is not None), mlp.gate_up_proj, mlp.down_proj]

    def forward(self, x: torch.Tensor, *attention_arguments) -> torch.Tensor:
        x = x + self.post_self_attn_layernorm(self.self_attn(self.input_layernorm(x), *attention_arguments))
        return x + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(x)))


class LanguageModel(nn.Module):
    def __init__(self, config: TextConfig, *, operations=nn, **factory):
        super().__init__()
        self.embed_tokens = operations.Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(
            DecoderLayer(config, operations=operations, **factory) for _ in range(config.num_hidden_layers)
        )
        self.norm = _norm(config, operations, factory)

    def forward(self, ids, cos, sin, mask, cache: KVCache, position: int | torch.Tensor, read: int) -> torch.Tensor:
        """(B, L) token ids or (B, L, H) of `Planner.embed`, rotary tables (B, 1, L, R) -> (B, L, H) hidden states."""
        x = ids if ids.is_floating_point() else self.embed_tokens(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, cache, i, position, read)
        return self.norm(x)


class PlannerModel(nn.Module):
    def __init__(self, config: VisionLanguageConfig, *, operations=nn, **factory):
        super().__init__()
        self.visual = VisionModel(config.vision_config, operations=operations, **factory)
        self.language_model = LanguageModel(config.text_config, operations=operations, **factory)
        self.vqmodel = VQModel(config.vq_config, operations=operations, **factory)


class Planner(nn.Module):
    """`vision_language_encoder/` as a whole: language model, vision tokenizer and the head over image tokens."""

    def __init__(self, config: VisionLanguageConfig, *, operations=nn, dtype=None, device=None):
        super().__init__()
        self.config = config
        factory = {"dtype": dtype, "device": device}
        text = config.text_config
        self.model = PlannerModel(config, operations=operations, **factory)
        self.lm_head = operations.Linear(text.hidden_size, text.vision_vocab_size, bias=False, **factory)
        self.prompt_table: torch.Tensor | None = None  # (vocabulary, H) in host memory, where it is kept apart

    def forward(
        self,
        ids: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: KVCache,
        position: int | torch.Tensor,
        read: int,
        every_row: bool = False,
    ) -> torch.Tensor:
        """(B, L) ids, or what `embed` makes of a prompt's, at slots from `position` on -> (B, vision vocabulary) logits
        after the last of them.

        `mask` is boolean and broadcasts to (B, heads, L, read); None sees all `read` slots. `tables` come from
        `rope_tables`. A tensor `position` has static shapes and no host sync: one element for one token, or for a
        window of each plan the slots as `KVCache.update` takes them, with a mask of `kernels.window_mask`.
        `every_row` gives the logits (B, L, vision vocabulary) after each token.
        """
        hidden = self.model.language_model(ids, *tables, mask, cache, position, read)
        return self.lm_head(hidden if every_row else hidden[:, -1])

    def new_cache(self, batch: int, capacity: int, device: torch.device | str) -> KVCache:
        """An empty cache in the dtype of the hidden states, which is the norms' (never a quantised one)."""
        dtype = self.model.language_model.norm.weight.dtype
        return KVCache(self.config.text_config, batch, capacity, dtype=dtype, device=device)

    def rope_tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, B, L) positions -> cos and sin (B, 1, L, R) on the positions' device."""
        return rope_tables(positions, self.config.text_config.head_dim, self.config.text_config.rope_parameters)

    def tokenize_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """(3, 16h, 16w) normalised pixels -> (h*w,) codebook ids."""
        guests = () if self.prompt_table is None else self.on_host
        with visiting(guests, pixels.device):
            return self.model.vqmodel(self.model.visual(pixels))

    @property
    def on_host(self) -> tuple[nn.Module, ...]:
        """The parts that `leave_on_host` leaves there whole."""
        return self.model.visual, self.model.vqmodel

    def leave_on_host(self, device: torch.device) -> None:
        """From now on keep in host memory what ON_HOST names and is there already; `device` gets the embeddings of the
        image tokens, which come first, and the vision tokenizer whenever it is used.
        """
        table = self.model.language_model.embed_tokens
        self.prompt_table = table.weight.detach()
        rows = self.prompt_table[: self.config.text_config.vision_vocab_size].to(device, copy=True)
        table.weight, table.num_embeddings = nn.Parameter(rows, requires_grad=False), len(rows)

    def drop_vision(self) -> None:
        """Free the vision tokenizer: from now on there are prompts without references, and no images to tokenize."""
        self.model.visual = self.model.vqmodel = None

    def embed(self, ids: torch.Tensor, device: torch.device | str) -> torch.Tensor:
        """(B, L) ids of a prompt in host memory -> their embeddings (B, L, H) on the device, for `forward`."""
        if self.prompt_table is None:
            return self.model.language_model.embed_tokens(ids.to(device))
        return F.embedding(ids.cpu(), self.prompt_table).to(device)

    def fuse(self) -> bool:
        """Compute q, k and v in one product from now on.

        Names, shapes and values stay; but codes of 8 bits that `pack` readies for a CPU become one layer. False where
        layers are not plain torch ones.
        """
        layers = self.model.language_model.layers
        for layer in layers:
            layer.self_attn.join_codes()
        linears = [linear for layer in layers for linear in layer.linears()] + [self.lm_head]
        if any(type(linear) is not nn.Linear for linear in linears):
            return False
        for layer in layers:
            layer.self_attn.fuse()
        return True


def rope_tables(positions: torch.Tensor, head_dim: int, rope: RopeConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, B, L) positions in time, row and column -> float32 cos and sin (B, 1, L, R), each section from its axis."""
    rotary = int(head_dim * rope.partial_rotary_factor)
    exponents = torch.arange(0, rotary, 2, dtype=torch.float32, device=positions.device) / rotary
    angles = positions[..., None].float() * (1.0 / rope.rope_theta**exponents)
    sections = angles.split(rope.mrope_section, dim=-1)
    angles = torch.cat([section[axis] for axis, section in enumerate(sections)], dim=-1)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


class Norm(nn.RMSNorm):
    """By the device's own kernel where it has one: on an NPU one launch instead of eight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


def _norm(config: TextConfig, operations, factory: dict) -> nn.Module:
    kind = Norm if operations is nn else operations.RMSNorm  # others move and cast their weights themselves
    return kind(config.hidden_size, eps=config.rms_norm_eps, **factory)

"""The stages of a picture, each as one call that can be timed, with the work it does at least.

Operations are counted on modules without memory; bytes are those of the weights and cached keys that a call must read.
Letters: B batch, L prompt or glyph tokens, N image tokens (patches), h w planner tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from ..denoising.cfg import CfgPasses, guided_velocity
from ..geometry import latent_size, patch_count, preview_grid, token_grid
from ..loading.checkpoint import DECODER, GLYPH, PLANNER, VAE
from ..models.config import GenerationConfig
from ..models.kv_cache import cache_nbytes
from ..models.transformer import Dit
from ..models.transformer_context import Context
from ..planning.decode_step import new_step
from ..planning.generate import decode
from ..planning.graphs import GraphRunner
from ..planning.prefill import prefill
from ..planning.prompt import EncodedPrompt, PromptBatch, collate
from . import peers as bench_peer
from .models import RandomModels, weight_bytes
from .timing import Call, count_flops

SAMPLING = GenerationConfig(temperature=0.9, top_p=0.75, top_k=0)
GLYPH_BYTES = 48  # of the text to draw, its end included
STEPS = 50
GUIDANCE = 1.5
META = torch.device("meta")


@dataclass(frozen=True)
class Case:
    """Pixels, images at once, tokens of the prompt, and how many tokens are planned at most (None: the whole plan)."""

    height: int = 1024
    width: int = 1024
    batch: int = 1
    prompt: int = 128
    tokens: int | None = None

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def patch_grid(self) -> tuple[int, int]:
        h, w = token_grid(self.height, self.width)
        return 2 * h, 2 * w


@dataclass(frozen=True)
class Stage:
    """`amount` units are made by one call, for which at least `flops` are computed and `nbytes` read.

    `ours` and `peer` prepare what is not timed and give the call that is.
    """

    unit: str
    amount: int
    flops: int
    nbytes: int
    ours: Callable[[], Call]
    peer: Callable[[], Call] | None = None


class Bench:
    """The models, their twins without memory, and peers with the same weights, made when first asked for."""

    def __init__(self, models, device: torch.device, dtypes: Mapping[str, torch.dtype], planner_int8: bool = False):
        self.models, self.device, self.dtypes = models, device, dtypes
        self.meta = RandomModels(models.configs, META, dtypes, planner_int8)
        self._peers: dict[str, torch.nn.Module] = {}

    def peer(self, component: str) -> torch.nn.Module:
        """transformers' or diffusers' model of a component."""
        if component not in self._peers:
            make, ours = {
                PLANNER: (bench_peer.planner, lambda: self.models.planner),
                GLYPH: (bench_peer.glyph_encoder, lambda: self.models.glyph_encoder),
                DECODER: (bench_peer.transformer, lambda: self.models.transformer),
                VAE: (bench_peer.vae, lambda: self.models.vae),
            }[component]
            self._peers[component] = make(self.models.configs[component], ours())
        return self._peers[component]

    def release(self) -> None:
        """Free all components and peers."""
        self._peers.clear()
        self.models.release()

    def random(self, component: str, *shape: int) -> torch.Tensor:
        """Normal numbers on the device in the component's dtype, the same on every device."""
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return numbers.to(self.device, self.dtypes[component])


# ---- planner ----


def planner_prefill(bench: Bench, case: Case) -> Stage:
    batch = prompt_batch(bench.models.configs[PLANNER], case)
    meta = bench.meta.planner

    def peer() -> Call:
        model, inputs = bench.peer(PLANNER), bench_peer.prompt_inputs(batch, bench.device)
        return lambda: bench_peer.prefill(model, inputs)

    return Stage(
        "tokens",
        case.batch * case.prompt,
        count_flops(lambda: prefill(meta, batch, META)),
        weight_bytes(meta.model.language_model.layers, meta.lm_head),
        lambda: lambda: prefill(bench.models.planner, batch, bench.device),
        peer,
    )


def planner_decode(bench: Bench, case: Case) -> Stage:
    """All tokens of a plan after its first, which the prompt's pass gives."""
    config = bench.models.configs[PLANNER]
    whole = prompt_batch(config, case)
    batch = first_tokens(whole, case.tokens)
    tokens = batch.decode_positions.shape[2]
    used = case.prompt + tokens // 2  # slots read on average

    def ours() -> Call:
        planner = bench.models.planner
        prefix = prefill(planner, batch, bench.device)
        step, graphs = new_step(planner, prefix, SAMPLING, case.batch), GraphRunner(planner, bench.device)
        return lambda: decode(planner, prefix, SAMPLING, range(case.batch), step=step, run=graphs)

    def peer() -> Call:
        model, inputs = bench.peer(PLANNER), bench_peer.prompt_inputs(whole, bench.device)
        return lambda: bench_peer.generate(model, inputs, tokens, SAMPLING)

    meta, passes = bench.meta.planner, tokens - 1
    weights = weight_bytes(meta.model.language_model.layers, meta.lm_head)
    cache = cache_nbytes(config.text_config, case.batch, used, bench.dtypes[PLANNER])
    flops = count_flops(lambda: one_token(meta, case.batch, used))
    return Stage("tokens", case.batch * passes, passes * flops, passes * (weights + cache), ours, peer)


def prompt_batch(config, case: Case) -> PromptBatch:
    """Prompts of random text, ended by the token after which planning begins."""
    text = config.text_config
    ids = torch.randint(
        text.vision_vocab_size, text.vocab_size, (case.batch, case.prompt), generator=torch.Generator().manual_seed(0)
    )
    ids[ids == config.image_token_id] = text.pad_token_id
    ids[:, -1] = config.image_start_token_id
    positions = torch.arange(case.prompt).expand(3, -1)
    grid = token_grid(case.height, case.width)
    return collate([EncodedPrompt(row, positions, case.prompt) for row in ids], grid, preview_grid(*grid), config)


def first_tokens(batch: PromptBatch, limit: int | None) -> PromptBatch:
    """The same prompts, of whose plan only the first `limit` tokens are made."""
    if limit is None or limit >= batch.decode_positions.shape[2]:
        return batch
    return replace(batch, decode_positions=batch.decode_positions[:, :, :limit], grids=((1, limit),))


def one_token(planner, rows: int, used: int) -> torch.Tensor:
    """The pass that plans a token while `used` slots are seen, on a planner without memory."""
    tables = planner.rope_tables(torch.zeros(3, rows, 1, dtype=torch.long, device=META))
    ids = torch.zeros(rows, 1, dtype=torch.long, device=META)
    return planner(ids, tables, None, planner.new_cache(rows, used, META), used - 1, used)


def vision_tokenizer(bench: Bench, case: Case) -> Stage:
    """One reference image, of the size that is drawn."""
    h, w = token_grid(case.height, case.width)
    pixels = bench.random(PLANNER, 3, 16 * h, 16 * w)
    meta = bench.meta.planner

    def peer() -> Call:
        model = bench.peer(PLANNER)
        return lambda: bench_peer.tokenize_image(model, pixels)

    return Stage(
        "tokens",
        h * w,
        count_flops(lambda: meta.tokenize_image(pixels.to(META))),
        weight_bytes(meta.model.visual, meta.model.vqmodel),
        lambda: lambda: bench.models.planner.tokenize_image(pixels),
        peer,
    )


# ---- decoder ----


def glyph_encoder(bench: Bench, case: Case) -> Stage:
    """One text of `GLYPH_BYTES`."""
    ids = torch.full((1, GLYPH_BYTES), 100, device=bench.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    meta = bench.meta.glyph_encoder

    def peer() -> Call:
        model = bench.peer(GLYPH)
        return lambda: model(input_ids=ids, attention_mask=mask)

    return Stage(
        "bytes",
        GLYPH_BYTES,
        count_flops(lambda: meta(ids.to(META), mask.to(META))),
        weight_bytes(meta.encoder),
        lambda: lambda: bench.models.glyph_encoder(ids, mask),
        peer,
    )


def decoder_prepare(bench: Bench, case: Case) -> Stage:
    """What a run computes once: modulations of all steps, projected glyphs and plan, of both passes."""

    def work(dit: Dit, device: torch.device):
        return lambda: (modulations(dit, bench, case, device), contexts(dit, bench, case, device))

    return Stage(
        "steps",
        STEPS,
        count_flops(work(bench.meta.transformer, META)),
        weight_bytes(bench.meta.transformer) - block_bytes(bench.meta.transformer),
        lambda: work(bench.models.transformer, bench.device),
    )


def decoder_step(bench: Bench, case: Case) -> Stage:
    return _decoder(bench, case, guided=False)


def decoder_guided(bench: Bench, case: Case) -> Stage:
    """Conditional and unconditional pass, one after the other."""
    return _decoder(bench, case, guided=True)


def decoder_joined(bench: Bench, case: Case) -> Stage:
    """Both passes as one batch."""
    return _decoder(bench, case, guided=True, joined=True)


def decoder_reference(bench: Bench, case: Case) -> Stage:
    """Both passes, the conditional one seeing a reference image of the size that is drawn."""
    return _decoder(bench, case, guided=True, reference=True)


def _decoder(bench: Bench, case: Case, guided: bool, joined: bool = False, reference: bool = False) -> Stage:
    def work(dit: Dit, device: torch.device) -> Call:
        shown, empty = contexts(dit, bench, case, device, reference)
        table, latents = modulations(dit, bench, case, device)[0], _latents(bench, case).to(device)
        passes = CfgPasses(shown, empty if guided else None, GUIDANCE, batched=joined)
        return lambda: guided_velocity(dit, latents, table, passes)

    meta, calls = bench.meta.transformer, 2 if guided and not joined else 1
    with torch.no_grad():
        counted = work(meta, META)
    return Stage(
        "patches",
        case.batch * patch_count(case.height, case.width),
        count_flops(counted),
        calls * block_bytes(meta),
        lambda: work(bench.models.transformer, bench.device),
        lambda: _decoder_peer(bench, case, guided, reference),
    )


def _decoder_peer(bench: Bench, case: Case, guided: bool, reference: bool) -> Call:
    model, given = bench.peer(DECODER), peer_inputs(bench, case, GLYPH_BYTES, drop=False)
    without = peer_inputs(bench, case, 1, drop=True)
    one = replace(case, batch=1)
    caches = bench_peer.reference_caches(model, peer_inputs(bench, one, 0, drop=False)) if reference else None

    def call() -> None:
        bench_peer.velocity(model, given, caches, "read")
        if guided:
            bench_peer.velocity(model, without, caches, "skip")

    return call


def contexts(
    dit: Dit, bench: Bench, case: Case, device: torch.device, reference: bool = False
) -> tuple[Context, Context]:
    """Of the conditional pass and of the unconditional one, whose text is empty."""
    ids, grid = _prior(bench, case).to(device), case.patch_grid
    cache = None
    if reference:
        cache = dit.encode_reference(_latents(bench, case)[:1].to(device), ids[:1])
    shown = dit.prepare(_glyphs(bench, case, GLYPH_BYTES).to(device), ids, grid, references=cache)
    return shown, dit.prepare(_glyphs(bench, case, 1).to(device), ids, grid, prior_token_drop=True)


def modulations(dit: Dit, bench: Bench, case: Case, device: torch.device):
    """Of a schedule of `STEPS`."""
    size = torch.tensor([[float(case.height), float(case.width)]], device=device)
    times = torch.linspace(999, 19, STEPS, device=device)
    return dit.modulations(times, size, torch.zeros_like(size), bench.dtypes[DECODER])


def block_bytes(dit: Dit) -> int:
    """Weights that every step reads: of the blocks, but not of their modulations."""
    return sum(weight_bytes(block.attn1, block.ff) for block in dit.transformer_blocks)


def peer_inputs(bench: Bench, case: Case, glyphs: int, drop: bool) -> dict[str, torch.Tensor]:
    """Arguments of diffusers' transformer."""
    ids = _prior(bench, case).to(bench.device)
    size = torch.tensor([[case.height, case.width]] * case.batch, device=bench.device, dtype=torch.float32)
    return {
        "hidden_states": _latents(bench, case),
        "encoder_hidden_states": _glyphs(bench, case, glyphs),
        "prior_token_id": ids,
        "prior_token_drop": torch.full_like(ids, drop, dtype=torch.bool),
        "timestep": torch.full((case.batch,), 999.0, device=bench.device),
        "target_size": size,
        "crop_coords": torch.zeros_like(size),
    }


def _latents(bench: Bench, case: Case) -> torch.Tensor:
    channels = bench.models.configs[DECODER].in_channels
    return bench.random(DECODER, case.batch, channels, *latent_size(case.height, case.width))


def _glyphs(bench: Bench, case: Case, length: int) -> torch.Tensor:
    return bench.random(DECODER, case.batch, length, bench.models.configs[DECODER].text_embed_dim)


def _prior(bench: Bench, case: Case) -> torch.Tensor:
    codebook = bench.models.configs[DECODER].prior_vq_quantizer_codebook_size
    shape = (case.batch, patch_count(case.height, case.width))
    return torch.randint(0, codebook, shape, generator=torch.Generator().manual_seed(0))


# ---- VAE ----


def vae_decode(bench: Bench, case: Case) -> Stage:
    return _vae_decode(bench, case, "decode")


def vae_decode_tiled(bench: Bench, case: Case) -> Stage:
    """In strips, for little memory."""
    return _vae_decode(bench, case, "decode_tiled")


def _vae_decode(bench: Bench, case: Case, method: str) -> Stage:
    config, meta = bench.models.configs[VAE], bench.meta.vae
    latents = bench.random(VAE, case.batch, config.latent_channels, *latent_size(case.height, case.width))

    def peer() -> Call:
        model = bench.peer(VAE)
        return lambda: model.decode(latents, return_dict=False)

    return Stage(
        "pixels",
        case.batch * case.height * case.width,
        count_flops(lambda: meta.decode(latents.to(META))),
        weight_bytes(meta.decoder),
        lambda: lambda: getattr(bench.models.vae, method)(latents),
        peer,
    )


def vae_encode(bench: Bench, case: Case) -> Stage:
    """A reference image."""
    config, meta = bench.models.configs[VAE], bench.meta.vae
    pixels = bench.random(VAE, 1, config.in_channels, case.height, case.width)

    def peer() -> Call:
        model = bench.peer(VAE)
        return lambda: model.encode(pixels).latent_dist.mode()

    return Stage(
        "pixels",
        case.height * case.width,
        count_flops(lambda: meta.encode(pixels.to(META))),
        weight_bytes(meta.encoder),
        lambda: lambda: bench.models.vae.encode(pixels),
        peer,
    )


@dataclass(frozen=True)
class Entry:
    """A stage's component and maker, and whether size and batch make a difference to it."""

    component: str
    make: Callable[[Bench, Case], Stage]
    by_size: bool = True
    by_batch: bool = True


STAGES = {
    "planner prefill": Entry(PLANNER, planner_prefill, by_size=False),
    "planner decode": Entry(PLANNER, planner_decode),
    "vision tokenizer": Entry(PLANNER, vision_tokenizer, by_batch=False),
    "glyph encoder": Entry(GLYPH, glyph_encoder, by_size=False, by_batch=False),
    "decoder prepare": Entry(DECODER, decoder_prepare),
    "decoder step": Entry(DECODER, decoder_step),
    "decoder guided": Entry(DECODER, decoder_guided),
    "decoder joined": Entry(DECODER, decoder_joined),
    "decoder reference": Entry(DECODER, decoder_reference),
    "vae encode": Entry(VAE, vae_encode, by_batch=False),
    "vae decode": Entry(VAE, vae_decode),
    "vae strips": Entry(VAE, vae_decode_tiled),
}

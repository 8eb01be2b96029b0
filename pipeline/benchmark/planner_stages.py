"""The planner's stages: reading a prompt, planning tokens, reading a reference image.

Operations are counted on modules without memory; bytes are those of the weights and cached keys that a call must read.
Shapes: B batch, L prompt tokens, h w planner tokens.
"""

from dataclasses import replace

import torch

from ..geometry import preview_grid, token_grid
from ..loading.checkpoint import PLANNER
from ..models.kv_cache import cache_nbytes
from ..planning.generate import decode
from ..planning.graphs import GraphRunner
from ..planning.prefill import prefill
from ..planning.prompt import EncodedPrompt, PromptBatch, collate
from ..planning.steps import new_step
from . import peers
from .case import META, SAMPLING, Bench, Case, Stage
from .models import weight_bytes
from .timing import Call, count_flops


def planner_prefill(bench: Bench, case: Case) -> Stage:
    batch = prompt_batch(bench.models.configs[PLANNER], case)
    meta = bench.meta.planner

    def peer() -> Call:
        model, inputs = bench.peer(PLANNER), peers.prompt_inputs(batch, bench.device)
        return lambda: peers.prefill(model, inputs)

    return Stage(
        unit="tokens",
        amount=case.batch * case.prompt,
        flops=count_flops(lambda: prefill(meta, batch, META)),
        nbytes=weight_bytes(meta.model.language_model.layers, meta.lm_head),
        run=lambda: prefill(bench.models.planner, batch, bench.device),
        peer=peer,
    )


def planner_decode(bench: Bench, case: Case) -> Stage:
    """All tokens of a plan after its first, which the prompt's pass gives."""
    config = bench.models.configs[PLANNER]
    whole = prompt_batch(config, case)
    batch = first_tokens(whole, case.tokens)
    tokens = batch.decode_positions.shape[2]
    used = case.prompt + tokens // 2  # slots read on average

    def prepare():
        planner = bench.models.planner
        prefix = prefill(planner, batch, bench.device)
        return prefix, new_step(planner, prefix, SAMPLING, case.batch, case.rows), GraphRunner(planner, bench.device)

    def run(prepared):
        prefix, step, graphs = prepared
        return decode(bench.models.planner, prefix, SAMPLING, range(case.batch), rows=case.rows, step=step, run=graphs)

    def peer() -> Call:
        model, inputs = bench.peer(PLANNER), peers.prompt_inputs(whole, bench.device)
        return lambda: peers.generate(model, inputs, tokens, SAMPLING)

    meta, passes = bench.meta.planner, tokens - 1
    weights = weight_bytes(meta.model.language_model.layers, meta.lm_head)
    cache = cache_nbytes(config.text_config, case.batch, used, bench.dtypes[PLANNER])
    flops = count_flops(lambda: one_token(meta, case.batch, used))
    return Stage(
        unit="tokens",
        amount=case.batch * passes,
        flops=passes * flops,
        nbytes=passes * (weights + cache),
        prepare=prepare,
        run=run,
        peer=peer,
    )


def vision_tokenizer(bench: Bench, case: Case) -> Stage:
    """One reference image, of the size of the case."""
    h, w = token_grid(case.height, case.width)
    pixels = bench.random(PLANNER, 3, 16 * h, 16 * w)
    meta = bench.meta.planner

    def peer() -> Call:
        model = bench.peer(PLANNER)
        return lambda: peers.tokenize_image(model, pixels)

    return Stage(
        unit="tokens",
        amount=h * w,
        flops=count_flops(lambda: meta.tokenize_image(pixels.to(META))),
        nbytes=weight_bytes(meta.model.visual, meta.model.vqmodel),
        run=lambda: bench.models.planner.tokenize_image(pixels),
        peer=peer,
    )


def prompt_batch(config, case: Case, seed: int = 0) -> PromptBatch:
    """Prompts of random text, ended by the token after which planning begins."""
    text, generator = config.text_config, torch.Generator().manual_seed(seed)
    ids = torch.randint(text.vision_vocab_size, text.vocab_size, (case.batch, case.prompt), generator=generator)
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

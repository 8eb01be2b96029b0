"""The planner against transformers on the same random weights: tokens, logits, padding, references."""

import copy
from types import SimpleNamespace

import pytest
import torch
from comfyui_glm_image.pipeline.geometry import preview_grid
from comfyui_glm_image.pipeline.loading.weights import load_module
from comfyui_glm_image.pipeline.models import planner_cpu
from comfyui_glm_image.pipeline.models.config import GenerationConfig, ProcessorConfig, VisionLanguageConfig
from comfyui_glm_image.pipeline.models.kv_cache import BUCKET, cache_nbytes
from comfyui_glm_image.pipeline.models.planner import Planner, rope_tables
from comfyui_glm_image.pipeline.models.planner_cpu import CpuDecode
from comfyui_glm_image.pipeline.planning import prefill as prefilling
from comfyui_glm_image.pipeline.planning.decode_step import DecodeStep
from comfyui_glm_image.pipeline.planning.generate import decode
from comfyui_glm_image.pipeline.planning.prefill import prefill
from comfyui_glm_image.pipeline.planning.prompt import PromptEncoder, collate
from comfyui_glm_image.pipeline.planning.references import prepare_reference
from comfyui_glm_image.pipeline.planning.steps import new_step
from PIL import Image
from torch.testing import assert_close

GREEDY = GenerationConfig(temperature=0.0, top_p=1.0, top_k=0)
GRID = (3, 5)


@pytest.fixture(scope="module")
def pair(reference):
    """(our planner, our prompt encoder, transformers' model, transformers' processor, folder) of one configuration."""
    folder, pipeline = reference
    return _pair(folder, pipeline)


@pytest.fixture(scope="module")
def plain(references):
    return _pair(*references("plain"))


def _pair(folder, pipeline):
    path = folder / "vision_language_encoder"
    config = VisionLanguageConfig.from_json(path / "config.json")
    ours = load_module(Planner, config, path, "cpu", torch.float32)
    encoder = PromptEncoder(folder / "processor", config)
    return SimpleNamespace(
        ours=ours,
        encoder=encoder,
        theirs=pipeline.vision_language_encoder,
        processor=pipeline.processor,
        images=ProcessorConfig.from_folder(folder / "processor"),
    )


def batch_of(pair, prompts, grid=GRID, references=(), tokens=(), preview=(2, 3)):
    """A small preview unless the reference, which always plans about 256 tokens there, is to agree."""
    preview = None if references else preview
    encoded = [pair.encoder.encode(prompt, grid, preview, references) for prompt in prompts]
    return collate(encoded, grid, preview, pair.encoder.config, tokens)


def reference_inputs(pair, prompts, grid=GRID, images=()):
    content = [{"type": "image", "image": image} for image in images]
    messages = [[{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}] for prompt in prompts]
    settings = {"padding": len(prompts) > 1, "return_tensors": "pt", "target_h": grid[0] * 32, "target_w": grid[1] * 32}
    return pair.processor.apply_chat_template(messages, tokenize=True, return_dict=True, processor_kwargs=settings)


def reference_greedy(pair, inputs, count):
    """(B, count) tokens and (count, B, codebook) raw logits of transformers' `generate`."""
    out = pair.theirs.generate(
        **inputs,
        max_new_tokens=count,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    codebook = pair.ours.config.vq_config.num_embeddings
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits)[..., :codebook]


def our_greedy(planner, batch, **options):
    """(B, N) tokens and (N, B, codebook) logits of the prompt's last token and of each cached step."""
    logits, choose = [], DecodeStep._choose

    def noting(step, scores, k):
        logits.append(scores[:, : step.codebook].clone())
        choose(step, scores, k)

    rows = batch.ids.shape[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeStep, "_choose", noting)
        tokens = decode(planner, prefill(planner, batch, "cpu"), GREEDY, [0] * rows, rows=1, **options)
    return torch.cat(list(tokens.values()), dim=1), torch.stack(logits)


def test_greedy_tokens_and_every_steps_logits_equal_transformers(pair):
    batch = batch_of(pair, ["a red 'HELLO' on a wall"], preview=preview_grid(*GRID))
    tokens, logits = our_greedy(pair.ours, batch)
    wanted, wanted_logits = reference_greedy(pair, reference_inputs(pair, ["a red 'HELLO' on a wall"]), tokens.shape[1])
    assert_close(tokens, wanted)
    assert_close(logits, wanted_logits, atol=1e-4, rtol=1e-4)


def test_left_padded_batch_equals_transformers_and_single_prompts(pair):
    prompts = ["x", "a much longer prompt about nothing at all"]
    tokens, logits = our_greedy(pair.ours, batch_of(pair, prompts, preview=preview_grid(*GRID)))
    wanted, wanted_logits = reference_greedy(pair, reference_inputs(pair, prompts), tokens.shape[1])
    assert_close(tokens, wanted)
    assert_close(logits, wanted_logits, atol=1e-4, rtol=1e-4)
    for row, prompt in enumerate(prompts):
        alone = batch_of(pair, [prompt], preview=preview_grid(*GRID))
        assert_close(tokens[row], our_greedy(pair.ours, alone)[0][0])


def test_plans_with_references_equal_transformers(pair):
    images = [Image.radial_gradient("L").resize((160, 128)), Image.linear_gradient("L").resize((96, 192))]
    ready = [prepare_reference(image, pair.images) for image in images]
    ids = [pair.ours.tokenize_image(image.vit_pixels) for image in ready]
    batch = batch_of(pair, ["mix"], references=[image.grid for image in ready], tokens=ids)
    tokens, logits = our_greedy(pair.ours, batch)
    inputs = reference_inputs(pair, ["mix"], images=[image.convert("RGB") for image in images])
    wanted, wanted_logits = reference_greedy(pair, inputs, tokens.shape[1])
    assert_close(tokens, wanted)
    assert_close(logits, wanted_logits, atol=1e-4, rtol=1e-4)


def test_joined_projections_change_nothing_and_cost_no_memory(pair):
    planner = copy.deepcopy(pair.ours)
    batch = batch_of(pair, ["fused"])
    tokens, logits = our_greedy(planner, batch)
    before = {key: value.clone() for key, value in planner.state_dict().items()}
    assert planner.fuse()
    fused_tokens, fused_logits = our_greedy(planner, batch)
    assert_close(fused_tokens, tokens)
    assert_close(fused_logits, logits, atol=5e-5, rtol=5e-5)
    assert list(planner.state_dict()) == list(before)
    for key, value in planner.state_dict().items():
        assert torch.equal(value, before[key])
    attention = planner.model.language_model.layers[0].self_attn
    storages = {p.weight.untyped_storage().data_ptr() for p in (attention.q_proj, attention.k_proj, attention.v_proj)}
    assert len(storages) == 1


@pytest.mark.parametrize("large", [0, 1 << 30])
@pytest.mark.parametrize("prompts", [["a red 'HELLO' on a wall"], ["x", "a much longer prompt about nothing"]])
def test_single_tokens_of_a_fused_planner_equal_transformers(pair, prompts, large, monkeypatch):
    """By oneDNN's products and by BLAS's."""
    monkeypatch.setattr(planner_cpu, "LARGE", large)
    planner = copy.deepcopy(pair.ours)
    assert not CpuDecode.suits(planner, torch.device("cpu"))
    planner.fuse()
    assert CpuDecode.suits(planner, torch.device("cpu"))
    tokens, logits = our_greedy(planner, batch_of(pair, prompts, preview=preview_grid(*GRID)))
    wanted, wanted_logits = reference_greedy(pair, reference_inputs(pair, prompts), tokens.shape[1])
    assert_close(tokens, wanted)
    assert_close(logits, wanted_logits, atol=1e-4, rtol=1e-4)


def test_single_tokens_without_biases_and_in_half_types(plain):
    planner = copy.deepcopy(plain.ours)
    for layer in planner.model.language_model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.bias = None
    batch = batch_of(plain, ["no bias"])
    wanted, wanted_logits = our_greedy(planner, batch)
    planner.fuse()
    tokens, logits = our_greedy(planner, batch)
    assert_close(tokens, wanted)
    assert_close(logits, wanted_logits, atol=5e-5, rtol=5e-5)
    planner.bfloat16().fuse()
    assert not CpuDecode.suits(planner, torch.device("cpu"))


def test_moving_a_fused_planner_uses_the_moved_weights(plain):
    planner = copy.deepcopy(plain.ours)
    planner.fuse()
    planner.double()
    attention = planner.model.language_model.layers[0].self_attn
    out, _ = attention._project(torch.zeros(1, 1, attention.q_proj.in_features, dtype=torch.float64))
    assert out.dtype == torch.float64


def test_layers_of_another_namespace_are_used_and_not_fused(plain):
    class CountedLinear(torch.nn.Linear):
        calls = 0

        def forward(self, x):
            CountedLinear.calls += 1
            return super().forward(x)

    names = {name: getattr(torch.nn, name) for name in ("Conv2d", "Embedding", "LayerNorm", "RMSNorm")}
    planner = Planner(plain.encoder.config, operations=SimpleNamespace(Linear=CountedLinear, **names))
    planner.load_state_dict(plain.ours.state_dict())
    assert not planner.fuse()
    batch = batch_of(plain, ["other layers"])
    with torch.no_grad():
        assert_close(our_greedy(planner, batch)[0], our_greedy(plain.ours, batch)[0])
    layers = plain.encoder.config.text_config.num_hidden_layers
    assert CountedLinear.calls == (6 * layers + 1) * batch.decode_positions.shape[2]


@pytest.mark.parametrize("prompts", [["one"], ["one", "two and a half"]])
def test_captured_steps_equal_eager_steps(pair, prompts):
    batch = batch_of(pair, prompts)
    prefix = prefill(pair.ours, batch, "cpu")
    sampling = GenerationConfig(temperature=0.9, top_p=0.75, top_k=0)
    seeds = list(range(len(prompts)))
    eager = decode(pair.ours, prefix, sampling, seeds)
    captured = decode(pair.ours, prefix, sampling, seeds, rows=1, run=lambda step, k: step.captured(step.bucket(k)))
    assert_close(captured, eager)


def test_a_second_plan_needs_no_second_prefill(plain):
    batch = batch_of(plain, ["again"])
    prefix = prefill(plain.ours, batch, "cpu")
    sampling = GenerationConfig(temperature=1.0, top_p=1.0, top_k=0)
    step = new_step(plain.ours, prefix, sampling, 1)
    first = decode(plain.ours, prefix, sampling, [1], step=step)
    second = decode(plain.ours, prefix, sampling, [2], step=step)
    assert not torch.equal(first["full"], second["full"])
    fresh = prefill(plain.ours, batch, "cpu")
    assert_close(second, decode(plain.ours, fresh, sampling, [2]))
    assert_close(first, decode(plain.ours, prefix, sampling, [1], step=step))


def test_one_step_serves_prompts_of_other_lengths(plain):
    sampling = GenerationConfig(temperature=0.9, top_p=0.75, top_k=0)
    short, long = (prefill(plain.ours, batch_of(plain, [text]), "cpu") for text in ("hm", "a longer prompt"))
    step = new_step(plain.ours, long, sampling, 1)
    decode(plain.ours, long, sampling, [0], step=step)
    assert_close(decode(plain.ours, short, sampling, [0], step=step), decode(plain.ours, short, sampling, [0]))


def test_prefill_in_parts_equals_prefill_in_one(plain, monkeypatch):
    batch = batch_of(plain, ["parts", "of a prompt"])
    whole = prefill(plain.ours, batch, "cpu")
    monkeypatch.setattr(prefilling, "PREFILL_CHUNK", 5)
    reports = []
    parts = prefill(plain.ours, batch, "cpu", progress=lambda done, total, grid: reports.append((done, total, grid)))
    assert_close(parts.logits, whole.logits, atol=1e-5, rtol=1e-5)
    assert_close(parts.cache.keys, whole.cache.keys, atol=1e-5, rtol=1e-5)
    length = batch.ids.shape[1]
    assert reports[0] == (5, length, "prompt") and reports[-1] == (length, length, "prompt")


def test_cache_takes_the_bytes_announced(plain):
    prefix = prefill(plain.ours, batch_of(plain, ["memory"]), "cpu")
    cache = new_step(plain.ours, prefix, GREEDY, 3).cache
    assert cache.capacity % BUCKET == 0
    assert cache.nbytes == cache_nbytes(plain.encoder.config.text_config, 3, cache.capacity, torch.float32)


def test_bfloat16_planner_plans(plain):
    planner = copy.deepcopy(plain.ours).bfloat16()
    tokens, logits = our_greedy(planner, batch_of(plain, ["half"]))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert tokens.max() < plain.encoder.config.vq_config.num_embeddings


def test_rotary_tables_equal_transformers(pair):
    text = pair.encoder.config.text_config
    positions = torch.randint(0, 5000, (3, 2, 7), generator=torch.Generator().manual_seed(0))
    wanted = pair.theirs.model.language_model.rotary_emb(torch.zeros(1), positions)
    for ours, theirs in zip(rope_tables(positions, text.head_dim, text.rope_parameters), wanted):
        assert_close(ours[:, 0], theirs, atol=1e-5, rtol=1e-5)


def test_what_prompts_alone_need_may_stay_in_host_memory(pair):
    whole = pair.ours
    apart = copy.deepcopy(whole)
    apart.leave_on_host(torch.device("cpu"))
    assert len(apart.model.language_model.embed_tokens.weight) == whole.config.text_config.vision_vocab_size
    ids = torch.tensor([[whole.config.image_token_id, 1, 2]])
    assert torch.equal(apart.embed(ids, "cpu"), whole.embed(ids, "cpu"))
    pixels = torch.randn(3, 64, 96)
    assert torch.equal(apart.tokenize_image(pixels), whole.tokenize_image(pixels))

"""Bytes that the work of each component takes besides its weights.

Each function follows what is alive at the widest moments of its module's forward pass; activations are counted as
tensors of one width. `tests/npu/test_work_needs.py` compares them with what torch_npu's allocator counts.
"""

import math
from dataclasses import dataclass

import torch

from ..devices.kernel_memory import attention_nbytes, rotary_nbytes, widened_nbytes
from ..geometry import PATCH, TOKEN, check_size, patch_count, preview_grid, token_grid
from ..models.config import DitConfig, VaeConfig, VisionLanguageConfig
from ..models.kv_cache import BUCKET, cache_nbytes
from ..models.planner import PREFILL_CHUNK
from ..models.vae import LIVE, STRIP
from ..models.vision_tokenizer import SEARCH_ROWS

PROMPT_TOKENS = 1024  # room for a long prompt; references add their own tokens
GLYPH_TOKENS = 512
STEPS = 50
ROWS = 16  # tokens of an image in a pass of the planner, at most
FLOATS = 12  # bytes of a colour on its way to 0..1 in float32
PIXELS = 16  # numbers of a pixel: channels of the image in two dtypes, and of its latents
NOISE_BYTES = 2 << 30  # that the noise of a window may take on its device
NOISE_ROWS = 32  # tokens whose noise is made and sent at once
MARGIN = 1.06  # for statistics of norms, tables, and what an allocator rounds up
BLOCK = 11  # activations at a block's feed-forward: before and after attention, normed, four and four
PRODUCT = 7  # at the first product of its feed-forward, beside weights that are widened for it
SEEN = 6  # at its attention: before, normed, keys, values, queries, and those of which a rotation is under way
CACHED = 7  # with a first-block cache: two of each pass, and three that its comparison keeps alive
ENCODED = 5  # of the widest level that are alive at once in the VAE's encoder, which works on whole images
GUIDANCE = ("auto", "batched", "sequential", "off")
HOST = torch.device("cpu")


@dataclass(frozen=True)
class ImageBatch:
    """What is drawn at once: `count` images of this size in pixels in so many steps, after `references`, grids (h, w)
    of 32 px each. `guidance` as `DenoiseOptions.guidance_batching`, or "off"; `step_cache`: whether one is used.
    """

    height: int = 1024
    width: int = 1024
    count: int = 1
    references: tuple[tuple[int, int], ...] = ()
    steps: int = STEPS
    guidance: str = "auto"
    step_cache: bool = False

    def __post_init__(self):
        check_size(self.height, self.width)

    def __str__(self) -> str:
        images = f"{self.count} images" if self.count > 1 else "1 image"
        more = [f"{len(self.references)} reference{'s' * (len(self.references) > 1)}"] if self.references else []
        more += [f"guidance {self.guidance}"] if self.guidance != "auto" else []
        return ", ".join([f"{images} of {self.width}x{self.height} px", *more])

    @property
    def planned(self) -> int:
        """Tokens to plan for an image; those with references have no preview."""
        grid = token_grid(self.height, self.width)
        return math.prod(grid) + (0 if self.references else math.prod(preview_grid(*grid)))

    @property
    def reference_tokens(self) -> int:
        return sum(h * w for h, w in self.references)

    def batched(self, device: torch.device) -> tuple[bool, ...]:
        """Whether a pass holds both halves of guidance: what may be chosen on a device, the faster first."""
        if self.guidance == "auto" and not self.step_cache:
            return (False,) if device.type == "cpu" else (True, False)
        return (self.guidance == "batched",)


ONE_IMAGE = ImageBatch()


def planner_work(
    config: VisionLanguageConfig,
    dtype: torch.dtype,
    images: ImageBatch,
    device: torch.device = HOST,
    form: str | None = None,
    prompt: int = PROMPT_TOKENS,
) -> int:
    """The caches of prompt and plans, one pass over the prompt, and the noise and scores of the choice of tokens."""
    text, codebook = config.text_config, config.vq_config.num_embeddings
    prompt += images.reference_tokens
    cache = cache_nbytes(text, 1 + images.count, prompt + images.planned + BUCKET, dtype)
    rows = min(prompt, PREFILL_CHUNK)
    activations = rows * (3 * text.intermediate_size + 8 * text.hidden_size) * dtype.itemsize
    widened = widened_nbytes(device, form, 2 * text.intermediate_size * text.hidden_size, dtype)
    activations = max(activations, rows * 2 * (text.intermediate_size + text.hidden_size) * dtype.itemsize + widened)
    noise = (images.planned + 9 * ROWS) * images.count * codebook * 4
    noise = noise if noise <= NOISE_BYTES else NOISE_ROWS * images.count * codebook * 4
    scores = attention_nbytes(device, text.num_attention_heads, rows, prompt)
    return cache + activations + scores + noise + ROWS * images.count * codebook * 4


def vision_work(config: VisionLanguageConfig, dtype: torch.dtype, images: ImageBatch, device: torch.device) -> int:
    """Turning the largest reference into tokens: a layer of the vision tokenizer, or the search of its codebook."""
    vision, codebook, tokens = config.vision_config, config.vq_config, max(h * w for h, w in images.references)
    row = tokens * dtype.itemsize
    layer = row * (2 * vision.intermediate_size + 4 * vision.hidden_size)
    seen = row * 8 * vision.hidden_size + attention_nbytes(device, vision.num_heads, tokens, tokens)
    search = (codebook.embed_dim + min(SEARCH_ROWS, tokens)) * codebook.num_embeddings * 4
    pixels = row * vision.in_channels * vision.patch_size**2
    found = search + row * (codebook.latent_channels + codebook.embed_dim)
    return int(MARGIN * (pixels + max(layer, seen, found)))


def decoder_work(
    config: DitConfig,
    dtype: torch.dtype,
    images: ImageBatch,
    batched: bool = True,
    device: torch.device = HOST,
    form: str | None = None,
) -> int:
    """What a run keeps from step to step, and the widest moment of a pass: of an image, both halves of guidance as a
    batch if `batched`, or of a reference.
    """
    patches, number = patch_count(images.height, images.width), config.inner_dim * dtype.itemsize
    references = [h * w * (TOKEN // PATCH) ** 2 for h, w in images.references]
    modulations = images.steps * (12 * config.num_layers + 2)
    contexts = images.count * (patches + GLYPH_TOKENS) * (3 if batched else 1)
    cached = CACHED * images.count * (patches + GLYPH_TOKENS) if images.step_cache else 0
    tables = 2 * 2 * (patches + GLYPH_TOKENS) * config.attention_head_dim * 4
    inputs = images.count * (GLYPH_TOKENS * config.text_embed_dim + 16 * patches * config.in_channels) * dtype.itemsize
    seen = 2 * config.num_layers * sum(references)
    rows = (1 + batched) * images.count
    step = _block(config, dtype, rows, patches + GLYPH_TOKENS, sum(references), device, form)
    encoded = max((_block(config, dtype, 1, n, 0, device, form) for n in references), default=0)
    kept = (modulations + contexts + cached) * number + tables + inputs
    return int(MARGIN * (seen * number + max(kept + step, encoded)))


def _block(config: DitConfig, dtype, rows: int, tokens: int, before: int, device, form: str | None) -> int:
    """A block over `tokens` of each row, which see as many `before` them."""
    width, all_tokens = config.inner_dim, rows * tokens
    feed_forward = BLOCK * all_tokens * width * dtype.itemsize
    widened = widened_nbytes(device, form, 4 * width * width, dtype)
    product = PRODUCT * all_tokens * width * dtype.itemsize + widened
    scores = attention_nbytes(device, rows * config.num_attention_heads, tokens, before + tokens)
    rotated = max(rotary_nbytes(device) * all_tokens * width, scores)
    seen = (SEEN * all_tokens + 2 * rows * before) * width * dtype.itemsize + rotated
    mask = all_tokens * (before + tokens) if rows > 2 and device.type == "npu" else 0  # texts of different lengths
    return max(feed_forward, product, seen) + mask


def vae_work(config: VaeConfig, dtype: torch.dtype, images: ImageBatch) -> int:
    """Decoding one image after another in slices, which the VAE falls back to: the last level whole, a slice of the
    widest level before it, and the pixels; or the pixels of all in float32.
    """
    first, second = config.block_out_channels[:2]
    pixels = images.height * images.width
    colours = 3 * images.count * pixels
    whole = (LIVE * first + PIXELS) * pixels + LIVE * max(first, second) * STRIP * images.width
    return max((whole + colours) * dtype.itemsize, colours * (2 * dtype.itemsize + FLOATS))


def encoder_work(config: VaeConfig, dtype: torch.dtype, images: ImageBatch) -> int:
    """Encoding the largest reference, whole."""
    pixels = max(h * w for h, w in images.references) * TOKEN**2
    return (ENCODED * config.block_out_channels[0] + PIXELS) * pixels * dtype.itemsize

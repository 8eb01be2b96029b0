"""The example workflows as short graphs; `catalog.py` gives them names and notes."""

import json

from .builder import Graph, Node, Output

SMALL = "small (bundled)"
RELEASE = "GLM-Image/model_index.json"
WIDTH, HEIGHT, STEPS = 192, 96, 30  # what the small checkpoint was trained for
PROMPT = 'a red sign that says "OPEN" in white'
REPORT = "Who drew what, and what had no effect · 谁画了什么，哪些设置无效"
PLANNER_LORA = "glm_image_small_planner_top.safetensors"
YOURS = "or Load Image"


def load(g: Graph, model: str = SMALL, **more) -> Node:
    return g.add("GLMImageLoader", 0, model=model, **more)


def plan(g: Graph, planner: Output, prompt=PROMPT, width=WIDTH, height=HEIGHT, seed=1, **more) -> Node:
    """With the whole distribution, which the small checkpoint needs: cut off at 0.75 it leaves pages blank."""
    where = {"column": 1, "top_p": 1.0, **more}
    return g.add("GLMImagePlan", planner=planner, prompt=prompt, width=width, height=height, seed=seed, **where)


def conditioning(g: Graph, glyphs: Output, made: Output, column=2, mode="prompt_order", **more) -> Node:
    return g.add("GLMImageConditioning", column, glyph_encoder=glyphs, plan=made, glyph_mode=mode, **more)


def decode(g: Graph, model: Output, made: Output, text: Node, seed=1, column=3, **more) -> Node:
    inputs = {"model": model, "plan": made, "positive": text[0], "negative": text[1], "steps": STEPS, "seed": seed}
    return g.add("GLMImageDecode", column, **inputs, **more)


def ksampler(g: Graph, model: Output, text: tuple, latent: Output, steps=STEPS, seed=1, column=3, title="") -> Node:
    inputs = {"model": model, "positive": text[0], "negative": text[1], "latent_image": latent, "seed": seed}
    inputs |= {"steps": steps, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple"}
    return g.add("KSampler", column, title, **inputs)


def empty_latent(g: Graph, made: Output, width=WIDTH, height=HEIGHT) -> Node:
    return g.add("EmptyGLMImageLatent", 2, plan=made, width=width, height=height)


def picture(g: Graph, samples: Output, vae: Output, column=4) -> Node:
    return g.add("VAEDecode", column, samples=samples, vae=vae)


def save(g: Graph, images: Output, column=4, prefix="glm-image", title="") -> Node:
    return g.add("SaveImage", column, title, images=images, filename_prefix=prefix)


def text_to_image(g: Graph) -> None:
    parts = load(g)
    made = plan(g, parts[0])
    text = conditioning(g, parts[2], made[0])
    latent = empty_latent(g, made[0])
    save(g, picture(g, ksampler(g, parts[1], text, latent[0])[0], parts[3])[0])


def full_model(g: Graph) -> None:
    parts = load(g, RELEASE)
    words = (
        'a cozy bookshop window at dusk, a wooden sign above it says "LAST PAGE", a chalkboard says "new poems inside"'
    )
    made = plan(g, parts[0], words, 1024, 1024, top_p=0.75)
    text = conditioning(g, parts[2], made[0])
    latent = empty_latent(g, made[0], 1024, 1024)
    save(g, picture(g, ksampler(g, parts[1], text, latent[0], 50)[0], parts[3])[0])


def card_of_16_gb(g: Graph) -> None:
    """The release with planner and decoder in 8 bits, which take turns on the card."""
    small = {"decoder_dtype": "w8", "planner_dtype": "w8"}
    full_model_on(g, 'a market stall with a sign that says "FRESH BREAD"', small)


def ascend_card_of_32_gb(g: Graph) -> None:
    """The release with an exact decoder and a planner in 8 bits, all loaded on an Ascend card."""
    full_model_on(g, 'a lantern shop at night with a sign that says "LIGHTS"', {"planner_dtype": "w8"})


def full_model_on(g: Graph, words: str, forms: dict[str, str]) -> None:
    """The release in forms that the estimate before it and the loader share."""
    where = g.add("GLMImageDevices", 0, model=RELEASE, width=1024, height=1024, **forms)
    parts = load(g, RELEASE, devices=where[0], **forms)
    made = plan(g, parts[0], words, 1024, 1024, top_p=0.75)
    text = conditioning(g, parts[2], made[0])
    save(g, picture(g, decode(g, parts[1], made[0], text)[0], parts[3])[0])


def one_plan_four_seeds(g: Graph) -> None:
    parts = load(g)
    made = plan(g, parts[0], 'a blue poster that says "TAXI" in yellow at the top', seed=3)
    text = conditioning(g, parts[2], made[0])
    g.add("GLMImagePlanPreview", 2, planner=parts[0], plan=made[0])
    save(g, picture(g, decode(g, parts[1], made[0], text, images_per_plan=4)[0], parts[3])[0])


def batch_of_plans(g: Graph) -> None:
    parts = load(g)
    made = plan(g, parts[0], 'a yellow card that says "MUSIC" in black', count=4)
    text = conditioning(g, parts[2], made[0])
    g.add("GLMImagePlanPreview", 2, planner=parts[0], plan=made[0])
    drawn = decode(g, parts[1], made[0], text)
    g.add("GLMImageSavePlan", 3, plan=made[0])
    save(g, picture(g, drawn[0], parts[3])[0])


def reference(g: Graph, colour: int, title: str) -> Node:
    return g.add("EmptyImage", 0, f"{title}, {YOURS}", width=128, height=96, color=colour)


def edit_one_reference(g: Graph) -> None:
    parts = load(g)
    words = 'a white sign that says "SHOP" in red in the middle'
    source = plan(g, parts[0], words, column=0, title="Plan of a picture to edit · 待编辑图片的规划")
    text = conditioning(g, parts[2], source[0], column=1)
    first = decode(g, parts[1], source[0], text, column=1)
    before = picture(g, first[0], parts[3], column=1)
    g.add("PreviewImage", 2, f"Before · 编辑前 ({YOURS})", images=before[0])
    made = plan(g, parts[0], 'change the word to "SALE"', column=2, reference_1=before[0])
    edited = conditioning(g, parts[2], made[0], column=3, vae=parts[3])
    save(g, picture(g, decode(g, parts[1], made[0], edited)[0], parts[3])[0], title="After · 编辑后")


def two_references(g: Graph) -> None:
    parts = load(g)
    one = reference(g, 0x2850C8, "First picture · 第一张图")
    two = reference(g, 0xF5D232, "Second picture · 第二张图")
    words = 'a blue poster with the word "HELLO" in yellow'
    made = plan(g, parts[0], words, reference_1=one[0], reference_2=two[0], seed=2)
    text = conditioning(g, parts[2], made[0], vae=parts[3])
    save(g, picture(g, decode(g, parts[1], made[0], text)[0], parts[3])[0])


def lora(g: Graph) -> None:
    parts = load(g)
    made = plan(g, parts[0], 'a yellow sign that says "OPEN" in black', seed=2)
    text = conditioning(g, parts[2], made[0])
    styled = g.add("GLMImageLoRA", 0, model=parts[1], lora="glm_image_small_digits.safetensors", strength=1.0)
    save(g, picture(g, decode(g, styled[0], made[0], text)[0], parts[3])[0])


def planner_lora(g: Graph) -> None:
    """The same prompt and seeds without and with it."""
    parts, words = load(g), 'a blue poster that says "HELLO" in yellow'
    tuned = g.add("GLMImagePlannerLoRA", 0, planner=parts[0], lora=PLANNER_LORA, strength=1.0)
    for planner, title in ((parts[0], "Without · 不用 LoRA"), (tuned[0], "With · 使用 LoRA")):
        made = plan(g, planner, words, seed=3)
        text = conditioning(g, parts[2], made[0])
        save(g, picture(g, decode(g, parts[1], made[0], text)[0], parts[3])[0], title=title)


def upscale_mixed(g: Graph) -> None:
    parts = load(g)
    made = plan(g, parts[0], 'a green banner that says "JAZZ" in yellow in the middle')
    text = conditioning(g, parts[2], made[0])
    latent = g.add("EmptySD3LatentImage", 2, width=WIDTH, height=HEIGHT, batch_size=1)
    shifted = g.add("ModelSamplingGLMImage", 0, model=parts[1], width=WIDTH, height=HEIGHT)
    guided = g.add("CFGZeroStar", 0, model=shifted[0])
    noise = g.add("RandomNoise", 3, noise_seed=1)
    guider = g.add("CFGGuider", 3, model=guided[0], positive=text[0], negative=text[1], cfg=1.5)
    name = g.add("KSamplerSelect", 3, sampler_name="dpmpp_2m")
    sigmas = g.add("GLMImageSigmas", 3, model=guided[0], steps=STEPS)
    inputs = {"noise": noise[0], "guider": guider[0], "sampler": name[0], "sigmas": sigmas[0]}
    drawn = g.add("SamplerCustomAdvanced", 4, latent_image=latent[0], **inputs)
    image = picture(g, drawn[0], parts[3])
    large = g.add("ImageScaleBy", 5, image=image[0], upscale_method="lanczos", scale_by=4.0)
    sharp = g.add("ImageSharpen", 5, image=large[0], sharpen_radius=2, sigma=1.0, alpha=0.5)
    save(g, sharp[0], column=5, prefix="glm-image-large")


def region(text: str, role: str, place: tuple[int, int, int, int], **more) -> dict:
    """A box by its tokens of 32 px: column, row, columns, rows of the small checkpoint's page."""
    x, y, width, height = place
    box = {"x": 32 * x / WIDTH, "y": 32 * y / HEIGHT, "width": 32 * width / WIDTH, "height": 32 * height / HEIGHT}
    style = {"style": "", "align": "left", "direction": "horizontal", "font": "SketchMono", "color": "#191919"}
    return {"text": text, "role": role, **style, **more, **box}


def layout(*regions: dict) -> str:
    return json.dumps({"format": "glm-image-layout", "version": 1, "regions": regions})


POSTER = layout(
    region("FRESH", "title", (1, 0, 3, 1), style="blue", color="#2850c8"),
    region("SALE", "body", (2, 2, 2, 1), style="black", align="center"),
)
BREAD = layout(region("BREAD", "title", (1, 2, 5, 1)))
HOTEL = layout(region("HOTEL", "title", (1, 1, 3, 1)))


def page(g: Graph, scene: str, drawn: str, width=WIDTH, height=HEIGHT, positions="words") -> Node:
    fields = {"scene": scene, "width": width, "height": height, "positions": positions, "layout": drawn}
    return g.add("GLMImageTextLayout", 0, **fields)


def guidance(g: Graph, planner: Output, drawn: Node, **more) -> Node:
    return g.add("GLMImageLayoutGuidance", 1, planner=planner, layout=drawn[2], sketch=drawn[3], **more)


def poster_with_layout(g: Graph) -> None:
    parts = load(g)
    scene = 'a white poster that says "FRESH" in blue at the top and "SALE" in black at the bottom'
    drawn = page(g, scene, POSTER)
    guided = guidance(g, parts[0], drawn, mode="force")
    made = plan(g, guided[0], drawn[0], drawn[4], drawn[5], top_p=0.9)
    text = conditioning(g, parts[2], made[0], mode="list", glyph_texts=drawn[1])
    inputs = {"model": parts[1], "positive": text[0], "layout": drawn[2], "glyph_texts": drawn[1]}
    held = g.add("GLMImageLayoutDecoderGuidance", 2, **inputs, attention=0.3)
    sampled = ksampler(g, held[0], (held[1], text[1]), held[2])
    save(g, picture(g, sampled[0], parts[3])[0])


def fix_one_word(g: Graph) -> None:
    parts = load(g)
    drawn = page(g, "a white poster", BREAD)
    guided = guidance(g, parts[0], drawn, mode="force")
    g.add("PreviewImage", 1, "Sketch · 草图", images=drawn[3])
    words = 'a white poster that says "TEA" in blue at the top and "BRED" in black at the bottom'
    wrong = plan(g, parts[0], words, seed=3, top_p=0.75, title="The plan with a wrong word · 有错字的规划")
    title = "Texts, with the mistake · 文字（有错）"
    text = conditioning(g, parts[2], wrong[0], mode="list", glyph_texts="TEA\nBRED", title=title)
    latent = empty_latent(g, wrong[0])
    before = picture(g, ksampler(g, parts[1], text, latent[0], seed=7)[0], parts[3], column=3)
    g.add("PreviewImage", 4, "Before · 修改前", images=before[0])
    again = g.add("GLMImageReplanRegion", 2, planner=guided[0], plan=wrong[0], layout=drawn[2], seed=11)
    title = "Texts, corrected · 文字（已改正）"
    right = conditioning(g, parts[2], again[0], mode="list", glyph_texts="TEA\nBREAD", title=title)
    after = ksampler(g, parts[1], right, latent[0], seed=7, title="Same seed again · 同一种子再来一次")
    save(g, picture(g, after[0], parts[3], column=3)[0], prefix="glm_fixed", title="After · 修改后")


def best_of_four(g: Graph) -> None:
    parts = load(g)
    drawn = page(g, 'a white sign that says "HOTEL" in black', HOTEL)
    guided = guidance(g, parts[0], drawn, mode="bias", strength=3.0)
    g.add("PreviewImage", 1, "Sketch · 草图", images=drawn[3])
    made = plan(g, guided[0], drawn[0], drawn[4], drawn[5], count=4)
    text = conditioning(g, parts[2], made[0], mode="list", glyph_texts=drawn[1])
    latent = empty_latent(g, made[0])
    images = picture(g, ksampler(g, parts[1], text, latent[0], seed=7)[0], parts[3], column=3)
    best = g.add("GLMImageBestOfN", 4, images=images[0], layout=drawn[2])
    g.add("PreviewAny", 4, "Ranking · 排名", source=best[2])
    g.add("PreviewImage", 5, "All four · 全部四张", images=images[0])
    save(g, best[0], column=5, prefix="glm_layout", title="The best · 最好的一张")


def devices(g: Graph) -> None:
    where = g.add("GLMImageDevices", 0, width=WIDTH, height=HEIGHT)
    parts = load(g, devices=where[0])
    made = plan(g, parts[0], 'a red banner that says "HELLO" in white', seed=2)
    text = conditioning(g, parts[2], made[0])
    save(g, picture(g, decode(g, parts[1], made[0], text)[0], parts[3])[0])


def resampled(g: Graph, parts: Node, text: Node, latent: Output, denoise: float) -> Node:
    """A second sampling that keeps some of a latent, and its image."""
    inputs = {"model": parts[1], "positive": text[0], "negative": text[1], "latent_image": latent, "seed": 2}
    inputs |= {"steps": STEPS, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "denoise": denoise}
    return picture(g, g.add("KSampler", 5, **inputs)[0], parts[3], column=6)


def first_image(g: Graph, parts: Node, prompt: str, seed: int = 1) -> Node:
    """An image to start from, drawn by the graph itself."""
    made = plan(g, parts[0], prompt, seed=seed)
    text = conditioning(g, parts[2], made[0], column=1)
    image = picture(g, decode(g, parts[1], made[0], text, column=2)[0], parts[3], column=2)
    g.add("PreviewImage", 3, f"The image to start from · 起始图片 ({YOURS})", images=image[0])
    return image


def full_model_hires(g: Graph) -> None:
    parts = load(g, RELEASE)
    words = 'a night market with a neon sign that says "NOODLES"'
    made = plan(g, parts[0], words, 1024, 1024, top_p=0.75)
    text = conditioning(g, parts[2], made[0])
    sampled = decode(g, parts[1], made[0], text)
    size = {"width": 1536, "height": 1536}
    larger = g.add("LatentUpscale", 3, samples=sampled[0], upscale_method="bislerp", **size)
    stretched = g.add("GLMImageResizePlan", 4, plan=made[0], latent=larger[0])
    again = conditioning(g, parts[2], stretched[0], column=4)
    save(g, resampled(g, parts, again, larger[0], 0.5)[0], column=6)


def read_as_plan(g: Graph, parts: Node, image: Output, prompt: str, **more) -> Node:
    inputs = {"planner": parts[0], "image": image, "prompt": prompt, "megapixels": 0.0}
    return g.add("GLMImagePlanFromImage", 3, **inputs, **more)


def image_to_image(g: Graph) -> None:
    parts = load(g)
    image = first_image(g, parts, 'a blue card that says "TAXI" in yellow in the middle')
    made = read_as_plan(g, parts, image[0], '"SHOP"')
    text = conditioning(g, parts[2], made[0], column=4)
    latent = g.add("VAEEncode", 4, pixels=made[1], vae=parts[3])
    save(g, resampled(g, parts, text, latent[0], 0.9)[0], column=6)


def inpaint(g: Graph) -> None:
    parts = load(g)
    words = 'a white poster that says "OPEN" in blue at the top and "SHOP" in red at the bottom'
    image = first_image(g, parts, words)
    whole = g.add("SolidMask", 0, value=0.0, width=WIDTH, height=HEIGHT)
    spot = g.add("SolidMask", 0, value=1.0, width=WIDTH, height=HEIGHT // 3)
    paste = {"destination": whole[0], "source": spot[0], "x": 0, "y": 2 * HEIGHT // 3, "operation": "add"}
    mask = g.add("MaskComposite", 0, "The lowest third is drawn anew · 重画下面三分之一", **paste)
    made = read_as_plan(g, parts, image[0], '"SALE"', mask=mask[0])
    text = conditioning(g, parts[2], made[0], column=4)
    latent = g.add("VAEEncode", 4, pixels=made[1], vae=parts[3])
    noised = g.add("SetLatentNoiseMask", 4, samples=latent[0], mask=made[2])
    save(g, resampled(g, parts, text, noised[0], 0.9)[0], column=6)


def remote(g: Graph, **inputs) -> None:
    """GLM-Image Remote with its picture and its report."""
    drawn = g.add("GLMImageRemote", 1, seed=1, **inputs)
    save(g, drawn[0], column=2, prefix="glm-image-remote")
    g.add("PreviewAny", 2, REPORT, source=drawn[1])


def remote_vllm_omni(g: Graph) -> None:
    scene = "a warm bakery poster in watercolour"
    drawn = page(g, scene, POSTER, 1024, 1024, positions="words and percentages")
    inputs = {"prompt": drawn[0], "glyph_texts": drawn[1], "width": drawn[4], "height": drawn[5]}
    remote(g, server="http://127.0.0.1:8091", count=2, **inputs)


def remote_sglang(g: Graph) -> None:
    blue = {"width": 1024, "height": 1024, "color": 0x2850C8}
    source = g.add("EmptyImage", 0, f"Picture to edit · 待编辑的图片, {YOURS}", **blue)
    words = 'the same picture with a white sign that says "SALE"'
    remote(g, server="http://127.0.0.1:30000", prompt=words, steps=30, reference_1=source[0])


def remote_zai(g: Graph) -> None:
    words = 'a cozy bookshop window at dusk, a wooden sign above it says "LAST PAGE"'
    remote(g, server="https://api.z.ai", prompt=words, width=1280, height=1280)


def remote_plan(g: Graph) -> None:
    """The planner on a server; glyph encoder, decoder and VAE here."""
    made = g.add("GLMImageRemotePlan", 0, prompt=PROMPT, width=WIDTH, height=HEIGHT, seed=1)
    g.add("PreviewAny", 1, "Who planned what · 谁做了规划", source=made[1])
    model = g.add("GLMImageDecoderLoader", 1, model=SMALL)
    glyphs = g.add("GLMImageGlyphEncoderLoader", 1, model=SMALL)
    vae = g.add("GLMImageVAELoader", 1, model=SMALL)
    text = conditioning(g, glyphs[0], made[0])
    latent = empty_latent(g, made[0])
    save(g, picture(g, ksampler(g, model[0], text, latent[0])[0], vae[0])[0])


def remote_draw_plan(g: Graph) -> None:
    """The planner here, steered by a layout; everything else on a server."""
    parts = g.add("GLMImagePlannerLoader", 0, model=SMALL)
    made = plan(g, parts[0])
    g.add("GLMImagePlanPreview", 0, planner=parts[0], plan=made[0])
    drawn = g.add("GLMImageRemote", 2, prompt="", steps=STEPS, seed=1, plan=made[0])
    save(g, drawn[0], column=3, prefix="glm-image-remote")
    g.add("PreviewAny", 3, REPORT, source=drawn[1])

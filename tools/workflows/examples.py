"""The example workflows as short graphs."""

from .builder import Graph, Node, Output

SMALL = "small (bundled)"
RELEASE = "GLM-Image/model_index.json"
WIDTH, HEIGHT, STEPS = 192, 96, 30  # what the small checkpoint was trained for
PROMPT = 'a red sign that says "OPEN" in white'
RELEASE_ONLY = ("glm_image_full_model", "glm_image_full_model_hires")  # needs 35 GB of weights
NOTE_SMALL = (
    "This graph runs the **small checkpoint that comes with the pack**: it knows one lettering, eight colours and five "
    "shapes, and is here to show the graph.\n\nFor the real model choose **GLM-Image** in *Load GLM-Image* (35 GB, "
    "`hf download zai-org/GLM-Image`), set the size to 1024x1024 and 50 steps."
)


def load(g: Graph, model: str = SMALL, **more) -> Node:
    return g.add("GLMImageLoader", (40, 20), (320, 222), model=model, **more)


def plan(g: Graph, planner: Output, prompt=PROMPT, width=WIDTH, height=HEIGHT, seed=1, **more) -> Node:
    at = more.pop("at", (420, 20))
    return g.add(
        "GLMImagePlan", at, (360, 460), planner=planner, prompt=prompt, width=width, height=height, seed=seed, **more
    )


def conditioning(g: Graph, glyphs: Output, made: Output, mode="prompt_order", **more) -> Node:
    return g.add(
        "GLMImageConditioning", (840, 20), (330, 260), glyph_encoder=glyphs, plan=made, glyph_mode=mode, **more
    )


def decode(g: Graph, model: Output, made: Output, text: Node, seed=1, **more) -> Node:
    inputs = {"model": model, "plan": made, "positive": text[0], "negative": text[1], "steps": STEPS, "seed": seed}
    return g.add("GLMImageDecode", (1220, 20), (300, 246), **inputs, **more)


def ksampler(g: Graph, model: Output, text: Node, latent: Output, steps=STEPS, seed=1) -> Node:
    inputs = {"model": model, "positive": text[0], "negative": text[1], "latent_image": latent, "seed": seed}
    inputs |= {"steps": steps, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple"}
    return g.add("KSampler", (1220, 20), (300, 294), **inputs)


def picture(g: Graph, samples: Output, vae: Output) -> Node:
    return g.add("VAEDecode", (1560, 20), (200, 86), samples=samples, vae=vae)


def save(g: Graph, images: Output, at=(1560, 140), prefix="glm-image", title="") -> Node:
    return g.add("SaveImage", at, (420, 420), title, images=images, filename_prefix=prefix)


def text_to_image(g: Graph) -> None:
    parts = load(g)
    made = plan(g, parts[0])
    text = conditioning(g, parts[2], made[0])
    latent = g.add("EmptyGLMImageLatent", (840, 330), (320, 138), plan=made[0], width=WIDTH, height=HEIGHT)
    save(g, picture(g, ksampler(g, parts[1], text, latent[0])[0], parts[3])[0])


def full_model(g: Graph) -> None:
    url = "https://huggingface.co/zai-org/GLM-Image/resolve/main/model_index.json"
    parts = load(g, RELEASE, models=({"name": RELEASE, "url": url, "directory": "glm_image"},))
    words = (
        'a cozy bookshop window at dusk, a wooden sign above it says "LAST PAGE", a chalkboard says "new poems inside"'
    )
    made = plan(g, parts[0], words, 1024, 1024)
    text = conditioning(g, parts[2], made[0])
    latent = g.add("EmptyGLMImageLatent", (840, 330), (320, 138), plan=made[0])
    save(g, picture(g, ksampler(g, parts[1], text, latent[0], 50)[0], parts[3])[0])


def one_plan_four_seeds(g: Graph) -> None:
    parts = load(g)
    made = plan(g, parts[0], 'a blue poster that says "TAXI" in yellow at the top', seed=3)
    text = conditioning(g, parts[2], made[0])
    g.add("GLMImagePlanPreview", (840, 330), (320, 300), planner=parts[0], plan=made[0])
    save(g, picture(g, decode(g, parts[1], made[0], text, images_per_plan=4)[0], parts[3])[0])


def batch_of_plans(g: Graph) -> None:
    parts = load(g)
    made = plan(g, parts[0], 'a yellow card that says "MUSIC" in black', count=4)
    text = conditioning(g, parts[2], made[0])
    g.add("GLMImagePlanPreview", (840, 330), (320, 300), planner=parts[0], plan=made[0])
    g.add("GLMImageSavePlan", (1220, 330), (300, 90), plan=made[0])
    save(g, picture(g, decode(g, parts[1], made[0], text)[0], parts[3])[0])


def reference(g: Graph, y: int, colour: int, title: str) -> Node:
    return g.add("EmptyImage", (40, y), (320, 130), title, width=128, height=96, color=colour)


def edit_one_reference(g: Graph) -> None:
    parts = load(g)
    source = plan(
        g,
        parts[0],
        'a white sign that says "SHOP" in red in the middle',
        at=(40, 300),
        title="A picture to edit: its plan",
    )
    text = g.add(
        "GLMImageConditioning",
        (420, 620),
        (330, 260),
        glyph_encoder=parts[2],
        plan=source[0],
        glyph_mode="prompt_order",
    )
    inputs = {"model": parts[1], "plan": source[0], "positive": text[0], "negative": text[1], "steps": STEPS}
    first = g.add("GLMImageDecode", (790, 620), (300, 246), **inputs)
    before = g.add("VAEDecode", (1130, 620), (200, 86), samples=first[0], vae=parts[3])
    g.add("PreviewImage", (1130, 760), (320, 260), "Or connect Load Image here", images=before[0])
    made = plan(g, parts[0], 'a blue sign that says "SALE" in white in the middle', reference_1=before[0])
    edited = conditioning(g, parts[2], made[0], vae=parts[3])
    save(g, picture(g, decode(g, parts[1], made[0], edited)[0], parts[3])[0])


def two_references(g: Graph) -> None:
    parts = load(g)
    one = reference(g, 300, 0x2850C8, "First picture (or Load Image)")
    two = reference(g, 480, 0xF5D232, "Second picture (or Load Image)")
    made = plan(
        g,
        parts[0],
        'a blue sign that says "HELLO" in yellow at the bottom',
        reference_1=one[0],
        reference_2=two[0],
        seed=3,
    )
    text = conditioning(g, parts[2], made[0], vae=parts[3])
    save(g, picture(g, decode(g, parts[1], made[0], text)[0], parts[3])[0])


def lora(g: Graph) -> None:
    parts = load(g)
    made = plan(g, parts[0], 'a yellow sign that says "OPEN" in black', seed=2)
    text = conditioning(g, parts[2], made[0])
    styled = g.add(
        "GLMImageLoRA",
        (840, 330),
        (320, 114),
        model=parts[1],
        lora="glm_image_small_negative.safetensors",
        strength=1.0,
    )
    save(g, picture(g, decode(g, styled[0], made[0], text)[0], parts[3])[0])


def upscale_mixed(g: Graph) -> None:
    parts = load(g)
    made = plan(g, parts[0], 'a green banner that says "JAZZ" in yellow in the middle')
    text = conditioning(g, parts[2], made[0])
    latent = g.add("EmptySD3LatentImage", (840, 330), (320, 138), width=WIDTH, height=HEIGHT, batch_size=1)
    shifted = g.add("ModelSamplingGLMImage", (40, 300), (320, 138), model=parts[1], width=WIDTH, height=HEIGHT)
    guided = g.add("CFGZeroStar", (40, 490), (320, 60), model=shifted[0])
    noise = g.add("RandomNoise", (1220, 20), (300, 114), noise_seed=1)
    guider = g.add("CFGGuider", (1220, 170), (300, 130), model=guided[0], positive=text[0], negative=text[1], cfg=1.5)
    name = g.add("KSamplerSelect", (1220, 340), (300, 90), sampler_name="dpmpp_2m")
    sigmas = g.add("GLMImageSigmas", (1220, 470), (300, 114), model=guided[0], steps=STEPS)
    inputs = {"noise": noise[0], "guider": guider[0], "sampler": name[0], "sigmas": sigmas[0]}
    drawn = g.add("SamplerCustomAdvanced", (1220, 630), (300, 146), latent_image=latent[0], **inputs)
    image = picture(g, drawn[0], parts[3])
    large = g.add("ImageScaleBy", (1800, 20), (300, 110), image=image[0], upscale_method="lanczos", scale_by=4.0)
    sharp = g.add("ImageSharpen", (1800, 170), (300, 140), image=large[0], sharpen_radius=2, sigma=1.0, alpha=0.5)
    save(g, sharp[0], at=(1560, 350), prefix="glm-image-large")


def poster_with_layout(g: Graph) -> None:
    parts = load(g)
    page = g.add(
        "GLMImageTextLayout",
        (40, 290),
        (480, 860),
        scene="white poster",
        width=WIDTH,
        height=HEIGHT,
        positions="words",
        layout=LAYOUT,
    )
    guided = g.add(
        "GLMImageLayoutGuidance", (570, 20), (320, 202), planner=parts[0], layout=page[2], mode="force", sketch=page[3]
    )
    made = plan(g, guided[0], page[0], page[4], page[5], at=(570, 290))
    text = g.add(
        "GLMImageConditioning",
        (960, 20),
        (330, 260),
        glyph_encoder=parts[2],
        plan=made[0],
        glyph_mode="list",
        glyph_texts=page[1],
    )
    held = g.add(
        "GLMImageLayoutDecoderGuidance",
        (960, 340),
        (330, 238),
        model=parts[1],
        positive=text[0],
        layout=page[2],
        glyph_texts=page[1],
        attention=0.3,
    )
    inputs = {"model": held[0], "positive": held[1], "negative": text[1], "latent_image": held[2], "seed": 1}
    inputs |= {"steps": STEPS, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple"}
    drawn = g.add("KSampler", (1350, 20), (300, 294), **inputs)
    image = g.add("VAEDecode", (1700, 20), (200, 86), samples=drawn[0], vae=parts[3])
    save(g, image[0], at=(1700, 140))


LAYOUT = (
    '{"format":"glm-image-layout","version":1,"regions":['
    '{"text":"FRESH","role":"title","style":"blue","align":"left","direction":"horizontal","font":"SketchMono",'
    '"color":"#2850c8","x":0.16666666666666666,"y":0,"width":0.5,"height":0.3333333333333333},'
    '{"text":"SALE","role":"body","style":"black","align":"center","direction":"horizontal","font":"SketchMono",'
    '"color":"#191919","x":0.3333333333333333,"y":0.6666666666666666,"width":0.3333333333333333,'
    '"height":0.3333333333333333}]}'
)


def devices(g: Graph) -> None:
    where = g.add("GLMImageDevices", (40, 310), (360, 500), width=WIDTH, height=HEIGHT)
    parts = load(g, devices=where[0])
    made = plan(g, parts[0], 'a red banner that says "HELLO" in white', seed=2)
    text = conditioning(g, parts[2], made[0])
    save(g, picture(g, decode(g, parts[1], made[0], text)[0], parts[3])[0])


def resampled(g: Graph, parts: Node, text: Node, latent: Output, denoise: float, at: int = 700) -> Node:
    """A second sampling that keeps some of a latent, and its image."""
    inputs = {"model": parts[1], "positive": text[0], "negative": text[1], "latent_image": latent, "seed": 2}
    inputs |= {"steps": STEPS, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "denoise": denoise}
    sample = g.add("KSampler", (1220, at), (300, 294), **inputs)
    return g.add("VAEDecode", (1560, at), (200, 86), samples=sample[0], vae=parts[3])


def first_image(g: Graph, parts: Node, prompt: str, seed: int = 1) -> tuple[Node, Node, Node]:
    """An image to start from, drawn by the graph itself -> its conditioning, latent and image."""
    made = plan(g, parts[0], prompt, seed=seed)
    text = conditioning(g, parts[2], made[0])
    sampled = decode(g, parts[1], made[0], text)
    image = picture(g, sampled[0], parts[3])
    g.add("PreviewImage", (1800, 20), (340, 300), "The image to start from (or Load Image)", images=image[0])
    return text, sampled, image


def full_model_hires(g: Graph) -> None:
    parts = load(g, RELEASE)
    made = plan(g, parts[0], 'a night market with a neon sign that says "NOODLES"', 1024, 1024)
    text = conditioning(g, parts[2], made[0])
    sampled = decode(g, parts[1], made[0], text)
    size = {"width": 1536, "height": 1536}
    larger = g.add("LatentUpscale", (40, 700), (320, 154), samples=sampled[0], upscale_method="bislerp", **size)
    stretched = g.add("GLMImageResizePlan", (420, 700), (360, 138), plan=made[0], latent=larger[0])
    again = second_conditioning(g, parts, stretched[0])
    save(g, resampled(g, parts, again, larger[0], 0.5)[0], at=(1800, 700))


def read_as_plan(g: Graph, parts: Node, image: Output, prompt: str, **more) -> Node:
    inputs = {"planner": parts[0], "image": image, "prompt": prompt, "megapixels": 0.0}
    return g.add("GLMImagePlanFromImage", (420, 700), (360, 260), **inputs, **more)


def second_conditioning(g: Graph, parts: Node, made: Output) -> Node:
    inputs = {"glyph_encoder": parts[2], "plan": made, "glyph_mode": "prompt_order"}
    return g.add("GLMImageConditioning", (840, 700), (330, 260), **inputs)


def image_to_image(g: Graph) -> None:
    parts = load(g)
    _, _, image = first_image(g, parts, 'a blue card that says "TAXI" in yellow')
    made = read_as_plan(g, parts, image[0], '"SHOP"')
    latent = g.add("VAEEncode", (840, 1010), (200, 86), pixels=made[1], vae=parts[3])
    save(g, resampled(g, parts, second_conditioning(g, parts, made[0]), latent[0], 0.9)[0], at=(1800, 700))


def inpaint(g: Graph) -> None:
    parts = load(g)
    _, _, image = first_image(g, parts, PROMPT)
    whole = g.add("SolidMask", (40, 700), (320, 130), value=0.0, width=WIDTH, height=HEIGHT)
    spot = g.add("SolidMask", (40, 880), (320, 130), value=1.0, width=WIDTH // 2, height=HEIGHT)
    paste = {"destination": whole[0], "source": spot[0], "x": WIDTH // 2, "y": 0, "operation": "add"}
    mask = g.add("MaskComposite", (40, 1060), (320, 178), "The right half is drawn anew", **paste)
    made = read_as_plan(g, parts, image[0], '"SHOP"', mask=mask[0])
    latent = g.add("VAEEncode", (840, 1010), (200, 86), pixels=made[1], vae=parts[3])
    noised = g.add("SetLatentNoiseMask", (840, 1140), (320, 86), samples=latent[0], mask=made[2])
    save(g, resampled(g, parts, second_conditioning(g, parts, made[0]), noised[0], 0.9)[0], at=(1800, 700))


def remote(g: Graph, **inputs) -> None:
    """GLM-Image Remote with its picture and its report."""
    drawn = g.add("GLMImageRemote", (570, 20), (380, 600), seed=1, **inputs)
    save(g, drawn[0], at=(1000, 20), prefix="glm-image-remote")
    g.add("PreviewAny", (1000, 490), (420, 190), "Who drew what, and what had no effect", source=drawn[1])


def remote_vllm_omni(g: Graph) -> None:
    scene = {"scene": "a warm bakery poster in watercolour", "width": 1024, "height": 1024, "layout": LAYOUT}
    page = g.add("GLMImageTextLayout", (40, 20), (480, 860), **scene)
    inputs = {"prompt": page[0], "glyph_texts": page[1], "width": page[4], "height": page[5]}
    remote(g, server="http://127.0.0.1:8091", count=2, **inputs)


def remote_sglang(g: Graph) -> None:
    blue = {"width": 1024, "height": 1024, "color": 0x2850C8}
    source = g.add("EmptyImage", (40, 20), (320, 130), "Picture to edit (or Load Image)", **blue)
    words = 'the same picture with a white sign that says "SALE"'
    remote(g, server="http://127.0.0.1:30000", prompt=words, steps=30, reference_1=source[0])


def remote_zai(g: Graph) -> None:
    words = 'a cozy bookshop window at dusk, a wooden sign above it says "LAST PAGE"'
    remote(g, server="https://api.z.ai", prompt=words, width=1280, height=1280)


def remote_plan(g: Graph) -> None:
    """The planner on a server; glyph encoder, decoder and VAE here."""
    made = g.add("GLMImageRemotePlan", (40, 20), (360, 480), prompt=PROMPT, width=WIDTH, height=HEIGHT, seed=1)
    g.add("PreviewAny", (40, 560), (360, 130), "Who planned what", source=made[1])
    model = g.add("GLMImageDecoderLoader", (440, 20), (330, 140), model=SMALL)
    glyphs = g.add("GLMImageGlyphEncoderLoader", (440, 220), (330, 110), model=SMALL)
    vae = g.add("GLMImageVAELoader", (440, 390), (330, 110), model=SMALL)
    text = conditioning(g, glyphs[0], made[0])
    latent = g.add("EmptyGLMImageLatent", (840, 330), (320, 138), plan=made[0])
    save(g, picture(g, ksampler(g, model[0], text, latent[0])[0], vae[0])[0])


def remote_draw_plan(g: Graph) -> None:
    """The planner here, steered by a layout; everything else on a server."""
    parts = g.add("GLMImagePlannerLoader", (40, 20), (320, 140), model=SMALL)
    made = plan(g, parts[0])
    g.add("GLMImagePlanPreview", (40, 220), (320, 300), planner=parts[0], plan=made[0])
    drawn = g.add("GLMImageRemote", (840, 20), (380, 600), prompt="", steps=STEPS, seed=1, plan=made[0])
    save(g, drawn[0], at=(1270, 20), prefix="glm-image-remote")
    g.add("PreviewAny", (1270, 490), (420, 190), "Who drew what, and what had no effect", source=drawn[1])


WITHOUT_SMALL = (full_model, full_model_hires, remote_vllm_omni, remote_sglang, remote_zai)
WORKFLOWS = {
    text_to_image: "From prompt to picture: the planner lays the image out, the decoder draws it under KSampler.",
    poster_with_layout: "Draw boxes in *GLM-Image Text Layout* and type what stands in them. The boxes reach the "
    "prompt, the texts to draw and the first steps of the decoder; set *GLM-Image Layout Guidance* to bias or force to "
    "hold the planner to them too.",
    edit_one_reference: "Edits one picture: the planner sees it as tokens, the decoder as a latent, so *GLM-Image "
    "Conditioning* needs the **vae** as well. Any size up to 4:1 works. Here the picture is drawn by the graph itself; "
    "connect *Load Image* to reference_1 for your own.",
    two_references: "Takes subjects from two pictures; up to four inputs, and a batch counts as several. Connect *Load "
    "Image* nodes for your own.",
    one_plan_four_seeds: "One plan, four pictures: the layout stays, each picture has its own noise.",
    batch_of_plans: "Four plans in one batch, each with a seed of its own, drawn and saved for later.",
    upscale_mixed: "The decoder among nodes made for other models: an SD3 latent, CFG-Zero-star, dpmpp_2m in "
    "SamplerCustomAdvanced, then upscaling and sharpening.",
    full_model_hires: "The released model (35 GB) in two samplings (hires fix): *Resize GLM-Image Plan* stretches the "
    "plan to the enlarged latent, and a second *KSampler* with denoise below 1 adds detail. Where the latent is a "
    "whole multiple of the first, the first conditioning does as well.",
    image_to_image: "An image as start: *GLM-Image Plan from Image* reads it as a plan, fits it to multiples of 32 px, "
    "and *KSampler* with denoise below 1 keeps some of it. Texts to render stand in its prompt, in quotes. Connect "
    "*Load Image* for your own, with megapixels 1 for the real model.",
    inpaint: "Draws a part of an image anew: *GLM-Image Plan from Image* fits image and mask alike, so that plan, "
    "latent and mask agree. Connect *Load Image* for your own, whose *MaskEditor* makes the mask.",
    lora: "A LoRA on the decoder, as diffusers, PEFT, kohya or ComfyUI write it. This one comes with the pack and "
    "makes the small checkpoint draw negatives; choose your own file in models/loras.",
    devices: "A device for each part: with two cards, choose one for the planner and the other for decoder, glyph "
    "encoder and VAE. *GLM-Image Devices* tells before anything is loaded whether all of it fits; run that node alone "
    "to see it first. `auto` is where ComfyUI computes, so this graph runs on any machine.",
    full_model: "The released model: 35 GB in `models/glm_image/GLM-Image`.\n\nGet it with `hf download "
    "zai-org/GLM-Image --local-dir models/glm_image/GLM-Image` (or from ModelScope, `ZhipuAI/GLM-Image`). Planner and "
    "decoder are loaded one after the other.",
    remote_vllm_omni: "The layout's prompt, texts and size go to a **vLLM-Omni** server instead of this machine:\n\n"
    "`vllm serve zai-org/GLM-Image --omni --port 8091`\n\nSeveral servers share the work: write their addresses with "
    "commas between them. One reference image plugs into *reference_1*.",
    remote_sglang: "Edits a picture on an **SGLang** server:\n\n`sglang serve --model-path zai-org/GLM-Image --port "
    "30000`\n\nConnect *Load Image* in place of the blue page. Releases 0.5.22 and 0.5.23 fail on every edit: serve "
    "with 0.5.20 or older. A server whose planner runs apart (`--srt-encoder-url`) takes no references.",
    remote_zai: "Draws on the **hosted API** of z.ai, about $0.015 a picture; a batch that would cost more than "
    "**max_cost** is not sent.\n\nSet `ZAI_API_KEY` in the environment before ComfyUI starts: there is no place for a "
    "key in the graph. For China's service write `https://open.bigmodel.cn` and set `ZHIPUAI_API_KEY`. Steps, "
    "guidance, seed and references are not taken.",
    remote_plan: "The **planner on a server**, the rest here: a plan is some thousand small numbers, so a rack with "
    "eight cards can make it for a laptop.\n\n`sglang serve --model-path GLM-Image/vision_language_encoder "
    "--tokenizer-path GLM-Image/processor --enable-multimodal --port 30001`\n\nOf the planner only settings are read "
    "here. The server must hold the checkpoint that is chosen in *GLM-Image Remote Plan*.",
    remote_draw_plan: "The **planner here, the rest on a vLLM-Omni server**: the plan is drawn as it is, so layout "
    "guidance works. Its size and prompt come from the plan.\n\n`vllm serve zai-org/GLM-Image --omni --port 8091`\n\n"
    "The server must hold the checkpoint of the planner.",
}


def build(object_info: dict, versions: dict[str, str]) -> dict[str, dict]:
    """File name without suffix -> the workflow."""
    made = {}
    for draw, note in WORKFLOWS.items():
        name = f"glm_image_{draw.__name__}"
        graph = Graph(name, note if draw in WITHOUT_SMALL else f"{note}\n\n{NOTE_SMALL}", object_info, versions)
        draw(graph)
        made[name] = graph.to_json()
    return made

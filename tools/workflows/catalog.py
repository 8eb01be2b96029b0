"""The example workflows as a person meets them: names in two languages, notes in two languages, in the order to try.

A file's name is what ComfyUI's page shows of a template, so it says what the graph does and what it needs. `key` is the
name for commands, and the file's name in version 0.1.0, which `nodes/comfyui/old_templates.py` still answers to. A
template that came later is `new` and has no such name.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from . import examples
from .builder import Graph

ENGLISH, CHINESE = "About this workflow", "关于此工作流"
SMALL = (
    "\n\nThis graph runs the **small checkpoint that comes with the pack**: it knows one lettering, eight colours and "
    "five shapes, and is here to show the graph.\n\nFor the real model choose **GLM-Image** in *Load GLM-Image* "
    "(35 GB, `hf download zai-org/GLM-Image`), set the size to 1024x1024, top_p to 0.75 and 50 steps."
)
SMALL_ZH = (
    "\n\n此工作流使用**节点包自带的小模型**：它只认识一种字体、八种颜色和五种形状，用来展示连接方法。\n\n要用正"
    "式模型，请在"
    "*加载 GLM-Image* 中选择 **GLM-Image**（35 GB，`hf download zai-org/GLM-Image`），把尺寸设为 1024x1024、top_p 设为 "
    "0.75、步数设为 50。"
)
SCENE = (
    "\n\nIt knows one form of sentence, so the scene names the texts once more; with the real model just describe it."
)
SCENE_ZH = "\n\n它只认识一种句式，所以场景中再写了一遍文字；使用正式模型时只需描述画面。"
LETTERING = "\n\nThe font `SketchMono` at 32 px is the lettering it knows; with the real model leave the font empty."
LETTERING_ZH = "\n\n它认识的字体是 32 像素的 `SketchMono`；使用正式模型时请把字体留空。"


def readable(note: str) -> str:
    """Code in bold: with Nodes 2.0 the page shows code in notes as blue on blue."""
    return re.sub("`(.+?)`", r"**\1**", note)


@dataclass(frozen=True)
class Example:
    """One file in workflows/: `name` without suffix, whether it `runs` as it comes, and on which checkpoint."""

    name: str
    draw: Callable[[Graph], None]
    english: str
    chinese: str
    small: bool = True
    runs: bool = True
    new: bool = False

    @property
    def key(self) -> str:
        return f"glm_image_{self.draw.__name__}"

    @property
    def notes(self) -> dict[str, str]:
        english, chinese = (SMALL, SMALL_ZH) if self.small else ("", "")
        return {ENGLISH: readable(self.english + english), CHINESE: readable(self.chinese + chinese)}


EXAMPLES = (
    Example(
        "01 Text to image 文生图",
        examples.text_to_image,
        "From prompt to picture: the planner lays the image out as tokens, the decoder draws it under KSampler.",
        "从提示词到图片：规划器用 token 排好画面，解码器在 KSampler 中把它画出来。",
    ),
    Example(
        "02 Poster with a text layout 文字版面海报",
        examples.poster_with_layout,
        "Draw boxes in *GLM-Image Text Layout* and type what stands in them. The boxes reach the prompt, the texts to "
        "draw, the planner and the first steps of the decoder." + LETTERING + SCENE,
        "在 *GLM-Image 文字布局* 中画出文字框并输入文字。文字框会影响提示词、要绘制的文字、规划器和解码器的前几步。"
        + LETTERING_ZH
        + SCENE_ZH,
    ),
    Example(
        "03 One plan, four pictures 一个规划四张图",
        examples.one_plan_four_seeds,
        "One plan, four pictures: the layout stays, each picture has its own noise.",
        "一个规划画四张图：构图不变，每张图的噪声不同。",
    ),
    Example(
        "04 Four plans in a batch 一批四个规划",
        examples.batch_of_plans,
        "Four plans in one batch, each with a seed of its own, drawn and saved for later.",
        "一批四个规划，各有自己的种子；画出图片，并把规划保存下来以后再用。",
    ),
    Example(
        "05 Edit a picture 编辑图片",
        examples.edit_one_reference,
        "Edits one picture: the planner sees it as tokens, the decoder as a latent, so *GLM-Image Conditioning* needs "
        "the **vae** as well. Any size up to 4:1 works. Here the picture is drawn by the graph itself; connect *Load "
        "Image* to reference_1 for your own.",
        "编辑一张图片：规划器以 token、解码器以 latent 看到它，所以 *GLM-Image 条件* 还需要连接 **vae**。长宽比"
        "不超过 4:1 的"
        "图片都可以。这里的图片由工作流自己画出；要编辑自己的图片，请把 *Load Image* 接到 reference_1。",
    ),
    Example(
        "06 Two reference pictures 两张参考图",
        examples.two_references,
        "Takes subjects from two pictures; up to four inputs, and a batch counts as several. Connect *Load Image"
        "* nodes "
        "for your own.",
        "从两张图片中取主体；最多四个输入，一个批次算作多张。要用自己的图片，请连接 *Load Image* 节点。",
    ),
    Example(
        "07 Image to image 图生图",
        examples.image_to_image,
        "An image as start: *GLM-Image Plan from Image* reads it as a plan, fits it to multiples of 32 px, and "
        "*KSampler* "
        "with denoise below 1 keeps some of it. Texts to render stand in its prompt, in quotes. Connect *Load "
        "Image* for "
        "your own, with megapixels 1 for the real model.",
        "以图片为起点：*从图像得到 GLM-Image 规划* 把它读成规划，并调整为 32 像素的倍数；*KSampler* 的 denoise 小于 "
        "1，保留图片"
        "的一部分。要绘制的文字写在提示词的引号里。要用自己的图片，请连接 *Load Image*；正式模型请把 megapixels 设为"
        " 1。",
        new=True,
    ),
    Example(
        "08 Inpaint 局部重绘",
        examples.inpaint,
        "Draws a part of an image anew: *GLM-Image Plan from Image* fits image and mask alike, so that plan, latent "
        "and "
        "mask agree. The texts in its prompt are those inside the mask. Connect *Load Image* for your own, whose "
        "*MaskEditor* makes the mask.",
        "重画图片的一部分：*从图像得到 GLM-Image 规划* 以同样方式调整图片和遮罩，使规划、latent 和遮罩一致。提示词里"
        "写遮罩内的文字。要用自己"
        "的图片，请连接 "
        "*Load Image*，用它的 *MaskEditor* 画遮罩。",
        new=True,
    ),
    Example(
        "09 Fix one wrong word 改正一个错字",
        examples.fix_one_word,
        "The first plan says BRED. The layout marks where the word stands and how it is spelt; *Replan Region* plans "
        "that box again, guided by the sketch. Everything else keeps its tokens and its noise." + LETTERING,
        "第一个规划写成了 BRED。版面标出这个词的位置和正确拼写；*GLM-Image 重新规划区域* 按草图只重新规划这个框，其"
        "余部分"
        "的 token "
        "和噪声都不变。" + LETTERING_ZH,
    ),
    Example(
        "10 A LoRA on the decoder 解码器 LoRA",
        examples.lora,
        "A LoRA on the decoder, as diffusers, PEFT, kohya or ComfyUI write it. This one comes with the pack, was "
        "trained by **glm-image train-lora** and draws digits for letters that look like them; choose your own file in "
        "models/loras.",
        "解码器上的 LoRA，支持 diffusers、PEFT、kohya 和 ComfyUI 的格式。这个示例随节点包提供，由 "
        "**glm-image train-lora** 训练，用形似的数字代替字母；自己的文件请放在 models/loras 中选择。",
    ),
    Example(
        "11 Other samplers and upscaling 其他采样器与放大",
        examples.upscale_mixed,
        "The decoder among nodes made for other models: an SD3 latent, CFG-Zero-star, dpmpp_2m in "
        "SamplerCustomAdvanced, then upscaling and sharpening.",
        "解码器与为其他模型制作的节点一起使用：SD3 latent、CFG-Zero-star、SamplerCustomAdvanced 中的 dpmpp_2m，"
        "然后放大和锐化。",
    ),
    Example(
        "12 A device for each part 为各部分选择设备",
        examples.devices,
        "A device for each part: with two cards, choose one for the planner and the other for decoder, glyph encoder "
        "and VAE. *GLM-Image Devices* tells before anything is loaded whether all of it fits; run that node "
        "alone to see "
        "it first. `auto` is where ComfyUI computes, so this graph runs on any machine.",
        "为每个部分选择设备：有两张卡时，一张给规划器，另一张给解码器、字形编码器和 VAE。*GLM-Image 设备* 在加载"
        "之前就说明"
        "显存是否足够；可以先单独运行这个节点。`auto` 就是 ComfyUI 所用的设备，所以此工作流在任何机器上都能运行。",
    ),
    Example(
        "13 Best of four (needs OCR) 四选一（需要 OCR）",
        examples.best_of_four,
        "Four plans in one batch, read back by OCR and ranked: the best goes to *Save Image*.\n\nNeeds an OCR engine: "
        "`pip install pytesseract` and the program tesseract, or `pip install rapidocr onnxruntime`."
        + LETTERING
        + SCENE,
        "一批四个规划，用 OCR 读回文字并排名，最好的一张交给 *Save Image*。\n\n需要 OCR 引擎：`pip install "
        "pytesseract` 和 "
        "tesseract 程序，或 `pip install rapidocr onnxruntime`。" + LETTERING_ZH + SCENE_ZH,
        runs=False,
    ),
    Example(
        "14 The released model (35 GB to download) 正式模型（需下载 35 GB）",
        examples.full_model,
        "The released model: 35 GB in `models/glm_image/GLM-Image`.\n\nGet it with `hf download zai-org/GLM-Image "
        "--local-dir models/glm_image/GLM-Image` (or from ModelScope, `ZhipuAI/GLM-Image`). Planner and decoder are "
        "loaded one after the other.",
        "正式模型：`models/glm_image/GLM-Image` 中的 35 GB 文件。\n\n下载：`hf download zai-org/GLM-Image --local-dir "
        "models/glm_image/GLM-Image`（或从魔搭社区下载 `ZhipuAI/GLM-Image`）。规划器和解码器先后加载。",
        small=False,
        runs=False,
    ),
    Example(
        "15 Hires fix (35 GB to download) 高清修复（需下载 35 GB）",
        examples.full_model_hires,
        "The released model in two samplings (hires fix): *Resize GLM-Image Plan* stretches the plan to the enlarged "
        "latent, and a second *KSampler* with denoise below 1 adds detail. Where the latent is a whole multiple of the "
        "first, the first conditioning does as well.",
        "用正式模型采样两次（高清修复）：*缩放 GLM-Image 规划* 把规划拉伸到放大的 latent，第二个 *KSampler* 的 denoise "
        "小于 1，补充细节。如果 latent 是第一次的整数倍，用第一次的条件也可以。",
        small=False,
        runs=False,
        new=True,
    ),
    Example(
        "16 On vLLM-Omni (needs a server) 使用 vLLM-Omni（需要服务器）",
        examples.remote_vllm_omni,
        "The layout's prompt, texts and size go to a **vLLM-Omni** server instead of this machine:\n\n`vllm serve "
        "zai-org/GLM-Image --omni --port 8091`\n\nSeveral servers share the work: write their addresses with commas "
        "between them. One reference image plugs into *reference_1*.",
        "版面的提示词、文字和尺寸交给 **vLLM-Omni** 服务器，而不在本机运行：\n\n`vllm serve zai-org/GLM-Image --"
        "omni --port "
        "8091`\n\n多个服务器可以分担工作：地址之间用逗号隔开。*reference_1* 可以接一张参考图。",
        small=False,
        runs=False,
    ),
    Example(
        "17 On SGLang (needs a server) 使用 SGLang（需要服务器）",
        examples.remote_sglang,
        "Edits a picture on an **SGLang** server:\n\n`sglang serve --model-path zai-org/GLM-Image --port 30000`\n\n"
        "Connect *Load Image* in place of the blue page. Releases 0.5.22 and 0.5.23 fail on every edit: serve with "
        "0.5.20 or older. A server whose planner runs apart (`--srt-encoder-url`) takes no references.",
        "在 **SGLang** 服务器上编辑图片：\n\n`sglang serve --model-path zai-org/GLM-Image --port 30000`\n\n请用 "
        "*Load Image* "
        "代替蓝色页面。0.5.22 和 0.5.23 版每次编辑都会失败，请用 0.5.20 或更早的版本。规划器单独运行的服务器"
        "（`--srt-encoder-url`）不接受参考图。",
        small=False,
        runs=False,
    ),
    Example(
        "18 On the hosted API (needs a key) 使用在线 API（需要密钥）",
        examples.remote_zai,
        "Draws on the **hosted API** of z.ai, about $0.015 a picture; a batch that would cost more than **max_"
        "cost** is "
        "not sent.\n\nSet `ZAI_API_KEY` in the environment before ComfyUI starts: there is no place for a key in the "
        "graph. For China's service write `https://open.bigmodel.cn` and set `ZHIPUAI_API_KEY`. Steps, guidance, seed "
        "and references are not taken.",
        "使用 z.ai 的**在线 API**，每张约 0.015 美元；费用会超过 **max_cost** 的批次不会发送。\n\n启动 ComfyUI "
        "之前请设置环境"
        "变量 `ZAI_API_KEY`：工作流中没有填写密钥的地方。国内服务请填写 `https://open.bigmodel.cn` 并设置 "
        "`ZHIPUAI_API_KEY`。步数、引导、种子和参考图不起作用。",
        small=False,
        runs=False,
    ),
    Example(
        "19 Plan on a server (needs a server) 在服务器上规划（需要服务器）",
        examples.remote_plan,
        "The **planner on a server**, the rest here: a plan is some thousand small numbers, so a rack with eight "
        "cards can "
        "make it for a laptop.\n\n`sglang serve --model-path GLM-Image/vision_language_encoder --tokenizer-path "
        "GLM-Image/processor --enable-multimodal --port 30001`\n\nOf the planner only settings are read here. The "
        "server "
        "must hold the checkpoint that is chosen in *GLM-Image Remote Plan*.",
        "**规划器在服务器上**，其余在本机：规划只是几千个小整数，八卡机架可以为笔记本电脑生成它。\n\n`sglang serve "
        "--model-path "
        "GLM-Image/vision_language_encoder --tokenizer-path GLM-Image/processor --enable-multimodal --port 30001`\n\n"
        "本机只读取规划器的设置。服务器上的模型必须与节点中选择的相同。",
        small=False,
        runs=False,
        new=True,
    ),
    Example(
        "20 Draw a plan on a server (needs a server) 在服务器上绘制规划（需要服务器）",
        examples.remote_draw_plan,
        "The **planner here, the rest on a vLLM-Omni server**: the plan is drawn as it is, so layout guidance "
        "works. Its "
        "size and prompt come from the plan.\n\n`vllm serve zai-org/GLM-Image --omni --port 8091`\n\nThe server "
        "must hold "
        "the checkpoint of the planner.",
        "**规划器在本机，其余在 vLLM-Omni 服务器上**：规划按原样绘制，所以布局引导有效。尺寸和提示词来自规划。\n\n"
        "`vllm serve zai-org/GLM-Image --omni --port 8091`\n\n服务器上必须是同一个规划器的模型。",
        small=False,
        runs=False,
        new=True,
    ),
    Example(
        "21 A LoRA on the planner 规划器 LoRA",
        examples.planner_lora,
        "A LoRA on the planner, in the form of PEFT. It changes where things stand, not how they are drawn. This one "
        "comes with the pack: where the prompt names no place, the small checkpoint puts words at the top, on a white "
        "label. The same seeds are planned without and with it. Choose your own file in models/loras; glm-image "
        "train-lora planner makes one.",
        "规划器上的 LoRA，PEFT 格式。它改变内容摆放的位置，而不是画法。这个示例随节点包提供：提示词没有指定位置时，"
        "小模型把文字放在顶部的白色标签上。相同的种子分别在不用和使用它时规划一次。自己的文件请放在 models/loras "
        "中选择；glm-image train-lora planner 可以训练一个。",
        new=True,
    ),
    Example(
        "22 A card of 16 GB (35 GB to download) 16 GB 显卡（需下载 35 GB）",
        examples.card_of_16_gb,
        "The released model on a **card of 16 GB**, such as a GeForce RTX 4080: `w8` at the loader rounds planner and "
        "decoder to 8 bits while they load, and ComfyUI lets them take turns. By calculation 12 GB of the card are "
        "taken at "
        "1024 x 1024; no such card was at hand.\n\n*GLM-Image Devices* says before anything is loaded whether it fits. "
        "`glm-image quantize` rounds once and keeps the files. On 12 GB take `w4` for the planner.",
        "在 **16 GB 显卡**（例如 GeForce RTX 4080）上运行正式模型：加载器的 `w8` 在加载时把规划器和解码器舍入为 8 位，"
        "ComfyUI 让它们轮流使用显存。按计算，1024 x 1024 占用显卡 12 GB；没有在这样的显卡上实测。\n\n"
        "*GLM-Image Devices* 在加载之前说明是否放得下。`glm-image quantize` 只舍入一次并保存文件。"
        "12 GB 显卡请为规划器选择 `w4`。",
        small=False,
        runs=False,
        new=True,
    ),
    Example(
        "23 An Ascend card of 32 GB (35 GB to download) 32 GB 昇腾卡（需下载 35 GB）",
        examples.ascend_card_of_32_gb,
        "The released model on an **Ascend card of 32 GB**, such as an Atlas A2: the planner in 8 bits (`w8`), which "
        "every chip multiplies by one kernel, and the decoder exact. Both stay on the card. No such card was at "
        "hand.\n\nOn a 310P with two dies of 24 GB choose `w8` for the decoder too. `w4` does not run on an NPU in "
        "ComfyUI. Run `glm-image doctor` first: it names what is missing in the installation.",
        "在 **32 GB 昇腾卡**（例如 Atlas A2）上运行正式模型：规划器用 8 位（`w8`，每种芯片都用一个算子完成乘法），"
        "解码器保持原样，两者都留在卡上。没有在这样的卡上实测。\n\n310P（两个 24 GB 芯片）请为解码器也选择 `w8`。"
        "`w4` 在 ComfyUI 中不能用于 NPU。请先运行 `glm-image doctor`："
        "它会指出安装中缺少什么。",
        small=False,
        runs=False,
        new=True,
    ),
)


def build(object_info: dict, versions: dict[str, str]) -> dict[str, dict]:
    """File name without suffix -> the workflow."""
    made = {}
    for example in EXAMPLES:
        graph = Graph(example.key, example.notes, object_info, versions)
        example.draw(graph)
        made[example.name] = graph.to_json()
    return made

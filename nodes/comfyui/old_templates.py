"""The example workflows under the names of version 0.1.0, for links that name a template.

ComfyUI shows a template's file name, so files are named for readers now; addresses with the old names go on working.
"""

from pathlib import Path

from aiohttp import web
from server import PromptServer

PACK = Path(__file__).parents[2]  # not resolved: ComfyUI's address has the name of the folder in custom_nodes
RENAMED = {
    "glm_image_text_to_image": "01 Text to image 文生图",
    "glm_image_poster_with_layout": "02 Poster with a text layout 文字版面海报",
    "glm_image_one_plan_four_seeds": "03 One plan, four pictures 一个规划四张图",
    "glm_image_batch_of_plans": "04 Four plans in a batch 一批四个规划",
    "glm_image_edit_one_reference": "05 Edit a picture 编辑图片",
    "glm_image_two_references": "06 Two reference pictures 两张参考图",
    "glm_image_fix_one_word": "09 Fix one wrong word 改正一个错字",
    "glm_image_lora": "10 A LoRA on the decoder 解码器 LoRA",
    "glm_image_upscale_mixed": "11 Other samplers and upscaling 其他采样器与放大",
    "glm_image_devices": "12 A device for each part 为各部分选择设备",
    "glm_image_best_of_four": "13 Best of four (needs OCR) 四选一（需要 OCR）",
    "glm_image_full_model": "14 The released model (35 GB to download) 正式模型（需下载 35 GB）",
    "glm_image_remote_vllm_omni": "16 On vLLM-Omni (needs a server) 使用 vLLM-Omni（需要服务器）",
    "glm_image_remote_sglang": "17 On SGLang (needs a server) 使用 SGLang（需要服务器）",
    "glm_image_remote_zai": "18 On the hosted API (needs a key) 使用在线 API（需要密钥）",
}


async def _send(request: web.Request) -> web.FileResponse:
    old, _, kind = request.path.rpartition("/")[2].partition(".")
    return web.FileResponse(PACK / "workflows" / f"{RENAMED[old]}.{kind}")


def answer_to_old_names() -> None:
    """Add the routes; call it once, while ComfyUI loads its packs. A script that loads them has no server."""
    server = getattr(PromptServer, "instance", None)
    for old in RENAMED if server else ():
        for kind in ("json", "jpg"):
            server.routes.get(f"/workflow_templates/{PACK.name}/{old}.{kind}")(_send)

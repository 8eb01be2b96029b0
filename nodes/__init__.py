"""The pack's nodes. A new node joins by its class in `NODES`; node ids never change after a release."""

from comfy_api.latest import ComfyExtension

from .comfyui.guard import guarded
from .comfyui.old_templates import answer_to_old_names
from .conditioning import GLMImageConditioning
from .devices import GLMImageDevices
from .layout import GLMImageTextLayout
from .layout_guidance import GLMImageLayoutDecoderGuidance, GLMImageLayoutGuidance, GLMImageReplanRegion
from .loaders import (
    GLMImageDecoderLoader,
    GLMImageGlyphEncoderLoader,
    GLMImageLoader,
    GLMImagePlannerLoader,
    GLMImageVAELoader,
)
from .lora import GLMImageLoRA, GLMImagePlannerLoRA
from .ocr import GLMImageBestOfN, GLMImageReadText
from .plan import (
    GLMImageLoadPlan,
    GLMImagePlan,
    GLMImagePlanFromImage,
    GLMImagePlanPreview,
    GLMImageResizePlan,
    GLMImageSavePlan,
)
from .remote import GLMImageRemote, GLMImageRemotePlan
from .sampling import EmptyGLMImageLatent, GLMImageDecode, GLMImageSigmas, ModelSamplingGLMImage
from .size import GLMImageCutBack, GLMImageSize

NODES = [
    GLMImageLoader,
    GLMImageDevices,
    GLMImagePlannerLoader,
    GLMImageDecoderLoader,
    GLMImageGlyphEncoderLoader,
    GLMImageVAELoader,
    GLMImagePlan,
    GLMImagePlanFromImage,
    GLMImagePlanPreview,
    GLMImageResizePlan,
    GLMImageSavePlan,
    GLMImageLoadPlan,
    GLMImageConditioning,
    GLMImageDecode,
    EmptyGLMImageLatent,
    GLMImageSigmas,
    ModelSamplingGLMImage,
    GLMImageLoRA,
    GLMImagePlannerLoRA,
    GLMImageTextLayout,
    GLMImageLayoutGuidance,
    GLMImageLayoutDecoderGuidance,
    GLMImageReplanRegion,
    GLMImageReadText,
    GLMImageBestOfN,
    GLMImageRemote,
    GLMImageRemotePlan,
    GLMImageSize,
    GLMImageCutBack,
]

for node in NODES:
    guarded(node)
answer_to_old_names()


class GlmImageExtension(ComfyExtension):
    async def get_node_list(self):
        return NODES

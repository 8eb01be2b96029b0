"""Another pack, for tests of graphs that mix it with ours."""

import torch


class OtherConditioning:
    """A conditioning as text encoders of other models make it."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"default": 48})}}

    def make(self, width):
        return ([[torch.zeros(1, 5, width), {"pooled_output": torch.zeros(1, width)}]],)


class WhereParts:
    """Where ComfyUI computes with the four parts of Load GLM-Image."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "look"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        kinds = {"planner": "GLM_IMAGE_PLANNER", "model": "MODEL", "glyph_encoder": "GLM_IMAGE_GLYPH_ENCODER"}
        return {"required": {name: (kind,) for name, kind in kinds.items()} | {"vae": ("VAE",)}}

    def look(self, planner, model, glyph_encoder, vae):
        patchers = (planner.patcher, model, glyph_encoder.patcher, vae.patcher)
        return (" ".join(str(patcher.load_device) for patcher in patchers),)


class ModelPatch:
    """A node that patches a MODEL in one of the ways that ComfyUI has; subclasses say how in `patch`."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def make(self, model):
        model = model.clone()
        self.patch(model)
        return (model,)


class OtherBlockPatch(ModelPatch):
    def patch(self, model):
        model.set_model_patch(lambda args: {"img": 1.02 * args["img"], "txt": args["txt"]}, "double_block")


class OtherSameBlocks(ModelPatch):
    """Every block replaced by itself."""

    def patch(self, model):
        for layer in range(len(model.model.diffusion_model.transformer_blocks)):
            model.set_model_patch_replace(lambda args, more: more["original_block"](args), "dit", "double_block", layer)


class OtherAttention(ModelPatch):
    factor = 1.05

    def patch(self, model):
        def attention(plain, *arguments, **options):
            return self.factor * plain(*arguments, **options)

        model.model_options["transformer_options"]["optimized_attention_override"] = attention


class OtherSameAttention(OtherAttention):
    factor = 1.0


class OtherWrapper(ModelPatch):
    factor = 1.05

    def patch(self, model):
        def wrapper(executor, x, timestep, context, options, **more):
            return self.factor * executor(x, timestep, self.texts(context), options, **more)

        model.add_wrapper_with_key("diffusion_model", "other", wrapper)

    def texts(self, context):
        return context


class OtherSameWrapper(OtherWrapper):
    factor = 1.0


class OtherWritingWrapper(ModelPatch):
    """Writes into the latent that it is given, as EasyCache does."""

    def patch(self, model):
        def wrapper(executor, x, *more, **named):
            out = executor(x, *more, **named)
            x += 1
            return out

        model.add_wrapper_with_key("diffusion_model", "other", wrapper)


class OtherContextWrapper(OtherWrapper):
    """Changes the texts' embeddings inside the model."""

    factor = 1.0

    def texts(self, context):
        return 2 * context


class OtherBlock(torch.nn.Module):
    """One module in place of a whole list of blocks, as first-block caches of other packs have it."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks


class OtherBlocks(ModelPatch):
    def patch(self, model):
        blocks = torch.nn.ModuleList([OtherBlock(model.model.diffusion_model.transformer_blocks)])
        model.add_object_patch("diffusion_model.transformer_blocks", blocks)


NODES = (
    OtherConditioning,
    WhereParts,
    OtherBlockPatch,
    OtherSameBlocks,
    OtherAttention,
    OtherSameAttention,
    OtherWrapper,
    OtherSameWrapper,
    OtherWritingWrapper,
    OtherContextWrapper,
    OtherBlocks,
)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}

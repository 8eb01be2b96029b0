"""The checkpoint's autoencoder as ComfyUI's VAE: VAE Decode, VAE Encode, their tiled forms and previews use it.

Latents outside are the VAE's own; the decoder's `LatentFormat` normalises them.
"""

from pathlib import Path

import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.sd
import torch

from ...pipeline.devices.capabilities import check_finite, resolve_dtype
from ...pipeline.devices.device import current
from ...pipeline.devices.memory import retry_smaller
from ...pipeline.errors import InputError
from ...pipeline.loading.single_files import weights_at
from ...pipeline.loading.weights import build_empty, check_layers
from ...pipeline.models.config import VaeConfig
from ...pipeline.models.vae import LIVE, Vae, decode_nbytes
from .loading import Dtypes, choose_device, fill, manage
from .validation import check_numbers

# ComfyUI's class builds an autoencoder of its own kind (32 norm groups, attention), whose place ours takes.
STAND_IN = {
    "embed_dim": 16,
    "ddconfig": {
        "double_z": True,
        "z_channels": 16,
        "resolution": 8,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


class GlmImageVAE(comfy.sd.VAE):
    """ComfyUI's VAE around `pipeline.models.vae.Vae`, with that module's own memory figures."""

    def __init__(self, module: Vae, dtype: torch.dtype, device: torch.device):
        stand_in = comfy.ldm.models.autoencoder.AutoencoderKL(**STAND_IN)
        super().__init__(sd=stand_in.state_dict(), config={"params": STAND_IN}, dtype=dtype, device=device)
        config = module.config
        self.first_stage_model = module
        self.patcher = manage(module, device, comfy.model_management.vae_offload_device())
        self.size = None
        self.latent_channels = config.latent_channels
        self.memory_used_decode = lambda shape, dtype: decode_nbytes(config, 8 * shape[2], 8 * shape[3], dtype)
        self.memory_used_encode = lambda shape, dtype: encode_nbytes(config, *shape[2:4], dtype)
        self.model_size()

    def decode(self, samples_in, **options):
        """As ComfyUI's, which does not know how older torch_npu says that memory ran out."""
        whole = super().decode
        with current(self.device):
            found = retry_smaller(
                self.device, lambda: whole(samples_in, **options), lambda: self.decode_tiled(samples_in)
            )
            return check_finite(found, "VAE")

    def encode(self, pixel_samples):
        whole = super().encode
        with current(self.device):
            check_numbers({"image": pixel_samples})
            return retry_smaller(self.device, lambda: whole(pixel_samples), lambda: self.encode_tiled(pixel_samples))

    def decode_tiled(self, *arguments, **options):
        with current(self.device):
            return check_finite(super().decode_tiled(*arguments, **options), "VAE")

    def encode_tiled(self, *arguments, **options):
        with current(self.device):
            return super().encode_tiled(*arguments, **options)


def encode_nbytes(config: VaeConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that encoding one image of these pixels takes; the second level is wider and a quarter of the size."""
    first, second = config.block_out_channels[:2]
    return LIVE * max(first, second // 4) * height * width * dtype.itemsize


def open_vae(folder: Path, weights: Path, dtype: str = "auto", device: str = "auto") -> GlmImageVAE:
    """A checkpoint's autoencoder, its weights from a folder or file -> VAE."""
    if dtype not in ("auto", "bf16", "fp32"):
        raise InputError(f"the VAE's dtype {dtype} is not usable; choose auto, bf16 or fp32 (fp16 gives black images)")
    where = choose_device(device, comfy.model_management.vae_device)
    files = weights_at(weights)
    number = resolve_dtype(dtype, where, "vae", files.dtype)
    config, dtypes = VaeConfig.from_json(folder / "vae" / "config.json"), Dtypes(number, number)
    check_layers(config, files)
    module = build_empty(lambda: Vae(config, operations=dtypes.operations, dtype=number), files)
    return GlmImageVAE(fill(module, files, dtypes, lambda: Vae(config), where), number, where)

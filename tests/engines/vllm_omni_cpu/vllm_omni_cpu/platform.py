"""vLLM's CPU platform with the questions that vLLM-Omni asks on top, answered for one machine without a device."""

import psutil
import torch
from vllm.platforms.cpu import CpuPlatform
from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum

STAGES = 2  # the planner and the decoder each ask for a device of their own


class CpuOmniPlatform(OmniPlatform, CpuPlatform):
    _omni_enum = OmniPlatformEnum.OOT

    @classmethod
    def is_available(cls) -> bool:
        return True

    @classmethod
    def get_omni_ar_worker_cls(cls) -> str:
        return "vllm_omni_cpu.worker.CpuPlannerWorker"

    @classmethod
    def get_omni_generation_worker_cls(cls) -> str:
        return cls.get_omni_ar_worker_cls()

    @classmethod
    def get_diffusion_attn_backend_cls(cls, selected_backend, head_size, allow_trtllm_default=False) -> str:
        return "vllm_omni_cpu.attention.CpuAttention"

    @classmethod
    def get_default_stage_config_path(cls) -> str:
        return "vllm_omni/deploy"

    @classmethod
    def get_default_ir_op_priority(cls, vllm_config):
        from vllm.config.kernel import IrOpPriorityConfig

        return IrOpPriorityConfig.with_default(["native"])

    @classmethod
    def supports_torch_inductor(cls) -> bool:
        return False

    @classmethod
    def supports_diffusion_dense_flash_attention(cls) -> bool:
        return False

    @classmethod
    def supports_cpu_offload(cls) -> bool:
        return False  # everything is on the CPU already

    @classmethod
    def get_torch_device(cls, local_rank=None) -> torch.device:
        return torch.device("cpu")

    @classmethod
    def get_device_count(cls) -> int:
        return STAGES

    @classmethod
    def get_device_version(cls) -> None:
        return None

    @classmethod
    def synchronize(cls) -> None:
        return None

    @classmethod
    def empty_cache(cls) -> None:
        return None

    @classmethod
    def get_free_memory(cls, device=None) -> int:
        return psutil.virtual_memory().available

    @classmethod
    def get_device_memory(cls, device=None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    @classmethod
    def reset_peak_memory_stats(cls, device=None) -> None:
        return None

    @classmethod
    def max_memory_reserved(cls, device=None) -> int:
        return 0

    @classmethod
    def max_memory_allocated(cls, device=None) -> int:
        return 0

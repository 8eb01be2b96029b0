"""The planner's stage: vLLM-Omni's hooks on vLLM's CPU worker."""

import vllm.v1.worker.cpu_worker as cpu_worker
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm_omni.worker.gpu_ar_model_runner import GPUARModelRunner
from vllm_omni.worker.mixins import OmniWorkerMixin


class CpuPlannerRunner(GPUARModelRunner, CPUModelRunner):
    """The planner's runner of vLLM-Omni, its device calls answered by vLLM's CPU runner."""


class CpuPlannerWorker(OmniWorkerMixin, cpu_worker.CPUWorker):
    def init_device(self) -> None:
        self.use_v2_model_runner = False  # vLLM-Omni hooks into the first runner only
        cpu_worker.CPUModelRunner = CpuPlannerRunner  # the worker names no runner class of its own
        super().init_device()

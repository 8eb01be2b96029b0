"""A CPU platform for vLLM-Omni 0.30, which has none: enough of it to serve GLM-Image for tests, nothing about speed."""


def platform() -> str:
    """What the entry point `vllm_omni.platform_plugins` gives: the class to import."""
    return "vllm_omni_cpu.platform.CpuOmniPlatform"

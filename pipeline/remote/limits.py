"""What a request may ask for, and the engines by name: light enough to be read whenever ComfyUI starts."""

AUTO = "auto"
ENGINE_NAMES = ("vllm-omni", "vllm-omni-chat", "sglang", "zai", "zai-async")  # as catalog.py builds them
MAX_USD = 0.10
MAX_COUNT = 64
MAX_PARALLEL = 64
MAX_SECONDS = 7200
MAX_REFERENCES = 8
MAX_SEED = 2**32 - 1  # every engine takes this much
MAX_STEPS, MAX_GUIDANCE = 200, 20.0  # limits of the images form of vLLM-Omni

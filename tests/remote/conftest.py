"""Contract servers that end with the test."""

import pytest
from comfyui_glm_image.tests.remote.contract import Contract


@pytest.fixture
def serve():
    """engine, fault -> a running contract server."""
    running = []

    def start(engine="vllm-omni", fault=None, **options):
        running.append(Contract(engine, fault, **options))
        return running[-1]

    yield start
    for server in running:
        server.die()

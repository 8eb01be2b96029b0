"""What errors of torch_npu mean."""

from comfyui_glm_image.pipeline.devices.ascend import explain_npu_failure


def test_a_card_in_use_is_explained():
    error = RuntimeError("NPU function error: SetDevice, error code is 507033\nFailed to start the device.")
    text = explain_npu_failure(error)
    for part in ("another process or container holds it", "npu-smi info", "--device cpu"):
        assert part in text
    assert "\n" not in text

"""From a checkpoint folder to modules on devices."""

HUB_ID = "zai-org/GLM-Image"

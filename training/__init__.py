"""Training of the small GLM-Image that comes with the package. Run by hand: `python -m comfyui_glm_image.training`."""

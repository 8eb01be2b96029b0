"""What fits the product into ComfyUI; the nodes themselves are one folder up."""

"""From a plan to latents."""

"""One module for each command of `glm-image` that draws or fetches."""

"""`python -m comfyui_glm_image`: the command line, as `glm-image`."""

import sys

from .pipeline.cli import main

sys.exit(main())

"""`python -m comfyui_glm_image`: the command line, as `glm-image`."""

import sys

from .cli.main import main

sys.exit(main())

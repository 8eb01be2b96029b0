"""Words for ComfyUI's page: js/messages.js keeps them at their node, and saves them with the workflow."""

import logging

from comfy_api.latest import ui
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...pipeline.errors import presentable

EVENT = "glm_image.message"  # what js/messages.js listens to
LONGEST = 4000  # characters; an estimate of all devices is far shorter
LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "[": "［", "]": "］"})  # markup, and [[name|address]]


def harmless(text: str) -> str:
    """A text with foreign words in it as a page may show it, whether it takes it for HTML or for text."""
    return presentable(text, LONGEST, lines=True).translate(LOOKALIKES)


def show(text: str, node_id: str) -> ui.PreviewText:
    """Show a text at a node of the pack at once; returns it as the node's output for the page."""
    text = harmless(text)
    _send(text, node_id, warning=False)
    return ui.PreviewText(text)


def warn(text: str) -> None:
    """Log a warning, and show it at the node that is running, whichever pack it is from."""
    logging.warning(presentable(text, LONGEST))
    context = get_executing_context()
    if context is not None:
        _send(harmless(text), context.node_id, warning=True)


def _send(text: str, node_id: str, warning: bool) -> None:
    server = PromptServer.instance
    server.send_sync(EVENT, {"node": node_id, "text": text, "warning": warning}, server.client_id)

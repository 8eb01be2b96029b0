"""Words for ComfyUI's page, which shows the text of a node's progress as HTML and makes links of some of it."""

from comfy_api.latest import ui
from server import PromptServer

from ...pipeline.errors import presentable

LONGEST = 4000  # characters; an estimate of all devices is far shorter
LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "[": "［", "]": "］"})  # markup, and [[name|address]]


def harmless(text: str) -> str:
    """A text with foreign words in it as a page may show it, whether it takes it for HTML or for text."""
    return presentable(text, LONGEST, lines=True).translate(LOOKALIKES)


def show(text: str, node_id: str) -> ui.PreviewText:
    """Show a text on the node at once; returns it as the node's output for the page."""
    text = harmless(text)
    PromptServer.instance.send_progress_text(text, node_id)
    return ui.PreviewText(text)

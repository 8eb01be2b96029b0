"""How much of the canvas a node of an example takes once its graph has run, in both of the page's forms.

A node grows when a picture or a text appears in it. Given that room from the start, it stays where it is. The heights
are those of ComfyUI's page with Nodes 2.0, which are the larger ones: measured in versions 1.32.9 and 1.58.1.
"""

import math

LEFT, GAP, TITLE = 40, 50, 30
ROW, WIDGET, EDGE = 24, 28, 24  # a row of sockets, a field, and what a node has besides
TEXT, EDITOR, PICTURE, REPORT = 110, 460, 310, 130
WIDTH, NOTE_WIDTH = 330, 620
WIDTHS = {
    "GLMImagePlan": 380,
    "GLMImageDevices": 440,
    "GLMImageTextLayout": 540,
    "GLMImageRemote": 400,
    "GLMImageRemotePlan": 400,
    "SaveImage": 440,
    "PreviewImage": 400,
    "PreviewAny": 440,
}
SHOWS_PICTURES = (
    "GLMImagePlan",
    "GLMImagePlanPreview",
    "GLMImageReplanRegion",
    "GLMImageDecode",
    "GLMImageRemote",
    "KSampler",
    "SamplerCustomAdvanced",
    "SaveImage",
    "PreviewImage",
)
SHOWS_TEXTS = (
    "GLMImagePlan",
    "GLMImageConditioning",
    "GLMImageDevices",
    "GLMImageLoRA",
    "GLMImagePlannerLoRA",
    "GLMImageRemote",
    "GLMImageRemotePlan",
    "GLMImagePlanFromImage",
    "EmptyGLMImageLatent",
    "PreviewAny",
)
LONG_TEXTS = ("GLMImageDevices", "GLMImageRemote", "GLMImageRemotePlan", "PreviewAny")  # of several lines
FIELDS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
LETTER, TITLE_EDGE = 8.4, 60  # of titles, to whose width the page stretches nodes
NOTE_LINE, NOTE_ROW = 76, 21  # narrow characters on a line of a note, and its height


def needed(kind: str, info: dict, title: str = "") -> tuple[int, int]:
    """(width, height) that a node of this kind needs below its title, with what it shows after a run."""
    declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    fields = [(options[0], options[1] if len(options) > 1 else {}) for options in declared.values()]
    heights = [_field_height(kind_of_field, options) for kind_of_field, options in fields]
    height = ROW * max(heights.count(0), len(info["output"])) + EDGE + sum(heights)
    height += PICTURE * (kind in SHOWS_PICTURES) + REPORT * ((kind in SHOWS_TEXTS) + (kind in LONG_TEXTS))
    return max(WIDTHS.get(kind, WIDTH), TITLE_EDGE + math.ceil(LETTER * len(title))), height


def _field_height(kind, options: dict) -> int:
    """Height of an input's field; 0 for a socket."""
    if kind == "GLM_IMAGE_LAYOUT_EDITOR":
        return EDITOR
    kind = "COMBO" if isinstance(kind, list) else options.get("widgetType", kind)
    if kind not in FIELDS or options.get("forceInput"):
        return 0
    if options.get("multiline"):
        return TEXT
    return WIDGET * (2 if options.get("control_after_generate") or options.get("image_upload") else 1)


def note_height(text: str) -> int:
    lines = sum(1 + sum(2 - c.isascii() for c in line) // NOTE_LINE for line in text.splitlines())
    return NOTE_ROW * lines + 60


def arrange(columns: list[list[dict]]) -> None:
    """Place the nodes of each column below each other, columns from left to right."""
    x = LEFT
    for nodes in columns:
        width, y = max(node["size"][0] for node in nodes), 20
        for node in nodes:
            node["size"][0] = width
            node["pos"] = [x, y]
            y += node["size"][1] + TITLE + GAP // 2
        x += width + GAP


def overlaps(nodes: list[dict]) -> list[tuple[int, int]]:
    """Ids of nodes that lie on each other, titles included."""
    boxes = [(n["id"], n["pos"][0], n["pos"][1] - TITLE, *n["size"]) for n in nodes]
    return [
        (a, b)
        for i, (a, ax, ay, aw, ah) in enumerate(boxes)
        for b, bx, by, bw, bh in boxes[:i]
        if ax < bx + bw and bx < ax + aw and ay < by + bh + TITLE and by < ay + ah + TITLE
    ]

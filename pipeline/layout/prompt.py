"""A layout in words: the prompt with positions and quoted strings, in English or Chinese."""

from ..errors import InputError
from ..text import enclosed
from .regions import Layout, TextRegion

# Tried in turn: the first pair whose marks the text does not contain keeps the string whole for any reader.
QUOTES = {
    "english": ('""', "“”", "「」", "『』", "«»"),
    "chinese": ("“”", "「」", "『』", '""', "«»"),
}
ROLE_ZH = {
    "title": "标题", "subtitle": "副标题", "body": "正文", "caption": "说明文字",
    "label": "标签", "sign": "招牌", "price": "价格", "text": "文字",
}  # fmt: skip
PLACE_ZH = {
    "top left": "左上方", "top": "顶部", "top right": "右上方",
    "left": "左侧", "center": "中央", "right": "右侧",
    "bottom left": "左下方", "bottom": "底部", "bottom right": "右下方",
}  # fmt: skip
PLACE_EN = {"left": "on the left", "right": "on the right", "center": "in the middle"}


def to_prompt(layout: Layout, scene: str = "", language: str = "english", sizes: bool = True) -> str:
    """The scene, then every region in reading order: role, quoted string, place, style. `sizes` adds percentages."""
    if language not in QUOTES:
        raise InputError(f"language {language!r}; use english or chinese")
    write = _english if language == "english" else _chinese
    parts = [write(i, layout.regions[i], sizes) for i in layout.reading_order()]
    scene = scene.strip()
    if language == "english":
        scene = scene + ("" if not scene or scene[-1] in ".!?。！？" else ".")
        count = "one text" if len(parts) == 1 else f"{len(parts)} texts"
        return f"{scene} It shows {count}: {'; '.join(parts)}.".strip()
    scene = scene + ("" if not scene or scene[-1] in ".!?。！？" else "。")
    return f"{scene}画面中共有{len(parts)}处文字：{'；'.join(parts)}。"


def place(region: TextRegion) -> str:
    """Which ninth of the page holds the centre of the box: "top left", "top" ... "center"."""
    down = ("top", "", "bottom")[_third(region.y + region.height / 2)]
    across = ("left", "", "right")[_third(region.x + region.width / 2)]
    return " ".join(filter(None, (down, across))) or "center"


def _third(centre: float) -> int:
    return 0 if centre < 0.38 else 2 if centre > 0.62 else 1


def _english(index: int, region: TextRegion, sizes: bool) -> str:
    where = place(region)
    words = [f"the {region.role} {quoted(index, region.line, 'english')}", PLACE_EN.get(where, f"at the {where}")]
    if sizes:
        words.append(f"({_span(region)})")
    if region.direction == "vertical":
        words.append("in vertical columns")
    if region.style.strip():
        words.append(f"in {region.style.strip()}" if not region.style.startswith("on ") else region.style.strip())
    return " ".join(words)


def _chinese(index: int, region: TextRegion, sizes: bool) -> str:
    span = f"（{_span(region, chinese=True)}）" if sizes else ""
    words = f"{ROLE_ZH[region.role]}{quoted(index, region.line, 'chinese')}位于{PLACE_ZH[place(region)]}{span}"
    extra = [region.style.strip(), "竖排" if region.direction == "vertical" else ""]
    return "，".join(filter(None, (words, *extra)))


def _span(region: TextRegion, chinese: bool = False) -> str:
    left, top, right, bottom = (round(100 * v) for v in (region.x, region.y, region.right, region.bottom))
    if chinese:
        return f"横向{left}%至{right}%，纵向{top}%至{bottom}%"
    return f"{left}% to {right}% across, {top}% to {bottom}% down"


def quoted(index: int, text: str, language: str = "english") -> str:
    """`text` in the first pair of quotation marks that does not occur in it."""
    found = enclosed(text, QUOTES[language])
    if found is None:
        raise InputError(f"region {index + 1}: the text holds every kind of quotation mark; remove one kind")
    return found

"""The pages people read: both READMEs say the same, commands and links are real, sentences are short."""

import argparse
import re
from importlib import import_module

import pytest
from comfyui_glm_image.cli.main import COMMANDS
from comfyui_glm_image.tests.conftest import ROOT

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
PAGES = [ENGLISH, CHINESE, ROOT / "CONTRIBUTING.md", ROOT / "BENCHMARKS.md", *sorted((ROOT / "docs").glob("*.md"))]
IN_PLAIN_ENGLISH = [
    ENGLISH,
    ROOT / "CONTRIBUTING.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("README", "architecture", "verification", "troubleshooting", "comfyui", "layout", "evaluation")
    ),
]
LONGEST = 40  # words of a sentence
CODE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text(page):
    return page.read_text(encoding="utf-8")


def blocks(page):
    return CODE.findall(text(page))


def commands(page):
    """Lines of a page's code blocks, without the comments that follow them."""
    lines = (line.split("  #")[0].strip() for block in blocks(page) for line in block.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def levels(page):
    return [len(marks) for marks in re.findall(r"^(#+) ", CODE.sub("", text(page)), re.MULTILINE)]


def targets(page):
    """Addresses of links and images, in their order."""
    prose = CODE.sub("", text(page))
    return re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'src="([^"]+)"', prose)


def first_column(page):
    """First cells of the tables that name something the product has: nodes are translated, pages are not."""
    return re.findall(r"^\| (\[.+?\]\(.+?\)) \|", text(page), re.MULTILINE)


def rows(page):
    return sum(line.startswith("|") for line in text(page).splitlines())


def test_both_readmes_have_the_same_sections():
    assert levels(ENGLISH) == levels(CHINESE)


def test_both_readmes_have_the_same_commands():
    assert commands(ENGLISH) == commands(CHINESE)


def test_both_readmes_have_the_same_links_images_and_tables():
    swapped = {"README.zh.md": "README.md", "README.md": "README.zh.md"}
    assert sorted(swapped.get(link, link) for link in targets(ENGLISH)) == sorted(targets(CHINESE))
    assert first_column(ENGLISH) == first_column(CHINESE)
    assert rows(ENGLISH) == rows(CHINESE)


def inline_commands(page):
    return re.findall(r"`((?:glm-image|make) [^`]+)`", CODE.sub("", text(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_a_page_names_exist(page):
    wrong = []
    for line in joined(commands(page)) + inline_commands(page):
        for call in re.findall(r"(?:^|&& |[\w/.]*bin/)glm-image ([a-z][\w-]*)([^&|]*)", line):
            wrong += unknown(*call)
        for target in re.findall(r"(?:^|&& )make ([a-z-]+)", line):
            wrong += [] if re.search(rf"^{target}:", text(ROOT / "Makefile"), re.MULTILINE) else [f"make {target}"]
        for script in re.findall(r"(?:^|&& )python (?:-m pytest )?((?:tools|tests)/\S+)", line):
            wrong += [] if (ROOT / script).exists() else [script]
    assert not wrong


def joined(lines):
    """Lines that end in a backslash, with those that they go on in."""
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def unknown(command, rest):
    """What a call of glm-image names that its parser does not know."""
    if command not in COMMANDS:
        return [f"glm-image {command}"]
    parser = argparse.ArgumentParser()
    import_module(COMMANDS[command][0], "comfyui_glm_image.cli").add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings} | {"--debug"}
    return [
        f"glm-image {command} {option}" for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", rest) if option not in known
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_of_a_page_exist(page):
    local = [link.split("#") for link in targets(page) if not re.match(r"https?:", link)]
    assert not [file for file, *_ in local if not (page.parent / file).exists()]
    sections = [(page.parent / file if file else page, section) for file, *rest in local for section in rest]
    assert not [section for file, section in sections if section not in anchors(file)]


def anchors(page):
    """What a link to a section of a page is called: its heading in small letters, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)", CODE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    """Paths in `code`, such as `pipeline/plan.py` or `tests/comfyui/`; a name with a * is a pattern."""
    rooms = "cli|docs|js|nodes|pipeline|tests|tools|training|workflows|checkpoints|fonts|locales"
    named = re.findall(rf"(?<![\w/.-])((?:{rooms})/[\w./*-]*)", text(page))
    named = {name.rstrip(".") for name in named}
    assert not [name for name in sorted(named) if not any(ROOT.glob(name.rstrip("/")))]


@pytest.mark.parametrize("page", IN_PLAIN_ENGLISH, ids=lambda page: page.name)
def test_no_sentence_is_longer_than_forty_words(page):
    assert not [sentence for sentence in sentences(text(page)) if len(sentence.split()) > LONGEST]


def sentences(page):
    """Sentences of a page's prose: code is left out; items of lists, cells of tables and headings stand alone."""
    prose = re.sub(r"^( {4,}\S.*\n)+", "\n", CODE.sub("", page), flags=re.MULTILINE)
    prose = re.sub(r"^(\s*(?:[-*]|\d+\.)\s|#+ |\|)", r"\n\n", prose, flags=re.MULTILINE).replace("|", "\n\n")
    for paragraph in re.split(r"\n\s*\n", prose):
        yield from re.split(r"(?<=[.!?])[)\"”]?\s+(?=[A-Z*`\[])", " ".join(paragraph.split()))


def test_sentences_are_found_in_prose_lists_and_tables():
    page = "# A title\n\nOne. Two\nlines!\n\n- an item\n- another: x. Y\n\n| a | b |\n\n```\nmake test\n```\n"
    assert [s for s in sentences(page) if s] == [
        "A title",
        "One.",
        "Two lines!",
        "an item",
        "another: x.",
        "Y",
        "a",
        "b",
    ]

"""What a publisher fills into pyproject.toml, and the icon it names."""

import re

import pytest
from comfyui_glm_image.tests.conftest import ROOT
from comfyui_glm_image.tools import registry

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "address", ["https://github.com/me/pack", "https://github.com/me/pack.git", "git@github.com:me/pack.git"]
)
def test_every_form_of_an_address_gives_the_same_fields(address):
    lines = registry.filled(PROJECT, "me", address).splitlines()
    assert 'PublisherId = "me"' in lines
    assert 'Repository = "https://github.com/me/pack"' in lines
    assert 'Icon = "https://raw.githubusercontent.com/me/pack/main/docs/images/icon.svg"' in lines
    others = [line for line in PROJECT.splitlines() if not line.startswith(("PublisherId", "Icon"))]
    assert set(others) <= set(lines)


def test_filling_in_twice_keeps_the_last():
    once = registry.filled(PROJECT, "me", "https://github.com/me/pack")
    assert registry.filled(once, "me", "https://github.com/me/pack") == once
    again = registry.filled(once, "you", "https://gitee.com/you/pack")
    assert 'Icon = "https://gitee.com/you/pack/raw/main/docs/images/icon.svg"' in again
    assert again.count("[project.urls]") == again.count("Repository") == 1


@pytest.mark.parametrize(
    ("publisher", "address", "message"),
    [
        ("me", "https://example.org/me/pack", "is not OWNER/NAME on one of github.com"),
        ("me", "https://github.com/me", "is not OWNER/NAME"),
        ("Me!", "https://github.com/me/pack", "is not an id"),
    ],
)
def test_what_the_registry_could_not_use_is_refused(publisher, address, message):
    with pytest.raises(SystemExit, match=message):
        registry.filled(PROJECT, publisher, address)


def test_the_icon_is_square_and_no_larger_than_the_registry_takes():
    width, height = re.search(r'width="(\d+)" height="(\d+)"', (ROOT / registry.ICON).read_text()).groups()
    assert width == height and int(width) <= 400

"""Which ComfyUI `make comfyui` takes: the newest release of a repository, what is here already, or the wheel's."""

import subprocess

import pytest
from comfyui_glm_image.tools import comfyui


def git(folder, *arguments):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Releases 0.9.9 and 0.33.0, and a tag of another scheme that counts higher in letters and in length."""
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "-q")
    for version in ("0.9.9", "0.33.0", "0.1.1113"):
        (source / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
        (source / "main.py").write_text("")
        git(source, "add", ".")
        git(source, "commit", "-q", "-m", version)
        git(source, "tag", f"v{version}")
    git(source, "tag", "latest")
    monkeypatch.setattr(comfyui, "REPOSITORY", source.as_uri())
    monkeypatch.setattr(comfyui, "HOME", tmp_path / "home")
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    return source


@pytest.fixture
def wheel(monkeypatch):
    """The wheel's version is named and not fetched."""
    monkeypatch.setattr(comfyui, "source_folder", lambda: comfyui.HOME / comfyui.WHEEL_VERSION / "app")


def test_the_newest_release_is_fetched_once_and_each_step_is_told(repository, wheel, capsys):
    app = comfyui.newest_folder()
    assert comfyui.read_version(app) == "0.33.0" == app.parent.name
    told = capsys.readouterr()
    assert told.out == "" and f"fetching ComfyUI 0.33.0 into {app}" in told.err
    assert comfyui.newest_folder() == app
    assert capsys.readouterr().err == ""


def test_without_an_answer_it_is_the_wheels_and_says_why(repository, wheel, monkeypatch, capsys):
    monkeypatch.setattr(comfyui, "REPOSITORY", (repository / "absent").as_uri())
    assert comfyui.newest_folder().parent.name == comfyui.WHEEL_VERSION
    assert "cannot be asked" in capsys.readouterr().err


def test_without_git_it_is_the_wheels(repository, wheel, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert comfyui.newest_folder().parent.name == comfyui.WHEEL_VERSION
    assert "going on with 0.3.75" in capsys.readouterr().err


def test_a_repository_without_releases_is_no_answer(repository, wheel):
    for version in ("0.9.9", "0.33.0", "0.1.1113"):
        git(repository, "tag", "-d", f"v{version}")
    assert comfyui.newest_release() is None

"""Sizes that a checkpoint knows, sizes off the grid, and a reference's shape."""

import pytest
from comfyui_glm_image.pipeline.geometry import TrainedSizes, check_size, fitting, size_like
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED, BUNDLED_SIZES, Checkpoint

RELEASE = TrainedSizes()


@pytest.mark.parametrize("size", [(1024, 1024), (2048, 1024), (1536, 2048)])
def test_sizes_that_were_trained_give_no_warning(size):
    assert RELEASE.warning(*size) is None


@pytest.mark.parametrize(
    ("size", "advice"),
    [((512, 512), "1024x1024"), ((576, 1024), "1824x1024"), ((1024, 4096), "2048x1024"), ((96, 192), "2048x1024")],
)
def test_others_name_the_nearest_good_size_of_their_shape(size, advice):
    text = RELEASE.warning(*size)
    assert f"{size[1]}x{size[0]} px was never trained" in text and "1024 to 2048" in text and advice in text


@pytest.mark.parametrize("aspect", [1, 9 / 16, 16 / 9, 2 / 3, 3 / 4, 1 / 2, 2, 5])
def test_every_shape_has_a_good_size_on_the_grid(aspect):
    size = RELEASE.nearest(aspect)
    check_size(*size)
    assert size in RELEASE and min(size) == 1024
    if 0.5 <= aspect <= 2:
        assert size[0] / size[1] == pytest.approx(aspect, rel=0.016)  # half a step of 32 px


def test_the_bundled_checkpoint_knows_its_own_sizes():
    known = Checkpoint(BUNDLED, "small").trained_sizes
    assert known.listed == BUNDLED_SIZES
    assert known.warning(96, 192) is None
    assert "a few sizes" in known.warning(1024, 1024)
    assert known.nearest(9 / 16) in BUNDLED_SIZES


def test_another_folder_has_the_releases_sizes(tmp_path):
    assert Checkpoint(tmp_path, "x").trained_sizes == RELEASE


@pytest.mark.parametrize(("size", "fits"), [((1000, 700), (1024, 704)), ((1024, 32), (1024, 32)), ((1, 33), (32, 64))])
def test_a_size_off_the_grid_is_rounded_up(size, fits):
    assert fitting(*size) == fits


@pytest.mark.parametrize("shape", [(3000, 4000), (400, 400), (720, 1280), (100, 1500)])
def test_a_references_shape_becomes_about_a_megapixel(shape):
    height, width = size_like(*shape)
    check_size(height, width)
    assert height * width == pytest.approx(1024 * 1024, rel=0.08)
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.08)

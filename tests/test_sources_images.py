"""Folders of images and single images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_files import dataset, noise, play, write_dicom

from edge.errors import SourceError
from edge.sources import open_source


def _save(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def test_folder_is_played_in_natural_order(tmp_path: Path) -> None:
    names = ["frame_1.png", "frame_2.png", "frame_10.png", "frame_11.bmp", "Frame_100.tif"]
    for brightness, name in enumerate(names):
        _save(tmp_path / name, np.full((6, 8), brightness, np.uint8))
    (tmp_path / "readme.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"not an image")
    (tmp_path / "folder.png").mkdir()
    source = open_source(str(tmp_path))
    frames = play(source)
    assert [int(frame.pixels[0, 0]) for frame in frames] == [0, 1, 2, 3, 4]
    assert source.info.num_frames == 5
    assert source.info.frame_interval_ms == pytest.approx(1000 / 30)
    assert frames[4].t_media_ns / 1e6 == pytest.approx(4000 / 30)


def test_folder_of_two_sizes_and_dicom_keeps_each(tmp_path: Path) -> None:
    pixels = noise(1, 10, 20)
    _save(tmp_path / "1.png", noise(1, 6, 8, 3)[0])
    write_dicom(tmp_path / "2.dcm", dataset(pixels))
    write_dicom(tmp_path / "IM_3", dataset(pixels))
    frames = play(open_source(str(tmp_path)))
    assert [frame.pixels.shape for frame in frames] == [(6, 8, 3), (10, 20), (10, 20)]
    np.testing.assert_array_equal(frames[1].pixels, pixels[0])


def test_folder_of_dicom_cines_plays_each_as_an_object_at_its_own_rate(tmp_path: Path) -> None:
    _save(tmp_path / "1.png", noise(1, 6, 8)[0])
    write_dicom(tmp_path / "2.dcm", dataset(noise(3, 10, 20), FrameTime="50", SOPInstanceUID="1.2.3"))
    write_dicom(tmp_path / "3.dcm", dataset(noise(2, 10, 20), FrameTime="20", SOPInstanceUID="1.2.4"))
    _save(tmp_path / "4.png", noise(1, 6, 8)[0])
    frames = play(open_source(str(tmp_path)))
    still, first, second = frames[0], frames[1].object, frames[4].object
    assert first is not None
    assert second is not None
    assert first.id != second.id
    assert [frame.object for frame in frames] == [None, first, first, first, second, second, None]
    intervals_ms = np.diff([frame.t_media_ns / 1e6 for frame in frames])
    np.testing.assert_allclose(intervals_ms, [1000 / 30, 50, 50, 50, 20, 20])
    assert still.t_media_ns == 0


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
def test_image_lossless_is_exact(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    pixels = noise(1, *shape)[0]
    _save(tmp_path / f"ä ö{suffix}", pixels)
    [frame] = play(open_source(str(tmp_path / f"ä ö{suffix}")))
    np.testing.assert_array_equal(frame.pixels, pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_image_jpeg_is_near(tmp_path: Path, suffix: str) -> None:
    pixels = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
    _save(tmp_path / f"a{suffix}", pixels)
    [frame] = play(open_source(str(tmp_path / f"a{suffix}")))
    assert np.abs(frame.pixels.astype(int) - pixels).max() < 12


def test_image_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    colors = np.zeros((4, 6, 3), np.uint8)
    colors[:, :3], colors[:, 3:] = (200, 30, 10), (5, 250, 90)
    Image.fromarray(colors).quantize(2).save(tmp_path / "1_palette.png")
    _save(tmp_path / "2_alpha.png", np.dstack([colors, np.full((4, 6), 7, np.uint8)]))
    gray = noise(1, 4, 6)[0]
    _save(tmp_path / "3_gray_alpha.png", np.dstack([gray, np.full((4, 6), 7, np.uint8)]))
    frames = play(open_source(str(tmp_path)))
    np.testing.assert_array_equal(frames[0].pixels, colors)
    np.testing.assert_array_equal(frames[1].pixels, colors)
    np.testing.assert_array_equal(frames[2].pixels, gray)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_image_16_bit_keeps_its_high_byte(tmp_path: Path, suffix: str) -> None:
    pixels = np.linspace(0, 65535, 54).astype(np.uint16).reshape(6, 9)
    _save(tmp_path / f"a{suffix}", pixels)
    [frame] = play(open_source(str(tmp_path / f"a{suffix}")))
    np.testing.assert_array_equal(frame.pixels, pixels >> 8)


def test_image_exif_rotation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(1, 6, 8)[0]).save(tmp_path / "a.jpg", exif=exif)
    [frame] = play(open_source(str(tmp_path / "a.jpg")))
    assert frame.size_wh == (8, 6)


def test_folder_unreadable_image_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for index in range(5):
        _save(tmp_path / f"{index}.tif", noise(1, 16, 16)[0])
    content = (tmp_path / "1.tif").read_bytes()
    (tmp_path / "1.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "3.tif").write_bytes(b"garbage")
    frames = play(open_source(str(tmp_path)))
    assert [round(frame.t_media_ns * 30 / 1e9) for frame in frames] == [0, 2, 4]
    [record] = caplog.records
    assert "is damaged: '1.tif', '3.tif' could not be read; 3 frames played" in record.getMessage()
    assert capfd.readouterr().err == ""


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("not an image")
    with pytest.raises(SourceError, match=r"holds no image; allowed are .png .jpg .bmp .tif and .dcm"):
        open_source(str(tmp_path))


def test_folder_with_unreadable_images_only_is_refused(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(b"garbage")
    source = open_source(str(tmp_path))
    with pytest.raises(SourceError, match=r"gives no frame: '0.png', '1.png', '2.png' and 2 more could not"):
        play(source)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_stack_plays_all_its_pages(tmp_path: Path, compression: str | None) -> None:
    pixels = noise(20, 6, 8)
    _write_stack(tmp_path / "2_stack.tif", pixels, compression)
    _save(tmp_path / "1.png", pixels[3])
    frames = play(open_source(str(tmp_path)))
    np.testing.assert_array_equal([frame.pixels for frame in frames], [pixels[3], *pixels])
    assert [round(frame.t_media_ns * 30 / 1e9) for frame in frames] == list(range(21))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as edge.sources.images has it, which pytest overrules
def test_tiff_stack_cut_off_plays_what_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "stack.tif"
    pixels = noise(6, 40, 50)
    _write_stack(path, pixels, "tiff_lzw")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])  # within the strips of the fifth page
    frames = play(open_source(str(path)))
    np.testing.assert_array_equal([frame.pixels for frame in frames], pixels[:4])
    assert caplog.messages == ["'stack.tif' is damaged: 'stack.tif' could not be read; 4 frames played"]


def _write_stack(path: Path, pixels: np.ndarray, compression: str | None) -> None:
    first, *others = (Image.fromarray(page) for page in pixels)
    first.save(path, save_all=True, append_images=others, compression=compression)

"""edge-bench display: a real daemon, server and browser."""

import json
from pathlib import Path

import numpy as np
import pytest
from daemon import run_command

from edge.sources import open_source
from tools.bench.display_movie import CODE_WIDTH_PX, NUM_BITS, NUM_FRAMES, write_coded_movie


@pytest.mark.slow
def test_bench_display_measures_pictures_whose_pixels_are_what_was_sent(trivial_bundle: Path) -> None:
    result = run_command(
        "display", "--engine", str(trivial_bundle), "--seconds", "4", "--readers", "2", module="tools.bench.cli"
    )
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["misread"] == 0
    assert report["pictures"] > 4
    assert 0 < report["publish_to_pixels_ms"]["p50"] < report["capture_to_pixels_ms"]["p50"]
    assert report["num_readers"] == 2
    assert len(report["turns_p50_ms"]) == 4


@pytest.mark.slow
def test_coded_movie_tells_each_frames_index_in_its_pixels(tmp_path: Path) -> None:
    write_coded_movie(tmp_path / "coded.mp4")
    codes = []
    for frame in open_source(str(tmp_path / "coded.mp4")).frames():
        rows = (np.arange(NUM_BITS) + 0.5) * frame.pixels.shape[0] / NUM_BITS
        bits = frame.pixels[rows.astype(int), CODE_WIDTH_PX // 2] > 127
        codes.append(int((bits << np.arange(NUM_BITS)).sum()))
    assert codes == list(range(NUM_FRAMES))


def test_bench_display_without_readers_is_refused() -> None:
    result = run_command("display", "--readers", "0", module="tools.bench.cli")
    assert (result.returncode, result.stderr) == (2, "error: --readers is 0; it must be 1 or more\n")

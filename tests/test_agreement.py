"""Engines against FP32 PyTorch on clips that are not in the bundle."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_bundle import random_clips, small_bundle

from engines import Bundle, load_engine
from tools.agreement import compare, run_clips

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory)


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.agreement", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


def test_differences_are_those_that_were_put_in(bundle: Bundle) -> None:
    clips = random_clips(4, seed=11)
    engine = load_engine(bundle, "onnxruntime", precision="fp32")
    probabilities, heatmaps = run_clips(engine, clips)
    off, shifted = probabilities.copy(), heatmaps.copy()
    off[1] += (0.25, -0.125)
    off[2] = off[2][::-1]  # another top class
    off[3, 0] -= 0.0625
    shifted[0, 0, 0, 0] += heatmaps.max() / 4
    result = compare(engine, clips, (off, shifted))
    engine.close()
    flipped = float(np.ptp(probabilities[2]))
    assert result.engine == "onnxruntime CPU fp32"
    assert result.probability_max == pytest.approx(max(0.25, flipped), abs=1e-5)
    assert result.probability_mean == pytest.approx((0.25 + flipped + 0.0625) / 4, abs=1e-5)
    assert result.heatmap_max == pytest.approx(heatmaps.max() / 4 / np.abs(shifted).max(), rel=1e-3)
    assert result.top_class_share == (probabilities.argmax(1) == off.argmax(1)).mean() < 1


def test_command_compares_every_engine_of_a_bundle_on_other_videos(bundle: Bundle, phantom_manifest: Path) -> None:
    done = _run(bundle.path, phantom_manifest, "--clips", 6)
    assert (done.returncode, done.stderr) == (0, "")
    assert "small on 6 clips" in done.stdout
    assert "benign" in done.stdout
    results = {one["engine"]: one for one in json.loads(done.stdout.splitlines()[-1])["engines"]}
    assert {"openvino CPU fp32", "onnxruntime CPU fp32", "onnxruntime CPU fp16"} == set(results)
    assert results["openvino CPU fp32"]["probability_max"] < 1e-4
    assert results["onnxruntime CPU fp16"]["probability_max"] < 1e-2
    assert all(one["top_class_share"] == 1 for one in results.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no-bundle", "demo"), "no-bundle"),
        ((ROOT / "engines" / "demo", "no.csv"), "no.csv cannot be read"),
        ((ROOT / "engines" / "demo", "demo", "--clips", "0"), "--clips is 0; it must be 1 or more"),
    ],
)
def test_command_refuses_what_it_cannot_use_in_one_line(arguments: tuple[object, ...], said: str) -> None:
    done = _run(*arguments)
    assert done.returncode != 0
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1

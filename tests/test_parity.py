"""The parity gate with the real backend: an honest bundle passes, and each kind of difference is refused by name."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from engines import Bundle, Engine, EngineOutput, PreprocessSpec, load_bundle, load_engine
from engines.errors import BackendError, ParityError
from engines.openvino.engine import create
from engines.parity import TOLERANCES, check_parity, rebuild_command
from engines.reference import Reference
from tools.trivial import write_trivial_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = PreprocessSpec(resize_hw=(16, 16), crop_hw=(16, 16))
    return write_trivial_bundle(tmp_path_factory.mktemp("bundles") / "small", num_frames=4, preprocess=spec)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return create(bundle)


class _Reworked:
    """A bundle with other reference outputs in the file's place."""

    def __init__(self, bundle: Bundle, **arrays: np.ndarray) -> None:
        self.path, self.files = bundle.path, bundle.files
        self._reference = dataclasses.replace(bundle.reference(), **arrays)

        self.file = bundle.file

    def reference(self) -> Reference:
        return self._reference


def _refusal(engine: Engine, bundle: Bundle, **arrays: np.ndarray) -> str:
    with pytest.raises(ParityError) as caught:
        check_parity(engine, _Reworked(bundle, **arrays))  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert f"{bundle.path / 'model.onnx'} is refused on openvino fp32" in text
    assert text.endswith("export the bundle again")
    return text


def test_tolerances_grow_as_precision_falls_and_stay_within_two_hundredths() -> None:
    allowed = [TOLERANCES[precision] for precision in ("fp32", "fp16", "bf16", "int8")]
    assert [one.probability for one in allowed] == sorted(one.probability for one in allowed)
    assert [one.heatmap for one in allowed] == sorted(one.heatmap for one in allowed)
    assert allowed[-1].probability <= 0.02
    assert allowed[-1].heatmap <= 0.1


def test_parity_honest_bundle_passes_and_tells_its_differences(engine: Engine, bundle: Bundle) -> None:
    result = check_parity(engine, bundle)
    assert result.num_clips == 2
    assert 0 <= result.probability_difference < 1e-5
    assert 0 <= result.heatmap_difference < 1e-5


def test_parity_on_one_clip_again_and_again_is_said_to_prove_little(
    engine: Engine, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = bundle.reference()
    twice = {name: np.repeat(getattr(reference, name)[:1], 2, 0) for name in ("clips", "probabilities", "heatmaps")}
    reworked = _Reworked(bundle, **twice)
    # as edge-build proves: in a folder of links that is gone afterwards
    reworked.path = tmp_path
    (tmp_path / "reference.npz").symlink_to(bundle.path / "reference.npz")
    assert check_parity(engine, reworked).num_clips == 1  # type: ignore[arg-type]
    assert f"{bundle.path.resolve() / 'reference.npz'} holds no two different clips" in caplog.text
    caplog.clear()
    check_parity(engine, bundle)
    assert caplog.text == ""


def test_parity_on_empty_heatmaps_alone_is_said_to_prove_little(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    class Dark(_Says):
        def heatmaps(self, number: int) -> np.ndarray:
            return 0 * super().heatmaps(number)

    engine = Dark(bundle, bundle.reference().probabilities[0])
    same = np.repeat(bundle.reference().probabilities[:1], 2, 0)
    assert check_parity(engine, _Reworked(bundle, probabilities=same, heatmaps=engine.heatmaps(2))).is_within  # type: ignore[arg-type]
    assert "reference.npz holds no heatmap but empty ones, which proves little of an engine" in caplog.text


def test_parity_on_clips_with_the_same_outputs_is_said_to_prove_little(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """A network that says the same of everything passes: two clips that differ by next to nothing cannot tell."""
    engine = _Says(bundle, bundle.reference().probabilities[0])
    outputs = {"probabilities": np.repeat(bundle.reference().probabilities[:1], 2, 0), "heatmaps": engine.heatmaps(2)}
    outputs["heatmaps"][1] *= 1 + 0.9e-3
    assert check_parity(engine, _Reworked(bundle, **outputs)).num_clips == 2  # type: ignore[arg-type]
    assert "holds no two clips whose outputs differ by more than what is allowed, which proves little" in caplog.text


def test_parity_proves_windows_that_start_elsewhere_in_the_ring(bundle: Bundle) -> None:
    """After a reset the window starts at the first slot; live, at each of the T in turn."""
    wrong = create(bundle)
    wrong._inputs[1:] = wrong._inputs[:1] * 3
    assert wrong.run_clip(bundle.reference().clips[0]).probabilities[1] > 0.5
    with pytest.raises(ParityError, match=r"is refused .* probabilities differ by"):
        check_parity(wrong, bundle)
    wrong.close()


def test_parity_leaves_the_ring_empty(engine: Engine, bundle: Bundle) -> None:
    check_parity(engine, bundle)
    with pytest.raises(Exception, match="4 frames since the last reset"):
        engine.infer()


@pytest.mark.parametrize("difference", [-0.03, 0.03])
def test_parity_other_probability_is_refused_with_the_difference(
    engine: Engine, bundle: Bundle, difference: float
) -> None:
    probabilities = bundle.reference().probabilities
    probabilities[1] += (difference, -difference)
    text = _refusal(engine, bundle, probabilities=probabilities)
    assert "probabilities differ by 0.03 (allowed 0.0001)" in text
    assert "top class equal" in text


def test_parity_other_heatmap_is_refused_with_the_share_of_the_peak(engine: Engine, bundle: Bundle) -> None:
    heatmaps = bundle.reference().heatmaps
    heatmaps[0, 2, 1, 3] += 0.1 * heatmaps.max()
    share = 0.1 * bundle.reference().heatmaps.max() / heatmaps.max()
    assert f"heatmaps by {share:.2g} of the peak (allowed 0.001)" in _refusal(engine, bundle, heatmaps=heatmaps)


def test_parity_difference_within_the_tolerance_passes(engine: Engine, bundle: Bundle) -> None:
    reference = bundle.reference()
    reworked = _Reworked(
        bundle,
        probabilities=reference.probabilities + np.float32(5e-5),
        heatmaps=reference.heatmaps + np.float32(5e-4) * reference.heatmaps.max(),
    )
    assert check_parity(engine, reworked).probability_difference == pytest.approx(5e-5, rel=0.05)  # type: ignore[arg-type]


def test_parity_other_top_class_is_refused_even_within_the_tolerance(folder: Path, bundle: Bundle) -> None:
    positive = 0.5 + 2e-5
    engine = _Says(bundle, np.array([1 - positive, positive], np.float32))
    probabilities = np.full((2, 2), 0.5, np.float32) + np.array([2e-5, -2e-5], np.float32)
    with pytest.raises(ParityError, match="top class not equal"):
        check_parity(engine, _Reworked(bundle, probabilities=probabilities, heatmaps=engine.heatmaps(2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["probabilities", "heatmaps"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parity_reference_that_is_not_finite_is_refused(
    engine: Engine, bundle: Bundle, name: str, value: float
) -> None:
    array = getattr(bundle.reference(), name)
    array.flat[3] = value
    _refusal(engine, bundle, **{name: array})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parity_engine_output_that_is_not_finite_is_refused(bundle: Bundle, value: float) -> None:
    engine = _Says(bundle, np.array([0.5, value], np.float32))
    with pytest.raises(ParityError, match=r"probabilities differ by (nan|inf)"):
        check_parity(engine, _Reworked(bundle, heatmaps=engine.heatmaps(2)))  # type: ignore[arg-type]


def test_parity_other_heatmap_shape_is_refused_with_both_shapes(engine: Engine, bundle: Bundle) -> None:
    text = _refusal(engine, bundle, heatmaps=np.zeros((2, 4, 7, 7), np.float32))
    assert "(2, 4, 4, 4)" in text
    assert "(2, 4, 7, 7)" in text


def test_load_engine_proves_itself_and_starts_with_an_empty_ring(bundle: Bundle) -> None:
    engine = load_engine(bundle)
    assert engine.spec.backend == "openvino"
    with pytest.raises(Exception, match="4 frames since the last reset"):
        engine.infer()
    engine.close()


def test_load_engine_bundle_that_fails_parity_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(bundle.reference(), heatmaps=bundle.reference().heatmaps * 2)
    monkeypatch.setattr(Bundle, "reference", lambda _: wrong)
    with pytest.raises(ParityError, match=r"heatmaps by 0\.5 of the peak"):
        load_engine(bundle)


def test_engine_in_a_precision_without_a_tolerance_is_refused(bundle: Bundle) -> None:
    engine = _Says(bundle, bundle.reference().probabilities[0])
    engine.spec = dataclasses.replace(engine.spec, precision="fp8")
    with pytest.raises(ParityError, match=r"in precision 'fp8' is refused: there is a tolerance for fp32, fp16, "):
        check_parity(engine, bundle)


def test_load_engine_unknown_backend_is_refused_with_the_allowed(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="backend 'cuda' is unknown; allowed are auto, openvino"):
        load_engine(bundle, "cuda")


class _Says(Engine):
    """An engine that says the same of every clip."""

    def __init__(self, bundle: Bundle, probabilities: np.ndarray) -> None:
        self.spec = dataclasses.replace(create(bundle).spec)
        self._probabilities = probabilities

    def heatmaps(self, number: int) -> np.ndarray:
        return np.ones((number, self.spec.clip_tchw[0], 4, 4), np.float32)

    def push(self, frame_chw: np.ndarray) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...

    def infer(self) -> EngineOutput:
        return EngineOutput(self._probabilities, self.heatmaps(1)[0])


@pytest.mark.parametrize(
    ("device", "option"),
    [(None, ""), ("CPU", ""), ("cuda:0", ""), ("cuda:1", " --device cuda:1"), ("NPU", " --device NPU")],
)
def test_rebuild_command_names_a_device_that_the_builder_would_not_take_by_itself(
    bundle: Bundle, device: str | None, option: str
) -> None:
    file = dataclasses.replace(
        bundle.file("onnx"), kind="openvino", precision="int8", build={"builder": "openvino", "device": device}
    )
    wanted = f"edge-build {bundle.path} --backend openvino --precision int8{option}"
    assert rebuild_command(bundle, file) == f"build it again on this machine: {wanted}"

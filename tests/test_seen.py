"""What a network was trained on is known by content: under other names, in other manifests, from a bundle alone."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from small_bundle import NUM_FRAMES, SIZE_PX, small_bundle
from small_training import fit_options

from edge.errors import ConfigError
from engines import PreprocessSpec
from engines.bundle import load_bundle
from tests.trainer_command import edge_train
from trainer.commands.export import training_summary
from trainer.data.content import content_sha256
from trainer.data.decode import ClipSpec
from trainer.data.manifest import Manifest, read_manifest
from trainer.data.seen import NUM_DIGITS, Seen, find_seen
from trainer.data.video import Video
from trainer.inference.predictors import Card
from trainer.inference.selection import select_videos
from trainer.runs import load_run
from trainer.training.fit import fit
from trainer.training.plan import make_plan


def contents(video: Video) -> str:
    return content_sha256(video.path)


def renamed(manifest: Path, folder: Path, columns: str = "path,label,patient_id") -> Manifest:
    """Write the same videos under other names into another folder, with a manifest of other patients' names."""
    lines = [columns]
    for number, video in enumerate(read_manifest(manifest).videos):
        shutil.copy(video.path, folder / f"copy-{number}.mp4")
        lines.append(f"copy-{number}.mp4,{video.label},other-{number}" + (",test" if "split" in columns else ""))
    (folder / "m.csv").write_text("\n".join(lines))
    return read_manifest(folder / "m.csv")


def card(manifest: Path, train: range, validation: range, **changes: object) -> Card:
    """Return what a bundle says of a training on these videos."""
    videos = read_manifest(manifest).videos
    seen = Seen.of_videos((videos[n] for n in train), (videos[n] for n in validation), contents)
    spec = PreprocessSpec((SIZE_PX, SIZE_PX), (SIZE_PX, SIZE_PX))
    known = Card(
        "model", ("negative", "positive"), 0.5, ClipSpec(spec, NUM_FRAMES, 40), "auto", {}, "another", {}, seen
    )
    return dataclasses.replace(known, **changes)


def ids_of(videos: tuple[Video, ...]) -> list[str]:
    return [video.id for video in videos]


def test_run_and_bundle_carry_digests_of_their_videos_and_no_names(phantom_manifest: Path, tmp_path: Path) -> None:
    run = fit(fit_options(phantom_manifest, tmp_path / "run", "epochs=1"))
    manifest = read_manifest(phantom_manifest)
    by_id = {video.id: contents(video)[:NUM_DIGITS] for video in manifest.videos}
    for part in ("train", "validation"):
        assert run.video_digests[part] == sorted(by_id[id_] for id_ in run.split[part])
    assert load_run(run.path).video_digests == run.video_digests
    summary = json.dumps(training_summary(run))
    assert all(digest in summary for digest in by_id.values())
    assert not any(video.id in summary or video.patient_id in summary for video in manifest.videos)


@pytest.mark.slow
def test_run_that_starts_from_another_carries_its_videos_too_and_warns_of_those_that_validate(
    phantom_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit(fit_options(phantom_manifest, tmp_path / "first", "epochs=1", fold=0))
    capsys.readouterr()
    plan = make_plan(fit_options(phantom_manifest, tmp_path / "second", f"init={first.path}", fold=1))
    assert set(plan.run.video_digests["train"]) == {*first.video_digests["train"], *first.video_digests["validation"]}
    warning = capsys.readouterr().err
    assert warning.startswith("warning: 4 validation videos are files of the training of")
    assert first.split["train"][0] in warning


def test_fit_warns_of_a_video_that_trains_and_validates_under_two_names(
    phantom_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = renamed(phantom_manifest, tmp_path).videos
    shutil.copy(videos[0].path, videos[6].path)
    lines = [
        f"{video.id},{video.label},{video.patient_id},{'val' if n > 5 else 'train'}" for n, video in enumerate(videos)
    ]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,patient_id,split", *lines]))
    make_plan(fit_options(tmp_path / "m.csv", tmp_path / "run"))
    assert "1 validation videos are files of training too: copy-6.mp4; the validation" in capsys.readouterr().err


def test_selection_knows_the_videos_of_the_training_under_other_names(
    phantom_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = renamed(phantom_manifest, tmp_path)
    known = card(phantom_manifest, range(3), range(3, 5))
    selection = select_videos(manifest, known, None, contents)
    assert ids_of(selection.videos) == ["copy-5.mp4", "copy-6.mp4", "copy-7.mp4"]
    assert selection.description == "the videos that training and validation left out"
    assert selection.seen == {f"copy-{n}.mp4": "train" if n < 3 else "validation" for n in range(5)}
    said = capsys.readouterr().err
    assert "5 of 8 videos of" in said
    assert "was trained (3) or chosen (2) on" in said
    assert "copy-0.mp4, copy-1.mp4, copy-2.mp4 and 2 more, which metrics.json names; they are left out" in said


def test_selection_of_all_measures_known_videos_and_says_that_it_is_no_test(
    phantom_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = renamed(phantom_manifest, tmp_path)
    selection = select_videos(manifest, card(phantom_manifest, range(2), range(2, 3)), "all", contents)
    assert len(selection.videos) == 8
    assert "no test" in selection.description
    said = capsys.readouterr().err
    assert "3 of 8 videos" in said
    assert "no test" in said
    assert len(said.splitlines()) == 1


def test_selection_of_test_leaves_out_what_the_column_calls_test_and_the_network_has_seen(
    phantom_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = renamed(phantom_manifest, tmp_path, "path,label,patient_id,split")
    selection = select_videos(manifest, card(phantom_manifest, range(6), range(6, 7)), "test", contents)
    assert ids_of(selection.videos) == ["copy-7.mp4"]
    assert "7 of 8 videos" in capsys.readouterr().err


def test_selection_of_a_test_that_was_all_seen_is_refused_as_such(phantom_manifest: Path, tmp_path: Path) -> None:
    manifest = renamed(phantom_manifest, tmp_path, "path,label,patient_id,split")
    number = len(manifest.videos)
    known = card(phantom_manifest, range(2), range(2, number))
    with pytest.raises(ConfigError, match=f"trained or chosen on all {number} test videos of .*, such as copy-0.mp4"):
        select_videos(manifest, known, "test", contents)


def test_selection_of_what_was_all_seen_is_validation_or_refused_as_for_a_run(
    phantom_manifest: Path, tmp_path: Path
) -> None:
    manifest = renamed(phantom_manifest, tmp_path)
    selection = select_videos(manifest, card(phantom_manifest, range(6), range(6, 8)), None, contents)
    assert ids_of(selection.videos) == ["copy-6.mp4", "copy-7.mp4"]
    assert "no test" in selection.description
    with pytest.raises(ConfigError, match="was trained and chosen on all 8 videos"):
        select_videos(manifest, card(phantom_manifest, range(8), range(0)), None, contents)


def test_selection_of_a_bundle_on_its_own_manifest_is_that_of_its_run_without_a_word(
    phantom_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(phantom_manifest)
    known = card(phantom_manifest, range(4), range(4, 6), manifest_sha256=manifest.sha256)
    assert ids_of(select_videos(manifest, known, None, contents).videos) == ids_of(manifest.videos[6:])
    assert ids_of(select_videos(manifest, known, "val", contents).videos) == ids_of(manifest.videos[4:6])
    said = capsys.readouterr().err
    assert said == "warning: the model was chosen on these videos: no test\n"


def test_selection_of_a_run_finds_a_training_video_again_in_its_test(
    phantom_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = renamed(phantom_manifest, tmp_path)
    shutil.copy(manifest.videos[0].path, manifest.videos[7].path)
    ids = ids_of(manifest.videos)
    split = {"train": ids[:4], "validation": ids[4:6], "test": ids[6:]}
    known = card(tmp_path / "m.csv", range(4), range(4, 6), manifest_sha256=manifest.sha256, split=split)
    for asked in (None, "test"):
        assert ids_of(select_videos(manifest, known, asked, contents).videos) == ids[6:7]
        assert "copy-7.mp4; they are left out" in capsys.readouterr().err


def test_unreadable_video_is_not_taken_for_a_seen_one(tmp_path: Path, phantom_manifest: Path) -> None:
    from trainer.data.clips import ClipStore

    missing = dataclasses.replace(read_manifest(phantom_manifest).videos[0], path=tmp_path / "gone.mp4")
    store = ClipStore(tmp_path / "cache", PreprocessSpec())
    assert find_seen([missing], Seen(frozenset({"0"})), store.content) == {}


@pytest.mark.parametrize("value", [None, "text", {"train": "text", "validation": 3}, {"other": []}, []])
def test_digests_that_are_none_are_no_digests(value: object) -> None:
    assert not Seen.of_json(value)


@pytest.mark.slow
def test_evaluate_bundle_on_a_changed_copy_of_its_manifest_names_the_training_videos(
    phantom_manifest: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, bundle = small_bundle(tmp_path_factory).path, tmp_path / "bundle"
    shutil.copytree(source, bundle)
    content = json.loads((bundle / "manifest.json").read_text())
    seen = card(phantom_manifest, range(3), range(3, 4)).seen
    content["training"]["video_digests"] = seen.as_json()
    (bundle / "manifest.json").write_text(json.dumps(content))
    assert load_bundle(bundle).training["video_digests"] == seen.as_json()
    manifest = renamed(phantom_manifest, tmp_path)
    told = {}
    for name, model in (("new", bundle), ("old", source)):
        done = edge_train(
            *("evaluate", model, manifest.path, "--out", tmp_path / name, "--cache", phantom_manifest.parent / "cache")
        )
        assert done.returncode == 0, done.stderr
        told[name] = done.stderr, json.loads((tmp_path / name / "metrics.json").read_text())
    said, metrics = told["new"]
    assert "4 of 8 videos of" in said
    assert "copy-0.mp4, copy-1.mp4, copy-2.mp4 and 1 more" in said
    assert metrics["n"] == 4
    assert list(metrics["data"]["seen_in_training"]) == [f"copy-{n}.mp4" for n in range(4)]
    said, metrics = told["old"]
    assert said == ""
    assert metrics["n"] == 8
    assert metrics["data"]["seen_in_training"] == {}

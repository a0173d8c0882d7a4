"""The recipe: presets, what may be typed after --set, and the learning rate's way."""

import dataclasses
import itertools

import pytest

from edge.errors import ConfigError
from trainer.training.module import learning_rate_factor
from trainer.training.recipe import PRESETS, Recipe, differences, make_recipe, parse_setting


def test_preset_paper_is_the_papers_method() -> None:
    recipe = make_recipe("paper")
    assert (recipe.resize, recipe.crop, recipe.num_frames, recipe.batch_size, recipe.epochs) == (256, 224, 16, 4, 300)
    assert (recipe.optimizer, recipe.learning_rate, recipe.schedule, recipe.init) == ("adam", 1e-4, "constant", None)
    assert recipe.random_crop
    assert recipe.flip == recipe.elastic == 0.5
    beyond = PRESETS["best"].keys() - {
        "epochs",
        "batch_size",
        "clips_per_video",
        "optimizer",
        "learning_rate",
        "schedule",
    }
    assert recipe.clips_per_video == 1
    assert not any(getattr(recipe, name) for name in beyond)


def test_preset_is_changed_by_settings_of_the_right_type() -> None:
    recipe = make_recipe("best", ["epochs=7", "learning_rate=2e-3", "random_crop=no", "width=32", "dropout=none"])
    assert recipe == Recipe(
        **{**PRESETS["best"], "epochs": 7, "learning_rate": 2e-3, "random_crop": False, "width": 32, "dropout": None}
    )
    assert recipe.model_options == {"width": 32}


def test_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'great' is unknown; allowed: paper, best"):
        make_recipe("great")


def test_unknown_key_names_what_was_meant_and_all_that_are_allowed() -> None:
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'") as info:
        make_recipe(settings=["learning_rat=1"])
    assert all(field.name in str(info.value) for field in dataclasses.fields(Recipe))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("epochs", "has no '='; give KEY=VALUE"),
        ("epochs=many", "expected a whole number"),
        ("epochs=1.5", "expected a whole number"),
        ("epochs=0", "epochs is 0; allowed: from 1"),
        ("learning_rate=fast", "expected a number"),
        ("learning_rate=nan", "learning_rate is nan"),
        ("learning_rate=inf", "learning_rate is inf"),
        ("flip=1.5", "flip is 1.5; allowed: 0 to 1"),
        ("random_crop=maybe", "expected true or false"),
        ("optimizer=sgd", "allowed: adam, adamw"),
        ("channels=2", r"1 \(gray\) and 3 \(RGB\) are allowed"),
        ("crop=300", "crop 300 does not fit into resize 256"),
    ],
)
def test_bad_setting_is_refused_with_what_is_allowed(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_recipe(settings=[setting])


def test_static_network_sees_one_frame() -> None:
    assert make_recipe(is_static=True).num_frames == 1
    with pytest.raises(ConfigError, match="a static network sees 1 frame"):
        make_recipe(settings=["num_frames=16"], is_static=True)


def test_setting_may_hold_an_equals_sign() -> None:
    assert parse_setting("init=runs/lr=3") == ("init", "runs/lr=3")


def test_preprocess_is_what_the_recipe_says() -> None:
    spec = make_recipe(settings=["resize=128", "crop=112", "channels=3"]).preprocess
    assert (spec.resize_hw, spec.crop_hw, spec.channels) == ((128, 128), (112, 112), 3)


def test_learning_rate_rises_and_then_falls_to_nothing() -> None:
    recipe = Recipe(epochs=10, warmup_epochs=2, schedule="cosine")
    factors = [learning_rate_factor(step, 100, recipe) for step in range(101)]
    assert all(0 < early < late for early, late in itertools.pairwise(factors[:21]))
    assert factors[20] == 1
    assert all(early > late for early, late in itertools.pairwise(factors[20:]))
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)


def test_learning_rate_of_the_paper_stays() -> None:
    assert {learning_rate_factor(step, 100, Recipe()) for step in range(100)} == {1.0}


def test_differences_tell_each_side() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b 2, not 3", "c None, not 4"]

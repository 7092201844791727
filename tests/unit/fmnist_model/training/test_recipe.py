"""Recipes travel as JSON records, and their settings say what they are."""

import json
from dataclasses import fields

import pytest

from fmnist_model.training.recipe import PRESETS, RecipeMismatch, TrainingRecipe


@pytest.mark.parametrize("name", PRESETS)
def test_recipe_survives_its_json_record(name: str):
    record = json.loads(json.dumps(PRESETS[name].to_record()))
    assert TrainingRecipe.from_record(record) == PRESETS[name]


def test_record_of_another_release_is_refused_with_the_fields_that_differ():
    record = PRESETS["full"].to_record()
    del record["flip"]
    with pytest.raises(RecipeMismatch) as error:
        TrainingRecipe.from_record(record | {"momentum": 0.9})
    assert error.value.names == ["flip", "momentum"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_within_the_bounds_of_the_settings(name: str):
    for declared in fields(TrainingRecipe):
        if declared.metadata:
            value = getattr(PRESETS[name], declared.name)
            assert declared.metadata["minimum"] <= value <= declared.metadata["maximum"]

"""The forms that Prefect draws from the flows' parameters: what they show, refuse, and pass to the flow."""

from collections.abc import Iterator
from typing import Any

import pytest
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from pydantic import ValidationError

from flows.cli.main import app
from flows.parameters import ClassifyParameters, RecipeParameters, RunParameters, TrainParameters
from fmnist_model.training.recipe import PRESETS
from infra.cluster.resources import ActorResources
from tasks.classification.options import ReadOptions

MODELS = {"train": TrainParameters, "classify": ClassifyParameters, "train_and_classify": TrainParameters}
RECIPE = ["epochs", "global_batch_size", "learning_rate", "validation_images", "seed"]
RUN = ["resume", "from_model", "keep_best", "tensorboard"]
READING = ["invert", "image_column", "label_column", "calibrate"]
RESOURCES = ["worker_cpus", "worker_gpus", "worker_memory_gib", "max_workers"]

every_flow = pytest.mark.parametrize("name", MODELS)


def flow_named(name: str) -> "Flow[Any, Any]":
    from flows.classify import classify
    from flows.train import train
    from flows.train_and_classify import train_and_classify

    return {"train": train, "classify": classify, "train_and_classify": train_and_classify}[name]


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON schema that the form is drawn from and that the server validates parameters against."""
    return parameter_schema(flow_named(name).fn).model_dump_for_openapi()


def refusals(name: str, parameters: dict[str, Any]) -> list[str]:
    return [error.message for error in validate({"parameters": parameters}, schema_of(name))]


def received(name: str, parameters: dict[str, Any]) -> Any:
    """Return the parameters that the flow receives from a form."""
    validated = flow_named(name).validate_parameters({"parameters": parameters})
    return validated["parameters"]


def fields(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for definition in schema_of(name)["definitions"].values():
        yield from definition["properties"].items()


# What the form shows


@every_flow
def test_every_field_has_a_title_and_a_description(name: str):
    definitions = schema_of(name)["definitions"]
    assert len(definitions) == 3
    assert [model for model, definition in definitions.items() if not definition["description"]] == []
    drawn = dict(fields(name))
    assert [field for field, shown in drawn.items() if not shown["title"]] == []
    assert [field for field, shown in drawn.items() if "$ref" not in shown and not shown["description"]] == []


@every_flow
def test_no_field_is_drawn_as_a_choice_between_a_value_and_none(name: str):
    assert [field for field, drawn in fields(name) if "anyOf" in drawn] == []


@pytest.mark.parametrize(
    ("model", "order"),
    [
        ("TrainParameters", ["preset", "workers", "recipe", "run"]),
        ("RecipeParameters", RECIPE),
        ("RunParameters", RUN),
        (
            "ClassifyParameters",
            ["inputs", "table", "model", "max_error_share", "retry_quarantined", "reading", "resources"],
        ),
        ("ReadOptions", READING),
        ("ActorResources", RESOURCES),
    ],
)
def test_common_case_is_at_the_top_and_the_groups_are_below(model: str, order: list[str]):
    definitions = schema_of("train")["definitions"] | schema_of("classify")["definitions"]
    assert list(definitions[model]["properties"]) == order


def test_description_has_the_values_of_the_presets():
    description = dict(fields("train"))["epochs"]["description"]
    assert f"{PRESETS['full'].epochs} (full), {PRESETS['quick'].epochs} (quick)" in description


# No input at all


@every_flow
def test_quick_run_needs_no_input(name: str):
    assert validate({}, schema_of(name)) == []
    assert flow_named(name).validate_parameters({}) == {"parameters": MODELS[name]()}


@every_flow
def test_unchanged_form_gives_the_defaults(name: str):
    drawn = schema_of(name)["properties"]["parameters"]["default"]
    assert refusals(name, drawn) == []
    assert received(name, drawn) == MODELS[name]()


@every_flow
@pytest.mark.parametrize("cleared", ["all", "groups' fields"])
def test_cleared_fields_give_the_defaults(name: str, cleared: str):
    groups = {} if cleared == "all" else {group: {} for group in ("recipe", "run", "reading", "resources")}
    left = {group: empty for group, empty in groups.items() if group in MODELS[name].model_fields}
    assert refusals(name, left) == []
    assert received(name, left) == MODELS[name]()


def test_empty_inputs_are_the_test_images(data_store: str, monkeypatch: pytest.MonkeyPatch):
    from flows import classify as flow_module
    from tasks.dataset import prepare_dataset

    monkeypatch.setenv("FMNIST_STORE", data_store)
    monkeypatch.setattr(flow_module, "prepare_dataset", prepare_dataset.fn)
    [uri] = flow_module._test_images()
    assert uri.endswith("/datasets/fashion-mnist/test/test-00000-of-00001.parquet")


# What is refused


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("train", {"preset": "slow"}, "'slow' is not one of"),
        ("train", {"workers": "x y"}, "'x y' does not match"),
        ("train", {"workers": "0"}, "'0' does not match"),
        ("train", {"recipe": {"epochs": 0}}, "0 is less than the minimum of 1"),
        ("train", {"recipe": {"epochs": 1.5}}, "1.5 is not valid"),
        ("train", {"recipe": {"global_batch_size": 60_001}}, "60001 is greater than the maximum of 60000"),
        ("train", {"recipe": {"learning_rate": 0}}, "0 is less than the minimum of 1e-06"),
        ("train", {"recipe": {"validation_images": -1}}, "-1 is less than the minimum of 0"),
        ("train", {"recipe": {"seed": -1}}, "-1 is less than the minimum of 0"),
        ("train", {"run": {"from_model": "nonesuch"}}, "'nonesuch' does not match"),
        ("train", {"run": {"keep_best": -1}}, "-1 is less than the minimum of 0"),
        ("train_and_classify", {"recipe": {"epochs": 10_001}}, "10001 is greater than the maximum of 10000"),
        ("classify", {"inputs": [None]}, "None is not of type 'string'"),
        ("classify", {"table": "../up"}, "'../up' does not match"),
        ("classify", {"model": "nonesuch"}, "'nonesuch' does not match"),
        ("classify", {"max_error_share": 2}, "2 is greater than the maximum of 1"),
        ("classify", {"reading": {"invert": "sometimes"}}, "'sometimes' is not one of"),
        ("classify", {"resources": {"worker_cpus": -1}}, "-1 is less than the minimum of 0"),
        ("classify", {"resources": {"max_workers": 0}}, "0 is less than the minimum of 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_value_out_of_bounds_is_refused_before_a_run_starts(name: str, parameters: dict[str, Any], expected: str):
    [refusal] = refusals(name, parameters)
    assert expected in refusal


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("train", {"epochs": 3}),
        ("train", {"recipe": {"epoch": 3}}),
        ("train", {"run": {"seed": 3}}),
        ("classify", {"invert": "auto"}),
        ("classify", {"reading": {"colour": True}}),
        ("classify", {"resources": {"cpus": 1}}),
    ],
    ids=str,
)
def test_unknown_field_is_refused(name: str, parameters: dict[str, Any]):
    [refusal] = refusals(name, parameters)
    assert "Additional properties are not allowed" in refusal


@pytest.mark.parametrize("workers", ["auto", "1", "12", "1:4"])
def test_form_accepts_every_notation_for_workers(workers: str):
    assert refusals("train", {"workers": workers}) == []


@pytest.mark.parametrize("model", ["", "champion", "candidate", "7"])
def test_form_accepts_every_reference_to_a_model(model: str):
    assert refusals("train", {"run": {"from_model": model}}) == []


# What the flow receives


FILLED = {
    "train": TrainParameters(
        preset="quick",
        workers="1:2",
        recipe=RecipeParameters(epochs=3, global_batch_size=64, learning_rate=0.001, validation_images=0, seed=7),
        run=RunParameters(from_model="champion", keep_best=1, tensorboard=True),
    ),
    "classify": ClassifyParameters(
        inputs=["a.png", "s3://b/c"],
        table="t",
        model="7",
        max_error_share=0.5,
        reading=ReadOptions(invert="auto", image_column="i", label_column="l", calibrate=False),
        resources=ActorResources(worker_cpus=2, worker_gpus=0.5, worker_memory_gib=1.5, max_workers=9),
    ),
}
TYPED = {
    "train": "--preset quick --workers 1:2 --epochs 3 --global-batch-size 64 --learning-rate 0.001 "
    "--validation-images 0 --seed 7 --from-model champion --keep-best 1 --tensorboard",
    "classify": "a.png s3://b/c --table t --model 7 --max-error-share 0.5 --invert auto --image-column i "
    "--label-column l --no-calibrate --worker-cpus 2 --worker-gpus 0.5 --worker-memory-gib 1.5 --max-workers 9",
}


@pytest.mark.parametrize("name", FILLED)
def test_parameters_survive_json(name: str):
    sent = FILLED[name].model_dump(mode="json")
    assert refusals(name, sent) == []
    assert received(name, sent) == FILLED[name]


@pytest.mark.parametrize("name", FILLED)
def test_command_line_and_form_give_the_same_parameters(name: str):
    assert typed(f"{name} {TYPED[name]}") == received(name, FILLED[name].model_dump(mode="json"))


@pytest.mark.parametrize(("name", "line"), [("train", ""), ("classify", "a.png --table predictions")])
def test_command_line_and_form_have_the_same_defaults(name: str, line: str):
    inputs = {"inputs": ["a.png"]} if name == "classify" else {}
    assert typed(f"{name} {line}") == received(name, inputs)


def test_overrides_are_the_values_that_were_filled_in():
    assert RecipeParameters(epochs=3, seed=0).overrides() == {"epochs": 3, "seed": 0}
    assert RecipeParameters().overrides() == {}


def typed(line: str) -> Any:
    """Parse a command line into the parameters that the command hands to its flow."""
    _, bound, _ = app.parse_args(line, exit_on_error=False, print_error=False)
    bound.apply_defaults()
    inputs = {"inputs": list(bound.arguments["uri"])} if "uri" in bound.arguments else {}
    return bound.arguments["parameters"].model_copy(update=inputs)


# What operators saved in deployments


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("train", {"run": {"resume": "", "from_model": "", "keep_best": 3, "tensorboard": False}}),
        ("train", {"recipe": {"epochs": None, "seed": 0}}),
        ("classify", {"reading": {"invert": "never", "image_column": "", "label_column": "", "calibrate": True}}),
        ("classify", {"resources": {"worker_cpus": 1.0, "worker_gpus": None, "worker_memory_gib": 0.0}}),
    ],
    ids=str,
)
def test_parameters_saved_by_earlier_forms_still_work(name: str, saved: dict[str, Any]):
    assert refusals(name, saved) == []
    [(group, values)] = saved.items()
    expected = {field: None if value == "" else value for field, value in values.items()}
    assert expected.items() <= getattr(received(name, saved), group).model_dump().items()


@pytest.mark.parametrize(
    ("model", "saved", "moved_to"),
    [
        (TrainParameters, {"epochs": 3}, "recipe.epochs"),
        (TrainParameters, {"resume": "r"}, "run.resume"),
        (ClassifyParameters, {"invert": "auto"}, "reading.invert"),
        (ClassifyParameters, {"max_workers": 2}, "resources.max_workers"),
    ],
)
def test_parameters_saved_before_there_were_groups_are_refused_with_their_new_place(
    model: type[TrainParameters | ClassifyParameters], saved: dict[str, Any], moved_to: str
):
    with pytest.raises(ValidationError) as error:
        model.model_validate(saved)
    assert moved_to in str(error.value)

"""The options of the command line become the parameters of the flows."""

from typing import Any

import cyclopts
import pytest

from flows.cli.main import app
from flows.cli.refusal import refusal
from flows.parameters import RecipeParameters, RunParameters, TrainParameters


def arguments_of(*tokens: str) -> dict[str, Any]:
    """Parse a command line. Returns the arguments that the command would be called with, by name."""
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    return bound.arguments


def refusal_of(*tokens: str) -> str:
    with pytest.raises(cyclopts.CycloptsError) as error:
        arguments_of(*tokens)
    return refusal(error.value)


@pytest.mark.parametrize(
    ("options", "calibrate"), [([], True), (["--calibrate"], True), (["--no-calibrate"], False)], ids=str
)
def test_no_calibrate_turns_calibration_off(options: list[str], calibrate: bool):
    parameters = arguments_of("classify", "a.png", "--table", "t", *options)["parameters"]
    assert parameters.reading.calibrate is calibrate


@pytest.mark.parametrize("option", ["--no-invert", "--no-model", "--empty-inputs", "--inputs", "--no-json"])
def test_fields_have_no_other_options(option: str):
    with pytest.raises(cyclopts.UnknownOptionError):
        arguments_of("classify", "a.png", "--table", "t", option)


def test_table_is_required_although_the_form_has_a_default():
    with pytest.raises(cyclopts.MissingArgumentError, match="--table"):
        arguments_of("classify", "a.png")


def test_arguments_are_the_inputs():
    assert arguments_of("classify", "a.png", "{b,c}/", "--table", "t")["uri"] == ("a.png", "{b,c}/")


def test_options_of_a_group_are_in_the_group():
    parameters = arguments_of("train", "--preset", "quick", "--epochs", "3", "--resume", "r")["parameters"]
    assert parameters == TrainParameters(
        preset="quick", recipe=RecipeParameters(epochs=3), run=RunParameters(resume="r")
    )


@pytest.mark.parametrize("command", ["train", "run", "classify"])
def test_no_two_fields_have_the_same_option(command: str):
    options = [argument for argument in app[command].assemble_argument_collection() if not argument.children]
    names = [name for option in options for name in option.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--validation-images", "60000"], ["--validation-images: ", "59990", "60000"]),
        (["--learning-rate", "fast"], ["--learning-rate: ", "number", "fast"]),
        (["--preset", "slow"], ["--preset: ", "quick", "full", "slow"]),
        (["--workers", "no"], ["--workers: ", "MIN:MAX", "auto", "no"]),
        (["--resume", "r", "--from-model", "1"], ["resume", "from_model"]),
    ],
    ids=lambda value: value[0],
)
def test_refusal_is_one_line_with_the_option_its_bounds_and_the_value(options: list[str], parts: list[str]):
    refused = refusal_of("train", *options)
    assert "\n" not in refused
    assert [part for part in parts if part not in refused] == []


def test_refused_command_line_ends_with_the_command_for_help():
    assert refusal_of("train", "--epoch", "3").endswith("Try `fmnist train --help`.")


def test_help_lists_a_group_under_its_title(capsys: pytest.CaptureFixture[str]):
    app(["classify", "--help"], result_action="return_value")
    before, within = capsys.readouterr().out.split(" Reading the images ")
    assert "--table" in before
    assert "--image-column" not in before
    assert "How to read the images" in within
    assert "--image-column" in within

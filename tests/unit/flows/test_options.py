"""Options of the command line become the parameters of the flows."""

import re
from typing import Any

import cyclopts
import pytest
from cyclopts import Parameter
from pydantic import BaseModel

from flows.cli.options import options_of
from flows.parameters import ClassifyParameters, RecipeParameters, RunParameters, TrainParameters
from infra.errors import RequestError


def parsed(*arguments: str) -> Any:
    """What `fmnist classify` is handed."""
    app = cyclopts.App(default_parameter=Parameter(negative=()))

    @app.default
    @options_of(ClassifyParameters, positional="inputs", required={"table"})
    def classify(parameters: ClassifyParameters) -> ClassifyParameters:
        return parameters

    return app(arguments, exit_on_error=False, print_error=False, result_action="return_value")


@pytest.mark.parametrize(
    ("arguments", "calibrate"), [([], True), (["--calibrate"], True), (["--no-calibrate"], False)], ids=str
)
def test_what_is_on_by_default_is_switched_off_by_its_negative(arguments: list[str], calibrate: bool):
    parameters = parsed("a.png", "--table", "t", *arguments)
    assert (parameters.reading.calibrate, parameters.read_options().calibrate) == (calibrate, calibrate)


@pytest.mark.parametrize("option", ["--no-invert", "--no-model", "--empty-inputs"])
def test_other_options_have_no_negative(option: str):
    with pytest.raises(cyclopts.UnknownOptionError):
        parsed("a.png", "--table", "t", option)


def test_what_the_form_has_a_default_for_is_asked_for_where_the_command_requires_it():
    with pytest.raises(cyclopts.MissingArgumentError, match="--table"):
        parsed("a.png")
    with pytest.raises(RequestError, match=r"^URI: name at least one image"):
        parsed("--table", "t")


def test_arguments_are_the_inputs():
    assert parsed("a.png", "b/", "--table", "t").inputs == ["a.png", "b/"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"resume": "r", "from_model": "1"},
            "a resumed run goes on with its own weights; leave out either resume or from_model.",
        ),
        ({"validation_images": 60_000}, "--validation-images: must be less than or equal to 59990, not 60000."),
        ({"workers": "no"}, "--workers: must be a number of workers from 1 up, a range MIN:MAX, or auto, not 'no'."),
    ],
    ids=["two options that exclude each other", "all images held out", "no number of workers"],
)
def test_what_can_not_be_is_told_in_a_sentence(options: dict[str, Any], told: str):
    @options_of(TrainParameters)
    def train(parameters: TrainParameters) -> None: ...

    with pytest.raises(RequestError, match=f"^{re.escape(told)}$"):
        train(**options)


def test_options_of_a_group_are_by_their_own_names_and_come_back_in_it():
    received = []

    @options_of(TrainParameters)
    def train(parameters: TrainParameters) -> None:
        received.append(parameters)

    train(preset="quick", epochs=3, resume="r")
    assert received == [
        TrainParameters(preset="quick", recipe=RecipeParameters(epochs=3), run=RunParameters(resume="r"))
    ]


def test_help_lists_a_group_under_its_title(capsys: pytest.CaptureFixture[str]):
    parsed("--help")
    before, within = capsys.readouterr().out.split(" Reading the images ")
    assert "--table" in before
    assert "--image-column" not in before
    assert "How images are read" in within
    assert "--image-column" in within


def test_two_fields_of_one_name_are_refused():
    class Inner(BaseModel):
        seed: int = 0

    class Outer(BaseModel):
        seed: int = 0
        inner: Inner = Inner()

    with pytest.raises(TypeError, match=r"^Outer: seed and inner\.seed would both be the option --seed"):
        options_of(Outer)

"""Options of the command line become the parameters of the flows."""

import re
from typing import Any

import cyclopts
import pytest
from cyclopts import Parameter

from flows.options import options_of
from flows.parameters import ClassifyParameters, TrainParameters
from infra.errors import RequestError


def parsed(*arguments: str) -> Any:
    """What `fmnist classify` is handed."""
    app = cyclopts.App(default_parameter=Parameter(negative=()))

    @app.default
    @options_of(ClassifyParameters, positional="inputs")
    def classify(parameters: ClassifyParameters) -> ClassifyParameters:
        return parameters

    return app([*arguments, "--table", "t"], exit_on_error=False, print_error=False, result_action="return_value")


@pytest.mark.parametrize(
    ("arguments", "calibrate"), [([], True), (["--calibrate"], True), (["--no-calibrate"], False)], ids=str
)
def test_what_is_on_by_default_is_switched_off_by_its_negative(arguments: list[str], calibrate: bool):
    parameters = parsed("a.png", *arguments)
    assert (parameters.calibrate, parameters.read_options().calibrate) == (calibrate, calibrate)


@pytest.mark.parametrize("option", ["--no-invert", "--no-model", "--empty-inputs"])
def test_other_options_have_no_negative(option: str):
    with pytest.raises(cyclopts.UnknownOptionError):
        parsed("a.png", option)


def test_arguments_are_the_inputs():
    assert parsed("a.png", "b/").inputs == ["a.png", "b/"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"resume": "r", "from_model": "1"},
            "a resumed run goes on with its own weights; leave out either resume or from_model.",
        ),
        ({"validation_images": 60_000}, "--validation-images: must be less than or equal to 59990, not 60000."),
    ],
    ids=["two options that exclude each other", "all images held out"],
)
def test_what_can_not_be_is_told_in_a_sentence(options: dict[str, Any], told: str):
    @options_of(TrainParameters)
    def train(parameters: TrainParameters) -> None: ...

    with pytest.raises(RequestError, match=f"^{re.escape(told)}$"):
        train(**options)

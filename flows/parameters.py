"""The parameters of the flows. The Prefect UI draws its forms from them, and the command line its options."""

import re
from dataclasses import fields
from typing import Annotated, Any, Literal, Self, get_type_hints

from cyclopts import Group, Parameter
from pydantic import BaseModel, Field, create_model, field_validator, model_validator

from fmnist_model.training.recipe import PRESETS, TrainingRecipe
from infra.cluster.resources import ActorResources
from infra.form import FormModel, OptionalText
from tasks.classification.options import ReadOptions

INPUTS_HELP = (
    "Files, folders or globs, as paths or URIs. They can be image files, files that hold images (Parquet, WebDataset "
    "tar, IDX), and lists of images (.txt, .csv, .tsv, .parquet)."
)

_WORKERS = r"^(auto|[1-9][0-9]*(:[1-9][0-9]*)?)$"
_MODEL = r"^(champion|candidate|[0-9]+)$"


def _options(title: str, model: type[BaseModel], **settings: Any) -> Parameter:
    """Make the fields of a nested model options by their own names, which `--help` lists under a title."""
    return Parameter(name="*", group=Group.create_ordered(title, help=model.__doc__ or ""), **settings)


def _preset_values(name: str) -> str:
    values = {preset: f"{getattr(recipe, name):,}" for preset, recipe in sorted(PRESETS.items())}
    if len(set(values.values())) == 1:
        return f"Default: {values['full']}."
    return f"Default: {', '.join(f'{value} ({preset})' for preset, value in values.items())}."


def _recipe_fields() -> dict[str, Any]:
    """Turn the settings of `TrainingRecipe` into optional fields. None keeps the preset's value."""
    types = get_type_hints(TrainingRecipe)
    return {
        setting.name: (
            types[setting.name] | None,
            Field(
                default=None,
                title=setting.name.replace("_", " ").capitalize(),
                ge=setting.metadata["minimum"],
                le=setting.metadata["maximum"],
                description=f"{setting.metadata['description']} {_preset_values(setting.name)}",
            ),
        )
        for setting in fields(TrainingRecipe)
        if setting.metadata
    }


class RecipeParameters(create_model("_RecipeFields", __base__=FormModel, **_recipe_fields())):  # type: ignore[misc]
    """Values to use instead of the preset's."""

    def overrides(self) -> dict[str, Any]:
        """Return the values that were given, by the name of the recipe's field."""
        return dict(self.model_dump(exclude_none=True))


class RunParameters(FormModel):
    """How the run starts, and what it keeps."""

    resume: Annotated[
        OptionalText,
        Field(
            title="Resume run",
            description="Id of an earlier run to resume from its newest complete checkpoint, with its own recipe. By "
            "default, a new run starts.",
        ),
    ] = None
    from_model: Annotated[
        OptionalText,
        Field(
            title="Start from model",
            json_schema_extra={"pattern": f"^$|{_MODEL}"},
            description="Model whose weights a new run starts from (fine-tuning): a version number, champion or "
            "candidate. By default, the run starts from random weights.",
        ),
    ] = None
    keep_best: Annotated[
        int,
        Field(
            title="Checkpoints to keep",
            ge=0,
            le=10_000,
            description="Number of best checkpoints to keep when the run finishes. The last checkpoint and those of "
            "model versions are always kept.",
        ),
    ] = 3
    tensorboard: Annotated[
        bool, Field(title="TensorBoard", description="Write TensorBoard event files next to the run's metrics.")
    ] = False

    @model_validator(mode="after")
    def _refuse_two_starts(self) -> Self:
        if self.resume and self.from_model:
            raise ValueError("a resumed run keeps its own weights, so leave out either resume or from_model")
        return self


class _GroupedParameters(FormModel):
    @model_validator(mode="before")
    @classmethod
    def _name_the_group(cls, parameters: Any) -> Any:
        """Refuse parameters that were saved before fields had groups, and name the field's new place."""
        for name in parameters if isinstance(parameters, dict) else ():
            for group, field in cls.model_fields.items():
                kind = field.annotation
                if isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields:
                    raise ValueError(f"{name} has moved to {group}.{name}")
        return parameters


class TrainParameters(_GroupedParameters):
    """How to train the network. You can leave every field as it is."""

    preset: Annotated[
        Literal["quick", "full"],
        Field(
            title="Preset",
            description="Recipe for the training: full (the most accurate, two minutes on two CPUs) or quick (half a "
            "minute).",
        ),
    ] = "full"
    workers: Annotated[
        str,
        Field(
            title="Workers",
            json_schema_extra={"pattern": _WORKERS},
            description="Number of training workers: a number such as 2, a range MIN:MAX such as 1:4, or auto. auto "
            "starts one per GPU, or two on CPUs.",
        ),
    ] = "auto"
    recipe: Annotated[RecipeParameters, Field(title="Recipe"), _options("Recipe", RecipeParameters)] = (
        RecipeParameters()
    )
    run: Annotated[RunParameters, Field(title="Run"), _options("Run", RunParameters)] = RunParameters()

    @field_validator("workers", mode="before")
    @classmethod
    def _check_workers(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int) else value
        if isinstance(text, str) and not re.fullmatch(_WORKERS, text):
            raise ValueError("must be a number of workers from 1 up, a range MIN:MAX, or auto")
        return text


class ClassifyParameters(_GroupedParameters):
    """What to classify, with which model, and where to put the predictions. You can leave every field as it is."""

    inputs: Annotated[
        list[str],
        Field(title="Images", description=f"{INPUTS_HELP} By default, Fashion-MNIST's test images."),
        Parameter(parse=False),  # the command line takes them as arguments
    ] = []  # noqa: RUF012  # pydantic copies it
    table: Annotated[
        str,
        Field(
            title="Prediction table",
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
            description="Table to add the predictions to, as a batch. A new name creates a table. Use letters, digits, "
            "'_', '.' and '-'.",
        ),
        Parameter(required=True),  # the command line requires it, while the form has a default
    ] = "predictions"
    model: Annotated[
        str,
        Field(
            title="Model",
            json_schema_extra={"pattern": _MODEL},
            description="Model to classify with: a version number, champion (the best) or candidate (the newest).",
        ),
    ] = "champion"
    max_error_share: Annotated[
        float,
        Field(
            title="Largest error share",
            ge=0,
            le=1,
            description="The run fails if a larger share of a batch's images can't be classified. 0.01 is one in a "
            "hundred.",
        ),
    ] = 0.01
    retry_quarantined: Annotated[
        bool,
        Field(
            title="Retry quarantine",
            description="Classify files again that have images in quarantine, for example after you have upgraded a "
            "decoder. Without it, a run only tries those again that it can read now and couldn't read before.",
        ),
        Parameter(negative=""),
    ] = False
    reading: Annotated[
        ReadOptions,
        Field(title="Reading the images"),
        _options("Reading the images", ReadOptions, negative_bool="no-"),
    ] = ReadOptions()
    resources: Annotated[ActorResources, Field(title="Workers"), _options("Workers", ActorResources)] = ActorResources()

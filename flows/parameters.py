"""What a flow is asked to do: drawn as a form by the Prefect UI, taken as options by the command line."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fmnist_model.training.recipe import PRESETS

if TYPE_CHECKING:
    from infra.cluster.resources import ActorResources
    from tasks.classification.inputs import ReadOptions

_WORKERS = r"^(auto|[1-9][0-9]*(:[1-9][0-9]*)?)$"
_MODEL = r"^(champion|candidate|[0-9]+)$"
_IMAGES = (
    "Files, folders or globs, as paths or URIs: image files, containers of images (Parquet, WebDataset tar, IDX), and "
    "lists of images (.txt, .csv, .tsv, .parquet)."
)


def _plain(schema: dict[str, Any]) -> None:
    """Draw a number that may be left out as one input to be left empty, and not as a choice between int and None."""
    [kind] = [kind for kind in schema.pop("anyOf") if kind != {"type": "null"}]
    schema.update(kind)
    del schema["default"]  # with it, Prefect's server would refuse null


def _presets(field: str) -> str:
    values = {name: f"{getattr(recipe, field):,}" for name, recipe in sorted(PRESETS.items())}
    same = len(set(values.values())) == 1
    told = values["full"] if same else ", ".join(f"{value} in {name}" for name, value in values.items())
    return f"If not given, the preset's: {told}."


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecipeParameters(_Parameters):
    """Numbers to train by instead of the preset's."""

    epochs: Annotated[
        int | None,
        Field(
            title="Epochs",
            ge=1,
            le=10_000,
            json_schema_extra=_plain,
            description=f"Passes over the training images. {_presets('epochs')}",
        ),
    ] = None
    global_batch_size: Annotated[
        int | None,
        Field(
            title="Global batch size",
            ge=1,
            le=60_000,
            json_schema_extra=_plain,
            description=f"Images a step, over all workers together. {_presets('global_batch_size')}",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Field(
            title="Learning rate",
            ge=1e-6,
            le=10,
            json_schema_extra=_plain,
            description=f"At the peak of its schedule. {_presets('learning_rate')}",
        ),
    ] = None
    validation_images: Annotated[
        int | None,
        Field(
            title="Validation images",
            ge=0,
            le=59_990,
            json_schema_extra=_plain,
            description="How many of the training images are held out, to validate and calibrate with. "
            f"{_presets('validation_images')}",
        ),
    ] = None
    seed: Annotated[
        int,
        Field(
            title="Seed",
            ge=0,
            le=2**31 - 1,
            description="Number that the initial weights, the order of the images and the augmentation are drawn by.",
        ),
    ] = 0


class RunParameters(_Parameters):
    """What the run begins with, and what is kept of it."""

    resume: Annotated[
        str,
        Field(
            title="Resume run",
            description="Id of an earlier run to go on with, by its own recipe, from its newest complete checkpoint. "
            "If not given, a new run begins.",
        ),
    ] = ""
    from_model: Annotated[
        str,
        Field(
            title="Begin with model",
            json_schema_extra={"pattern": f"^$|{_MODEL}"},
            description="Version number, or champion or candidate, whose weights a new run begins with (fine-tuning). "
            "If not given, random ones.",
        ),
    ] = ""
    keep_best: Annotated[
        int,
        Field(
            title="Checkpoints to keep",
            ge=0,
            le=10_000,
            description="How many of the run's best checkpoints are kept when it is finished, besides the last and "
            "those that versions stand for.",
        ),
    ] = 3
    tensorboard: Annotated[
        bool, Field(title="TensorBoard", description="Write event files for TensorBoard beside the run's metrics.")
    ] = False

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.resume and self.from_model:
            raise ValueError("a resumed run goes on with its own weights; leave out either resume or from_model")
        return self


class TrainParameters(_Parameters):
    """How to train. Everything can be left as it is: the network is then trained by the recipe full."""

    preset: Annotated[
        Literal["quick", "full"],
        Field(
            title="Preset",
            description="Recipe to train by: full (the most accurate; two minutes on two CPUs) or quick (half a "
            "minute).",
        ),
    ] = "full"
    workers: Annotated[
        str,
        Field(
            title="Workers",
            json_schema_extra={"pattern": _WORKERS},
            description="How many train side by side: a number such as 2, a range MIN:MAX such as 1:4, or auto: one a "
            "GPU, or two on CPUs.",
        ),
    ] = "auto"
    recipe: Annotated[RecipeParameters, Field(title="Recipe")] = RecipeParameters()
    run: Annotated[RunParameters, Field(title="Run")] = RunParameters()

    @field_validator("workers", mode="before")
    @classmethod
    def _number_range_or_auto(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int) else value
        if isinstance(text, str) and not re.fullmatch(_WORKERS, text):
            raise ValueError("must be a number of workers from 1 up, a range MIN:MAX, or auto")
        return text

    def overrides(self) -> dict[str, Any]:
        """The recipe's fields that were set here; a seed of 0 is every recipe's."""
        chosen = self.recipe.model_dump()
        return {name: value for name, value in chosen.items() if value is not None and (name, value) != ("seed", 0)}


class ReadingParameters(_Parameters):
    """How images are read, and what is made of the network's answers."""

    invert: Annotated[
        Literal["auto", "always", "never"],
        Field(
            title="Invert",
            description="The network knows light things on a dark ground. always inverts every picture, auto those "
            "whose corners are light.",
        ),
    ] = "never"
    image_column: Annotated[
        str,
        Field(
            title="Image column",
            description="Of Parquet files, the column that holds the images. If not given, it is found by name and "
            "type.",
        ),
    ] = ""
    label_column: Annotated[
        str,
        Field(
            title="Label column",
            description="Of Parquet files, the column that holds the true classes, which are written beside the "
            "predictions. If not given, it is found likewise; there need be none.",
        ),
    ] = ""
    calibrate: Annotated[
        bool,
        Field(
            title="Calibrate",
            description="Give probabilities at the model's temperature, so that of the predictions with confidence 0.8 "
            "about 80 % are right.",
        ),
    ] = True


class ResourceParameters(_Parameters):
    """What each worker takes of the cluster, and how many there are at most."""

    worker_cpus: Annotated[
        float,
        Field(title="CPUs a worker", ge=0, le=1024, description="CPUs that each classifying worker takes."),
    ] = 1.0
    worker_gpus: Annotated[
        float | None,
        Field(
            title="GPUs a worker",
            ge=0,
            le=64,
            json_schema_extra=_plain,
            description="GPUs that each worker takes; a share such as 0.5 lets two have the same. If not given, one "
            "where there are GPUs.",
        ),
    ] = None
    worker_memory_gib: Annotated[
        float,
        Field(
            title="Memory a worker",
            ge=0,
            le=16384,
            description="GiB that Ray reckons with for each worker; 0: none.",
        ),
    ] = 0.0
    max_workers: Annotated[
        int | None,
        Field(
            title="Most workers",
            ge=1,
            le=100_000,
            json_schema_extra=_plain,
            description="How many workers there are at most. If not given, as many as the cluster has room for.",
        ),
    ] = None


class ClassifyParameters(_Parameters):
    """What to classify, with which model, and where the predictions go. Everything can be left as it is."""

    inputs: Annotated[
        list[str],
        Field(
            title="Images",
            description=_IMAGES,
            # Of the form alone: the command line asks for inputs.
            json_schema_extra={"description": f"{_IMAGES} Left empty: the test images of Fashion-MNIST."},
        ),
    ] = []
    table: Annotated[
        str,
        Field(
            title="Prediction table",
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
            description="Name of the table that the predictions are added to, as a batch; begun where there is none. "
            "Letters, digits, '_', '.' and '-'.",
        ),
    ] = "predictions"
    model: Annotated[
        str,
        Field(
            title="Model",
            json_schema_extra={"pattern": _MODEL},
            description="Version number, or champion (the best) or candidate (the newest).",
        ),
    ] = "champion"
    max_error_share: Annotated[
        float,
        Field(
            title="Largest error share",
            ge=0,
            le=1,
            description="The run fails if a larger share of a batch's images can't be classified; 0.01 is one in a "
            "hundred.",
        ),
    ] = 0.01
    reading: Annotated[ReadingParameters, Field(title="Reading the images")] = ReadingParameters()
    resources: Annotated[ResourceParameters, Field(title="Workers")] = ResourceParameters()

    def read_options(self) -> "ReadOptions":
        """How images are read."""
        from tasks.classification.inputs import ReadOptions

        reading = self.reading
        return ReadOptions(
            invert=reading.invert,
            image_column=reading.image_column or None,
            label_column=reading.label_column or None,
            calibrate=reading.calibrate,
        )

    def actor_resources(self) -> "ActorResources":
        """What each worker takes."""
        from infra.cluster.resources import ActorResources

        chosen = self.resources
        memory = int(chosen.worker_memory_gib * 2**30)
        return ActorResources(chosen.worker_cpus, chosen.worker_gpus, memory, chosen.max_workers)

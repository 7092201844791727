"""What a flow is asked to do: drawn as a form by the Prefect UI, taken as options by the command line."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

if TYPE_CHECKING:
    from infra.actor_resources import ActorResources
    from tasks.inputs import ReadOptions

_WORKERS = r"^(auto|[1-9][0-9]*(:[1-9][0-9]*)?)$"


class TrainParameters(BaseModel):
    """How to train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Annotated[
        Literal["quick", "full"],
        Field(
            title="Preset",
            description="Recipe to start from: full (the most accurate) or quick (half a minute on two CPUs).",
        ),
    ] = "full"
    workers: Annotated[
        str,
        Field(
            title="Workers",
            json_schema_extra={"pattern": _WORKERS},
            description="Number of training workers, a range MIN:MAX, or auto: one a GPU, or two on CPUs.",
        ),
    ] = "auto"
    epochs: Annotated[
        int | None,
        Field(title="Epochs", ge=1, le=10_000, description="Passes over the training images, instead of the preset's."),
    ] = None
    global_batch_size: Annotated[
        int | None,
        Field(
            title="Global batch size",
            ge=1,
            le=60_000,
            description="Images a step over all workers, instead of the preset's.",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Field(title="Learning rate", gt=0, le=10, description="Peak of the schedule, instead of the preset's."),
    ] = None
    validation_images: Annotated[
        int | None,
        Field(
            title="Validation images",
            ge=0,
            le=59_990,
            description="Held out of the training images to validate and calibrate with, instead of the preset's.",
        ),
    ] = None
    seed: Annotated[
        int,
        Field(title="Seed", ge=0, le=2**31 - 1, description="Of initial weights, image order and augmentation."),
    ] = 0
    keep_best: Annotated[
        int,
        Field(
            title="Checkpoints to keep",
            ge=0,
            le=10_000,
            description="When the run is finished: its best so many, besides the last and those that versions stand "
            "for.",
        ),
    ] = 3
    resume: Annotated[
        str | None,
        Field(
            title="Resume run",
            description="Id of a run to go on with, by its own recipe, from its newest complete checkpoint.",
        ),
    ] = None
    from_model: Annotated[
        str | None,
        Field(
            title="Begin with model",
            description="Version number, or champion or candidate, whose weights a new run begins with (fine-tuning).",
        ),
    ] = None
    tensorboard: Annotated[
        bool, Field(title="TensorBoard", description="Write event files for TensorBoard beside the run's metrics.")
    ] = False

    @field_validator("workers", mode="before")
    @classmethod
    def _number_range_or_auto(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int) else value
        if isinstance(text, str) and not re.fullmatch(_WORKERS, text):
            raise ValueError("must be a number of workers from 1 up, a range MIN:MAX, or auto")
        return text

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.resume and self.from_model:
            raise ValueError("a resumed run goes on with its own weights; leave out either resume or from_model")
        return self

    def overrides(self) -> dict[str, Any]:
        """The recipe's fields that were set here; a seed of 0 is every recipe's."""
        chosen = self.model_dump(include={"epochs", "global_batch_size", "learning_rate", "validation_images", "seed"})
        return {name: value for name, value in chosen.items() if value is not None and (name, value) != ("seed", 0)}


class ClassifyParameters(BaseModel):
    """What to classify, with which model, and where the predictions go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: Annotated[
        list[str],
        Field(
            title="Images",
            min_length=1,
            description="Image files, containers of images (Parquet, WebDataset tar, IDX), lists of them (.txt, .csv, "
            ".tsv, .parquet), folders or globs; as paths or URIs.",
        ),
    ]
    table: Annotated[
        str,
        Field(
            title="Prediction table",
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
            description="Name of the prediction table that the batch is added to.",
        ),
    ]
    model: Annotated[
        str,
        Field(title="Model", description="Version number, or champion or candidate."),
    ] = "champion"
    max_error_share: Annotated[
        float,
        Field(
            title="Largest error share",
            ge=0,
            le=1,
            description="The run fails if a larger share of a batch's images can't be classified.",
        ),
    ] = 0.01
    invert: Annotated[
        Literal["auto", "always", "never"],
        Field(
            title="Invert",
            description="The network knows light things on a dark ground. auto inverts pictures whose border is light.",
        ),
    ] = "never"
    image_column: Annotated[
        str | None, Field(title="Image column", description="Of Parquet files; found by name and type where not given.")
    ] = None
    label_column: Annotated[str | None, Field(title="Label column", description="Likewise; there need be none.")] = None
    calibrate: Annotated[
        bool,
        Field(
            title="Calibrate",
            description="Give probabilities at the model's temperature, so that of the predictions with confidence 0.8 "
            "about 80 % are right.",
        ),
    ] = True
    worker_cpus: Annotated[
        float, Field(title="CPUs a worker", ge=0, le=1024, description="That each classifying worker takes.")
    ] = 1.0
    worker_gpus: Annotated[
        float | None,
        Field(
            title="GPUs a worker",
            ge=0,
            le=64,
            description="Likewise; a share such as 0.5 lets two have the same. One where there are GPUs, if not given.",
        ),
    ] = None
    worker_memory_gib: Annotated[
        float, Field(title="Memory a worker", ge=0, le=16384, description="GiB that Ray reckons with; 0: none.")
    ] = 0.0
    max_workers: Annotated[
        int | None,
        Field(title="Most workers", ge=1, le=100_000, description="As many as the cluster has room for, if not given."),
    ] = None

    def read_options(self) -> "ReadOptions":
        """How images are read."""
        from tasks.inputs import ReadOptions

        return ReadOptions(
            invert=self.invert,
            image_column=self.image_column,
            label_column=self.label_column,
            calibrate=self.calibrate,
        )

    def resources(self) -> "ActorResources":
        """What each worker takes."""
        from infra.actor_resources import ActorResources

        memory = int(self.worker_memory_gib * 2**30)
        return ActorResources(self.worker_cpus, self.worker_gpus, memory, self.max_workers)

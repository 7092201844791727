"""The options of reading: what you can choose about how images become predictions."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from fmnist_model.images import TRANSFORM_VERSION
from infra.form import FormModel, OptionalText


class ReadOptions(FormModel):
    """How to read the images and scale the probabilities."""

    invert: Annotated[
        Literal["auto", "always", "never"],
        Field(
            title="Invert",
            description="Whether to invert the images. The model expects light objects on a dark background. auto "
            "inverts images with light corners.",
        ),
    ] = "never"
    image_column: Annotated[
        OptionalText,
        Field(
            title="Image column",
            description="Column with the images in Parquet files, or with their locations in lists. By default, it is "
            "found by name and type.",
        ),
    ] = None
    label_column: Annotated[
        OptionalText,
        Field(
            title="Label column",
            description="Column with the true classes in Parquet files and lists, to write next to the predictions. By "
            "default, it is found by name and type, if there is one.",
        ),
    ] = None
    calibrate: Annotated[
        bool,
        Field(
            title="Calibrate",
            description="Scale the probabilities with the model's temperature, so that about 80 % of the predictions "
            "with confidence 0.8 are right.",
        ),
    ] = True

    def to_record(self) -> dict[str, Any]:
        """Return the options and the transform's version as JSON values. They are part of a batch's identity."""
        return {"transform": TRANSFORM_VERSION} | self.model_dump()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read options that `to_record` wrote."""
        return cls.model_validate({name: value for name, value in record.items() if name != "transform"})

"""A base for models that become a form in the Prefect UI and options on the command line."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _draw_optional_fields_as_inputs(schema: dict[str, Any]) -> None:
    """Draw an optional field as one input that can stay empty, not as a choice between a value and None."""
    for field in schema.get("properties", {}).values():
        kinds = field.get("anyOf", [])
        if {"type": "null"} in kinds:
            [kind] = [kind for kind in kinds if kind != {"type": "null"}]
            field.update(kind)
            # Prefect's server accepts null for a field without a default, and refuses it for one with a default.
            del field["anyOf"], field["default"]


class FormModel(BaseModel):
    """Parameters that are described and bounded field by field. They can't change, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_draw_optional_fields_as_inputs)


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


OptionalText = Annotated[str | None, BeforeValidator(_none_if_empty)]
"""Text that can be left out. An empty text means None: forms saved it before the field was optional."""

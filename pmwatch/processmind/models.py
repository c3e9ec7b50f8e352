"""What the API answers. Unknown fields are kept, so that a new field of the service breaks nothing.

Source of the shapes: ProcessMind's "API reference: data".
"""

from pydantic import AliasChoices, BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Base of all answers: camelCase on the wire, unknown fields kept."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, coerce_numbers_to_str=True)


class TenantInfo(Answer):
    """A tenant."""

    id: str = ""
    display_name: str = Field("", alias="displayName")


class Datatable(Answer):
    """A table of a dataset. `row_count` is the number of rows ingested, where the API gives it."""

    id: str
    display_name: str = Field("", alias="displayName")
    dataset_id: str = Field("", validation_alias=AliasChoices("datasetId", "dataSetId", "dataset_id"))
    row_count: int | None = Field(None, alias="rowCount")


class Dataset(Answer):
    """A dataset; `datatables` is filled where a single one was asked for."""

    id: str
    display_name: str = Field("", alias="displayName")
    datatables: list[Datatable] = []
    datatable_count: int | None = Field(None, alias="datatableCount")

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
    short_name: str = Field("", alias="shortName")


class Datatable(Answer):
    """A table of a dataset. `row_count` is the number of rows ingested, where the API gives it."""

    id: str
    display_name: str = Field("", alias="displayName")
    dataset_id: str = Field(
        "", validation_alias=AliasChoices("datasetId", "dataSetId", "dataset_id"), serialization_alias="datasetId"
    )
    row_count: int | None = Field(None, alias="rowCount", lt=2**63)  # as many as the ledger can hold


class Dataset(Answer):
    """A dataset, or with `tree_node_type` TreeGroup a group of them; a single one has its `datatables`."""

    id: str
    display_name: str = Field("", alias="displayName")
    tree_node_type: str = Field("Dataset", alias="treeNodeType")
    tree_parent_id: str | None = Field(None, alias="treeParentId")
    created_at: str = Field("", alias="createdAt")
    datatables: list[Datatable] = []
    datatable_count: int | None = Field(None, alias="datatableCount")


class Color(Answer):
    """A colour by its id."""

    id: str = ""


class Statistics(Answer):
    """Numbers about a tenant or an organisation; which ones is the service's choice, and all are kept."""


class User(Answer):
    """A user of a tenant or of an organisation, with what they may do there."""

    id: str = Field("", validation_alias=AliasChoices("id", "userId"))
    email: str = ""
    first_name: str = Field("", alias="firstName")
    last_name: str = Field("", alias="lastName")
    is_active_in_tenant: bool | None = Field(None, alias="isActiveInTenant")
    is_admin_in_tenant: bool | None = Field(None, alias="isAdminInTenant")
    is_developer_in_tenant: bool | None = Field(None, alias="isDeveloperInTenant")
    is_active_in_organization: bool | None = Field(None, alias="isActiveInOrganization")
    is_admin_in_organization: bool | None = Field(None, alias="isAdminInOrganization")


class Process(Answer):
    """A process, or with `tree_node_type` TreeGroup a group of them."""

    id: str
    display_name: str = Field("", alias="displayName")
    tree_node_type: str = Field("Process", alias="treeNodeType")
    tree_parent_id: str | None = Field(None, alias="treeParentId")
    designer_model_id: str | None = Field(None, alias="designerModelId")
    created_at: str = Field("", alias="createdAt")
    updated_at: str = Field("", alias="updatedAt")


class Mapping(Answer):
    """What connects a process with a datatable. `color` is one of `data-1` to `data-8`."""

    id: str
    data_table_id: str = Field("", alias="dataTableId")
    display_name: str = Field("", alias="displayName")
    color: Color | None = None
    show_by_default: bool | None = Field(None, alias="showByDefault")


class Organization(Answer):
    """The organisation that a tenant belongs to."""

    id: str = ""
    display_name: str = Field("", alias="displayName")


class Success(Answer):
    """The answer to what deletes or changes, where the service answers no more than that."""

    success: bool = True

"""ProcessMind's API as its reference lists it: one row an operation, for client, commands and sandbox alike."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """The vendor's name, method and path; the client's method; the command; fields of a body that the vendor names."""

    name: str
    method: str
    path: str
    client: str
    command: str
    fields: tuple[str, ...] = ()


T = "/tenant/{tenant}"
P = f"{T}/processes/{{process}}"
O = f"{T}/organization"  # noqa: E741
FLAGS = ("isActiveInTenant", "isAdminInTenant", "isDeveloperInTenant")
NODE = ("displayName", "treeParentId", "treeNodeType")
LOOKS = ("displayName", "color", "showByDefault")

OPERATIONS = (
    Row("getTenant", "GET", T, "tenant", "tenant get"),
    Row("updateTenant", "PUT", T, "update_tenant", "tenant update", ("displayName",)),
    Row("getTenantStatistics", "GET", f"{T}/statistics", "tenant_statistics", "tenant statistics"),
    Row("getTenantUsers", "GET", f"{T}/users", "users", "user list"),
    Row("addTenantUser", "POST", f"{T}/users", "add_user", "user add", ("email", "firstName", "lastName", *FLAGS)),
    Row("updateTenantUser", "PUT", f"{T}/users", "update_user", "user update", ("userId", "tenantId", *FLAGS)),
    Row("removeTenantUser", "DELETE", f"{T}/users", "remove_user", "user remove", ("userId", "tenantId")),
    Row("getProcesses", "GET", f"{T}/processes", "processes", "process list"),
    Row("createProcess", "POST", f"{T}/processes", "create_process", "process create", NODE),
    Row("getProcess", "GET", P, "process", "process get"),
    Row("updateProcess", "PUT", P, "update_process", "process update", ("displayName", "treeParentId")),
    Row("deleteProcess", "DELETE", P, "delete_process", "process delete"),
    Row("uploadBpmn", "PUT", f"{P}/bpmn", "upload_bpmn", "process upload-bpmn", ("bpmnXml",)),
    Row("getProcessMappings", "GET", f"{P}/mappings", "mappings", "mapping list"),
    Row("createProcessMapping", "POST", f"{P}/mappings", "create_mapping", "mapping create", ("dataTableId", *LOOKS)),
    Row("updateProcessMapping", "PUT", f"{P}/mappings/{{mapping}}", "update_mapping", "mapping update", LOOKS),
    Row("deleteProcessMapping", "DELETE", f"{P}/mappings/{{mapping}}", "delete_mapping", "mapping delete"),
    Row("getDatasets", "GET", f"{T}/datasets", "datasets", "dataset list"),
    Row("createDataset", "POST", f"{T}/datasets", "create_dataset", "dataset create", NODE),
    Row("getDataset", "GET", f"{T}/datasets/{{dataset}}", "dataset", "dataset get"),
    Row("deleteDataset", "DELETE", f"{T}/datasets/{{dataset}}", "delete_dataset", "dataset delete"),
    Row("getDatatables", "GET", f"{T}/datatables", "datatables", "datatable list"),
    Row(
        "createDatatable",
        "POST",
        f"{T}/datasets/{{dataset}}/datatables",
        "create_datatable",
        "datatable create",
        ("displayName",),
    ),
    Row("getDatatable", "GET", f"{T}/datatable/{{datatable}}", "datatable", "datatable get"),
    Row(
        "getPresignedUploadUrl",
        "GET",
        f"{T}/datatable/{{datatable}}/uploads/presignedurl",
        "presigned_upload_url",
        "datatable upload-url",
    ),
    Row("getOrganization", "GET", O, "organization", "org get"),
    Row("getOrganizationStatistics", "GET", f"{O}/statistics", "organization_statistics", "org statistics"),
    Row("getOrganizationTenants", "GET", f"{O}/tenants", "organization_tenants", "org tenants"),
    Row(
        "createOrganizationTenant",
        "POST",
        f"{O}/tenants",
        "create_organization_tenant",
        "org create-tenant",
        ("shortName", "displayName"),
    ),
    Row(
        "deleteOrganizationTenant",
        "DELETE",
        f"{O}/tenants/{{target}}",
        "delete_organization_tenant",
        "org delete-tenant",
    ),
    Row("getOrganizationUsers", "GET", f"{O}/users", "organization_users", "org users"),
    Row(
        "updateOrganizationUser",
        "PUT",
        f"{O}/users",
        "update_organization_user",
        "org update-user",
        ("userId", "isActiveInOrganization", "isAdminInOrganization"),
    ),
    Row("removeOrganizationUser", "DELETE", f"{O}/users", "remove_organization_user", "org remove-user", ("userId",)),
)

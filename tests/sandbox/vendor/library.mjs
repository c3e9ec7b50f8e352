// A JavaScript library with a function for each operation, as ProcessMind's documentation names them, and a walk
// through all of them. Prints one JSON line for each call: the function's name, and what came back.

const { BASE_URL, API_KEY, TENANT_ID, DATASET_ID, DATATABLE_ID, FILE, MODEL } = process.env;
import { readFile, stat } from "node:fs/promises";
import { basename } from "node:path";

async function call(method, path, body) {
  const answer = await fetch(`${BASE_URL}/tenant/${TENANT_ID}${path}`, {
    method,
    headers: { "x-api-key": API_KEY, ...(body ? { "Content-Type": "application/json" } : {}) },
    body: body ? JSON.stringify(body) : undefined,
  });
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${(await answer.json()).message}`);
  return answer.json();
}

const presignPath = (query) => `/datatable/${DATATABLE_ID}/uploads/presignedurl${query ? `?${query}` : ""}`;

const api = {
  getTenant: () => call("GET", ""),
  updateTenant: (displayName) => call("PUT", "", { displayName }),
  getTenantStatistics: () => call("GET", "/statistics"),
  getTenantUsers: () => call("GET", "/users"),
  addTenantUser: (user) =>
    call("POST", "/users", { isActiveInTenant: true, isAdminInTenant: false, isDeveloperInTenant: false, ...user }),
  updateTenantUser: (userId, flags) => call("PUT", "/users", { userId, tenantId: TENANT_ID, ...flags }),
  removeTenantUser: (userId) => call("DELETE", "/users", { userId, tenantId: TENANT_ID }),
  getProcesses: () => call("GET", "/processes"),
  createProcess: (displayName, treeParentId = null, treeNodeType = "Process") =>
    call("POST", "/processes", { displayName, treeParentId, treeNodeType }),
  getProcess: (id) => call("GET", `/processes/${id}`),
  updateProcess: (id, displayName, treeParentId = null) =>
    call("PUT", `/processes/${id}`, { displayName, treeParentId }),
  deleteProcess: (id) => call("DELETE", `/processes/${id}`),
  uploadBpmn: (id, bpmnXml) => call("PUT", `/processes/${id}/bpmn`, { bpmnXml }),
  uploadBpmnFile: async (id, path) => api.uploadBpmn(id, await readFile(path, "utf8")),
  getProcessMappings: (id) => call("GET", `/processes/${id}/mappings`),
  createProcessMapping: (id, dataTableId, displayName, color, showByDefault) =>
    call("POST", `/processes/${id}/mappings`, { dataTableId, displayName, color: { id: color }, showByDefault }),
  updateProcessMapping: (id, mapping, displayName, color, showByDefault) =>
    call("PUT", `/processes/${id}/mappings/${mapping}`, { displayName, color: { id: color }, showByDefault }),
  deleteProcessMapping: (id, mapping) => call("DELETE", `/processes/${id}/mappings/${mapping}`),
  getDatasets: () => call("GET", "/datasets"),
  createDataset: (displayName, treeParentId = null, treeNodeType = "Dataset") =>
    call("POST", "/datasets", { displayName, treeParentId, treeNodeType }),
  getDataset: (id) => call("GET", `/datasets/${id}`),
  deleteDataset: (id) => call("DELETE", `/datasets/${id}`),
  getDatatables: () => call("GET", "/datatables"),
  createDatatable: (dataset, displayName) => call("POST", `/datasets/${dataset}/datatables`, { displayName }),
  getDatatable: (id) => call("GET", `/datatable/${id}`),
  getPresignedUploadUrl: (query) => call("GET", presignPath(query)),
  uploadFile: async (path) => {
    const facts = await stat(path);
    const query = new URLSearchParams({
      datasetid: DATASET_ID,
      filename: basename(path),
      filesize: facts.size,
      filelastmodified: Math.round(facts.mtimeMs),
    });
    const { PreSignedUploadUrl } = await api.getPresignedUploadUrl(query);
    const headers = { "Content-Type": "text/csv" };
    const answer = await fetch(PreSignedUploadUrl, { method: "PUT", headers, body: await readFile(path) });
    if (!answer.ok) throw new Error(await answer.text());
    return { status: answer.status };
  },
  getOrganization: () => call("GET", "/organization"),
  getOrganizationStatistics: () => call("GET", "/organization/statistics"),
  getOrganizationTenants: () => call("GET", "/organization/tenants"),
  createOrganizationTenant: (shortName, displayName) =>
    call("POST", "/organization/tenants", { shortName, displayName }),
  deleteOrganizationTenant: (target) => call("DELETE", `/organization/tenants/${target}`),
  getOrganizationUsers: () => call("GET", "/organization/users"),
  updateOrganizationUser: (userId, flags) => call("PUT", "/organization/users", { userId, ...flags }),
  removeOrganizationUser: (userId) => call("DELETE", "/organization/users", { userId }),
};

async function run(name, ...given) {
  const answer = await api[name](...given);
  console.log(JSON.stringify({ name, answer }));
  return answer;
}

await run("getTenant");
await run("updateTenant", "Renamed");
const user = await run("addTenantUser", { email: "ada@example.com", firstName: "Ada", lastName: "Lovelace" });
await run("addTenantUser", {
  id: "3f0c0f7e-0000-4000-8000-000000000001",
  email: "bob@example.com",
  firstName: "Bob",
  lastName: "Bolt",
  sendInvitationEmail: false,
});
await run("updateTenantUser", user.id, { isActiveInTenant: true, isAdminInTenant: true, isDeveloperInTenant: false });
await run("getTenantUsers");
const folder = await run("createProcess", "Sales", null, "TreeGroup");
const made = await run("createProcess", "Order to cash", folder.id);
await run("getProcesses");
await run("updateProcess", made.id, "O2C");
await run("uploadBpmn", made.id, await readFile(MODEL, "utf8"));
await run("uploadBpmnFile", made.id, MODEL);
await run("getProcess", made.id);
const mapping = await run("createProcessMapping", made.id, DATATABLE_ID, "Orders", "data-1", true);
await run("updateProcessMapping", made.id, mapping.id, "All orders", "data-2", false);
await run("getProcessMappings", made.id);
const dataset = await run("createDataset", "Purchase to pay");
await run("createDatatable", dataset.id, "Purchases");
await run("getDatasets");
await run("getDataset", dataset.id);
await run("getDatatables");
await run("getPresignedUploadUrl");
await run("uploadFile", FILE);
await run("getDatatable", DATATABLE_ID);
await run("getTenantStatistics");
await run("getOrganization");
await run("getOrganizationStatistics");
const target = await run("createOrganizationTenant", "acme-eu", "Acme Europe");
await run("getOrganizationTenants");
await run("deleteOrganizationTenant", target.id);
await run("updateOrganizationUser", user.id, { isActiveInOrganization: true, isAdminInOrganization: false });
await run("getOrganizationUsers");
await run("removeTenantUser", user.id);
await run("removeOrganizationUser", user.id);
await run("deleteProcessMapping", made.id, mapping.id);
await run("deleteProcess", made.id);
await run("deleteDataset", dataset.id);

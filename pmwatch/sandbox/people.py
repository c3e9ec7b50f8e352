"""Users of a tenant, and the organisation: all tenants of the sandbox belong to one."""

import uuid
from typing import Any, Final

from starlette.exceptions import HTTPException

from pmwatch.sandbox.calls import NAME, TEXT, Call, Operation, flag
from pmwatch.sandbox.state import Record, TenantSeed

ORGANIZATION_ID: Final = "organization-1"
_USERS: Final = "/tenant/{tenant}/users"
_ORGANIZATION: Final = "/tenant/{tenant}/organization"
_TENANT_FLAGS: Final = {
    "isActiveInTenant": flag(default=True),
    "isAdminInTenant": flag(default=False),
    "isDeveloperInTenant": flag(default=False),
}


async def get_users(call: Call) -> list[Record]:
    """`getTenantUsers`."""
    return call.tenant.users


async def add_user(call: Call) -> Record:
    """`addTenantUser`: somebody whom the organisation knows by e-mail keeps the id."""
    body = await call.body()
    if "@" not in body["email"]:
        raise HTTPException(400, "email is not an e-mail address")
    if any(user["email"] == body["email"] for user in call.tenant.users):
        raise HTTPException(409, "The user is in this tenant already")
    known = next((one for one in call.sandbox.organization_users if one["email"] == body["email"]), None)
    names = {name: body[name] or "" for name in ("email", "firstName", "lastName")}
    user = {"id": known["id"] if known else body["id"] or str(uuid.uuid4()), **names}
    with call.sandbox.changing():
        if known is None:
            flags = {"isActiveInOrganization": True, "isAdminInOrganization": False}
            call.sandbox.organization_users.append(user | flags)
        user |= {name: body[name] for name in _TENANT_FLAGS}
        call.tenant.users.append(user)
    return user


async def update_user(call: Call) -> Record:
    """`updateTenantUser`."""
    body = await _of_this_tenant(call)
    user = call.one_of(call.tenant.users, body["userId"], "User")
    with call.sandbox.changing():
        user.update({name: body[name] for name in _TENANT_FLAGS})
    return user


async def remove_user(call: Call) -> dict[str, Any]:
    """`removeTenantUser`."""
    body = await _of_this_tenant(call)
    user = call.one_of(call.tenant.users, body["userId"], "User")
    with call.sandbox.changing():
        call.tenant.users.remove(user)
    return {"success": True}


async def _of_this_tenant(call: Call) -> Record:
    body = await call.body()
    if body["tenantId"] != call.tenant.id:
        raise HTTPException(400, "tenantId is not the tenant of the path")
    return body


async def get_organization(call: Call) -> Record:  # noqa: ARG001  every operation is called alike
    """`getOrganization`."""
    return {"id": ORGANIZATION_ID, "displayName": "Sandbox"}


async def get_organization_statistics(call: Call) -> Record:
    """`getOrganizationStatistics`."""
    tenants = call.sandbox.all_tenants()
    return {
        "tenantCount": len(tenants),
        "userCount": len(call.sandbox.organization_users),
        "datasetCount": sum(len(tenant.datasets) for tenant in tenants),
        "processCount": sum(len(tenant.processes) for tenant in tenants),
    }


async def get_organization_tenants(call: Call) -> list[Record]:
    """`getOrganizationTenants`."""
    return [
        {"id": tenant.id, "displayName": tenant.name, "shortName": tenant.short_name, "createdAt": tenant.created_at}
        for tenant in call.sandbox.all_tenants()
    ]


async def create_organization_tenant(call: Call) -> Record:
    """`createOrganizationTenant`: with a key of its own, which the sandbox's operator can rotate."""
    body = await call.body()
    if any(body["shortName"] == tenant.short_name for tenant in call.sandbox.all_tenants()):
        raise HTTPException(409, "shortName is taken")
    tenant = call.sandbox.add_tenant(TenantSeed(body["displayName"], {}), short_name=body["shortName"])
    return {"id": tenant.id, "displayName": tenant.name, "shortName": tenant.short_name, "createdAt": tenant.created_at}


async def delete_organization_tenant(call: Call) -> dict[str, Any]:
    """`deleteOrganizationTenant`; not the one whose key asks."""
    target = call.sandbox.tenant(call.request.path_params["target"])
    if target is None:
        raise HTTPException(404, "Tenant not found")
    if target is call.tenant:
        raise HTTPException(400, "A tenant cannot delete itself")
    call.sandbox.delete_tenant(target)
    return {"success": True}


async def get_organization_users(call: Call) -> list[Record]:
    """`getOrganizationUsers`."""
    return call.sandbox.organization_users


async def update_organization_user(call: Call) -> Record:
    """`updateOrganizationUser`."""
    body = await call.body()
    user = call.one_of(call.sandbox.organization_users, body["userId"], "User")
    with call.sandbox.changing():
        user.update({name: body[name] for name in ("isActiveInOrganization", "isAdminInOrganization")})
    return user


async def remove_organization_user(call: Call) -> dict[str, Any]:
    """`removeOrganizationUser`: from every tenant as well."""
    body = await call.body()
    user = call.one_of(call.sandbox.organization_users, body["userId"], "User")
    with call.sandbox.changing():
        call.sandbox.organization_users.remove(user)
        for tenant in call.sandbox.all_tenants():
            tenant.users[:] = [one for one in tenant.users if one["id"] != user["id"]]
    return {"success": True}


_NEW_USER: Final = {"email": NAME, "firstName": TEXT, "lastName": TEXT, "id": TEXT, **_TENANT_FLAGS}
_USER: Final = {"userId": NAME, "tenantId": NAME}
OPERATIONS: Final = (
    Operation("getTenantUsers", "GET", _USERS, get_users),
    Operation(
        "addTenantUser", "POST", _USERS, add_user, 201, {**_NEW_USER, "sendInvitationEmail": flag(default=False)}
    ),
    Operation("updateTenantUser", "PUT", _USERS, update_user, 200, {**_USER, **_TENANT_FLAGS}),
    Operation("removeTenantUser", "DELETE", _USERS, remove_user, 200, _USER),
    Operation("getOrganization", "GET", _ORGANIZATION, get_organization),
    Operation("getOrganizationStatistics", "GET", f"{_ORGANIZATION}/statistics", get_organization_statistics),
    Operation("getOrganizationTenants", "GET", f"{_ORGANIZATION}/tenants", get_organization_tenants),
    Operation(
        "createOrganizationTenant",
        "POST",
        f"{_ORGANIZATION}/tenants",
        create_organization_tenant,
        201,
        {"shortName": NAME, "displayName": NAME},
    ),
    Operation("deleteOrganizationTenant", "DELETE", f"{_ORGANIZATION}/tenants/{{target}}", delete_organization_tenant),
    Operation("getOrganizationUsers", "GET", f"{_ORGANIZATION}/users", get_organization_users),
    Operation(
        "updateOrganizationUser",
        "PUT",
        f"{_ORGANIZATION}/users",
        update_organization_user,
        200,
        {
            "userId": NAME,
            "isActiveInOrganization": flag(default=True),
            "isAdminInOrganization": flag(default=False),
        },
    ),
    Operation(
        "removeOrganizationUser", "DELETE", f"{_ORGANIZATION}/users", remove_organization_user, 200, {"userId": NAME}
    ),
)

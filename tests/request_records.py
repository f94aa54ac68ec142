"""Records of requests, for tests of usage counters and of the access log."""

from typing import Any

from tenantry.http.request_record import RequestRecord


def request_record(tenant: str = "acme", **fields: Any) -> RequestRecord:
    """Return the record of a request of a tenant, with these fields."""
    record = RequestRecord()
    vars(record).update(tenant=tenant, **fields)
    return record

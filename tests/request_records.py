"""Creates records of requests for the tests of usage counters and of the access log."""

from typing import Any

from tenantry.http.request_record import RequestRecord


def request_record(tenant: str = "acme", **fields: Any) -> RequestRecord:
    """Return the record of one request of a tenant, with the given fields."""
    record = RequestRecord()
    vars(record).update(tenant=tenant, **fields)
    return record

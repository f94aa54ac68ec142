"""Limits the size of each tenant's folder, and the memory that all tenants share.

This package imports no other package of Tenantry. `app.process_resources` creates the memory budget
of a process. Before an endpoint writes a file, it reserves space with `tenantry.FolderQuota`.
"""

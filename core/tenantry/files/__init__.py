"""A tenant's files and memory: the quota of the tenant's folder, and memory that tenants share.

`files` imports no other package of Tenantry. `app.process_resources` makes the memory budget
of a process, and endpoints reserve space with `tenantry.FolderQuota` before endpoints write files.
"""

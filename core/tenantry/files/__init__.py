"""Limits the size of each tenant's folder and the shared memory, and checks who can access files.

This package imports no other package of Tenantry. `app.process_resources` creates the memory budget
of a process. Before an endpoint writes a file, it reserves space with `tenantry.FolderQuota`.
"""

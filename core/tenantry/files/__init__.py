"""Limits tenants' folders and the memory that tenants share, and checks who can access files.

This package imports no other package of Tenantry. `app.process_resources` creates the memory budget
of a process. Before writing a file, an endpoint reserves space with `tenantry.FolderQuota`.
"""

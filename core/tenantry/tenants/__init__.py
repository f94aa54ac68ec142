"""Tenants: validated tenant files, and the state that operators set for a tenant.

The package runs tenant files in a loader process (`loader`), validates the keys of tenant files
(`validation`), compares the tenants with each other (`uniqueness`), follows changes of the tenants
folder (`folder`) and keeps the state that operators set (`operator_state`). `tenants` imports
`endpoints` and the packages that `endpoints` may import, but no package that builds or serves an
app. When a host starts, `reload.Follower` is the first caller of `tenants`; commands read tenants
through `catalogue`.
"""

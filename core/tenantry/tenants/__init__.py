"""Reads and validates tenant files, and keeps the state that operators set for each tenant.

The package runs tenant files in a loader process (`loader`), validates their keys (`validation`),
compares the tenants with each other (`uniqueness`), notices changes in the tenants folder
(`folder`) and keeps the state that operators set (`operator_state`). The package `tenants` may
import `endpoints` and lower layers, but no package that builds or serves an app. When a host
starts, `reload.Follower` calls this package first; commands read tenants through `catalogue`.
"""

"""Tenants: from a tenant file to a validated `Tenant`, and what is set for a tenant outside it.

The package runs tenant files in a process of their own (`loader`), validates what they set
(`validation`), compares the tenants with each other (`uniqueness`), follows the folder while it
changes (`folder`) and keeps the state that operators set (`operator_state`). It imports `endpoints`
and the packages below, and nothing that builds or serves an app. `reload.Follower` calls it first
when a host starts; commands go through `catalogue`.
"""

"""Reload: each process follows the tenants folder and serves the newest files without a restart.

The package `reload` may import `routing`, `tenants` and lower layers. `Host` creates a `Follower`
and runs it on a thread. The follower scans the folder, has changed files validated
(`ValidationQueue`), decides which tenants to serve (`Reconciler`), has changed tenants built while
the old instances serve (`Rebuilds`), and closes the old instances (`Draining`).
"""

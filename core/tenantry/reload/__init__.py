"""Following of the tenants folder: a process serves the newest tenant files without a restart.

The package `reload` may import `routing`, `tenants` and lower layers. `Host` creates a `Follower`
and runs the follower on a thread. The follower scans the folder, has files validated
(`ValidationQueue`), decides which tenants to serve (`Reconciler`), has changed tenants built beside
the instances that serve (`Rebuilds`), and closes the instances that no longer serve (`Draining`).
"""

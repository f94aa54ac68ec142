"""Following the tenants folder: what a process serves is what the folder says, without a restart.

It may import `routing` and `tenants`, and the layers below. `Host` calls it first: it creates a
`Follower` and runs it on a thread. The follower scans the folder, has files validated
(`ValidationQueue`), decides which tenants to serve (`Reconciler`), has changed tenants built beside
the instances that serve (`Rebuilds`), and closes the instances that no longer serve (`Draining`).
"""

"""Tenantry: many isolated Flask apps, one per client group, in one gunicorn.

The floor plan. Imports only go down; rooms on one floor do not know each other; import-linter
checks it (`pyproject.toml`).

    cli/  wsgi  server_log                 what an operator or a server starts
    host                                   the only room where the parts meet
    audit  capsules/                       proves that nothing crosses between tenants; one tenant
                                           as one file, and a tenant again;
    layers  report                         what a request meets on its way to an app; what a process
                                           tells of itself
    migrations  reload  warm_start         fleet runs over databases; keeps the mounts what the
                                           tenants folder says; asks other workers at start
    audit_objects  audit_replay            what two apps can both write; what one signed, played
    audit_settings  audit_source           at another; what is unsafe; what their source tells;
    audit_compare  audit_finding           what two have in common; a finding; where they keep
    audit_places  audit_names              things; what a name in a source means;
    object_paths  object_graph  shareable  the way to an object; what an app reaches; what may
                                           be shared
    admission  judging  sleep              who is admitted beside the others; files that wait for
                                           a verdict; who is let go
    exchanges                              tenants that are to change places at one moment
    rebuilds                               builds beside what serves, and their back-off
    lanes                                  threads that judge files and build instances for all
    app_factory  catalogue  door  plan     a tenant's Flask app; what the folder says; whom the
    shared                                 server lets in; what would change; what the tenants of a
                                           process share
    gate  survey                           no request to tables that are behind the code; where the
                                           databases of a fleet stand
    journal  migration_process  migrator   what fleet runs did; where migrations run, and who
                                           starts that process
    migration_steps                        brings one database somewhere
    migration_children  migration_locks    the processes that migrate; one migration of a database
                                           at a time
    revisions                              what an endpoint's tables should be at, and what a
                                           database is at
    endpoints/                             loading an endpoint for one app; the endpoints
    database  reach  oidc                  an app's own database, as its endpoints see it; why one
                                           cannot be used; which tokens let their bearer in
    engine                                 its engine: pool, guard, options
    worker                                 the gunicorn worker: whose turn it is
    patient_worker                         what it is without tenants: patient with slow clients;
    heartbeat  strikes  last_words         who is to blame for a dead one; who is parked for it;
                                           which thread ended it
    containment  front  limits  mounts     each usable alone: WSGI layers and routing,
    slots  rates                           how many requests of a tenant are in flight, and how
                                           many there are per time,
    cookies  tokens  deadlines             cookies and signed tokens that stay with their tenant,
    host_log  receivers                    what runs too long; what an endpoint's set-up may not do
                                           to the log, and to signals;
    host_pages  status  telemetry          what the host tells, what each request takes,
    metering  metrics  request_line        and one line for each;
    departures  levers  url_rule  watch    instances on their way out, operators' levers, rules
    guards  pool  quota                    that are cheap to build, file events; who stands
    clients  issuer  masked_config         before a database, an engine's connections, what a
                                           folder may hold; who gets in, and where keys for tokens
                                           come from; what may be shown of an app's configuration
    claims  folder  instance               what tenants may not share; which files have settled;
    breaker  connections  database_down    one app while it serves; what is known to be down, the
    first_builds  quarantine  interrupts   process's connections, a database's 503; who builds what
    silence  waiting  hiding               requests ask for, and how long they wait; what lets a
                                           parked tenant be tried out, and a request be ended; what
                                           notices a frozen server; who waits for a thread; whose
                                           secrets no line may have
    loader  tenant  usage                  a tenant file becomes plain data, then a Tenant; what
    heads  share                           all processes used, those that are gone too; a request
                                           before it is parsed; how much of a process one tenant
                                           may take
    client_values  openid_values           what a tenant says of its clients
    database_url  loader_process           what both stand on; what values must be, and what is
    tenant_values  tenant_problems         said when they are not; who has a file open;
    permits  problem  turns  writers       what connections are asked with; the host's own
    masking  crew  board  uses             answers; many names by turns; secrets hidden; threads
    ledger  visit  rate_storage            for jobs that may hang; what is in flight where, and who
    patience  request_threads  ending      uses which connection; who used what; the request that
                                           is served now; where rates are counted; how long a
                                           thread waits for a client; the threads that serve; what
                                           is done when a response is closed
    errors                                 what can go wrong, drawn as a tree

Words (each means one thing everywhere): a *tenant* is the validated content of one tenant file;
an *app* is the Flask object built from it; an *instance* is an app while it serves; a *mount* is a
URL prefix and the instance that it serves now; the *host* is the process; an *endpoint* is a
feature package that a tenant enables by name.
"""

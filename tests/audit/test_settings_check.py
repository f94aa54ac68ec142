"""The audit finds unsafe settings, and notes what the tenants of one process share."""

from pathlib import Path

import pytest
from built_tenants import build, make_tenant

from tenantry.audit.settings_check import check_settings
from tenantry.cli.audit import audit_folder
from tenantry.host import Host
from tenantry.settings import HostSettings

pytestmark = pytest.mark.live

VALUE = "acme-0123456789abcdef0123456789ABCDEF"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("credentials", [True]), ("private", []), ("container", [False]), ("anywhere", [True])],
)
def test_mounted_secrets_are_checked(
    tmp_path: Path,
    settings: HostSettings,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    expected: list[bool],
) -> None:
    """The audit reports a secret file that other users can read as a problem.

    In the secrets folder of a container, a secret file that other users can read is only a note.
    """
    path = tmp_path / folder / "ACME_KEY"
    path.parent.mkdir()
    path.write_text(VALUE)
    path.chmod(0o644)
    path.parent.chmod(0o700 if folder == "private" else 0o755)
    if folder == "anywhere":
        monkeypatch.setenv("ACME_KEY_FILE", str(path))
    else:
        # The loader process does not see the secrets folder that the test patches.
        monkeypatch.setenv("ACME_KEY", VALUE)
    credentials = "private" if folder == "private" else "credentials"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / credentials))
    monkeypatch.setattr("tenantry.tenants.secrets.CONTAINER_SECRETS", str(tmp_path / "container"))
    (settings.tenants_dir / "acme.py").write_text(
        "from tenantry import secret\nSECRET_KEY = secret('ACME_KEY')\nBLUEPRINTS = ['landing']\n"
    )

    found = audit_folder(settings)[0]

    assert expected == [item.is_problem for item in found if item.id == "readable-secret:ACME_KEY"]


@pytest.mark.parametrize(
    ("acme", "globex", "expected"),
    [
        (None, None, ["one-origin", "one-process"]),
        (["a.org"], None, ["one-origin", "one-process"]),
        (["a.org"], ["A.org", "b.org"], ["one-origin", "one-process"]),
        ([".a.org"], ["x.a.org"], ["one-origin", "one-process"]),
        ([".a.org"], [".x.a.org"], ["one-origin", "one-process"]),
        (["a.org"], [".a.org"], ["one-origin", "one-process"]),
        (["a.org"], ["b.org"], ["one-process"]),
        (["a.org"], [".x.a.org"], ["one-process"]),
        (["xa.org"], [".a.org"], ["one-process"]),
    ],
)
def test_a_shared_process_and_a_shared_origin_are_noted(
    host: Host,
    tmp_path: Path,
    acme: object,
    globex: object,
    expected: list[str],
) -> None:
    """The audit notes tenants that share a process, or a host name and thus a browser origin."""
    hosts = {"acme": acme, "globex": globex}
    tenants = build(
        host, *[(make_tenant(host, name, TRUSTED_HOSTS=hosts[name]), "") for name in hosts]
    )

    notes = check_settings(tenants, tmp_path, ())

    assert expected == sorted(note.id for note in notes if note.id.startswith("one-"))


def test_a_single_tenant_shares_nothing(
    host: Host,
    tmp_path: Path,
) -> None:
    """With `serve --only NAME`, the audit reports nothing shared, because only one tenant runs."""
    notes = check_settings(build(host, (make_tenant(host, "acme"), "")), tmp_path, ())

    assert [] == [note.id for note in notes if note.id.startswith("one-")]

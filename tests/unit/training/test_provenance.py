"""Provenance must name what ran, and never a commit that did not."""

import json
import subprocess

import m3ae_scale
from m3ae_scale.training.provenance import git_state, provenance


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def checkout(folder):
    package = folder / "m3ae_scale"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return package


def test_it_is_json_and_names_the_machine_and_the_versions(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setattr("sys.argv", ["/somewhere/m3ae-scale", "pretrain", "a b.yaml"])
    found = json.loads(json.dumps(provenance()))
    assert found["command"] == "/somewhere/m3ae-scale pretrain 'a b.yaml'"
    assert found["versions"]["m3ae_scale"] == m3ae_scale.__version__ and "torch" in found["versions"]
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["cpu"]
    assert found["slurm_job"] == "1234"


def test_a_checkout_gives_its_commit_and_whether_its_code_was_changed(tmp_path):
    package = checkout(tmp_path)
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    (tmp_path / "notes.txt").write_text("no code")
    assert git_state(package) == {"commit": commit, "dirty": False}
    (package / "new.py").write_text("")
    assert git_state(package) == {"commit": commit, "dirty": True}


def test_a_package_installed_inside_another_checkout_has_no_commit(tmp_path):
    checkout(tmp_path)
    installed = tmp_path / ".venv" / "lib" / "site-packages" / "m3ae_scale"
    installed.mkdir(parents=True)
    assert git_state(installed) is None

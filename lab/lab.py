#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The lab: systemd hosts in containers on this machine, and the part of the inventory that leads to them.

An environment (ENV) is an inventory whose hosts the lab plays. `inventories/<ENV>` names the hosts, their
groups and variables; `.lab/<ENV>/inventory`, which this script writes, has their addresses and the way in.
Ansible reads both, in this order. How a host is made is in create.yml, and of what in Containerfile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

LAB = Path(__file__).resolve().parent
ROOT = LAB.parent
STATE = ROOT / ".lab"
CACHE = ROOT / ".cache"
HOST_CACHE = "/root/.cache"  # the same on a host of the lab, where the tools that root runs there look for it
BIN = ROOT / ".venv" / "bin"
PODMAN = LAB / "podman"
LABEL = "celery-fleet"
TESTS = "test-"  # environments of Molecule's scenarios, whose secrets are as hard to carry as any could be
SUITES = {"fleet": "trixie"}  # the other environments are bookworm
INOTIFY_INSTANCES = 7  # that a host's systemd and its services hold


def say(text: str) -> None:
    """Print one line of progress, at once."""
    print(f"==> {text}", flush=True)


def run(*command: str | Path) -> str:
    """Run a command and return what it printed; if it fails, end with that."""
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{shlex.join(map(str, command))} failed.")
    return done.stdout


def succeeds(*command: str | Path) -> bool:
    """Whether a command, whose output does not matter, succeeds."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def as_root(*command: str | Path) -> None:
    """Run a command as root; lab/bootstrap made sure that sudo asks for no password."""
    run(*(() if os.geteuid() == 0 else ("sudo", "-n")), *command)


def write(path: Path, content: str | dict[str, Any], mode: int = 0o644) -> None:
    """Write a file, a dict as JSON, in place: hosts have some of these mounted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode)
    path.chmod(mode)  # whatever the umask is
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))


@dataclass(frozen=True)
class Env:
    """One environment: which inventory it plays, on which Debian, and where its files are."""

    name: str
    inventory: str
    suite: str
    image: str

    @classmethod
    def load(cls, name: str, inventory: str | None = None, suite: str | None = None) -> Env:
        """An environment by name: what is asked for, else what it was made with, else the default."""
        file = STATE / name / "env.json"
        saved = json.loads(file.read_text()) if file.exists() else {}
        if suite and saved and suite != saved["suite"]:
            sys.exit(f"ENV={name} has {saved['suite']}: run `make down ENV={name}` before you make another.")
        return cls(
            name,
            inventory or saved.get("inventory") or f"inventories/{name}",
            suite or saved.get("suite") or SUITES.get(name, "bookworm"),
            # Hosts keep the image that they were made from: with another, podman would make them anew.
            saved.get("image", ""),
        )

    @property
    def dir(self) -> Path:
        """Where its files are."""
        return STATE / self.name

    @property
    def overlay(self) -> Path:
        """The lab's part of its inventory."""
        return self.dir / "inventory"

    @property
    def vault(self) -> Path:
        """Its passwords, encrypted."""
        return self.overlay / "group_vars" / "all" / "vault.yml"

    @property
    def id(self) -> str:
        """What its hosts and network are called; clones on one machine may run tests side by side."""
        clone = hashlib.sha256(bytes(ROOT)).hexdigest()[:4]
        return f"{self.name}-{clone}" if self.name.startswith(TESTS) else self.name

    @property
    def network(self) -> str:
        """The name of its podman network."""
        return f"{LABEL}-{self.id}"

    @property
    def ansible_args(self) -> list[str]:
        """What `ansible` and `ansible-playbook` need to reach it, from the project's folder."""
        lab = self.dir.relative_to(ROOT)
        vault = f"--vault-password-file={lab}/vault-password"
        return ["-i", self.inventory, "-i", f"{lab}/inventory", vault]

    def container(self, host: str) -> str:
        """The name of the container that plays a host."""
        return f"{self.id}-{host}"


# --- what an environment is made of -----------------------------------------------------------------------


def networks() -> Iterator[tuple[str, Path, IPv4Network]]:
    """The networks of all environments on this machine: name, clone that made it, and addresses."""
    if shutil.which("podman"):
        # in one question: another clone may be removing its own meanwhile
        listing = run(PODMAN, "network", "ls", f"--filter=label={LABEL}", "--format=json")
        for network in json.loads(listing) or ():
            yield (
                network["name"],
                Path(network["labels"][LABEL]),
                IPv4Network(network["subnets"][0]["subnet"]),
            )


def find_network(env: Env) -> IPv4Network | None:
    """The addresses of the environment's network, if it has one; refuse one of another clone."""
    for name, clone, addresses in networks():
        if not clone.is_dir():  # the clone was deleted, and left this
            remove_network(name)
        elif name == env.network:
            if clone != ROOT:
                sys.exit(
                    f"ENV={env.name} belongs to the clone in {clone}: run `make down ENV={env.name}` there."
                )
            return addresses
    return None


def remove_network(name: str) -> None:
    """Remove an environment's network, and the hosts that are on it."""
    remove_hosts(name.removeprefix(f"{LABEL}-"))
    if not succeeds(PODMAN, "network", "rm", name) and succeeds(PODMAN, "network", "exists", name):
        run(PODMAN, "network", "rm", name)  # again, for what it says


def make_network(env: Env) -> IPv4Network:
    """Make the environment's network, on addresses that podman finds free; return them."""
    if not (addresses := find_network(env)):
        run(PODMAN, "network", "create", "--disable-dns", f"--label={LABEL}={ROOT}", env.network)
        return make_network(env)
    return addresses


def assign_addresses(hosts: list[str], network: IPv4Network, taken: dict[str, str]) -> dict[str, str]:
    """Give each host an address: the one it has, else the next that is free.

    >>> assign_addresses(["a", "c", "b"], IPv4Network("10.0.0.0/24"), {"b": "10.0.0.11"})
    {'a': '10.0.0.12', 'c': '10.0.0.13', 'b': '10.0.0.11'}
    """
    kept = {host: taken[host] for host in hosts if host in taken and IPv4Address(taken[host]) in network}
    free = (str(address) for address in list(network)[11:] if str(address) not in kept.values())
    return {host: kept.get(host) or next(free) for host in hosts}


def write_inventory(env: Env, network: IPv4Network, image: str) -> None:
    """Write the lab's part of the inventory: how each host is made, and how it is reached."""
    listing = json.loads(run("ansible-inventory", "-i", env.inventory, "--list"))
    of_hosts = {file.stem: json.loads(file.read_text()) for file in env.overlay.glob("host_vars/*.json")}
    taken = {host: variables["ansible_host"] for host, variables in of_hosts.items()}
    addresses = assign_addresses(list(listing["_meta"]["hostvars"]), network, taken)

    write(env.overlay / "hosts.json", {"all": {"hosts": dict.fromkeys(addresses)}})
    common: dict[str, Any] = {
        "lab_env": env.id,
        "lab_image": image,
        "lab_network": env.network,
        "fleet_local_dir": str(env.dir / "local"),
    }
    if index := (ROOT / ".venv" / "index").read_text().strip():
        common["celery_app_index_url"] = index
    write(env.overlay / "group_vars" / "all" / "lab.json", common)

    shutil.rmtree(env.overlay / "host_vars", ignore_errors=True)
    for host, address in addresses.items():
        apt = CACHE / "apt" / env.container(host)  # one a host, since apt locks it
        apt.mkdir(parents=True, exist_ok=True)
        variables = {
            "ansible_host": address,
            "ansible_user": "deploy",
            "ansible_ssh_common_args": shlex.join(["-F", f"{env.dir}/ssh_config"]),
            "lab_container": env.container(host),
            "lab_volumes": [
                f"{env.dir}/id_ed25519.pub:/etc/lab/authorized_keys:ro",
                f"{env.dir}/hosts:/etc/hosts:ro",
                f"{apt}:/var/cache/apt/archives",
                f"{CACHE}/hosts:{HOST_CACHE}",
            ],
        }
        write(env.overlay / "host_vars" / f"{host}.json", variables)
    names = {"localhost": "127.0.0.1", **addresses}
    write(env.dir / "hosts", "".join(f"{address} {host}\n" for host, address in names.items()))
    write(env.dir / "ssh_config", "\n".join(ssh_stanza(env, *item) for item in addresses.items()))


def ssh_stanza(env: Env, host: str, address: str) -> str:
    """How ssh reaches a host: by a process in its container, so with no route, and with its network cut."""
    container = env.container(host)
    return f"""\
Host {host} {address}
  ProxyCommand {shlex.quote(str(PODMAN))} exec -i {container} /usr/sbin/sshd -i
  User deploy
  IdentityFile "{env.dir}/id_ed25519"
  IdentitiesOnly yes
  # a host is made anew each time, and its key with it
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ControlMaster auto
  ControlPersist 10m
  ControlPath ~/.ansible/cp/lab-{container}
"""


def make_secrets(env: Env) -> None:
    """Make the environment's passwords, and later those that a newer project adds."""
    password = env.dir / "vault-password"
    if not password.exists():
        write(password, secrets.token_urlsafe(32) + "\n", 0o600)
    playbook = ROOT / "playbooks" / "secrets.yml"
    sources = (playbook, ROOT / "roles" / "preflight" / "meta" / "argument_specs.yml")
    if env.vault.exists() and all(env.vault.stat().st_mtime > file.stat().st_mtime for file in sources):
        return
    say("Making the passwords that are missing")
    variables = json.dumps({"fleet_secrets_file": str(env.vault)})
    run("ansible-playbook", "--vault-password-file", password, "-e", variables, playbook)
    if env.name.startswith(TESTS):
        run("python3", ROOT / "tests" / "fleet" / "hostile_secrets.py", env.vault, password)
    env.vault.touch()


def play(env: Env, playbook: str | Path, *arguments: str) -> list[tuple[str, str]]:
    """Run a playbook; return the host and the name of each task that changed something."""
    with tempfile.NamedTemporaryFile("r") as recap:
        variables = os.environ | {
            "LAB_ENV": env.name,
            "LAB_RECAP": recap.name,
            "ANSIBLE_CALLBACK_PLUGINS": f"{LAB}/callback_plugins",
        }
        command = ["ansible-playbook", *env.ansible_args, *arguments, playbook]
        if failed := subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode:
            sys.exit(failed)
        return [(host, task) for host, task in json.load(recap)]


def containers(env_id: str = "", *arguments: str) -> set[str]:
    """The containers that run, of one environment or of all; with --all those that are stopped as well."""
    if not shutil.which("podman"):
        return set()
    label = f"{LABEL}={env_id}" if env_id else LABEL
    return set(run(PODMAN, "ps", f"--filter=label={label}", "--format={{.Names}}", *arguments).split())


# --- commands ---------------------------------------------------------------------------------------------


def prepare(env: Env) -> None:
    """Make all that hosts need before they boot; what is there stays."""
    if not (ROOT / env.inventory).is_dir():
        sys.exit(f"ENV={env.name} needs the folder {env.inventory}, which is not there.")
    env.dir.mkdir(parents=True, exist_ok=True)
    env.dir.chmod(0o700)
    CACHE.mkdir(exist_ok=True)
    as_root("mkdir", "-p", CACHE / "hosts")  # root's, since pip trusts no cache of another's
    image = env.image or run(LAB / "image", env.suite).strip()
    network = make_network(env)
    if not (key := env.dir / "id_ed25519").exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {env.name}", "-f", key)
    write_inventory(env, network, image)
    write(env.dir / "env.json", {"inventory": env.inventory, "suite": env.suite, "image": image})
    make_secrets(env)


def create(env: Env) -> None:
    """Prepare the environment and boot its hosts."""
    prepare(env)
    wanted = {env.container(file.stem) for file in env.overlay.glob("host_vars/*.json")}
    if wanted <= containers(env.id):
        return
    most = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text()) // INOTIFY_INSTANCES
    if len(wanted | containers()) > most:
        sys.exit(f"The sysctl fs.inotify.max_user_instances is enough for {most} hosts: raise it for more.")
    say(f"Booting {', '.join(sorted(wanted))}")
    play(env, LAB / "create.yml")


def up(env: Env) -> None:
    """Make a fleet of the environment, prove it, and say how to use it."""
    create(env)
    say("Running site.yml")
    changed = play(env, "site.yml")
    say("Proving the fleet: a task on every queue")
    play(env, "playbooks/health.yml")
    did = f"{len(changed)} tasks changed something" if changed else "nothing changed"
    say(f"ENV={env.name} is up: {did}.")
    introduce(env)


def introduce(env: Env) -> None:
    """Say where Flower is, and what to try next."""
    import yaml  # .venv has it; the commands that take down run without

    select = "" if env.name == "single" else f" ENV={env.name}"
    listing = json.loads(run("ansible-inventory", *env.ansible_args, "--list"))
    defaults = yaml.safe_load((ROOT / "roles/flower/defaults/main.yml").read_text())
    flower = defaults | listing["_meta"]["hostvars"][listing["flower"]["hosts"][0]]
    print(f"""
Flower    https://{flower["ansible_host"]}:{flower["flower_port"]}/
user      {flower["flower_username"]}
password  make -s lab-secret NAME=flower{select}
its CA    .lab/{env.name}/local/pki/ca.crt

Try next:
  ssh -F .lab/{env.name}/ssh_config {listing["workers"]["hosts"][0]} sudo fleet-celery status
  .venv/bin/ansible $(make -s lab-args{select}) workers --become -a 'systemctl status celery.target'
  .venv/bin/ansible-playbook $(make -s lab-args{select}) playbooks/health.yml
""")


def no_change(env: Env) -> None:
    """Run site.yml in check mode; fail if it reports a change."""
    if changed := play(env, "site.yml", "--check"):
        sys.exit("\n".join(["Check mode would change:", *(f"  {task} [{host}]" for host, task in changed)]))


def args(env: Env) -> None:
    """Print what `ansible` and `ansible-playbook` need to reach the environment."""
    if not (env.dir / "env.json").exists():
        sys.exit(f"The lab has no ENV={env.name}: make it with `make up ENV={env.name}`.")
    print(shlex.join(env.ansible_args))


def secret(env: Env, name: str) -> None:
    """Print one secret of the environment."""
    import yaml

    password = f"--vault-password-file={env.dir}/vault-password"
    found = yaml.safe_load(run("ansible-vault", "view", password, env.vault))["fleet_secrets"]
    if name not in found:
        sys.exit(f"ENV={env.name} has no secret '{name}': NAME is one of {', '.join(sorted(found))}.")
    print(found[name])


def remove_hosts(env_id: str) -> None:
    """Remove the hosts of an environment."""
    if hosts := containers(env_id, "--all"):
        run(PODMAN, "rm", "--force", "--ignore", "--volumes", "--time=0", *hosts)
        say(f"Removed {', '.join(sorted(hosts))}")


def destroy_hosts(env: Env) -> None:
    """Remove the hosts; what `prepare` made stays."""
    remove_hosts(env.id)


def destroy(env: Env) -> None:
    """Remove the hosts, their network and the environment's files."""
    if find_network(env):
        remove_network(env.network)
    shutil.rmtree(env.dir, ignore_errors=True)
    if STATE.exists() and not any(STATE.iterdir()):
        STATE.rmdir()


def destroy_all() -> None:
    """Remove every environment."""
    for path in sorted(STATE.glob("*/")):
        destroy(Env.load(path.name))


def clean() -> None:
    """Remove every environment, the images, the caches and .venv."""
    destroy_all()
    if shutil.which("podman"):
        run(PODMAN, "image", "prune", "--all", "--force", f"--filter=label={LABEL}")
    as_root("rm", "-rf", STATE, CACHE, ROOT / ".venv")


def main() -> None:
    """Run one command."""
    os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"  # as in the Makefile
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    subparsers = parser.add_subparsers(required=True)
    commands = (prepare, create, up, no_change, args, secret, destroy_hosts, destroy, destroy_all, clean)
    for command in commands:
        one = subparsers.add_parser(command.__name__.replace("_", "-"), help=command.__doc__)
        one.set_defaults(command=command)
        if "env" in command.__annotations__:
            one.add_argument("env", help="name of the environment")
            one.add_argument("--inventory", default=os.environ.get("LAB_INVENTORY"), help="its folder")
            one.add_argument("--suite", default=os.environ.get("LAB_SUITE"), help="name of its Debian")
        if "name" in command.__annotations__:
            one.add_argument("name", help="name of the secret")
    options = vars(parser.parse_args())
    run_command = options.pop("command")
    if "env" in options:
        options["env"] = Env.load(options["env"], options.pop("inventory"), options.pop("suite"))
    run_command(**options)


if __name__ == "__main__":
    main()

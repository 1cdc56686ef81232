"""Checks docker-compose.yml: that a published parser of the Compose specification accepts it, and
that its images, ports, commands and variables are those that ops/up takes from system.conf.

usage: compose.py [COMPOSE-FILE]      exit 1, naming every difference, when there is one
"""

import json
import pathlib
import re
import sys

from compose_spec import PyOptions

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCAL = ROOT / "ops" / "local"

# What an @name of system.conf is called inside the compose network. A name that is not here is a
# secret, a path or a network: its variable must be there, its value is compose's own.
ADDRESSES = {
    "database_url": ("postgres", "@postgres:{port}/jobseal"),
    "redis_url": ("redis", "redis://redis:{port}"),
    "kafka_brokers": ("kafka", "kafka:{port}"),
    "rpc_url": ("anvil", "http://anvil:{port}"),
    "jobs_url": ("jobs-api", "http://jobs-api:{port}"),
    "relayer_url": ("relayer-api", "http://relayer-api:{port}"),
    "metering_url": ("metering-api", "http://metering-api:{port}"),
    "webhooks_url": ("webhooks-api", "http://webhooks-api:{port}"),
}
SERVICE_PORTS = {"kafka": "KAFKA_LISTENERS", "kong": "KONG_PROXY_LISTEN"}


def read_system():
    """The sections of system.conf, in order, each a dictionary."""
    system, section = {}, None
    for line in (LOCAL / "system.conf").read_text().splitlines():
        if match := re.fullmatch(r"\[([a-z-]+)\]", line):
            section = system.setdefault(match[1], {})
        elif match := re.fullmatch(r"([A-Za-z_]+) = (.*)", line):
            section[match[1]] = match[2]
    return system


def read_compose(path):
    """The services as the parser understands them, anchors and merges resolved."""
    compose = PyOptions(apply_merge=True).from_yaml(path.read_text())
    compose.validate()
    return compose.to_dict()


def words(command):
    return command.split() if isinstance(command, str) else list(command or [])


def environment(service):
    """Variables as strings; NAME_FILE counts as NAME where the entry point reads it."""
    read_by_entry_point = re.search(
        r"FROM_FILE=\(([^)]*)\)", (LOCAL / "container.sh").read_text()
    )[1].split()
    found = {}
    for name, value in (service.get("environment") or {}).items():
        if name.endswith("_FILE") and name[:-5] in read_by_entry_point:
            name = name[:-5]
        found[name] = "" if value is None else str(value)
    return found


def published(service):
    """Container ports published to the host, with the host's port."""
    for port in service.get("ports") or []:
        if isinstance(port, dict):
            yield str(port.get("published")), str(port.get("target"))
        else:
            host, target = str(port).rsplit(":", 2)[-2:]
            yield host, target.split("/")[0]


class Check:
    """Collects differences, so that one run names them all."""

    def __init__(self, system, services):
        self.system = system
        self.services = services
        self.differences = []

    def differ(self, where, what, expected, found):
        if expected != found:
            self.differences.append(f"{where}: {what} is {found!r}, ops/up has {expected!r}")

    def expect(self, truth, message):
        if not truth:
            self.differences.append(message)

    def address(self, name):
        section, pattern = ADDRESSES[name]
        return pattern.format(port=self.system[section]["port"])

    def process(self, name, settings):
        service = self.services[name]
        self.differ(name, "command", settings["command"].split(), words(service.get("command")))
        variables = {k: v for k, v in self.system["common"].items() if k.isupper()}
        variables |= {k: v for k, v in settings.items() if k.isupper()}
        expected = set(variables) | {"ADMIN_LISTEN"} | ({"LISTEN"} if "port" in settings else set())
        found = environment(service)
        for variable in sorted(expected ^ set(found)):
            where = "missing" if variable in expected else "not in system.conf"
            self.differences.append(f"{name}: {variable} is {where}")
        for variable, key in (("LISTEN", "port"), ("ADMIN_LISTEN", "admin")):
            if key in settings:
                address = f"0.0.0.0:{settings[key]}"
                self.differ(name, variable, address, found.get(variable))
        for variable, value in variables.items():
            if variable in found and not value.startswith("@"):
                self.differ(name, variable, value, found.get(variable))
            elif value[1:] in ADDRESSES and variable in found:
                address = self.address(value[1:])
                self.expect(
                    found[variable].endswith(address),
                    f"{name}: {variable} is {found[variable]!r}, expected {address!r}",
                )
        probe = words((service.get("healthcheck") or {}).get("test"))
        self.differ(name, "health check", settings["admin"], probe[-1] if probe else None)

    def service(self, name, settings):
        service = self.services[name]
        self.differ(name, "image", settings["image"], service.get("image"))
        self.expect(service.get("healthcheck"), f"{name}: no health check")
        if name in SERVICE_PORTS:
            listen = environment(service).get(SERVICE_PORTS[name], "")
            self.expect(
                re.search(rf":{settings['port']}\b", listen),
                f"{name}: {SERVICE_PORTS[name]} is {listen!r}, ops/up has port {settings['port']}",
            )

    def ports(self, name, settings):
        known = {settings.get("port"), settings.get("admin")}
        for host, target in published(self.services[name]):
            self.differ(name, "published port", target, host)
            self.expect(target in known, f"{name}: publishes {target}, ops/up has {known}")

    def order(self, name):
        """A parser reads the file only; that what is waited for exists is checked here."""
        for other in self.services[name].get("depends_on") or {}:
            self.expect(other in self.services, f"{name}: depends on {other}, which is not there")

    def versions(self):
        """The versions that ops/up brings from Maven and npm are those of the images."""
        pom = (LOCAL / "kafka" / "pom.xml").read_text()
        kafka = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)<", pom)[1]
        self.differ("kafka", "version", kafka, self.tag("kafka"))
        lock = json.loads((ROOT / "contracts/solidity/package-lock.json").read_text())
        prefix = "node_modules/@foundry-rs/anvil"
        anvil = {v["version"] for k, v in lock["packages"].items() if k.startswith(prefix)}
        self.differ("anvil", "version", anvil, {self.tag("anvil")})
        manifest = (ROOT / "Cargo.toml").read_text()
        rust = re.search(r'^rust-version = "([^"]+)"', manifest, re.MULTILINE)[1]
        dockerfile = (ROOT / "ops" / "Dockerfile").read_text()
        self.expect(f"FROM rust:{rust}-" in dockerfile, f"ops/Dockerfile: not rust {rust}")
        self.flags()

    def flags(self):
        """The chain makes blocks in both places as `finalized` needs them."""
        script = (LOCAL / "services.sh").read_text()
        command = " ".join(words(self.services["anvil"].get("command")))
        for flag in ("--block-time", "--slots-in-an-epoch", "--prune-history"):
            value = re.search(rf"{flag} (\S+)", script)[1]
            self.expect(f"{flag} {value}" in command, f"anvil: {flag} is not {value}")

    def tag(self, name):
        return self.services[name].get("image", ":").rsplit(":", 1)[-1]

    def run(self):
        for name, settings in self.system.items():
            if name == "common":
                continue
            if name not in self.services:
                self.differences.append(f"{name}: missing in the compose file")
                continue
            if "command" in settings:
                self.process(name, settings)
            else:
                self.service(name, settings)
            self.ports(name, settings)
        for name in self.services:
            self.order(name)
        extra = set(self.services) - set(self.system) - {"setup"}
        self.expect(not extra, f"not in system.conf: {sorted(extra)}")
        self.versions()
        return self.differences


def main():
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docker-compose.yml"
    try:
        compose = read_compose(path)
    except (ValueError, TypeError, RuntimeError) as error:
        print(f"{path}: not valid by the Compose specification: {error}")
        return 1
    differences = Check(read_system(), compose["services"]).run()
    for difference in differences:
        print(difference)
    if not differences:
        print(f"{path.name}: valid, {len(compose['services'])} services agree with system.conf")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())

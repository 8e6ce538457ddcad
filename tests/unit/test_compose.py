"""Compose files are read as docker compose reads them, or rejected with the key's name."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tfdist.errors import ConfigError
from tfdist.testing import read_compose
from tfdist.testing.compose.service import Healthcheck, Volume

TF_CONFIG = '{"cluster": {"ps": ["ps-0:2222"]},  "task": {"type": "ps", "index": 0}}'
BASE = f"""\
version: "3.8"
x-task: &task
  image: tfdist
  init: true
  stop_grace_period: 1m30s
  networks: [cluster]
  healthcheck:
    test: [CMD, tfdist, status, --local]
    interval: 500ms
    retries: 7
x-variables: &variables {{A: 1, B: b}}
services:
  ps-0:
    <<: *task
    command: [tfdist, node, "${{SCRIPT:-train.py}}", --, "$$HOME"]
    environment:
      <<: *variables
      TF_CONFIG: '{TF_CONFIG}'
    volumes: [checkpoints:/srv/checkpoints, ..:/srv/job:ro]
    tmpfs: /tmp
  board:
    image: board
    hostname: b
    command: board --logdir "/srv/a b"
    profiles: [board]
    depends_on: [ps-0]
    ports: ["127.0.0.1:6006:6006"]
networks:
  cluster: {{internal: true}}
volumes:
  checkpoints:
"""

Write = Callable[..., list[Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the files of a project, base first, and returns their paths."""

    def files(*texts: str) -> list[Path]:
        (tmp_path / "docker").mkdir(exist_ok=True)
        paths = [tmp_path / "docker" / f"{number}.yaml" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        return paths

    return files


def test_a_file_defines_its_services(write, tmp_path):
    file = read_compose(write(BASE), environ={})
    assert list(file.services) == ["ps-0"]
    ps = file.services["ps-0"]
    assert ps.command == ("tfdist", "node", "train.py", "--", "$HOME")
    assert ps.environment == {"A": "1", "B": "b", "TF_CONFIG": TF_CONFIG}
    assert ps.volumes == (
        Volume("checkpoints", "/srv/checkpoints", is_bind=False),
        Volume(str(tmp_path), "/srv/job", read_only=True),
    )
    assert ps.healthcheck == Healthcheck(("tfdist", "status", "--local"), 0.5, retries=7)
    assert (ps.name, ps.hostname, ps.image, ps.init) == ("ps-0", "ps-0", "tfdist", True)
    assert (ps.stop_grace_secs, ps.tmpfs, ps.networks) == (90.0, ("/tmp",), ("cluster",))
    assert file.networks["cluster"].internal
    assert file.volumes == ("checkpoints",)


def test_a_selected_profile_adds_its_services(write):
    board = read_compose(write(BASE), ["board"], {}).services["board"]
    assert board.hostname == "b"
    assert board.command == ("board", "--logdir", "/srv/a b")
    assert board.depends_on == {"ps-0": "service_started"}
    assert board.networks == ("default",)
    assert board.ports == ("127.0.0.1:6006:6006",)
    assert board.stop_grace_secs == 10.0


def test_a_later_file_overrides_an_earlier_one(write, tmp_path):
    override = """\
services:
  ps-0:
    command: [python]
    environment: ["B=${NEW}", "C=$$x", FROM_HERE, NOT_HERE]
    healthcheck: {interval: 2s}
    volumes:
      - {type: bind, source: ./here, target: /srv/job}
      - /usr:/usr:ro
    tmpfs: [/run]
    working_dir: /srv/job
"""
    environ = {"NEW": "new", "FROM_HERE": "h"}
    ps = read_compose(write(BASE, override), environ=environ).services["ps-0"]
    assert ps.command == ("python",)
    assert ps.environment == {
        **{"A": "1", "B": "new", "C": "$x", "FROM_HERE": "h"},
        "TF_CONFIG": TF_CONFIG,
    }
    assert ps.healthcheck == Healthcheck(("tfdist", "status", "--local"), 2.0, retries=7)
    assert ps.volumes == (
        Volume("checkpoints", "/srv/checkpoints", is_bind=False),
        Volume(str(tmp_path / "docker/here"), "/srv/job"),
        Volume("/usr", "/usr", read_only=True),
    )
    assert (ps.tmpfs, ps.working_dir, ps.image) == (("/tmp", "/run"), "/srv/job", "tfdist")


@pytest.mark.parametrize(
    ("value", "environ", "read"),
    [
        ("$A-$A", {"A": "x"}, "x-x"),
        ("${A:-d}${B-d}", {"A": "", "B": ""}, "d"),
        ("${A:-}|${B-e f}", {}, "|e f"),
        ("${A:?why}", {"A": "x"}, "x"),
        ("$$A $${A}", {}, "$A ${A}"),
    ],
)
def test_variables_are_replaced(write, value, environ, read):
    paths = write(f"services: {{a: {{environment: {{V: '{value}'}}}}}}")
    assert read_compose(paths, environ=environ).services["a"].environment == {"V": read}


@pytest.mark.parametrize(
    ("text", "field", "rule"),
    [
        ("services: {a: {cpus: 2}}", "0.yaml: services.a.cpus", "not supported here"),
        ("services: {a: {healthcheck: {start_interval: 1s}}}", ".start_interval", "not supported"),
        (
            "services: {a: {depends_on: {b: {required: true}}}}",
            "a.depends_on.b.required",
            "supported",
        ),
        ("networks: {n: {driver: overlay}}", "0.yaml: networks.n.driver", "not supported here"),
        ("configs: {}", "0.yaml: configs", "not supported here"),
        (
            "services: {a: {command: }}",
            "services.a.command",
            "must have a value, or leave out the key",
        ),
        ("services: {a: {environment: {V: yes}}}", "compose file", "line 1: yes is ambiguous"),
        ("services: {a: {environment: {V: 012}}}", "compose file", "ambiguous"),
        ("services: {a: {environment: {V: 12:30}}}", "compose file", "ambiguous"),
        ("services: {a: {environment: {V: true}}}", "services.a.environment.V", "quotes"),
        ("services:\n a: {}\n a: {}", "compose file", "line 3: duplicate key 'a'"),
        ("services: {a: {command: !reset []}}", "compose file", "!reset"),
        ("services: [", "compose file", "line 1"),
        ("[]", "0.yaml", "a mapping"),
        ("services: {a: {init: maybe}}", "services.a.init", "true or false"),
        ("services: {a: {stop_grace_period: 5}}", "a.stop_grace_period", "a duration such as"),
        ("services: {a: {healthcheck: {test: [date]}}}", "a.healthcheck.test", "[CMD, PROGRAM"),
        (
            "services: {a: {healthcheck: {interval: 5s}}}",
            "services.a",
            "a key 'test' in healthcheck",
        ),
        ("services: {a: {volumes: [/data]}}", "services.a.volumes[0]", "SOURCE:TARGET"),
        ("services: {a: {volumes: ['/a:/b:z']}}", "services.a.volumes[0]", "SOURCE:TARGET"),
        ("services: {a: {volumes: ['b:/b']}}", "services.a.volumes", "one of none"),
        ("services: {a: {networks: [n]}}", "services.a.networks", "one of none"),
        ("services: {a: {depends_on: [b]}}", "services.a.depends_on", "one of a"),
        (
            "services: {a: {depends_on: [b]}, b: {depends_on: [a]}}",
            "depends_on",
            "must not lead back",
        ),
        ("services: {a: {working_dir: here}}", "services.a.working_dir", "an absolute path"),
        ("services: {a: {command: '$NOT_SET'}}", "services.a.command", "NOT_SET is not set"),
        ("services: {a: {command: '${B:?say it}'}}", "services.a.command", "B is not set: say it"),
        ("services: {a: {command: '${B:+c}'}}", "services.a.command", "write $$"),
        ("services: {a: {command: 'cost 5$'}}", "services.a.command", "write $$"),
    ],
)
def test_a_wrong_value_or_unsupported_key_is_rejected_by_name(write, text, field, rule):
    with pytest.raises(ConfigError) as error:
        read_compose(write(text), environ={})
    assert error.value.field.endswith(field)
    assert rule in str(error.value)


def test_the_error_names_the_file_that_has_the_unsupported_key(write):
    with pytest.raises(ConfigError, match=r"1\.yaml: services\.ps-0\.cpus"):
        read_compose(write(BASE, "services: {ps-0: {cpus: 2}}"), environ={})


def test_a_wrong_profile_a_missing_file_and_a_dotenv_file_are_rejected(write, tmp_path):
    paths = write(BASE)
    with pytest.raises(ConfigError, match="one of the files' profiles: board"):
        read_compose(paths, ["bord"], {})
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        read_compose([*paths, tmp_path / "missing.yaml"], environ={})
    with pytest.raises(ConfigError, match="a list"):
        read_compose(str(paths[0]))
    (tmp_path / "docker/.env").touch()
    with pytest.raises(ConfigError, match=r"\.env"):
        read_compose(paths, environ={})


def as_docker_compose_has_it(paths: list[Path]) -> dict[str, Any]:
    """The merged project as docker-compose prints it."""
    files = [argument for path in paths for argument in ("-f", str(path))]
    command = ["docker-compose", *files, "--profile", "board", "config"]
    environ = {**os.environ, "NEW": "new"}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    return yaml.safe_load(ended.stdout)


def undoubled(value: object) -> str:
    """`docker-compose config` doubles each dollar, so that it can read its own output."""
    return str(value).replace("$$", "$")


def test_docker_compose_merges_two_files_to_the_same_services(write):
    if shutil.which("docker-compose") is None:
        assert "CI" not in os.environ, "no docker-compose: apt-get install docker-compose"
        pytest.skip("no docker-compose here: apt-get install docker-compose")
    override = """\
services:
  ps-0:
    command: [python]
    environment: ["B=${NEW}", "C=$$x"]
    healthcheck: {interval: 2s}
    volumes: ["./here:/srv/job"]
    tmpfs: [/run]
  board:
    depends_on: {ps-0: {condition: service_healthy}}
"""
    paths = write(BASE, override)
    theirs = as_docker_compose_has_it(paths)["services"]
    ours = read_compose(paths, ["board"], {"NEW": "new"}).services
    assert set(theirs) == set(ours)
    for name, service in ours.items():
        other = theirs[name]
        command = other["command"]
        words = shlex.split(command) if isinstance(command, str) else command
        assert [undoubled(word) for word in words] == list(service.command)
        variables = {key: undoubled(value) for key, value in other.get("environment", {}).items()}
        assert variables == service.environment
        mounts = {
            f"{volume.source}:{volume.target}:{'ro' if volume.read_only else 'rw'}"
            for volume in service.volumes
        }
        assert set(other.get("volumes", [])) == mounts
        assert set(other.get("tmpfs", [])) == set(service.tmpfs)
        conditions = {key: value["condition"] for key, value in other.get("depends_on", {}).items()}
        assert conditions == service.depends_on
    assert theirs["ps-0"]["healthcheck"]["interval"] == "2s"
    assert theirs["ps-0"]["healthcheck"]["retries"] == ours["ps-0"].healthcheck.retries

"""The files of examples/serving name paths, commands, options and ports that there are."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from xlnet_fast.cli import app
from xlnet_fast.serve.options import ServeOptions

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[2]
SERVING = ROOT / "examples" / "serving"
DOCKERFILE = re.sub(r"\\\n\s*", "", (SERVING / "Dockerfile").read_text(encoding="utf-8"))
ENTRYPOINT = SERVING / "entrypoint.sh"
COMPOSE = yaml.safe_load((SERVING / "compose.yaml").read_text(encoding="utf-8"))
SERVICE, RUNTIME = yaml.safe_load_all((SERVING / "kserve.yaml").read_text(encoding="utf-8"))


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, flags=re.MULTILINE)


def copied() -> set[str]:
    """The paths of the repository that the Dockerfile copies."""
    found = set()
    for line in instructions("COPY"):
        words = [word for word in line.split() if not word.startswith("--")]
        if "--from" not in line:
            found |= set(words[:-1])
    return found


def test_all_that_is_copied_is_there():
    assert {"csrc", "xlnet_fast", "setup.py"} <= copied()
    for path in copied():
        assert (ROOT / path).exists(), path


def test_what_is_copied_is_what_docker_is_sent():
    lines = (SERVING / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert sent == copied()
    assert lines[1] == "*"  # and nothing else


def test_the_build_needs_nothing_that_is_not_copied():
    """What setup.py and pyproject.toml read."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    read = re.findall(r'^(?:readme|license-files) = \[?"([^"]+)"', text, flags=re.MULTILINE)
    assert {*read, "setup.py", "pyproject.toml"} <= copied()


def test_the_variables_of_the_build_are_those_of_setup():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for name in set(re.findall(r"XLNET_FAST_\w+", DOCKERFILE)):
        assert name in setup, name


def test_the_torch_is_the_one_that_is_tested():
    (pinned,) = re.findall(r"^TORCH \?= torch==(\S+)", (ROOT / "Makefile").read_text(), re.M)
    assert f"TORCH={pinned}" in instructions("ARG")


def test_both_kinds_have_their_stages_and_the_last_is_not_root():
    stages = re.findall(r"^FROM (\S+) AS (\S+)", DOCKERFILE, flags=re.MULTILINE)
    names = [name for _, name in stages]
    for kind in ("cpu", "cuda"):
        assert {f"builder-{kind}", f"runtime-{kind}"} <= set(names)
    assert names[-1] == "runtime"
    assert "SERVICE_USER=10001" in instructions("ARG")
    assert instructions("USER") == ["${SERVICE_USER}"]


def entered(*words: str, folder: Path) -> list[str]:
    """What the container would start: programs of these names write down how they are called."""
    for name in ("python3", "xlnet-fast"):
        (folder / name).write_text(f'#!/bin/sh\necho {name}\nfor w in "$@"; do echo "$w"; done\n')
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", ENTRYPOINT, *words], env={"PATH": f"{folder}:/bin:/usr/bin"},
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "started"),
    [
        (["serve"], ["python3", "-m", "xlnet_fast.cli.sagemaker_serving"]),
        (["train"], ["python3", "-m", "xlnet_fast.cli.sagemaker"]),
        (["serve", "/a b", "--port", "1"], ["xlnet-fast", "serve", "/a b", "--port", "1"]),
        (["predict"], ["xlnet-fast", "predict"]),
        ([], ["xlnet-fast"]),
    ],
)
def test_one_word_is_sagemakers_and_all_else_a_command(words, started, tmp_path):
    assert entered(*words, folder=tmp_path) == started


def test_the_commands_are_there_and_take_these_options():
    (command,) = instructions("CMD")[-1:]
    calls = [json.loads(command), COMPOSE["services"]["xlnet"]["command"]]
    calls.append(RUNTIME["spec"]["containers"][0]["args"])
    known = typer.main.get_command(app).commands
    for name, *words in calls:
        options = {one for parameter in known[name].params for one in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_the_modules_that_are_started_are_there():
    for module in re.findall(r"-m (xlnet_fast[\w.]+)", ENTRYPOINT.read_text(encoding="utf-8")):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_ports_and_health_checks_agree():
    port = ServeOptions.port
    assert instructions("EXPOSE") == [str(port)]
    (health,) = instructions("HEALTHCHECK")
    assert f"127.0.0.1:{port}/healthz" in health
    program = json.loads(health[health.index("CMD ") + 4 :])
    compile(program[2], "healthcheck", "exec")
    assert shlex.split(health)[0].startswith("--interval")
    assert COMPOSE["services"]["xlnet"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    container = RUNTIME["spec"]["containers"][0]
    assert container["ports"][0]["containerPort"] == port
    paths = {container[name]["httpGet"]["path"] for name in ("readinessProbe", "startupProbe")}
    assert paths == {"/v2/health/ready"}
    for probe in ("readinessProbe", "startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port


def test_what_is_in_flight_has_time_to_end():
    assert int(COMPOSE["services"]["xlnet"]["stop_grace_period"].rstrip("s")) > ServeOptions.drain
    assert SERVICE["spec"]["predictor"]["terminationGracePeriodSeconds"] > ServeOptions.drain


def test_prometheus_asks_the_service_of_the_compose_file():
    config = yaml.safe_load((SERVING / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert host in COMPOSE["services"]
    assert int(port) == ServeOptions.port
    mounted = [one for one in COMPOSE["services"]["prometheus"]["volumes"] if one[0] == "."]
    for one in mounted:
        assert (SERVING / one.split(":")[0]).exists()


def test_the_compose_file_builds_this_dockerfile():
    build = COMPOSE["services"]["xlnet"]["build"]
    assert (SERVING / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).samefile(SERVING / "Dockerfile")
    assert {f"{name}" for name in build["args"]} <= {
        arg.split("=")[0] for arg in instructions("ARG")
    }


def test_the_runtime_reads_the_model_s_format():
    model = SERVICE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    formats = [one["name"] for one in RUNTIME["spec"]["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]

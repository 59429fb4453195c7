"""`make flink`: bring what `switchgear run --engine flink` needs from its registries.

Makes `build/flink/job-server.jar`: Beam's one-jar job server for this Beam version where the Maven
registry has it, else a jar of a few lines that names the single artefacts of `pom.xml` beside this file
(Flink 1.19; Beam's portable protocol lets an older job server run a newer Python SDK's pipelines).
With `--cluster` also a Flink distribution under `build/flink/dist`, taken from Flink's own Python
package, from which `infra/flink/cluster.py` starts a session cluster on this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

_HERE = Path(__file__).resolve().parent
TARGET = _HERE.parent.parent / "build" / "flink"
_OFFICIAL = "org.apache.beam:beam-runners-flink-2.2-job-server"
_MAIN = "org.apache.beam.runners.flink.FlinkJobServerDriver"
DISTRIBUTION = "apache-flink-libraries==1.19.3"
_DISTRIBUTION_SHA256 = "4a58e3a1fb7d83340bc96b6c080624c6d792d69fae5d294b96224775204a9c60"
_MAVEN = ("mvn", "-q", "-B", "-C")  # -C: a checksum that does not match is an error
_LIMIT_S = 900
_LINE = 72  # bytes of a manifest's line, by the JAR file specification


def main() -> int:
    """Install; exit code 3 where something is missing that this script does not install itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", action="store_true", help="also a distribution to start a cluster from")
    arguments = parser.parse_args()
    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if missing:
        print(f"flink: {' and '.join(missing)} not found: install a Java 17 runtime and Maven first")
        return 3
    TARGET.mkdir(parents=True, exist_ok=True)
    if not (TARGET / "job-server.jar").is_file():
        _install_job_server()
    print(f"flink: job server {TARGET / 'job-server.jar'}")
    if arguments.cluster:
        if not (TARGET / "dist" / "lib").is_dir():
            _install_distribution()
        print(f"flink: distribution {TARGET / 'dist'}")
    return 0


def _install_job_server() -> None:
    beam = version("apache-beam")
    official = [*_MAVEN, "dependency:get", "-Dtransitive=false", f"-Dartifact={_OFFICIAL}:{beam}"]
    if subprocess.run(official, check=False, capture_output=True, timeout=_LIMIT_S).returncode == 0:
        print(f"flink: the Maven registry has Beam's job server for {beam}")
        copy = [*_MAVEN, "dependency:copy", f"-Dartifact={_OFFICIAL}:{beam}", f"-DoutputDirectory={TARGET}"]
        subprocess.run([*copy, "-Dmdep.stripVersion=true"], check=True, timeout=_LIMIT_S)
        (TARGET / f"{_OFFICIAL.split(':')[1]}.jar").rename(TARGET / "job-server.jar")
        return
    print(f"flink: the Maven registry has no job server in one jar for Beam {beam}; taking its parts")
    listing = TARGET / "classpath.txt"
    build = [*_MAVEN, "-f", str(_HERE / "pom.xml"), "dependency:build-classpath"]
    subprocess.run([*build, f"-Dmdep.outputFile={listing}"], check=True, timeout=_LIMIT_S)
    write_job_server(TARGET / "job-server.jar", [Path(p) for p in listing.read_text("utf-8").split(":")])


def write_job_server(jar: Path, parts: list[Path]) -> None:
    """A jar without classes that names the jars it is made of and the class to start."""
    manifest = "".join(
        _folded(line)
        for line in (
            "Manifest-Version: 1.0",
            f"Main-Class: {_MAIN}",
            "Class-Path: " + " ".join(part.resolve().as_uri() for part in parts),
        )
    )
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", manifest + "\n")


def _folded(line: str) -> str:
    """A header of a manifest in lines of at most 72 bytes; what goes on begins with a space."""
    first, rest = line[: _LINE - 2], line[_LINE - 2 :]
    return "\n ".join([first, *re.findall(f".{{1,{_LINE - 3}}}", rest)]) + "\n"


def _install_distribution() -> None:
    folder = TARGET / "download"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={folder}"]
    subprocess.run([*download, "--no-binary=:all:", DISTRIBUTION], check=True, timeout=_LIMIT_S)
    archive = next(folder.glob("*.tar.gz"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != _DISTRIBUTION_SHA256:
        raise SystemExit(f"flink: {archive.name} has sha256 {digest}, expected {_DISTRIBUTION_SHA256}")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (next(folder.glob("*/deps"))).rename(TARGET / "dist")
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())

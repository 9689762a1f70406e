"""minimal.py: checks that the requirements in Cargo.toml are high enough.

In copies of the checkout, cargo resolves every direct dependency to the lowest version that Cargo.toml allows
(`-Z direct-minimal-versions`, which needs nightly); then the stable compiler checks the library, and the tests, benches
and examples.

The library is checked without the dev-dependencies, because they would raise the versions of its own dependencies. For the
tests, each requirement that both sections have is the higher one of the two, because cargo doesn't unify them otherwise.
"""

import os, re, shutil, subprocess, tomllib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = os.path.join(ROOT, "target", "minimal")
VERSION = r'(?m)^(%s = (?:\{ version = )?")[0-9.]+"'


def version(requirement):
    text = requirement["version"] if isinstance(requirement, dict) else requirement
    return tuple(int(number) for number in text.split("."))


def alone(manifest):
    """The manifest with a workspace that has no other member: the others have requirements of their own."""
    return re.sub(r"(?m)^(default-)?members = .*\n", "", manifest)


def library(manifest):
    """The manifest without what only tests, benches and examples need."""
    kept, skips = [], False
    for line in manifest.splitlines(keepends=True):
        if line.startswith("["):
            skips = line.strip() in ("[dev-dependencies]", "[[bench]]", "[[example]]", "[[test]]")
        if not skips:
            kept.append(line)
    off = "".join("auto%s = false\n" % kind for kind in ("benches", "examples", "tests"))
    return "".join(kept).replace("[package]\n", "[package]\n" + off, 1)


def tests(manifest):
    """The manifest with the dev-dependencies' requirements where those are higher."""
    parsed = tomllib.loads(manifest)
    own, dev = parsed["dependencies"], parsed["dev-dependencies"]
    for name in own.keys() & dev.keys():
        if version(dev[name]) > version(own[name]):
            higher = ".".join(map(str, version(dev[name])))
            manifest = re.sub(VERSION % re.escape(name), r'\g<1>%s"' % higher, manifest)
    return manifest


def run(*command, cwd):
    print("+", *command, flush=True)
    subprocess.run(command, cwd=cwd, check=True, env={**os.environ, "CARGO_TARGET_DIR": os.path.join(WORK, "target")})


def check(name, change, *checks):
    copy = os.path.join(WORK, name)
    shutil.rmtree(copy, ignore_errors=True)
    files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                           capture_output=True).stdout.decode().split("\0")
    for file in filter(None, files):
        if os.path.exists(os.path.join(ROOT, file)):
            os.makedirs(os.path.dirname(os.path.join(copy, file)), exist_ok=True)
            shutil.copyfile(os.path.join(ROOT, file), os.path.join(copy, file))
    path = os.path.join(copy, "Cargo.toml")
    with open(path) as manifest:
        changed = change(alone(manifest.read()))
    with open(path, "w") as manifest:
        manifest.write(changed)
    run("cargo", "+" + os.environ.get("NIGHTLY", "nightly"), "update", "--quiet", "-Z", "direct-minimal-versions", cwd=copy)
    for arguments in checks:
        run("cargo", "check", "--quiet", *arguments, cwd=copy)


check("library", library, ["--lib", "--all-features"], ["--lib", "--no-default-features"])
check("tests", tests, ["--all-targets", "--all-features"])

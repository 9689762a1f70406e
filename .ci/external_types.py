"""external_types.py: checks which types of other crates are in the public API, as public-api.txt has it.

A new major version of one of these crates is a breaking change of this one. So each type has to match an entry of
`[package.metadata.cargo_check_external_types]` in Cargo.toml, which gives the reason, and each entry a type. (The tool of
that name reads the same list; it needs the one nightly that it was made for.)
"""

import fnmatch, os, re, sys, tomllib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OWN = {"alloc", "core", "std", "tower_reverse_proxy"}
PATH = re.compile(r"(?<![\w:])[a-z_0-9]+(?:::\w+)+")


def external(line):
    """The types of other crates in one line."""
    return {path for path in PATH.findall(line) if path.split("::")[0] not in OWN and "::__private::" not in path}


def main():
    with open(os.path.join(ROOT, "Cargo.toml"), "rb") as manifest:
        metadata = tomllib.load(manifest)["package"]["metadata"]
    allowed = metadata["cargo_check_external_types"]["allowed_external_types"]
    with open(os.path.join(ROOT, "public-api.txt")) as api:
        found = set().union(*map(external, api))
    wrong = ["%s isn't listed in Cargo.toml" % path for path in sorted(found)
             if not any(fnmatch.fnmatchcase(path, entry) for entry in allowed)]
    wrong += ["%s is listed in Cargo.toml and not in the public API" % entry for entry in allowed
              if not fnmatch.filter(found, entry)]
    print("\n".join(wrong or ["%d types of %d crates" % (len(found), len({path.split("::")[0] for path in found}))]))
    return 1 if wrong or not found else 0


sys.exit(main())

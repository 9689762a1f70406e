"""kit.py NAME RUN_SH: runs a kit and holds what it says against .ci/known-failures.

A failure that isn't listed is an error. So is a listed one that passes, or that the kit doesn't have: the list only
shrinks. A run with an error is repeated once, for what a busy machine may do to a timing.
"""

import json, os, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))


def known(kit):
    """The ids that are known to fail, each with its reason."""
    ids = {}
    with open(os.path.join(HERE, "known-failures")) as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                name, case, reason = line.split(None, 2)
                if name == kit:
                    ids[case] = reason.strip()
    return ids


def run(kit, command):
    """Runs the kit; returns {id: (status, why)}. Raises if it didn't come to its end."""
    path = os.path.abspath(os.path.join("target", kit + ".json"))
    if os.path.exists(path):
        os.remove(path)
    code = subprocess.run([command, "--json", path]).returncode
    if code not in (0, 1) or not os.path.exists(path):
        raise RuntimeError("%s ended with %d and no result: not installed, or the gateway doesn't answer" % (kit, code))
    with open(path) as result:
        result = json.load(result)
    if kit == "gauntlet":
        return {case["id"]: (case["result"], case["reason"]) for case in result["cases"]}
    if kit == "chaos":
        return {case["case"]: (case["result"], case["reason"]) for case in result["results"]}
    return {check["name"]: ("FAIL (optional)" if check["optional"] and check["status"] == "FAIL" else check["status"],
                            check["why"]) for check in result["results"]}


def errors(kit, results):
    listed = known(kit)
    for case, (status, why) in results.items():
        if case in listed:
            if status in ("PASS", "WARN"):
                yield "%s passes: take it off the list" % case
        elif status == "FAIL":
            yield "%s fails: %s" % (case, why)
        elif status == "SKIP":
            yield "%s was skipped: %s" % (case, why)
    for case in listed:
        if case not in results:
            yield "%s is listed and unknown to the kit" % case


def main():
    kit, command = sys.argv[1:]
    for attempt in (1, 2):
        try:
            wrong = list(errors(kit, run(kit, command)))
        except RuntimeError as error:
            wrong = [str(error)]
        if not wrong:
            return 0
        print("\n".join("%s, attempt %d: %s" % (kit, attempt, line) for line in wrong), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""public_api.py: the output of cargo-public-api from stdin, with each item once.

An item that the root re-exports from a public module is listed in both places there; here it is listed under the root.
"""

import re, sys

lines = sys.stdin.read().splitlines()
roots = set(re.findall(r"(?m)^pub (?:enum|struct|trait) tower_reverse_proxy::(\w+)", "\n".join(lines)))
seen = set()
for line in lines:
    line = re.sub(r"\btower_reverse_proxy::[a-z_]+::([A-Z]\w*)",
                  lambda path: "tower_reverse_proxy::" + path[1] if path[1] in roots else path[0], line)
    if line not in seen:
        seen.add(line)
        print(line)

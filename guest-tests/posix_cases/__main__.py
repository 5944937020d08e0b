# SPDX-License-Identifier: Apache-2.0
"""Runs in the guest: python3 .../posix_cases DIRECTORY IDENTITY NAME... prints outcomes as JSON.

Each NAME is that of a case or of a file of cases.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from posix_cases import attributes, data, kit, locks, names, owners, set_id

MODULES = {
    "names": names,
    "owners": owners,
    "attributes": attributes,
    "data": data,
    "locks": locks,
    "set_id": set_id,
}


def main() -> None:
    """Run as the identity, in a directory that it may write to."""
    folder, identity, *chosen = sys.argv[1:]
    who = kit.IDENTITIES[identity]
    cases = [
        case
        for name, module in MODULES.items()
        for case in module.CASES.list
        if {name, case.__name__} & {*chosen}
    ]
    where = Path(folder) / identity
    where.mkdir(exist_ok=True)
    os.chown(where, who.uid, who.gid)
    kit.become(who)
    json.dump(kit.run(cases, where), sys.stdout)


main()

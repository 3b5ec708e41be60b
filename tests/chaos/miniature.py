"""A few kills, damaged files and a full disk for one launcher: `python tests/chaos/miniature.py FOLDER`."""

import sys
from dataclasses import replace
from pathlib import Path

from tests.chaos.commands import Materials
from tests.chaos.damage import damage_each, readers
from tests.chaos.full_disk import fill_the_disk, take_own_mounts
from tests.chaos.kills import kill_again_and_again
from tests.chaos.table import write_table

if __name__ == "__main__":
    folder, small_disks = Path(sys.argv[1]), take_own_mounts()
    materials = Materials(folder / "materials")
    materials.make(set(), print)
    verify = replace(readers(materials)[0], files=("catalog.parquet",))
    build = materials.commands("kills")["build_shards"]
    rows = [kill_again_and_again(build, None, 2, 0), damage_each(verify, folder / "verify", 1, 0)]
    if small_disks:
        rows.append(fill_the_disk(materials.commands("disk")["build_shards"], parts=(0.5,)))
    print(write_table(folder, rows, {}))

"""How long, and in how much memory, from a file of N interactions to the CSR arrays?

    python -m benchmarks.data_preparation --interactions 20000000

Makes a log in the shape of ML-20M (138 interactions a user, 740 an item, in time
order) in a temporary folder, and reads it with `datasets.load`, filters off, split by
leave-one-out: once from each kind of file, each time in a new process. Seconds are of
the process from its first import to the Split; the peak is of its resident memory.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import options
from jaxrec import record
from jaxrec.command import run_command
from jaxrec.errors import InputError

# What ids and times are in the file -> what its records are called.
KINDS = {
    "integers": "integer ids, times in integer seconds",
    "text": "string ids of 13 and 36 characters, datetimes",
    "iso": "string ids of 13 and 36 characters, ISO 8601 times",
}
FILES = (
    ("integers", ".parquet"),
    ("text", ".parquet"),
    ("integers", ".csv"),
    ("iso", ".csv"),
)
INTERACTIONS_A_USER, INTERACTIONS_AN_ITEM = 138, 740
START_S, YEARS_S = 1_104_537_600, 10 * 31_536_000
# The bars of a Parquet file of that many interactions.
BAR_INTERACTIONS, BAR_S, BAR_MB = 20_000_000, 30.0, 4096
_CHUNK_ROWS = 1_000_000
RESULTS = Path(__file__).parent / "results"


def make(path: Path, num_interactions: int, kind: str) -> None:
    """Writes the log, a million rows at a time; the same for every kind of file."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    num_users = num_interactions // INTERACTIONS_A_USER
    num_items = num_interactions // INTERACTIONS_AN_ITEM
    # Activity and popularity are log-normal; ids are not in their order.
    user_share = np.cumsum(rng.lognormal(0, 1, num_users))
    item_share = np.cumsum(rng.lognormal(0, 2, num_items))
    user_ids, item_ids = rng.permutation(num_users), rng.permutation(num_items)
    if kind != "integers":
        user_ids = np.array([f"{n:08x}-6c1e-4f3a-9b57-{n:012x}" for n in user_ids])
        item_ids = np.array([f"sku-{n:09d}" for n in item_ids])
    writer = None
    for first in range(0, num_interactions, _CHUNK_ROWS):
        size = min(_CHUNK_ROWS, num_interactions - first)
        time_I = START_S + YEARS_S * (first + np.arange(size)) // num_interactions
        user_I = np.searchsorted(user_share, rng.random(size) * user_share[-1])
        item_I = np.searchsorted(item_share, rng.random(size) * item_share[-1])
        times = pa.array(time_I)
        if kind != "integers":
            times = times.cast(pa.timestamp("s"))
        table = pa.table(
            {
                "ts": times,
                "rating": rng.integers(1, 6, size),
                "sku": item_ids[item_I],
                "customer": user_ids[user_I],
            }
        )
        if writer is None:
            make_writer = (
                pyarrow.csv.CSVWriter
                if path.suffix == ".csv"
                else pyarrow.parquet.ParquetWriter
            )
            writer = make_writer(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def measure(path: Path) -> dict:
    """Seconds and peak MiB of reading the file in this process."""
    began = time.perf_counter()
    from jaxrec import datasets

    split = datasets.load(path=str(path), user="customer", item="sku", time="ts")
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "interactions": split.dataset.num_interactions,
        "users": split.dataset.num_users,
        "items": split.dataset.num_items,
    }


def judged(row: dict) -> dict:
    """The row with its bars, if it is of as many interactions as they are."""
    if row["interactions"] < BAR_INTERACTIONS:
        return row
    return {
        **row,
        "seconds_bar": BAR_S,
        "seconds_bar_met": row["seconds"] <= BAR_S,
        "peak_bar_mb": BAR_MB,
        "peak_bar_met": row["peak_mb"] <= BAR_MB,
    }


def in_new_process(*arguments: object) -> str:
    """What this script prints with those arguments.

    A process inherits the peak of the one that starts it, so this one stays small.
    """
    command = [sys.executable, "-m", "benchmarks.data_preparation"]
    command += map(str, arguments)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def add_interactions(parser: argparse.ArgumentParser) -> None:
    """--interactions, enough for an item."""

    def interactions(text: str) -> int:
        if options.count(text) < INTERACTIONS_AN_ITEM:
            least = f"must be {INTERACTIONS_AN_ITEM} at the least, which have an item"
            raise argparse.ArgumentTypeError(f"{least}: got {text}")
        return int(text)

    parser.add_argument(
        "--interactions",
        type=interactions,
        default=20_000_000,
        help="of the log that is made (20,000,000)",
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("data_preparation", __doc__)
    add_interactions(parser)
    options.add_output(parser, RESULTS)
    parser.add_argument("--make", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            "benchmarks.data_preparation makes its files with pyarrow, which is not "
            "installed: pip install 'jaxrec[parquet]'."
        )
    if flags.make:
        return make(flags.path, flags.interactions, flags.make)
    if flags.measure:
        return print(json.dumps(measure(flags.path)))
    rows = []
    for kind, suffix in FILES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"log{suffix}")
            size = ("--interactions", flags.interactions)
            in_new_process("--make", kind, "--path", path, *size)
            row = {"system": f"{suffix[1:]}: {KINDS[kind]}"}
            row |= json.loads(in_new_process("--measure", "--path", path))
            row["file_mb"] = path.stat().st_size // 2**20
        rows.append(judged(row) if suffix == ".parquet" else row)
        print(f"{row['system']:<60}{row['seconds']:7.1f} s{row['peak_mb']:7,} MiB")
    from benchmarks.measure import file_name  # JAX, which the processes do not need

    folder = flags.output / "data_preparation"
    folder.mkdir(parents=True, exist_ok=True)
    record.write_json(
        folder / f"{file_name(record.device())}-{record.date()}.json",
        {
            "question": "how long from a file to the CSR arrays, in how much memory",
            "command": record.command(),
            "commit": record.commit(),
            "date": record.date(),
            "device": record.device(),
            "versions": {
                **record.versions(),
                "pyarrow": importlib.metadata.version("pyarrow"),
            },
            "rows": rows,
        },
    )


if __name__ == "__main__":
    sys.exit(run_command(main))

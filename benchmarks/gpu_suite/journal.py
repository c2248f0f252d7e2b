"""The record of a part, written after every task, so that none is done twice."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.gpu_suite.part import Row
from jaxrec import record

UNFINISHED = "stopped before its end"


class Journal:
    """The rows of a part, by task, and the file that has them.

    A record of the same part, device and commit is gone on with, under the date on
    which it was begun. Every row names its task; one that has not been done, or has
    failed, says so in a row of its own, from the moment that the part begins: a process
    that dies without a word leaves that behind.

    Args:
      folder: of the records.
      part: its name.
      about: the record's keys but its rows; `device`, `commit` and `date` tell records
        apart.
      again: begin anew.
    """

    def __init__(
        self, folder: Path, part: str, about: dict[str, Any], *, again: bool = False
    ):
        self.about = dict(about)
        self.rows: dict[str, list[Row]] = {}
        self.notes: dict[str, None] = dict.fromkeys(about["notes"])  # an ordered set
        device = measure.file_name(about["device"])
        self.path = folder / f"{device}-{about['date']}-{part}.json"
        dates = "????-??-??"
        for path in sorted(folder.glob(f"{device}-{dates}-{part}.json")):
            found = record.read_json(path)
            same = all(found[key] == about[key] for key in ("device", "commit"))
            if same and not again:
                self.path, self.about["date"] = path, found["date"]
                self.rows = {}
                self.notes |= dict.fromkeys(found["notes"])
                for row in found["rows"]:
                    self.rows.setdefault(row["task"], []).append(row)

    def is_done(self, task: str) -> bool:
        """Whether the record has the task's rows, and all of them are well."""
        rows = self.rows.get(task)
        return bool(rows) and not any("failed" in row for row in rows)

    def begin(self, tasks: Iterable[str]) -> None:
        """Writes that these are not done yet."""
        for task in tasks:
            self.rows[task] = [{"task": task, "failed": UNFINISHED}]
        self.write()

    def put(self, task: str, rows: Iterable[Row]) -> None:
        """Writes a task's rows in place of what was there for it.

        A row of one key, "note", is added to the notes of the record.
        """
        self.rows[task] = []
        for row in rows:
            if [*row] == ["note"]:
                self.notes[row["note"]] = None
            else:
                self.rows[task].append({"task": task, **row})
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for of_task in self.rows.values() for row in of_task]
        found = {**self.about, "rows": rows, "notes": [*self.notes]}
        record.write_json(self.path, found)

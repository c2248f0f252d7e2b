"""The page: well-formed, self-contained, its numbers the runs', its gaps named."""

import html.parser
import importlib.resources
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxrec import compare, outcomes, report, synthetic
from jaxrec import runs as finished
from jaxrec import train as training
from jaxrec.command import run_command
from jaxrec.data import Dataset, leave_one_out
from jaxrec.errors import InputError
from jaxrec.held_out import HeldOut
from jaxrec.pages import evidence, log, parts, profiles, protocol, results, titles
from jaxrec.pages.findings import Findings
from jaxrec.pages.markup import VOID
from jaxrec.pages.story import Story
from jaxrec.significance import Interval

EVIL = "<script>alert('x')</script>&\"'"
METRICS = ("hr@10", "ndcg@10")
EVERY = (
    "runs",
    "results",
    "comparison",
    "curves",
    "slices",
    "examples",
    "data",
    "protocol",
)


def quiet(line):
    del line


def settings(path, method, **changes):
    return {
        "method": method,
        "data": {"path": str(path)},
        "model": {"name": "sasrec", "width": 8, "num_layers": 1},
        "loss": {"name": "ce"},
        "optim": {"name": "adam", "learning_rate": 0.01},
        "train": {"batch_size": 32, "max_length": 8, "max_epochs": 2, **changes},
        "eval": {"batch_size": 64, "metrics": METRICS, "max_valid_users": "auto"},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs on a log whose ids are markup; never changed by a test."""
    folder = tmp_path_factory.mktemp("report")
    log = synthetic.interactions(
        num_users=50, num_items=40, mean_length=8.0, max_length=15, num_topics=4
    )
    ids = [f"{EVIL}{i}" for i in range(log.num_items)]
    frame = pd.DataFrame(
        {
            "user": [f"<b>{u}</b>" for u in np.repeat(log.user_ids, log.lengths)],
            "item": [ids[i - 1] for i in log.items],
            "timestamp": log.timestamps,
        }
    )
    path = folder / "log.csv"
    frame.to_csv(path, index=False)
    for seed, method in enumerate([f"one{EVIL}", "other"]):
        run = settings(path, method, seed=seed)
        training.train(run, folder / f"run{seed}", log=quiet)
    return folder


@pytest.fixture(scope="module")
def page(runs):
    """The page of both, everything on it."""
    return Page(
        report.report(
            [runs / "run0", runs / "run1"],
            output=runs / "both.html",
            titles={f"{EVIL}0": "<i>Zero</i>"},
            beyond=3,
            log=quiet,
        )
    )


class Page(html.parser.HTMLParser):
    """A page, read: its elements, and the text of each section."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.elements, self._open, self.text, self.rows = [], [], {}, []
        self.svgs = {}
        self.feed(self.source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append((self.section, []))
        if tag in ("td", "th"):
            self.rows[-1][1].append([])
        if tag == "data" and self._within("td"):
            self.rows[-1][1][-1].append(float(dict(attrs)["value"]))
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open and self._open[-1][0] == tag, f"</{tag}> in {self._open}"
        self._open.pop()

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data
        if self._within("td") or self._within("th"):
            self.rows[-1][1][-1].append(data)

    def _within(self, tag):
        return any(name == tag for name, _ in self._open)

    @property
    def section(self):
        """The one we are in; "" outside of them."""
        return next((a["id"] for tag, a in self._open if tag == "section"), "")

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]

    @property
    def sections(self):
        return [attrs["id"] for tag, attrs in self.elements if tag == "section"]

    def numbers(self, section, name):
        """The numbers in the first row of a section's tables that has this name."""
        for where, cells in self.rows:
            if where == section and "".join(map(str, cells[0])) == name:
                return [[x for x in cell if isinstance(x, float)] for cell in cells[1:]]
        raise AssertionError(f"no row {name!r} in {section}")


def copy_as(run, copy, method, *, seed):
    """A finished run under another name."""
    shutil.copytree(run, copy)
    config = json.loads((run / "config.json").read_text())
    config["method"], config["train"]["seed"] = method, seed
    result = json.loads((run / "result.json").read_text())
    result |= {"method": method, "seed": seed, "config": config}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "result.json").write_text(json.dumps(result))


def make(paths, output, **options):
    return Page(report.report(paths, output=output, log=quiet, **options))


class TestForm:
    def test_every_section_is_there_and_the_way_leads_there(self, page):
        assert page.sections == list(EVERY)
        links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
        assert links == [f"#{name}" for name in EVERY]

    def test_ids_are_unique_and_those_referred_to_exist(self, page):
        ids = page.attributes("id")
        assert len(set(ids)) == len(ids)
        for name in ("aria-labelledby", "aria-describedby"):
            assert page.attributes(name)
            assert set(page.attributes(name)) <= set(ids)

    def test_it_needs_nothing_else(self, page):
        tags = {tag for tag, _ in page.elements}
        assert not tags & {"script", "link", "img", "iframe", "object", "base"}
        assert not page.attributes("src") and not page.attributes("style")
        assert all(href.startswith("#") for href in page.attributes("href"))
        assert not re.search(r"(?i)url\(|@import|https?://", page.source)
        (policy,) = [a["content"] for _, a in page.elements if "http-equiv" in a]
        assert policy == "default-src 'none'; style-src 'unsafe-inline'"

    def test_what_others_wrote_is_shown_not_run(self, page):
        assert "<script" not in page.source
        assert f"one{EVIL}-seed0" in page.text["runs"]
        assert EVIL in page.text["examples"] and "<b>" in page.text["examples"]
        assert {"i", "b"}.isdisjoint(tag for tag, _ in page.elements)
        assert not [name for name in page.attributes("onerror")]

    def test_charts_are_images_with_words(self, page):
        charts = [a for tag, a in page.elements if tag == "svg" and "role" in a]
        # 2 results, 2 comparisons, 3 curves, 4 slices, 3 of the log.
        assert len(charts) == 14
        assert all(a["role"] == "img" and a["aria-describedby"] for a in charts)

    def test_tables_scroll_by_themselves_and_have_names(self, page):
        tables = [tag for tag, _ in page.elements if tag == "table"]
        scrolled = [a for tag, a in page.elements if a.get("role") == "region"]
        assert len(tables) == len(scrolled) > 5
        assert all(a["aria-label"] and a["tabindex"] == "0" for a in scrolled)

    def test_the_style_sheet_is_packaged_and_whole(self, page):
        style = importlib.resources.files("jaxrec.pages").joinpath("page.css")
        assert style.read_text() in page.source
        dark, narrow = "prefers-color-scheme: dark", "max-width: 34rem"
        shade = "no-repeat local"  # at an edge past which a table goes on
        for what in (dark, narrow, "@media print", shade):
            assert what in page.source
        assert style.read_text().count("{") == style.read_text().count("}")

    def test_equal_runs_equal_page(self, runs, page, tmp_path):
        again = make(
            [runs / "run0", runs / "run1"],
            tmp_path / "again.html",
            titles={f"{EVIL}0": "<i>Zero</i>"},
            beyond=3,
        )
        assert again.source == page.source


class TestNumbers:
    def test_metrics_are_those_of_the_result_to_the_last_bit(self, runs, page):
        for seed, name in enumerate([f"one{EVIL}", "other"]):
            result = json.loads((runs / f"run{seed}" / "result.json").read_text())
            cells = page.numbers("results", f"{name}-seed{seed}")
            assert [cell[0] for cell in cells] == [result["test"][m] for m in METRICS]
            valid = page.numbers("results", f"{name}-seed{seed}: validation")
            assert [cell[0] for cell in valid] == [result["valid"][m] for m in METRICS]
            floor = page.numbers("results", "popularity")
            assert [x[0] for x in floor] == [
                result["test_popularity"][m] for m in METRICS
            ]

    def test_intervals_and_tests_are_those_of_compare(self, runs, page):
        paths = [runs / "run0", runs / "run1"]
        compared = compare.compare(paths, metrics=METRICS)
        for row in compared["runs"]:
            cells = page.numbers("results", row["name"])
            for cell, metric in zip(cells, METRICS, strict=True):
                assert cell[1:] == [row["metrics"][metric][x] for x in ("low", "high")]
        for pair in compared["pairs"]:
            if pair["metric"] == "ndcg@10":
                cells = page.numbers("comparison", f"{pair['a']} − {pair['b']}")
                assert cells[1] == [pair[x] for x in ("difference", "low", "high")]
                assert cells[2] == [pair["p_holm"]]
                assert pair["verdict"] in page.text["comparison"]

    def test_diversity_is_beside_popularity_s_in_the_run_s_own_space(self, runs, page):
        def rows(name):
            found = [x for where, x in page.rows if where == "results"]
            return [x[1:] for x in found if "".join(map(str, x[0])) == name]

        for seed, name in enumerate([f"one{EVIL}", "other"]):
            held_out = HeldOut(*finished.load(runs / f"run{seed}"), beyond_k=3)
            own_N, floor_N = (
                held_out.list_values[by]["diversity@3"]
                for by in ("model", "popularity")
            )
            expected = [own_N.mean(), floor_N.mean(), (own_N - floor_N).mean()]
            shown = [cell[0] for cell in rows(f"{name}-seed{seed}")[-1]]
            assert shown == pytest.approx(expected)
        assert "diversity" not in "".join(
            str(cell) for _, cells in page.rows for cell in cells[:1]
        )
        assert len(rows("popularity")[-1]) == 4  # which has none of its own

    def test_slices_add_up_to_the_whole(self, runs, page):
        """Means of slices, weighted by their rows, are the mean of all rows."""
        result = json.loads((runs / "run1" / "result.json").read_text())
        totals = {}
        for where, cells in page.rows:
            label = "".join(map(str, cells[0]))
            found = re.search(r"n = (\d+)\): other-seed1$", label)
            if where == "slices" and found:
                rows = int(found[1])
                value = [x for x in cells[1] if isinstance(x, float)][0]
                totals[label] = (rows, value)
        rows = sum(n for n, _ in totals.values())
        assert rows == 2 * result["data"]["test_rows"]  # by length, by popularity
        mean = sum(n * x for n, x in totals.values()) / rows
        assert mean == pytest.approx(result["test"]["ndcg@10"], abs=1e-6)

    def test_statistics_and_protocol_are_those_of_the_result(self, runs, page):
        result = json.loads((runs / "run0" / "result.json").read_text())
        for key in ("users", "items", "interactions"):
            assert f"{result['data'][key]:,}" in page.text["data"]
        for value in (
            result["split_sha256"],
            result["data"]["sha256"],
            result["versions"]["jax"],
            result["command"],
            result["protocol"]["ties"],
            result["device"],
            '"learning_rate": 0.01',
            result["chosen"]["eval.max_valid_users=None"],
        ):
            assert value in page.text["protocol"]
        assert "train.seed" in page.text["protocol"]  # an option that differs

    def test_curves_have_every_epoch_and_mark_the_best(self, runs, page):
        lines = (runs / "run1" / "metrics.jsonl").read_text().splitlines()
        for line in map(json.loads, lines):
            best = ", the best" if line["epoch"] == best_epoch(runs / "run1") else ""
            for key in ("loss", "valid/ndcg@10"):
                tip = f"other-seed1, epoch {line['epoch']}: {line[key]:.4f}{best}"
                assert tip in page.text["curves"]

    def test_examples_are_rows_of_the_log(self, runs, page):
        frame = pd.read_csv(runs / "log.csv")
        cards = page.source.split("<article>")[1:]
        assert len(cards) == 6
        for card in cards:
            text = re.sub(r"<svg.*?</svg>", "", card)
            words = [html.unescape(x) for x in re.findall(r"<bdi>(.*?)</bdi>", text)]
            user, *shown = words
            mine = frame[frame["user"] == user].sort_values("timestamp", kind="stable")[
                "item"
            ]
            known = ["<i>Zero</i>" if x == f"{EVIL}0" else x for x in mine]
            *history, target = known
            num_shown = min(8, len(history))
            assert shown[:num_shown] == history[-8:]
            assert shown[num_shown] == target
            lists = shown[num_shown + 1 :]
            for first in (0, 6):
                recommended = lists[first + 1 : first + 6]
                assert not set(recommended) & set(history)
                assert len(set(recommended)) == 5
                rank = re.search(
                    rf"<bdi>{re.escape(html.escape(lists[first]))}</bdi>"
                    r"<small> rank (\d+)",
                    card,
                )
                place = recommended.index(target) + 1 if target in recommended else 6
                assert min(int(rank[1]), 6) == place
            assert text.count("✓") == lists.count(target)


def best_epoch(run):
    return json.loads((run / "result.json").read_text())["best_epoch"]


class TestGaps:
    def test_an_unfinished_run_has_its_curves(self, runs, tmp_path):
        run = tmp_path / "open"
        shutil.copytree(runs / "run1", run)
        (run / "result.json").unlink()
        (run / "ranks.npz").unlink()
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "epo')  # written when the machine stopped
        page = make(run, tmp_path / "open.html")
        assert page.sections == ["runs", "curves", "data", "protocol"]
        assert "unfinished" in page.text["runs"]
        assert "not finished" in page.text["curves"]
        assert "Missing: results" in page.text[""]
        assert "the best" in page.text["curves"]

    def test_a_run_before_its_first_epoch(self, runs, tmp_path):
        run = tmp_path / "young"
        run.mkdir()
        for name in ("config.json", "data.json"):
            shutil.copy(runs / "run1" / name, run)
        page = make(run, tmp_path / "young.html")
        assert page.sections == ["runs", "data", "protocol"]
        assert "none yet" in page.text["runs"]

    def test_a_run_that_went_on_after_its_result(self, runs, tmp_path):
        run = tmp_path / "further"
        shutil.copytree(runs / "run1", run)
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**last, "epoch": 3, "is_best": False}) + "\n")
        page = make(run, tmp_path / "further.html")
        assert "went on after epoch 2, unfinished" in page.text["runs"]
        assert "results" in page.sections and "examples" not in page.sections
        assert "of a later epoch than the result" in page.text[""]

    def test_unfinished_beside_finished(self, runs, tmp_path):
        run = tmp_path / "open"
        shutil.copytree(runs / "run1", run)
        (run / "result.json").unlink()
        page = make([runs / "run0", run], tmp_path / "x.html", num_examples=1)
        assert page.sections == [name for name in EVERY if name != "comparison"]
        assert "results and all that follows from them of other-seed1" in page.text[""]
        assert "1 of 2 unfinished" in page.text[""]

    def test_data_that_moved(self, runs, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(runs / "run1", run)
        config = json.loads((run / "config.json").read_text())
        config["data"]["path"] = str(tmp_path / "gone.csv")
        (run / "config.json").write_text(json.dumps(config))
        page = make(run, tmp_path / "moved.html")
        assert page.sections == ["runs", "results", "curves", "data", "protocol"]
        missing = page.text[""]
        assert "examples of other-seed1" in missing and "gone.csv" in missing
        assert "slices, distributions of the log" in missing
        assert len(page.numbers("results", "other-seed1")[0]) == 3  # mean, low, high
        assert len(page.numbers("results", "popularity")[0]) == 1  # of the result
        # And found where it is now.
        options = [f"--config.data.path={runs / 'log.csv'}"]
        page = make(run, tmp_path / "moved.html", options=options)
        assert "examples" in page.sections and "Missing" not in page.text[""]

    def test_a_frame_in_memory(self, runs, tmp_path):
        frame = pd.read_csv(runs / "log.csv")
        run = settings("", "framed", max_epochs=1)
        del run["data"]["path"]
        training.train(run, tmp_path / "run", frame=frame, log=quiet)
        without = make(tmp_path / "run", tmp_path / "x.html")
        assert "examples" not in without.sections
        assert without.text[""].count("was trained on a table in memory") == 1
        with pytest.raises(InputError, match="in memory.* frame=.* --config.data.path"):
            finished.load(tmp_path / "run")
        saved = {"options": [f"--config.data.path={runs / 'log.csv'}"]}
        for found in ({"frame": frame}, saved):
            page = make(tmp_path / "run", tmp_path / "x.html", **found)
            assert "examples" in page.sections and "Missing" not in page.text[""]

    @pytest.mark.parametrize("name", ["", "shop"])
    def test_what_was_in_memory_is_known_by_its_config(self, name):
        def override(*options, frame=None, **data):
            run = {**settings("", "x"), "data": {"name": name, **data}}
            return finished.override(run, options, frame=frame, source="x")

        with pytest.raises(InputError, match="trained on a table in memory"):
            override("--config.train.seed=1")
        assert override(frame=1)["data"]["name"] == name
        assert override(path="log.csv")["data"]["path"] == "log.csv"
        assert override("--config.data.path=a.csv")["data"]["path"] == "a.csv"
        # Another name, right or wrong, is for the data sets to judge.
        assert override("--config.data.name=ml-1n")["data"]["name"] == "ml-1n"

    def test_a_committed_record(self, runs, tmp_path):
        path = tmp_path / "other-seed1.json"
        shutil.copy(runs / "run1" / "result.json", path)
        shutil.copy(runs / "run1" / "ranks.npz", path.with_suffix(".ranks.npz"))
        shutil.copy(runs / "run1" / "metrics.jsonl", path.with_suffix(".metrics.jsonl"))
        page = make(path, tmp_path / "record.html")
        assert page.sections == [
            name for name in EVERY if name not in ("comparison", "examples")
        ]
        assert "a record holds no parameters" in page.text[""].lower()

    def test_runs_without_a_metric_in_common(self, runs, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(runs / "run1", run)
        result = json.loads((run / "result.json").read_text())
        result["test"] = {"mrr@5": 0.5}
        (run / "result.json").write_text(json.dumps(result))
        page = make([runs / "run0", run], tmp_path / "x.html")
        assert page.sections == ["runs", "curves", "data", "protocol"]
        assert "no metric in common" in page.text[""]

    def test_ranks_that_are_gone(self, runs, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(runs / "run1", run)
        (run / "ranks.npz").unlink()
        page = make(run, tmp_path / "x.html", num_examples=1)
        assert "intervals, comparison and slices of other-seed1" in page.text[""]
        assert [len(x) for x in page.numbers("results", "other-seed1")] == [1, 1]

    def test_runs_on_two_logs_stand_apart(self, runs, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(runs / "run1", run)
        result = json.loads((run / "result.json").read_text())
        result["split_sha256"], result["data"]["name"] = "0" * 64, "other log"
        (run / "result.json").write_text(json.dumps(result))
        data = {**result["data"], "split_sha256": "0" * 64}
        (run / "data.json").write_text(json.dumps(data))
        page = make([runs / "run1", run], tmp_path / "x.html", num_examples=1)
        assert "comparison" not in page.sections
        for name in ("log", "other log"):
            assert f"{name}, leave_one_out" in page.text["results"]
        assert "started on other data" in page.text[""]

    def test_runs_of_one_name_are_told_by_the_end_of_their_path(self, runs, tmp_path):
        copy = tmp_path / "copy"  # of the first, called like the second
        copy_as(runs / "run0", copy, "other", seed=1)
        paths = [runs / "run0", runs / "run1", copy]
        names = [run.name for run in evidence.read_all(paths)]
        assert names == [f"one{EVIL}-seed0", "run1", "copy"]
        page = make(paths[1:], tmp_path / "x.html", num_examples=1)
        assert "run1 and copy on log" in page.text[""]
        assert "run1 − copy" in page.text["comparison"]
        for section in set(page.sections) - {"protocol"}:  # which names the folders
            assert str(tmp_path) not in page.text[section]
            assert str(runs) not in page.text[section]

    def test_an_end_of_a_path_is_no_other_s_and_not_taken(self):
        paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/a/popularity")]
        found = evidence.shortest_endings(paths, {"popularity"})
        assert found == ["x/run", "y/run", "a/popularity"]

    def test_a_verdict_has_the_page_s_names(self):
        pair = {"a": "/r/a", "b": "/r/b", "p": 0.5}
        verdicts = ["/r/b is better", "no difference shown"]
        compared = {
            "runs": [{"name": "/r/a"}, {"name": "other-seed1"}],
            "pairs": [{**pair, "verdict": verdict} for verdict in verdicts],
        }
        found = report.renamed(compared, {"/r/a": "a", "/r/b": "b"})
        assert [row["name"] for row in found["runs"]] == ["a", "other-seed1"]
        said = [(x["a"], x["b"], x["verdict"]) for x in found["pairs"]]
        assert said == [("a", "b", "b is better"), ("a", "b", "no difference shown")]

    def test_items_without_a_title_are_named(self, page):
        assert "Items without a title, shown by their id" in page.text[""]


class TestWrong:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--workdir", "nowhere"], "there is no run in nowhere"),
            (["--workdir", "{run}", "{run}"], "give it once"),
            (["--workdir", "{run}", "--output", "x.txt"], "must end in .html"),
            (["--workdir", "{run}", "--output", "no/x.html"], "there is no folder no"),
            (["--workdir", "{run}", "--titles", "no.csv"], "there is no file no.csv"),
            (["--workdir", "{run}", "--slices", "0"], "num_slices must be >= 1"),
            (["--workdir", "{run}", "--title-columns", "a"], "must be two"),
            ([], "--workdir"),
        ],
    )
    def test_one_line(self, runs, tmp_path, monkeypatch, capsys, arguments, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "titles.csv").write_text("item,title\n")
        if "--title-columns" in arguments:
            arguments = [*arguments, "--titles", "titles.csv"]
        argv = [x.format(run=runs / "run1") for x in arguments]
        assert run_command(report.main, argv) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not list(tmp_path.glob("*.html"))

    def test_a_damaged_line_is_named(self, runs, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"epoch": 1, "loss": 2.0}\nnonsense\n{"epoch": 3}\n')
        with pytest.raises(InputError, match=r"metrics.jsonl, line 2, .* 'nonsense'"):
            evidence.read_epochs(path)

    def test_a_page_that_cannot_be_made_leaves_the_old_one(self, runs, tmp_path):
        path = tmp_path / "report.html"
        path.write_text("old")
        with pytest.raises(InputError, match="lists of 2"):
            report.report(runs / "run1", output=path, beyond=1, log=quiet)
        assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def story(test, floor=None, leads=None, *, items=1000, window=25):
    """Of runs that have these metrics, `r0` and so on; leads by metric, of each."""
    runs = [
        evidence.Evidence(
            path=Path(f"r{i}"),
            name=f"r{i}",
            settings={"train": {"max_length": 25}},
            data={"items": items},
            epochs=[],
            result={
                "epochs": 1,
                "test": of,
                "test_popularity": floor or {},
                "protocol": {"window": window},
            },
        )
        for i, of in enumerate(test)
    ]
    names = list(test[0])
    found = Findings(runs, metrics=names, headline=names[:2])
    found.leads = {run.name: leads for run in runs} if leads else {}
    return Story([found], {}, {})


def text(section):
    return html.unescape(re.sub(r"<[^>]*>", "", section.body))


class TestWords:
    @pytest.mark.parametrize(
        ("floor", "lead", "expected"),
        [
            (0.1, (0.15, 0.1, 0.2), "; popularity has 0.1000. "),
            (0.3, (-0.05, -0.1, -0.01), "; popularity has more, 0.3000. "),
            (0.3, None, "; popularity has more, 0.3000. "),
            (
                0.2513,
                (-0.0013, -0.01, 0.01),
                "; popularity has more, 0.2513. Neither is shown to be better: the "
                "difference is -0.0013 [-0.0100, +0.0100]. ",
            ),
            (
                0.2,
                (0.05, -0.01, 0.11),
                "; popularity has 0.2000. Neither is shown to be better: the "
                "difference is +0.0500 [-0.0100, +0.1100]. ",
            ),
        ],
    )
    @pytest.mark.parametrize("is_only", [True, False])
    def test_the_best_run_beside_popularity(self, floor, lead, expected, is_only):
        tests = [{"ndcg@10": 0.25}, {"ndcg@10": 0.1}][: 1 if is_only else 2]
        leads = {"ndcg@10": Interval(*lead)} if lead else None
        said = text(results.section(story(tests, {"ndcg@10": floor}, leads)))
        kind = "has NDCG@10 of " if is_only else "has the highest NDCG@10 of the runs, "
        assert said.startswith(f"r0 {kind}0.2500{expected}")
        assert said.count("Neither") == expected.count("Neither")

    @pytest.mark.parametrize(("items", "is_full"), [(10, True), (11, False)])
    def test_lists_of_the_whole_catalogue_are_remarked_on(self, items, is_full):
        test = {"ndcg@5": 0.5, "hr@10": 1.0, "ndcg@10": 0.6}
        said = text(results.section(story([test], items=items)))
        remark = "HR@10 and NDCG@10: the log has 10 items, and a list of as many leaves"
        assert (remark in said) == is_full
        assert ("100.0% have the hidden item among the first 10" in said) != is_full

    def test_the_window_that_was_asked_for_and_what_fills_it(self):
        made = story([{"hr@10": 0.5}], window=22)
        said = "25 items, of which the longest history fills 22"
        assert f"Windows of at most {said}. " in text(protocol.runs_section(made))
        assert f"window, at most{said}" in text(protocol.manifest_section(made))
        alike = story([{"hr@10": 0.5}] * 2, window=25)
        assert "Windows of at most 25 items. " in text(protocol.runs_section(alike))

    @pytest.mark.parametrize(
        ("interval", "expected"),
        [
            ((101.0, 98.98, 104.0), "101 [99, 104]"),
            ((9.5, 8.98, 10.5), "9.50 [8.98, 10.50]"),
            ((0.5, -0.25, 0.75), "0.5000 [-0.2500, 0.7500]"),
        ],
    )
    def test_an_interval_has_as_many_decimals_everywhere(self, interval, expected):
        shown = parts.figures(Interval(*interval))
        assert re.sub(r"<[^>]*>", "", shown) == expected

    def test_remarks_on_the_log_are_a_line_each(self):
        shown = log.plain(["one < two", "three"])
        assert re.findall("<bdi>(.*?)</bdi>", shown) == ["one &lt; two", "three"]


def test_the_command_writes_and_says_where(runs, tmp_path, capsys):
    path = tmp_path / "page.html"
    (tmp_path / "names.tsv").write_text("sku\tname\textra\n1\tOne\tx\n")
    names = ["--titles", str(tmp_path / "names.tsv"), "--title-columns", "sku,name"]
    small = ["--examples", "1", "--k", "2", "--slices", "2"]
    argv = ["--workdir", str(runs / "run1"), "--output", str(path), *names, *small]
    assert run_command(report.main, argv) == 0
    assert str(path) in capsys.readouterr().out
    assert [*tmp_path.glob("*.html")] == [path]
    assert Page(path).sections == [name for name in EVERY if name != "comparison"]


def test_methods_are_compared_over_their_seeds(runs, tmp_path):
    """A third run: the second's method with another seed, and ranks of its own."""
    twin = tmp_path / "twin"
    copy_as(runs / "run1", twin, "other", seed=7)
    paths = [runs / "run0", runs / "run1", twin]
    page = make(paths, tmp_path / "x.html", group=True, num_examples=0)
    assert "other over seeds 1 and 7" in page.text["comparison"]
    assert "examples" not in page.sections


class TestTitles:
    def test_files_and_frames(self, tmp_path):
        frame = pd.DataFrame({"title": ["One", "a, b"], "item": [1, 2], "x": [0, 0]})
        frame.to_csv(tmp_path / "t.csv", index=False)
        frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
        expected = {"1": "One", "2": "a, b"}
        for source in (frame, tmp_path / "t.csv", str(tmp_path / "t.tsv")):
            assert titles.read(source) == expected
        frame.to_csv(tmp_path / "t.TSV", index=False, sep=";")
        frame.to_csv(tmp_path / "u.CSV", index=False, sep="|")
        frame.to_csv(tmp_path / "p.csv.gz", index=False)
        frame.to_csv(tmp_path / "p.tsv.bz2", index=False, sep="\t")
        for name in ("t.TSV", "u.CSV", "p.csv.gz", "p.tsv.bz2"):
            assert titles.read(tmp_path / name) == expected
        assert titles.read({1: "One"}) == {"1": "One"}

    def test_parquet(self, tmp_path):
        arrow = pytest.importorskip(
            "pyarrow", reason="jaxrec[parquet] is not installed"
        )
        frame = pd.DataFrame({"item": [1], "title": ["One"]})
        frame.to_parquet(tmp_path / "t.parquet")
        for source in (tmp_path / "t.parquet", arrow.table(frame)):
            assert titles.read(source) == {"1": "One"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("id,title\n1,One\n", "expected one column 'item', got 0.*title, id"),
            ("item,title\n1,One\n1,Two\n", "item '1' has the titles 'One' and 'Two'"),
            ("", "--titles .*t.csv is empty"),
            ('item,title\n"1,One\n2,Two\n', "cannot be read"),
        ],
    )
    def test_wrong_tables(self, tmp_path, text, message):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            titles.read(tmp_path / "t.csv")

    def test_no_table(self):
        with pytest.raises(InputError, match="titles must be a mapping .* got list"):
            titles.read(["One"])


def test_profile_by_hand():
    """Item 1 four times in training, 2 twice, 3 and 4 once each, 5 never."""
    histories = [[1, 2, 3, 5, 5], [1, 2, 4, 5, 5], [1, 5, 5], [1, 5, 5]]
    split = leave_one_out(
        Dataset(
            np.concatenate(histories).astype(np.int32),
            np.append(0, np.cumsum([len(h) for h in histories])),
            np.arange(4),
            np.arange(1, 6),
        )
    )
    found = profiles.profile(split)
    assert found.lengths == ([3, 4, 6], [2, 2])
    assert found.popularity == ([1, 2, 3, 4, 6], [2, 1, 0, 1])
    assert found.num_unseen == 1
    assert found.concentration == [
        (0, 0),
        (0.2, 0.5),
        (0.4, 0.75),
        (0.6, 0.875),
        (0.8, 1),
        (1, 1),
    ]
    assert found.top_share == {0.01: 0.5, 0.1: 0.5, 0.2: 0.5}
    assert found.half == 0.2


def test_evidence_agrees_with_outcomes(runs):
    """What is finished is read as `outcomes` reads it."""
    found, outcome = evidence.read(runs / "run1"), outcomes.read(runs / "run1")
    assert found.is_finished and found.result == outcome.result
    assert found.name == outcome.name and found.best_epoch == best_epoch(runs / "run1")
    assert [line["epoch"] for line in found.epochs] == [1, 2] and not found.missing

"""`python -m tests.benchmarks`: every figure, run after run, then the table and the targets.

With NSQD_BINARY (a real nsqd) everything is measured against it, too; with NSQ_BIN (a folder that
holds NSQ's nsq_to_file and to_nsq) NSQ's own tools are measured beside ours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import archives, data, figures, load, machine, uploads
from tests.benchmarks.endpoint import server_name
from tests.benchmarks.nsqd import Nsqd
from tests.benchmarks.processes import BenchError, Children
from tests.benchmarks.table import HEADS, Row, Sample, Target, aligned, at_least, rss_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Figure = Callable[[figures.Bench], Sample]

QUICK_MESSAGES = 100_000
BACKLOG_MESSAGES = 4_000_000
MESSAGES_MAX = 100_000_000
RUNS_MAX = 100
ARCHIVE_BYTES_MAX = 100_000_000_000
LOOPBACK = "loopback"
ARCHIVES = ("lines-none", "lines-gzip", "lines-zstd", "framed-zstd")
ARCHIVE_TARGET, BROKER_TARGET, REPLAY_TARGET = 250_000, 400_000, 250_000
# Four times what NSQ's nsq_to_http does; and with 100 messages a request.
HTTP_TARGET, HTTP_BATCH_TARGET = 33_200, 150_000
S3_TARGET = 250_000
VERSION_TARGET_S = 0.15


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is to be measured: for each broker its argv, the prefix of its rows, its figures; and the
    commands of `archive` on a file of `archive_bytes`, unless that is 0."""

    messages: int
    runs: int
    brokers: list[tuple[str, list[str], dict[str, Figure]]]
    machine: str
    archive_bytes: int = 0
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    archive: archives.Measured | None = None
    upload_bytes: int = 0
    uploads: list[uploads.Uploads] = field(default_factory=list)
    sizes: load.Sizes | None = None
    load: list[load.Figure] = field(default_factory=list)

    def add(self, name: str, sample: Sample) -> None:
        self.samples.setdefault(name, []).append(sample)
        tell(f"  {name}: {sample.rate:,.0f}/s")

    @property
    def rows(self) -> list[Row]:
        return [Row(name=name, samples=tuple(taken)) for name, taken in self.samples.items()]


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench BENCH=...", description=__doc__)
    parser.add_argument("--messages", type=_whole(MESSAGES_MAX), default=1_000_000)
    parser.add_argument("--runs", type=_whole(RUNS_MAX), default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--archive-bytes",
        type=_whole(ARCHIVE_BYTES_MAX),
        default=archives.ARCHIVE_BYTES,
        help="size of the file that the commands of archive are measured on",
    )
    parser.add_argument(
        "--upload-bytes",
        type=_whole(ARCHIVE_BYTES_MAX),
        default=uploads.FILE_BYTES,
        help="size of the file that is uploaded beside boto3",
    )
    parser.add_argument(
        "--backlog",
        type=_whole(MESSAGES_MAX),
        default=BACKLOG_MESSAGES,
        help="messages that wait in the broker under load",
    )
    parser.add_argument(
        "--quick", action="store_true", help="100,000 messages, a file of 100 MB, one run"
    )
    parsed = parser.parse_args(argv)
    if parsed.quick:
        parsed.messages, parsed.runs = QUICK_MESSAGES, 1
        parsed.archive_bytes = archives.QUICK_ARCHIVE_BYTES
    return parsed


def _whole(maximum: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        number = int(text)
        if not 1 <= number <= maximum:
            raise argparse.ArgumentTypeError(f"should be 1 to {maximum}")
        return number

    return whole


def make_plan(options: argparse.Namespace, folder: Path) -> Plan:
    """Raises BenchError for a figure that is none."""
    brokers: list[tuple[str, list[str], dict[str, Figure]]] = [
        ("broker", [sys.executable, "-m", "nsqtools", "nsqd", "--log-level=warn"], {**figures.OURS})
    ]
    if real := os.environ.get("NSQD_BINARY"):
        renamed = {f"real-{name}": figure for name, figure in figures.OURS.items()}
        brokers.append(("nsqd", [real], renamed))
    brokers[-1][2].update(figures.EMBEDDED)
    if nsq_bin := os.environ.get("NSQ_BIN"):
        brokers[-1][2].update(figures.nsq_figures(Path(nsq_bin)))
    known = {name for _, _, found in brokers for name in found} | {
        archives.NAME,
        uploads.NAME,
        load.NAME,
    }
    if unknown := set(options.only) - known:
        raise BenchError(f"no figure {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if options.only:
        brokers = [
            (label, argv, {name: found[name] for name in found if name in options.only})
            for label, argv, found in brokers
        ]
    return Plan(
        messages=options.messages,
        runs=options.runs,
        brokers=brokers,
        archive_bytes=0
        if options.only and archives.NAME not in options.only
        else options.archive_bytes,
        upload_bytes=0
        if options.only and uploads.NAME not in options.only
        else options.upload_bytes,
        sizes=None if options.only and load.NAME not in options.only else _sizes(options),
        machine=machine.description(folder),
    )


def _sizes(options: argparse.Namespace) -> load.Sizes:
    is_quick = options.messages <= QUICK_MESSAGES
    return load.QUICK if is_quick else load.Sizes(backlog=options.backlog)


def measure(plan: Plan, folder: Path) -> None:
    """Take every sample. Raises BenchError when a process fails or a count is not exact."""
    if plan.archive_bytes:
        tell(f"archive, {plan.archive_bytes / 1e6:,.0f} MB")
        plan.archive = archives.measure(folder, plan.archive_bytes, plan.runs)
    if plan.upload_bytes:
        tell(f"upload, {plan.upload_bytes / 1e6:,.0f} MB")
        plan.uploads = uploads.measure(folder, plan.upload_bytes, plan.runs)
    if plan.sizes is not None:
        tell("the broker under load")
        plan.load = load.measure(folder, plan.sizes)
    messages, mixed = folder / "messages", folder / "mixed"
    data.write_messages(messages, plan.messages)
    data.write_messages(mixed, plan.messages, is_mixed=True)
    for number in range(plan.runs):
        for label, argv, wanted in plan.brokers:
            if not wanted:
                continue
            tell(f"run {number + 1} of {plan.runs}, {label}")
            run_folder = folder / f"run-{number}-{label}"
            run_folder.mkdir()
            with Children(run_folder) as children:
                loopback = figures.loopback(children, messages, plan.messages)
                plan.add(LOOPBACK, loopback)
                bench = figures.Bench(
                    children=children,
                    nsqd=Nsqd(children, label, argv),
                    messages=messages,
                    mixed=mixed,
                    count=plan.messages,
                    loopback=loopback,
                )
                for name, figure in wanted.items():
                    plan.add(name, figure(bench))
                bench.nsqd.child.terminate()
            shutil.rmtree(run_folder)


def targets(plan: Plan, version_s: float) -> list[Target]:
    """What the project set itself, beside what was measured."""
    rows = plan.rows
    by_name = {row.name: row for row in rows}
    found = [
        at_least("broker ingest", BROKER_TARGET, by_name.get("ingest")),
        at_least("broker delivery", BROKER_TARGET, by_name.get("delivery")),
    ]
    found += [at_least(f"archive {name}", ARCHIVE_TARGET, by_name.get(name)) for name in ARCHIVES]
    found.append(at_least("replay", REPLAY_TARGET, by_name.get("replay-lines")))
    found += [
        at_least("http, one message a request", HTTP_TARGET, by_name.get("http")),
        at_least("http, 100 messages a request", HTTP_BATCH_TARGET, by_name.get("http-100")),
    ]
    found += [
        at_least(f"s3, {server}'s server", S3_TARGET, by_name.get(f"s3-{server}"))
        for server in uploads.SERVERS
    ]
    found += [one.target() for one in plan.load]
    found += [one.target() for one in plan.uploads]
    found += rss_targets(rows, ("broker", "archiver", "replayer", "deliverer", "uploader"))
    found.append(
        Target(
            what="nsq_to_file --version",
            wanted=f"< {VERSION_TARGET_S:.2f} s",
            measured=f"{version_s:.3f} s",
            met=version_s < VERSION_TARGET_S,
        )
    )
    return found + (plan.archive.targets() if plan.archive else [])


def comparisons(rows: list[Row]) -> Iterator[str]:
    """One rate over another, for what was measured of both: ours over theirs, on the same broker; each
    record format over `lines`; several connections over one, many nsqds over one, many sizes over one."""
    by_name = {row.name: row for row in rows}

    def beside(name: str) -> str:
        return f"real-{name}" if f"real-{name}" in by_name else name

    pairs = [(name, f"real-{name}") for name in ("ingest", "delivery")]
    same = {"lines-none-200": "nsq-none-200", "lines-none": "nsq-none", "lines-gzip": "nsq-gzip"}
    pairs += [(beside(ours), theirs) for ours, theirs in same.items()]
    pairs += [(beside("replay-lines"), "nsq-to_nsq"), (beside("http"), "nsq-http")]
    for record_format in ("framed", "jsonl"):
        pairs += [
            (beside(f"{record_format}-{each}"), beside(f"lines-{each}"))
            for each in figures.COMPRESSIONS
        ]
        pairs.append((beside(f"replay-{record_format}"), beside("replay-lines")))
    pairs += [(beside(f"s3-{each}"), beside("lines-zstd")) for each in uploads.SERVERS]
    pairs += [(f"{each}-connections", beside("lines-none")) for each in ("two", "four")]
    pairs.append(("many-nsqds", "one-nsqd"))
    pairs += [(beside(f"mixed-{each}"), beside(each)) for each in ("ingest", "lines-none")]
    for ours, theirs in pairs:
        if ours in by_name and theirs in by_name:
            yield f"{ours} / {theirs}: {by_name[ours].rate / by_name[theirs].rate:.2f}x"


def show(plan: Plan, version_s: float) -> None:
    rows = plan.rows
    print(f"{plan.messages:,} messages a figure, medians of {plan.runs} runs; {data.DESCRIPTION}")
    print(f"on {plan.machine} at the start")
    print(f"endpoint of http: {server_name()}\n")
    if rows:
        print("\n".join(aligned([HEADS, *(row.cells() for row in rows)])))
    if plan.archive is not None:
        print("\n" + "\n".join(plan.archive.lines()))
    if plan.uploads:
        print("\n" + "\n".join(one.line() for one in plan.uploads))
    if compared := list(comparisons(rows)):
        print("\none / the other\n" + "\n".join(compared))
    heads = ("target", "wanted", "measured", "")
    print("\n" + "\n".join(aligned([heads, *(t.cells() for t in targets(plan, version_s))])))
    print("! above 150 MB. The floor of an archive is the slower of loopback and disk.")


def write_json(path: Path, plan: Plan, version_s: float) -> None:
    found = {
        "machine": plan.machine,
        "messages": plan.messages,
        "runs": plan.runs,
        "data": data.DESCRIPTION,
        "endpoint": server_name(),
        "rows": [row.as_json() for row in plan.rows],
        "version_s": version_s,
        "load": [asdict(one) for one in plan.load],
        "uploads": [asdict(one) for one in plan.uploads],
        "archive": None if plan.archive is None else asdict(plan.archive),
        "targets": [asdict(target) for target in targets(plan, version_s)],
    }
    path.write_text(json.dumps(found, indent=2) + "\n")


def main(argv: list[str]) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="nsqtools-bench-"))
    try:
        plan = make_plan(options, folder)
        measure(plan, folder)
        version_s = figures.version_s()
        show(plan, version_s)
        if options.json is not None:
            write_json(options.json, plan, version_s)
    except BenchError as failure:
        tell(f"bench: {failure}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

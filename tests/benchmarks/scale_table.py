"""The tables of docs/scale.md, from tests/benchmarks/results/scale.json: part of scale.py.

What was measured is in the first table. The others are reckoned from it, a formula a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infra.batch_plan import CHUNK_ROWS, shard_work

IMAGES = (10**6, 10**8, 10**9)
WORKERS = (1, 10, 1_000)
FILE_IMAGES = 10_000
"""Of a Parquet file."""
_LOOSE_WORK = 1 + 600 / 2048 + 4
_PIXELS_WORK = 1 + 784 / 2048
"""Of an image, as `infra.batch_plan.work_of` reckons it."""
_TIER_1, _TIER_2 = 0.005 / 1_000, 0.0004 / 1_000
"""Dollars: a PUT, COPY, POST or LIST; a GET or HEAD. S3 Standard, us-east-1. A DELETE is free."""
_PUT_LIMIT, _GET_LIMIT = 3_500, 5_500
"""Requests a second that S3 takes at least, of one partitioned prefix."""
_PAGE = 1_000


def tables(results: dict[str, Any]) -> str:
    """The tables as Markdown."""
    slopes = Slopes.of(results)
    parts = [_slopes_table(results, slopes)]
    for title, layout in (("Loose objects of 600 bytes", Loose), ("Parquet of 10,000 raw images a file", Packed)):
        parts.append(_images_table(title, [layout(slopes, images) for images in IMAGES]))
    parts.append(_workers_table(slopes))
    return "\n\n".join(parts)


@dataclass(frozen=True)
class Slopes:
    """What each further object, file, shard, batch or actor takes; between the two largest sizes measured."""

    list_seconds: float
    compare_seconds: float
    write_seconds: float
    """By object: listing and keeping; sorting, comparing and cutting; digest and plan."""
    plan_bytes: float
    footer_bytes: float
    """By row group of the plan."""
    scratch_bytes: float
    file_seconds: float
    """To plan a Parquet file on this disk."""
    shard_seconds: float
    """Of the whole run, by shard of 32 images, two actors."""
    driver_cpu_seconds: float
    board_cpu_seconds: float
    driver_bytes: float
    driver_mib: float
    """With the fewest shards."""
    plasma_bytes: float
    manifest_bytes: float
    commit_seconds: float
    take_over_seconds: float
    image_seconds: float
    """Of both actors."""
    report_seconds: float
    """By image."""
    by_shard: dict[str, float]
    by_file: dict[str, float]
    by_part_taken_over: dict[str, float]
    dispatch_cpu_ms: dict[int, float]
    """Of the driver, by shard, with so many under way."""
    actor_start_seconds: float
    """Between one actor's start and the next one's, on these two CPUs."""

    @classmethod
    def of(cls, results: dict[str, Any]) -> "Slopes":
        """From results of all parts."""
        planning, shards, images = (results[part] for part in ("planning", "shards", "images"))
        requests = results["requests"]["s3"]
        dispatch = results["dispatch"]
        objects = _largest(planning)
        anew = planning[objects]["anew"]
        return cls(
            list_seconds=_slope(planning, lambda e: e["anew"]["stages"]["list and keep"]),
            compare_seconds=_slope(planning, lambda e: e["anew"]["stages"]["compare, sort, cut into pieces"]),
            write_seconds=_slope(planning, lambda e: e["anew"]["stages"]["digest and write the plan"]),
            plan_bytes=_slope(planning, lambda e: e["anew"]["plan_bytes"]),
            footer_bytes=anew["plan_footer_bytes"] / anew["plan_row_groups"],
            scratch_bytes=_slope(planning, lambda e: e["anew"]["scratch_mib"] * 2**20),
            file_seconds=_slope(shards, lambda e: e["steps"]["plan_batch"]),
            shard_seconds=_slope(shards, lambda e: e["from_first_actor_seconds"]),
            driver_cpu_seconds=_slope(shards, lambda e: e["cpu_seconds"]["driver"]),
            board_cpu_seconds=_slope(shards, lambda e: e["cpu_seconds"]["board"]),
            driver_bytes=_slope(shards, lambda e: e["peak_mib"]["driver"] * 2**20),
            driver_mib=shards[_smallest(shards)]["peak_mib"]["driver"],
            plasma_bytes=_slope(shards, lambda e: e["object_store_bytes"]["written"]),
            manifest_bytes=_slope(shards, lambda e: e["manifest_bytes"]),
            commit_seconds=_slope(shards, lambda e: e["steps"]["commit_batches"]),
            take_over_seconds=_slope(
                shards, lambda e: 2 * (e["killed_at_half"]["list_seconds"] + e["killed_at_half"]["read_books_seconds"])
            ),
            image_seconds=_slope(images, lambda e: e["from_first_actor_seconds"]),
            report_seconds=_slope(images, lambda e: e["steps"]["write_batch_reports"]),
            by_shard=requests["by_shard"],
            by_file=requests["by_file"],
            by_part_taken_over=requests["by_part_taken_over"],
            dispatch_cpu_ms={int(name): entry["cpu_ms_a_shard"]["driver"] for name, entry in dispatch.items()},
            actor_start_seconds=_actor_start(dispatch),
        )


def _sizes(part: dict[str, Any]) -> list[str]:
    return sorted(part, key=int)


def _largest(part: dict[str, Any]) -> str:
    return _sizes(part)[-1]


def _smallest(part: dict[str, Any]) -> str:
    return _sizes(part)[0]


def _slope(part: dict[str, Any], figure: Callable[[dict[str, Any]], float]) -> float:
    """By unit, between the two largest sizes."""
    less, more = _sizes(part)[-2:]
    return (figure(part[more]) - figure(part[less])) / (int(more) - int(less))


def _actor_start(dispatch: dict[str, Any]) -> float:
    entry = max((e for e in dispatch.values() if e["kind"] == "actors"), key=lambda e: e["in_flight"])
    started = entry["last_actor_seconds"] - entry["first_actor_seconds"]
    return float(started / (entry["in_flight"] - 1))


@dataclass(frozen=True)
class Loose:
    """A batch of image files, each an object."""

    slopes: Slopes
    images: int

    @property
    def objects(self) -> float:
        return self.images

    @property
    def pieces(self) -> float:
        return self.images

    @property
    def shards(self) -> float:
        return _shards(self.images * _LOOSE_WORK)

    @property
    def listing_seconds(self) -> float:
        return self.images * self.slopes.list_seconds

    @property
    def planning_seconds(self) -> float:
        return self.listing_seconds + self.images * (self.slopes.compare_seconds + self.slopes.write_seconds)

    def requests(self, method: str) -> float:
        """LIST, PUT, GET, HEAD or DELETE."""
        own = {"LIST": self.objects / _PAGE, "GET": self.images}.get(method, 0)
        return own + self.shards * self.slopes.by_shard.get(method, 0)


@dataclass(frozen=True)
class Packed(Loose):
    """A batch of Parquet files."""

    @property
    def objects(self) -> float:
        return self.images / FILE_IMAGES

    @property
    def pieces(self) -> float:
        return self.objects

    @property
    def shards(self) -> float:
        return _shards(self.images * _PIXELS_WORK)

    @property
    def listing_seconds(self) -> float:
        return self.objects * self.slopes.list_seconds

    @property
    def planning_seconds(self) -> float:
        return self.objects * self.slopes.file_seconds

    def requests(self, method: str) -> float:
        own = self.objects / _PAGE if method == "LIST" else self.objects * self.slopes.by_file.get(method, 0)
        return own + self.shards * self.slopes.by_shard.get(method, 0)


def _shards(work: float) -> float:
    return round(work / shard_work(work))


def _dollars(batch: Loose) -> float:
    tier_1, tier_2 = (
        sum(batch.requests(method) for method in methods) for methods in (("LIST", "PUT", "POST"), ("GET", "HEAD"))
    )
    return tier_1 * _TIER_1 + tier_2 * _TIER_2


def _images_table(title: str, batches: list[Loose]) -> str:
    s = batches[0].slopes
    rows: list[tuple[str, str, Callable[[Loose], str]]] = [
        ("objects listed", "images, or images / 10,000", lambda b: _n(b.objects)),
        ("listing", "objects * list", lambda b: _time(b.listing_seconds)),
        ("listing and planning", "objects * (list + compare + write), or files * file",
         lambda b: _time(b.planning_seconds)),
        ("plan", "pieces * plan bytes", lambda b: _bytes(b.pieces * s.plan_bytes)),
        ("footer of the plan, read by each actor", "pieces / 65,536 * footer bytes",
         lambda b: _bytes(b.pieces / CHUNK_ROWS * s.footer_bytes)),
        ("local disk while planning", "pieces * scratch bytes", lambda b: _bytes(b.pieces * s.scratch_bytes)),
        ("shards", "shard_work(images * work)", lambda b: _n(b.shards)),
        ("S3: LIST", "objects / 1,000 + shards * LIST", lambda b: _n(b.requests("LIST"))),
        ("S3: PUT", "shards * PUT", lambda b: _n(b.requests("PUT"))),
        ("S3: GET and HEAD", "loose: images; Parquet: files * by file; + shards * by shard",
         lambda b: _n(b.requests("GET") + b.requests("HEAD"))),
        ("S3: requests, US dollars", "price list", lambda b: f"{_dollars(b):,.2f}"),
        ("memory of the task that hands out shards", "fewest + shards * bytes",
         lambda b: _bytes(s.driver_mib * 2**20 + b.shards * s.driver_bytes)),
        ("written to Ray's object store", "shards * bytes", lambda b: _bytes(b.shards * s.plasma_bytes)),
        ("manifest", "shards * manifest bytes", lambda b: _bytes(b.shards * s.manifest_bytes)),
        ("commit", "shards * commit", lambda b: _time(b.shards * s.commit_seconds)),
        ("books of all shards taken over, local disk", "shards * take over",
         lambda b: _time(b.shards * s.take_over_seconds)),
        ("the same on S3: requests, one after the other", "shards * by part",
         lambda b: _n(b.shards * sum(s.by_part_taken_over.values()))),
        ("report of the batch, one process", "images * report", lambda b: _time(b.images * s.report_seconds)),
        ("the actors' work on two CPUs, raw pixels", "images * image", lambda b: _time(b.images * s.image_seconds)),
    ]  # fmt: skip
    head = ["| " + title + " | formula | " + " | ".join(f"{b.images:.0e}".replace("e+0", "e") for b in batches) + " |"]
    head.append("| --- | --- | " + " | ".join("---" for _ in batches) + " |")
    return "\n".join(
        head
        + [f"| {name} | `{formula}` | " + " | ".join(map(figure, batches)) + " |" for name, formula, figure in rows]
    )


def _workers_table(s: Slopes) -> str:
    """Load by workers on 1e9 images in Parquet, and the number of workers at which each thing is full."""
    batch = Packed(s, 10**9)
    rate = 0.5 / s.image_seconds  # of one actor on one CPU
    shard_images = batch.images / batch.shards
    shards_a_second = rate / shard_images  # of one worker
    gets = shards_a_second * (batch.requests("GET") + batch.requests("HEAD")) / batch.shards
    puts = shards_a_second * batch.requests("PUT") / batch.shards
    loads = [
        ("task that hands out shards: CPU", shards_a_second * s.driver_cpu_seconds, 1.0, "shards/s * driver CPU"),
        ("progress board: CPU", shards_a_second * s.board_cpu_seconds, 1.0, "shards/s * board CPU"),
        ("S3: GET and HEAD", gets, _GET_LIMIT, "requests/s / 5,500"),
        ("S3: PUT", puts, _PUT_LIMIT, "requests/s / 3,500"),
    ]
    lines = [
        f"| 1e9 images in Parquet, {rate:,.0f} images/s a worker | formula | "
        + " | ".join(f"{workers:,}" for workers in WORKERS)
        + " | full at, workers | with workers ten times as fast |",
        "| --- | --- | " + "--- | " * len(WORKERS) + "--- | --- |",
        "| classification | `images / (workers * images/s)` | "
        + " | ".join(_time(batch.images / (workers * rate)) for workers in WORKERS)
        + " | | |",
        "| shards a worker | `shards / workers` | "
        + " | ".join(f"{batch.shards / workers:,.1f}" for workers in WORKERS)
        + f" | {batch.shards:,.0f} | {batch.shards:,.0f} |",
        "| longest wait for the last shard | `a shard's images / images/s` | "
        + " | ".join(_time(1 / shards_a_second) for _ in WORKERS)
        + f" | | {_time(0.1 / shards_a_second)} |",
    ]
    for name, load, limit, formula in loads:
        lines.append(
            f"| {name} | `{formula}` | "
            + " | ".join(f"{workers * load / limit:.2%}" for workers in WORKERS)
            + f" | {_n(limit / load)} | {_n(limit / load / 10)} |"
        )
    return "\n".join(lines)


def _slopes_table(results: dict[str, Any], s: Slopes) -> str:
    rows = [
        ("list", "object", _small(s.list_seconds), "planning"),
        ("compare", "object", _small(s.compare_seconds), "planning"),
        ("write", "object", _small(s.write_seconds), "planning"),
        ("plan bytes", "object", _bytes(s.plan_bytes), "planning"),
        ("footer bytes", "65,536 objects", _bytes(s.footer_bytes), "planning"),
        ("scratch bytes", "object", _bytes(s.scratch_bytes), "planning"),
        ("file: to plan a Parquet file", "file", _small(s.file_seconds), "shards"),
        ("seconds of a run, 32 images a shard, two actors", "shard", _small(s.shard_seconds), "shards"),
        ("driver CPU: the task that hands out shards", "shard", _small(s.driver_cpu_seconds), "shards"),
        ("its memory", "shard", _bytes(s.driver_bytes), "shards"),
        ("board CPU", "shard", _small(s.board_cpu_seconds), "shards"),
        ("written to Ray's object store", "shard", _bytes(s.plasma_bytes), "shards"),
        ("manifest bytes", "shard", _bytes(s.manifest_bytes), "shards"),
        ("commit", "shard", _small(s.commit_seconds), "shards"),
        ("take over", "part", _small(s.take_over_seconds), "shards"),
        ("image", "image", _small(s.image_seconds), "images"),
        ("report", "image", _small(s.report_seconds), "images"),
        ("S3 requests by shard", "shard", _counts(s.by_shard), "requests"),
        ("S3 requests by file", "file", _counts(s.by_file), "requests"),
        ("S3 requests by part taken over", "part", _counts(s.by_part_taken_over), "requests"),
    ]
    lines = ["| slope | by | | measured by |", "| --- | --- | --- | --- |"]
    return "\n".join(lines + [f"| {name} | {by} | {figure} | `--{part}` |" for name, by, figure, part in rows])


def _counts(requests: dict[str, float]) -> str:
    return ", ".join(f"{method} {count:g}" for method, count in requests.items() if abs(count) >= 0.05)


def _n(count: float) -> str:
    return f"{count:,.0f}"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:,.3g} {unit}"
    return f"{count:,.3g} B"


def _time(seconds: float) -> str:
    for unit, size in (("d", 172_800.0), ("h", 5400.0), ("min", 90.0)):
        if seconds >= size:
            return f"{seconds / {'d': 86_400, 'h': 3600, 'min': 60}[unit]:,.3g} {unit}"
    return f"{seconds:,.2g} s"


def _small(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds * 1e9:,.2g} ns"

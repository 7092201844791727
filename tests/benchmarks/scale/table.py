"""Build the tables of docs/scale.md from tests/benchmarks/results/scale.json.

The first table holds the measurements. The others are calculated from it, with one formula per row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infra.storage.tables.planning.plan import CHUNK_ROWS, shard_work
from infra.storage.tables.planning.staged_inputs import RANGE_FILES

IMAGES = (10**6, 10**8, 10**9)
WORKERS = (1, 10, 1_000)
FILE_IMAGES = 10_000
"""Images in a Parquet file."""
_LOOSE_WORK = 1 + 600 / 2048 + 4
_PIXELS_WORK = 1 + 784 / 2048
"""Work per image, as `infra.storage.tables.planning.plan.work_of` calculates it."""
_TIER_1, _TIER_2 = 0.005 / 1_000, 0.0004 / 1_000
"""Dollars per request: a PUT, COPY, POST or LIST, and a GET or HEAD. S3 Standard, us-east-1. DELETE is free."""
_PUT_LIMIT, _GET_LIMIT = 3_500, 5_500
"""Minimum requests per second that S3 supports for one partitioned prefix."""
_LINES = 1_000
"""Maximum lines per second that the progress board forwards: 500, twice a second (`infra.cluster.progress_board`)."""
_BOARD_CALLS = 3
"""Calls per shard: completion, batch progress, and the actor's log. Each actor also reports progress every second."""
_PAGE = 1_000


def tables(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    slopes = Slopes.of(results)
    parts = [_slopes_table(results, slopes)]
    for title, layout in (("Loose objects of 600 bytes", Loose), ("Parquet of 10,000 raw images a file", Packed)):
        parts.append(_images_table(title, [layout(slopes, images) for images in IMAGES]))
    parts.append(_workers_table(slopes))
    return "\n\n".join(parts)


@dataclass(frozen=True)
class Slopes:
    """Cost of each further object, file, shard, batch or actor, between the two largest sizes measured."""

    list_seconds: float
    compare_seconds: float
    write_seconds: float
    """Seconds per object. `list`: listing and keeping. `compare`: sorting and cutting. `write`: digest and plan."""
    again_seconds: float
    """Comparison seconds per object if everything is planned already."""
    plan_bytes: float
    footer_bytes: float
    """Bytes per row group of the plan."""
    listed_bytes: float
    """Bytes per object on this machine's disk. The pieces of the plan are also there and take about as much."""
    range_bytes: float
    """Bytes per object of the range that is being sorted or compared."""
    file_seconds: float
    """Seconds to plan a Parquet file on this disk."""
    shard_seconds: float
    """CPU seconds in an actor per shard of 32 images."""
    driver_cpu_seconds: float
    board_cpu_seconds: float
    driver_bytes: float
    driver_mib: float
    """MiB of the driver with the fewest shards."""
    flow_bytes: float
    """Memory of the flow's process, which makes the report, in bytes per shard."""
    flow_mib: float
    """MiB of the flow's process with the fewest shards."""
    head_bytes: float
    plasma_bytes: float
    log_bytes: float
    commit_seconds: float
    find_seconds: float
    image_seconds: float
    """CPU seconds in an actor per image."""
    report_seconds: float
    """Seconds of the report per image."""
    report_part_seconds: float
    by_shard: dict[str, float]
    by_file: dict[str, float]
    report_by_shard: dict[str, float]
    by_shard_found: dict[str, float]
    batch_seconds: float
    batch_on_s3_seconds: float
    """Planning seconds per batch that the table has."""
    dispatch_cpu_ms: dict[int, float]
    """CPU milliseconds of the driver per shard, by number of shards in progress."""
    actor_start_seconds: float
    """Seconds between the starts of two successive actors, on these two CPUs."""

    def of_shards(self, method: str) -> float:
        """Return the requests per shard, including those of the report."""
        return self.by_shard.get(method, 0) + self.report_by_shard.get(method, 0)

    @classmethod
    def of(cls, results: dict[str, Any]) -> "Slopes":
        """Derive the slopes from the results of all parts."""
        planning, shards, images = (results[part] for part in ("planning", "shards", "images"))
        requests = results["requests"]["s3"]
        dispatch = results["dispatch"]
        objects = _largest(planning)
        anew = planning[objects]["anew"]
        return cls(
            list_seconds=_slope(planning, lambda e: e["anew"]["stages"]["list and keep"]),
            compare_seconds=_slope(planning, lambda e: e["anew"]["stages"]["compare, sort, cut into pieces"]),
            write_seconds=_slope(planning, lambda e: e["anew"]["stages"]["digest and write the plan"]),
            again_seconds=_slope(planning, lambda e: e["nothing_new"]["stages"]["compare, sort, cut into pieces"]),
            plan_bytes=_slope(planning, lambda e: e["anew"]["plan_bytes"]),
            footer_bytes=anew["plan_footer_bytes"] / anew["plan_row_groups"],
            listed_bytes=_slope(results["comparison"], lambda e: e["listed_mib"] * 2**20),
            range_bytes=_range_bytes(results["comparison"]),
            file_seconds=_slope(shards, lambda e: e["steps"]["plan_batch"]),
            shard_seconds=_slope(shards, lambda e: e["cpu_seconds"]["actor"]),
            driver_cpu_seconds=_slope(shards, lambda e: e["cpu_seconds"]["driver"]),
            board_cpu_seconds=_slope(shards, lambda e: e["cpu_seconds"]["board"]),
            driver_bytes=_slope(shards, lambda e: e["peak_mib"]["driver"] * 2**20),
            driver_mib=shards[_smallest(shards)]["peak_mib"]["driver"],
            flow_bytes=_slope(shards, lambda e: e["peak_mib"].get("flow", 0) * 2**20),
            flow_mib=shards[_smallest(shards)]["peak_mib"].get("flow", 0),
            head_bytes=_slope(shards, lambda e: e["peak_mib"]["head"] * 2**20),
            plasma_bytes=_slope(shards, lambda e: e["object_store_bytes"]["written"]),
            log_bytes=_slope(shards, lambda e: e["log_bytes"]),
            commit_seconds=_slope(shards, lambda e: e["steps"]["commit_batches"]),
            find_seconds=_slope(shards, lambda e: 2 * e["killed_at_half"]["take_over_seconds"]),
            image_seconds=_slope(images, lambda e: e["cpu_seconds"]["actor"]),
            report_seconds=_slope(images, lambda e: e["steps"]["write_batch_reports"]),
            report_part_seconds=_slope(shards, lambda e: e["steps"]["write_batch_reports"]),
            by_shard=requests["by_shard"],
            by_file=requests["by_file"],
            report_by_shard=_by_shard(requests["report_of_120_shards"], requests["report_of_20_shards"]),
            by_shard_found=requests["by_shard_found"],
            batch_seconds=_slope(results["batches"], lambda e: e["seconds"]),
            batch_on_s3_seconds=_slope(results["batches on S3"], lambda e: e["seconds"]),
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
    """Return the cost per unit between the two largest sizes."""
    less, more = _sizes(part)[-2:]
    return (figure(part[more]) - figure(part[less])) / (int(more) - int(less))


def _range_bytes(comparison: dict[str, Any]) -> float:
    entry = comparison[_largest(comparison)]
    extra = max(entry[query]["scratch_mib"] for query in ("compare", "sort")) - entry["listed_mib"]
    return float(extra * 2**20 / min(entry["objects"], RANGE_FILES))


def _range(batch: "Loose") -> float:
    return min(batch.pieces, RANGE_FILES) * batch.slopes.range_bytes


def _by_shard(more: dict[str, float], less: dict[str, float]) -> dict[str, float]:
    return {method: (more[method] - less[method]) / 100 for method in more}


def _actor_start(dispatch: dict[str, Any]) -> float:
    entry = max((e for e in dispatch.values() if "actors" in e), key=lambda e: e["in_flight"])
    started = entry["last_actor_seconds"] - entry["first_actor_seconds"]
    return float(started / (entry["actors"] - 1))


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
        """Return the number of requests of one method: LIST, PUT, GET, HEAD or DELETE."""
        own = {"LIST": self.objects / _PAGE, "GET": self.images}.get(method, 0)
        return own + self.shards * self.slopes.of_shards(method)


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
        return own + self.shards * self.slopes.of_shards(method)


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
        ("listing and planning", "objects * (list + sort + write), or files * file",
         lambda b: _time(b.planning_seconds)),
        ("plan", "pieces * plan bytes", lambda b: _bytes(b.pieces * s.plan_bytes)),
        ("footer of the plan, read by each actor", "pieces / 65,536 * footer bytes",
         lambda b: _bytes(b.pieces / CHUNK_ROWS * s.footer_bytes)),
        ("local disk while planning", "pieces * (2 * listed + plan bytes) + a range",
         lambda b: _bytes(b.pieces * (2 * s.listed_bytes + s.plan_bytes) + _range(b))),
        ("the next run, nothing new: listing and comparing", "objects * (list + compare)",
         lambda b: _time(b.objects * (s.list_seconds + s.again_seconds))),
        ("its disk, and the plan brought from S3", "pieces * (listed + plan bytes) + a range",
         lambda b: _bytes(b.pieces * (s.listed_bytes + s.plan_bytes) + _range(b))),
        ("shards", "shard_work(images * work)", lambda b: _n(b.shards)),
        ("S3: LIST", "objects / 1,000 + shards * LIST", lambda b: _n(b.requests("LIST"))),
        ("S3: PUT", "shards * PUT", lambda b: _n(b.requests("PUT"))),
        ("S3: GET and HEAD", "loose: images; Parquet: files * by file; + shards * by shard",
         lambda b: _n(b.requests("GET") + b.requests("HEAD"))),
        ("S3: requests, US dollars", "price list", lambda b: f"{_dollars(b):,.2f}"),
        ("memory of the task that hands out shards", "fewest + shards * bytes",
         lambda b: _bytes(s.driver_mib * 2**20 + b.shards * s.driver_bytes)),
        ("memory of the flow's process", "fewest + shards * bytes",
         lambda b: _bytes(s.flow_mib * 2**20 + b.shards * s.flow_bytes)),
        ("written to Ray's object store", "shards * bytes", lambda b: _bytes(b.shards * s.plasma_bytes)),
        ("commit in the Delta log", "shards * log bytes", lambda b: _bytes(b.shards * s.log_bytes)),
        ("commit", "shards * commit", lambda b: _time(b.shards * s.commit_seconds)),
        ("finished shards of a killed run found, local disk", "shards * find",
         lambda b: _time(b.shards * s.find_seconds)),
        ("the same on S3: requests, sixteen at once", "shards * by shard found",
         lambda b: _n(b.shards * sum(s.by_shard_found.values()))),
        ("report of the batch, one process", "images * report + shards * report",
         lambda b: _time(b.images * s.report_seconds + b.shards * s.report_part_seconds)),
        ("the actors' work on two CPUs, raw pixels", "images * image / 2",
         lambda b: _time(b.images * s.image_seconds / 2)),
    ]  # fmt: skip
    head = ["| " + title + " | formula | " + " | ".join(f"{b.images:.0e}".replace("e+0", "e") for b in batches) + " |"]
    head.append("| --- | --- | " + " | ".join("---" for _ in batches) + " |")
    return "\n".join(
        head
        + [f"| {name} | `{formula}` | " + " | ".join(map(figure, batches)) + " |" for name, formula, figure in rows]
    )


def _workers_table(s: Slopes) -> str:
    """Format the load by workers for 1e9 images in Parquet, and the number of workers that saturates each resource."""
    batch = Packed(s, 10**9)
    rate = 1 / s.image_seconds
    shard_images = batch.images / batch.shards
    shards_a_second = rate / shard_images  # per worker
    files = batch.objects / batch.shards
    gets = shards_a_second * sum(s.by_shard[method] + files * s.by_file[method] for method in ("GET", "HEAD"))
    puts = shards_a_second * s.by_shard["PUT"]
    loads = [
        ("task that hands out shards: CPU", shards_a_second * s.driver_cpu_seconds, 1.0, "shards/s * driver CPU"),
        (
            "the same, of shards that take no time",
            shards_a_second * s.dispatch_cpu_ms[max(s.dispatch_cpu_ms)] / 1000,
            1.0,
            "shards/s * dispatch CPU",
        ),
        (
            "progress board: CPU",
            (shards_a_second + 1 / _BOARD_CALLS) * s.board_cpu_seconds,
            1.0,
            f"(shards/s + workers / {_BOARD_CALLS}) * board CPU",
        ),
        ("S3: GET and HEAD", gets, _GET_LIMIT, "requests/s / 5,500"),
        ("S3: PUT", puts, _PUT_LIMIT, "requests/s / 3,500"),
        ("log lines to Prefect, of those that the board keeps", shards_a_second, _LINES, "shards/s / 1,000"),
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
        ("sort", "object", _small(s.compare_seconds), "planning"),
        ("compare, where nothing is new", "object", _small(s.again_seconds), "planning"),
        ("write", "object", _small(s.write_seconds), "planning"),
        ("plan bytes", "object", _bytes(s.plan_bytes), "planning"),
        ("footer bytes", "65,536 objects", _bytes(s.footer_bytes), "planning"),
        ("listed: on disk", "object", _bytes(s.listed_bytes), "comparison"),
        ("a range: extra bytes on disk", "object of at most 5,000,000", _bytes(s.range_bytes), "comparison"),
        ("file: to plan a Parquet file", "file", _small(s.file_seconds), "shards"),
        ("CPU of an actor, 32 images a shard", "shard", _small(s.shard_seconds), "shards"),
        ("driver CPU: the task that hands out shards", "shard", _small(s.driver_cpu_seconds), "shards"),
        *(
            (f"dispatch CPU, {in_flight:,} shards under way", "shard", _small(milliseconds / 1000), "dispatch")
            for in_flight, milliseconds in sorted(s.dispatch_cpu_ms.items())
        ),
        ("its memory", "shard", _bytes(s.driver_bytes), "shards"),
        ("memory of the flow's process (the report)", "shard", _bytes(s.flow_bytes), "shards"),
        ("memory of Ray's head", "shard", _bytes(s.head_bytes), "shards"),
        ("board CPU", "shard", _small(s.board_cpu_seconds), "shards"),
        ("written to Ray's object store", "shard", _bytes(s.plasma_bytes), "shards"),
        ("log bytes: commit in the Delta log", "shard", _bytes(s.log_bytes), "shards"),
        ("commit", "shard", _small(s.commit_seconds), "shards"),
        ("find a finished shard of a killed run", "shard", _small(s.find_seconds), "shards"),
        ("image: CPU of an actor", "image", _small(s.image_seconds), "images"),
        ("report", "image", _small(s.report_seconds), "images"),
        ("report", "shard", _small(s.report_part_seconds), "shards"),
        ("start of another actor that imports nothing", "actor", _small(s.actor_start_seconds), "dispatch"),
        ("S3 requests by shard", "shard", _counts(s.by_shard), "requests"),
        ("S3 requests of the report", "shard", _counts(s.report_by_shard), "requests"),
        ("S3 requests by file", "file", _counts(s.by_file), "requests"),
        ("S3 requests by shard found", "shard", _counts(s.by_shard_found), "requests"),
        ("planning with nothing new, by batch of the table", "batch", _small(s.batch_seconds), "batches"),
        ("the same, plans on Ceph", "batch", _small(s.batch_on_s3_seconds), "batches"),
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

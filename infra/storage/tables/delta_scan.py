"""SQL for people who read the tables with DuckDB's Delta extension."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from infra.storage.object_store import ObjectStore
from infra.storage.tables.books import BatchBooks
from infra.storage.tables.newest import TableSources, has_migrated, newest_query, sql_text


def delta_scan(store: ObjectStore, folder: str) -> str:
    """Return SQL that can follow `FROM` for the Delta table in a folder."""
    return f"delta_scan({sql_text(store.delta(f'{folder}/').uri)})"


def delta_scans(store: ObjectStore, table: str) -> TableSources:
    """Return the sources of a prediction table for `newest_query`."""
    return TableSources.of(table, lambda folder: delta_scan(store, folder))


def create_secret(store: ObjectStore) -> str | None:
    """Return the statement that lets DuckDB read the store, or None for a folder. It holds no credentials."""
    if not store.root.startswith("s3://"):
        return None
    from infra.storage.object_store.s3_configuration import s3_connection

    connection = s3_connection()
    configuration = connection.configuration
    options = ["TYPE s3", "PROVIDER credential_chain", f"REGION {sql_text(configuration.region)}"]
    if configuration.profile:
        options.append(f"PROFILE {sql_text(configuration.profile)}")
    if configuration.endpoint_url:
        endpoint = urlsplit(connection.endpoint)
        options.append(f"ENDPOINT {sql_text(endpoint.netloc)}")
        options.append(f"USE_SSL {str(endpoint.scheme == 'https').lower()}")
    if configuration.addressing_style == "path":
        options.append("URL_STYLE 'path'")
    return f"CREATE SECRET ({', '.join(options)});"


def newest_script(store: ObjectStore, table: str, batches: Sequence[BatchBooks]) -> str:
    """Return a DuckDB script that selects the newest predictions of a table, with comments on how to run it."""
    sources = delta_scans(store, table)
    names = {"predictions": sources.predictions, "quarantine": sources.quarantine}
    if has_migrated(batches):
        names["books"] = sources.books
    secret = create_secret(store)
    options = ", storage_options=storage_options" if secret else ""
    return "\n".join(
        [
            f"-- The newest prediction of each image and model version in table {table}.",
            "-- DuckDB downloads its Delta extension when it first runs this.",
            "-- Without the extension, register each table in Python, and write its name in place of delta_scan(…):",
            *(
                f"--   duckdb.register({name!r}, deltalake.DeltaTable({_uri_of(source)}{options}).to_pyarrow_dataset())"
                for name, source in names.items()
            ),
            *(["-- docs/predictions.md shows how to get the storage_options."] if secret else []),
            *([secret] if secret else []),
            f"{newest_query(sources, is_migrated=has_migrated(batches))};",
        ]
    )


def _uri_of(source: str) -> str:
    """Return the quoted URI in a source of `delta_scans`."""
    return source.removeprefix("delta_scan(").removesuffix(")")

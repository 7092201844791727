"""`fmnist models` and `fmnist dataset`: show what the store holds, without Ray or Prefect."""

from typing import Any

from cyclopts import App
from rich import box
from rich.console import Console
from rich.table import Table

from flows.cli.printing import Json, new_table, print_json, print_rows, print_table, time_of
from infra.settings import load_settings
from infra.storage.object_store import ObjectStore, open_store

models = App(name="models", help="Show model versions, and choose the champion.")
dataset = App(name="dataset", help="Import Fashion-MNIST into the store, and show it.")


@models.command(name="list")
def list_models(*, as_json: Json = False) -> None:
    """List all versions, newest first."""
    from infra.storage.model_registry import ALIASES, ModelRegistry

    registry = ModelRegistry(_store())
    aliases = {alias: record.version for alias in ALIASES if (record := registry.alias(alias))}
    versions = [registry.version(number) for number in reversed(registry.versions())]
    if as_json:
        print_json({"versions": [version.model_dump(mode="json") for version in versions], "aliases": aliases})
        return
    table = new_table("version", "alias", "test accuracy", "run", "created", "by")
    for version in versions:
        names = " ".join(alias for alias, number in aliases.items() if number == version.version)
        stamp = version.provenance
        accuracy = f"{version.metrics['test_accuracy']:.2%}"
        table.add_row(
            str(version.version), names, accuracy, version.run_id, time_of(stamp.created_at), stamp.created_by
        )
    print_rows(table, f"No versions in {_store().root} yet. Train one with `fmnist train`.")


@models.command(name="show")
def show_model(model: str = "champion", *, as_json: Json = False) -> None:
    """Show everything that is recorded about a version.

    Parameters
    ----------
    model
        Version number, champion or candidate.
    """
    from infra.storage.keys import checkpoint_folder
    from infra.storage.model_registry import ModelRegistry

    store = _store()
    version = ModelRegistry(store).resolve(model)
    record = version.model_dump(mode="json") | {
        "checkpoint": store.uri(checkpoint_folder(version.run_id, version.epoch))
    }
    if as_json:
        print_json(record)
    else:
        _print_record(f"Model {version.name}, version {version.version}", record)


@models.command
def promote(version: int, *, force: bool = False, as_json: Json = False) -> None:
    """Make a version the champion.

    Parameters
    ----------
    version
        Version number.
    force
        Promote the version even if it does worse than the champion on the same test images.
    """
    from tasks.training.register import promote_version

    record = promote_version(_store(), version, force=force)
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        before = (
            "No version was champion before" if record.previous is None else f"Before, it was version {record.previous}"
        )
        Console().print(f"Version {record.version} is champion. {before}.", highlight=False)


@dataset.command
def prepare(*, as_json: Json = False) -> None:
    """Import Fashion-MNIST into the store, unless it is there already."""
    from infra.storage.datasets import read_dataset
    from tasks.dataset import NAME, import_dataset

    settings = load_settings()
    store = open_store(settings.store)
    store.check_writable()
    record = read_dataset(store, NAME) or import_dataset(store, settings)
    _print_dataset(store, record.model_dump(mode="json"), as_json=as_json)


@dataset.command
def info(*, as_json: Json = False) -> None:
    """Show the Fashion-MNIST dataset in the store."""
    from infra.errors import RequestError
    from infra.storage.datasets import read_dataset
    from tasks.dataset import NAME

    store = _store()
    record = read_dataset(store, NAME)
    if record is None:
        raise RequestError(f"{store.root} has no {NAME} yet. Import it with `fmnist dataset prepare`.")
    _print_dataset(store, record.model_dump(mode="json"), as_json=as_json)


def _print_dataset(store: ObjectStore, record: dict[str, Any], *, as_json: bool) -> None:
    record["splits"] = {
        name: {"images": split["images"], "parts": [store.uri(key) for key in split["parts"]]}
        for name, split in record["splits"].items()
    }
    if as_json:
        print_json(record)
    else:
        _print_record(f"Dataset {record['name']}, version {record['version']}", record)


def _print_record(title: str, record: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=box.SIMPLE)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(no_wrap=True)
    for name, value in _flat(record):
        table.add_row(name, str(value))
    print_table(table)


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, "\n".join(map(str, value)) if isinstance(value, list) else value))
    return rows


def _store() -> ObjectStore:
    return open_store(load_settings().store)

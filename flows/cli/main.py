"""The `fmnist` command."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from rich.console import Console

from flows.cli.border import described, end_output, output_is_closed
from flows.cli.catalog import dataset, models
from flows.cli.describe import describe
from flows.cli.predictions import predictions
from flows.cli.printing import Json, print_json
from flows.cli.refusal import refusal
from flows.cli.serve import serve
from flows.cli.signals import ending
from flows.cli.store import store
from flows.cli.table_maintenance import compact_table, delete_images
from flows.cli.timeline import Timeline
from flows.parameters import INPUTS_HELP, ClassifyParameters, TrainParameters
from fmnist_model.errors import InvalidInput
from infra.environment import open_standard_streams
from infra.errors import JobError, RequestError
from infra.settings import Settings, load_settings

_FAILED, _WRONG_REQUEST, _CLOSED_PIPE = 1, 2, 141

# Modules to import while Prefect's server starts.
_TRAINING = ("flows.train_and_classify", "ray.train.torch")
_CLASSIFICATION = ("flows.classify",)

TrainOptions = Annotated[TrainParameters, Parameter(name="*")]

app = cyclopts.App(
    name="fmnist",
    version=version("fmnist-jobs"),
    help="Train on Fashion-MNIST and classify image datasets, with Prefect flows that run on Ray.",
    default_parameter=Parameter(negative_bool=(), negative_iterable=(), negative_none=()),
    suppress_keyboard_interrupt=False,  # main reports how to resume
)


@app.command
def run(*, parameters: TrainOptions = TrainParameters(), as_json: Json = False) -> None:  # noqa: B008  # it is frozen
    """Run the main job: train, evaluate, register, classify the test images, and check the predictions."""
    with _job("Train on Fashion-MNIST, then classify its test images") as start:
        settings = _checked_for_training(parameters)
        timeline = start(settings, *_TRAINING)
        from flows.train_and_classify import train_and_classify

        summary = train_and_classify(parameters)
    from flows.cli import results

    if as_json:
        print_json(results.main_job_record(summary, settings) | {"timeline": timeline.seconds()})
    else:
        results.print_main_job(summary, settings, timeline.seconds())


@app.command
def train(*, parameters: TrainOptions = TrainParameters(), as_json: Json = False) -> None:  # noqa: B008  # it is frozen
    """Train the network, evaluate it on the test images, and register it. The best version becomes champion."""
    with _job("Train on Fashion-MNIST") as start:
        settings = _checked_for_training(parameters)
        start(settings, *_TRAINING)
        from flows.train import train as train_flow

        summary = train_flow(parameters)
    from flows.cli import results

    if as_json:
        print_json(results.training_record(summary, settings))
    else:
        results.print_training(summary, settings)


@app.command
def classify(
    *uri: Annotated[str, Parameter(name="URI", help=INPUTS_HELP)],
    parameters: Annotated[ClassifyParameters, Parameter(name="*")] = ClassifyParameters(),  # noqa: B008  # it is frozen
    as_json: Json = False,
) -> None:
    """Classify the images that a prediction table doesn't hold yet, and commit the predictions as a batch."""
    if not uri:
        raise RequestError("URI: name at least one image file, folder or Parquet file to classify.")
    parameters = parameters.model_copy(update={"inputs": list(uri)})
    with _job(f"Classify into {parameters.table}") as start:
        from tasks.preflight import check_classification

        settings = load_settings()
        check_classification(
            settings,
            inputs=parameters.inputs,
            table=parameters.table,
            model=parameters.model,
            options=parameters.reading,
        )
        start(settings, *_CLASSIFICATION)
        from flows.classify import classify as classify_flow

        summary = classify_flow(parameters)
    from flows.cli import results

    if as_json:
        print_json(results.classification_record(summary, settings))
    else:
        results.print_classification(summary, settings)


predictions.command(compact_table, name="compact")
predictions.command(delete_images, name="delete")
app.command(describe)
app.command(models)
app.command(predictions)
app.command(dataset)
app.command(store)
app.command(serve)


def _checked_for_training(parameters: TrainParameters) -> Settings:
    from tasks.preflight import check_training

    settings = load_settings()
    check_training(
        settings,
        workers=parameters.workers,
        overrides=parameters.recipe.overrides(),
        resume=parameters.run.resume,
        from_model=parameters.run.from_model,
    )
    return settings


@contextmanager
def _job(title: str) -> Iterator[Callable[..., Timeline]]:
    """Print the title of a job, and yield a function that starts Prefect and Ray.

    Call the function after you have checked the request: wrong requests should fail before anything starts.
    """
    from contextlib import ExitStack

    from flows.cli.progress_line import ProgressLine, progress_line

    console = Console(stderr=True)
    console.print(f"[bold]{title}[/bold]", highlight=False, soft_wrap=True)
    lines: list[ProgressLine] = []
    with ExitStack() as stack:

        def start(settings: Settings, *imports: str) -> Timeline:
            from flows.cli.services import services

            lines.append(stack.enter_context(progress_line(console)))
            timeline = Timeline(lines[0], stack.enter_context(services(settings, imports=imports)))
            stack.enter_context(lines[0].following())
            return timeline

        try:
            yield start
        except (KeyboardInterrupt, Exception) as error:
            run_id = lines[0].run_id if lines else None
            if isinstance(error, KeyboardInterrupt) or ending.signal:  # a signal may reach Ray's processes first
                raise Interrupted(how_to_resume(run_id)) from None
            from infra.cluster.waiting import ClusterLost

            if isinstance(error, ClusterLost):
                raise ClusterLost(f"{error} {how_to_resume(run_id)}") from None
            raise


class Interrupted(KeyboardInterrupt):
    """A job was interrupted. The message says how to resume it."""


def how_to_resume(run_id: str | None) -> str:
    """Explain how to resume after an interruption.

    Args:
        run_id: id of the training run that was in progress, if any.
    """
    from infra.storage.checkpoints import list_checkpoints
    from infra.storage.object_store import StoreUnavailable, open_store

    if run_id is None:
        return "Finished work is kept. Run the same command again to continue."
    try:
        has_checkpoint = bool(list_checkpoints(open_store(load_settings().store), run_id))
    except StoreUnavailable:
        return f"The store does not answer. When it does, resume the run with `fmnist train --resume {run_id}`."
    if not has_checkpoint:
        return "The run had no checkpoint yet. Start it again."
    return f"Its checkpoints are kept. Resume from the newest one with `fmnist train --resume {run_id}`."


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    The exit code is 0 done, 1 job failed, 2 wrong request, 130 interrupted (143 by SIGTERM, 129 by SIGHUP), and 141 if
    the reader of the output is gone.
    """
    open_standard_streams()
    with ending.on_signals():
        try:
            code = _run(arguments)
        except KeyboardInterrupt as interrupt:
            code = _report(ending.exit_code, f"{ending}. {interrupt}")
        except SystemExit:
            code = _CLOSED_PIPE  # from rich, which raises it instead of BrokenPipeError
        except Exception as error:  # noqa: BLE001 # the border of the command
            code = _CLOSED_PIPE if output_is_closed() else _report(_FAILED, described(error))
        if (lost := end_output()) and code == 0:
            closed = isinstance(lost, BrokenPipeError)
            code = _CLOSED_PIPE if closed else _report(_FAILED, f"The output can't be written: {lost.strerror}.")
    sys.exit(ending.exit_code if ending.signal else code)


def _run(arguments: list[str] | None) -> int:
    from flows.cli.services import prepare_environment

    try:
        prepare_environment()
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        return _report(_WRONG_REQUEST, refusal(error))
    except (RequestError, InvalidInput) as error:
        return _report(_WRONG_REQUEST, error)
    except JobError as error:
        return _report(_FAILED, error)
    return 0


def _report(code: int, message: object) -> int:
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write(f"fmnist: {message}\n")
    return code


if __name__ == "__main__":
    main()

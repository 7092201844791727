"""The training flow."""

from prefect import flow

from flows.parameters import TrainParameters
from infra.cluster.connection import connected_to_ray
from infra.orchestration.flow_progress import shows_progress
from infra.orchestration.flow_run import completed_with
from infra.orchestration.one_at_a_time import one_at_a_time
from tasks.dataset import prepare_dataset
from tasks.summaries import TrainingSummary
from tasks.training.begin import begin_run
from tasks.training.evaluate import evaluate_checkpoint
from tasks.training.metrics import write_metrics
from tasks.training.register import prune_checkpoints, register_model
from tasks.training.report import write_report
from tasks.training.train import train_network


@flow(name="train")
@connected_to_ray
@shows_progress
def train(parameters: TrainParameters = TrainParameters()) -> TrainingSummary:  # noqa: B008 # it is frozen
    """Train the network on Fashion-MNIST, evaluate it, register it, and make it champion if it is the best."""
    recipe, options = parameters.recipe.overrides(), parameters.run
    with one_at_a_time("training"):
        dataset = prepare_dataset()
        run = begin_run(parameters.preset, recipe, options.resume, options.from_model)
        trained = train_network(run, dataset, parameters.workers)
        write_metrics(trained, tensorboard=options.tensorboard)
        result = evaluate_checkpoint(trained, dataset)
        registration = register_model(trained, result)
        write_report(trained, result, registration)
        prune_checkpoints(trained, options.keep_best)
        return completed_with(TrainingSummary(dataset, trained, result, registration))

"""The flows with timeouts, for the deployments in infra/deploy/prefect.yaml."""

from flows.cli.services import prepare_environment

prepare_environment(console=True)

from flows.classify import classify as _classify  # noqa: E402 # needs the environment above
from flows.train import train as _train  # noqa: E402
from flows.train_and_classify import train_and_classify as _train_and_classify  # noqa: E402

_HOUR = 3600

train = _train.with_options(timeout_seconds=6 * _HOUR)
classify = _classify.with_options(timeout_seconds=12 * _HOUR)
train_and_classify = _train_and_classify.with_options(timeout_seconds=18 * _HOUR)

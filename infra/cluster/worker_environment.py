"""Collect the environment variables that Ray's worker processes need, on this machine or another."""

from infra.settings import Settings

KNOWN_ENVIRONMENT = "FMNIST_RAY_ENVIRONMENT"
"""Variable with the environment that a cluster's processes started with, as JSON. `ray_head` sets it."""


def worker_environment(settings: Settings) -> dict[str, str]:
    """Return the variables for worker processes. They hold no secret: a cluster shows them to all of its users."""
    from infra.storage.object_store.s3_configuration import worker_environment as s3_environment

    own = {
        "FMNIST_STORE": settings.store,
        "FMNIST_RETRIES": str(settings.retries),
        "FMNIST_RAY_MAX_CPUS": str(settings.ray_max_cpus),
        "FMNIST_RAY_MAX_GPUS": str(settings.ray_max_gpus),
        # An empty value is none. It replaces the setting with which a cluster started.
        "FMNIST_INPUT_ENDPOINT_URL": settings.input_endpoint_url or "",
        "FMNIST_INPUT_PROFILE": settings.input_profile or "",
        "FMNIST_INPUT_REGION": settings.input_region or "",
        "FMNIST_INPUT_UNSIGNED": str(settings.input_unsigned),
        "FMNIST_INPUT_REQUESTER_PAYS": str(settings.input_requester_pays),
    }
    return s3_environment() | own

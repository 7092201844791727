"""Emit events to Prefect's server, so that automations can act on them."""

MODEL_PROMOTED = "fmnist.model.promoted"
BATCH_COMMITTED = "fmnist.batch.committed"
BATCH_OVER_ERROR_SHARE = "fmnist.batch.over-error-share"
CLASS_MIX_MOVED = "fmnist.batch.class-mix-moved"


def announce(event: str, resource: str, **payload: object) -> None:
    """Emit an event if a Prefect server is configured. A server that doesn't answer is ignored.

    Args:
        event: name of the event, from this module.
        resource: what the event is about, such as `model.fashion-mnist` or `table.mine`.
        payload: figures for automations and notifications.
    """
    from prefect.events import emit_event
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        labels = {"prefect.resource.id": f"fmnist.{resource}", "prefect.resource.name": resource.partition(".")[2]}
        emit_event(event=event, resource=labels, payload=dict(payload))

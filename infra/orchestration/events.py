"""What happens here that others may want to act on: events at the Prefect server, for its automations."""

MODEL_PROMOTED = "fmnist.model.promoted"
BATCH_COMMITTED = "fmnist.batch.committed"
BATCH_OVER_ERROR_SHARE = "fmnist.batch.over-error-share"
CLASS_MIX_MOVED = "fmnist.batch.class-mix-moved"


def announce(event: str, resource: str, **figures: object) -> None:
    """Emit an event, where there is a server to tell; one that does not answer is no reason to fail.

    Args:
        event: one of this module's names.
        resource: what it happened to, such as `model.fashion-mnist` or `table.mine`.
        figures: what an automation or a notification may want to say of it; the event's payload.
    """
    from prefect.events import emit_event
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        labels = {"prefect.resource.id": f"fmnist.{resource}", "prefect.resource.name": resource.partition(".")[2]}
        emit_event(event=event, resource=labels, payload=dict(figures))

"""The steps that flows are made of, as Prefect tasks; the only code that starts Ray work."""

"""Where it runs and what lasts: settings, the object store and what is kept in it, Ray, Prefect."""

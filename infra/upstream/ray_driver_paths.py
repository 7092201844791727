"""Keep the current folder out of the paths that Ray's workers search for modules.

Changes:   `JobConfig._get_proto_job_config` in Ray 2.60, in a subclass that is passed to `ray.init(job_config=…)`.
Why:       a driver puts its current folder before everything else on its workers' `sys.path`. A `tasks.py` or a
           `random.py` in the folder where a command is typed is then imported instead of the real module.
Gain:      a bug fix: commands work in any folder.
Upstream:  ray-project/ray 43214 left the paths out for jobs with a working_dir, and 44435 put them back. No public
           option exists.
Remove:    when `ray.init` can leave the current folder out.
If gone:   the test fails. Workers search the current folder first, as Ray does by default.
Test:      tests/integration/test_environments.py
"""

from typing import Any

TARGETS = ("ray.job_config:JobConfig._get_proto_job_config",)
"""The private name that this patch needs."""


def job_config_with_paths(paths: list[str]) -> Any:
    """Return a job configuration for a driver whose workers search these folders first, and no folder of the driver's.

    Args:
        paths: folders, in the order of the search.
    """
    from ray.job_config import JobConfig

    class OwnPaths(JobConfig):  # type: ignore[misc] # Ray has no type hints
        def _get_proto_job_config(self) -> Any:
            self._py_driver_sys_path = [*reversed(paths)]  # workers insert one after the other at the front
            return super()._get_proto_job_config()

    return OwnPaths()

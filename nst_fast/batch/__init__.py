"""Many pictures: jobs, a journal that loses and repeats nothing, worker processes, a report."""

from nst_fast.batch.jobs import Engine, Job
from nst_fast.batch.journal import Row
from nst_fast.batch.pool import stylize_many
from nst_fast.batch.runner import BatchRunner, Observer, Summary, local

__all__ = ["BatchRunner", "Engine", "Job", "Observer", "Row", "Summary", "local", "stylize_many"]

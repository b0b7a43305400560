"""Many pictures: jobs, a journal that loses and repeats nothing, worker processes, a report."""

from nst_fast.batch.inputs import Found, find_jobs
from nst_fast.batch.jobs import Job
from nst_fast.batch.journal import Row
from nst_fast.batch.pool import stylize_many
from nst_fast.batch.runner import BatchRunner, Observer, Summary
from nst_fast.batch_options import BatchOptions
from nst_fast.making_options import MakingOptions

__all__ = [
    "BatchOptions",
    "BatchRunner",
    "Found",
    "Job",
    "MakingOptions",
    "Observer",
    "Row",
    "Summary",
    "find_jobs",
    "stylize_many",
]

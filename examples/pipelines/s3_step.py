"""A step of a pipeline from S3 to S3: what is done is skipped, failures go to the next step.

pip install "nst-fast[cpu,openvino,s3]"
python s3_step.py s3://bucket/in s3://bucket/style.jpg s3://bucket/out journal
"""

from __future__ import annotations

import sys

from nst_fast import StyleSettings
from nst_fast.batch import BatchOptions, BatchRunner, Row, find_jobs


class Failures:
    """An observer that prints the URL of each picture that failed."""

    def begin(self, todo: int, done: int) -> None:
        print(f"{todo} to make, {done} done before", file=sys.stderr)

    def started(self, worker: str, content: str) -> None:
        pass

    def ended(self, row: Row) -> None:
        if row.status == "failed":
            print(row.content)


def main(source: str, style: str, output: str, journal: str) -> int:
    settings, options = StyleSettings(size=256, steps=100), BatchOptions(name="{folder}/{stem}.jpg")
    found = find_jobs([source], output=output, styles=[style], settings=settings, options=options)
    return BatchRunner(found.jobs, journal, options=options).run([Failures()]).left


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

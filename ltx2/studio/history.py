"""The clips that were made last, for those who learn from them."""

from sqlalchemy import select

from ltx2.errors import Internal
from ltx2.studio.database import Database, jobs
from ltx2.studio.job import Job
from ltx2.studio.store import job_of


def last_made(database: Database, limit: int) -> list[Job]:
    """The jobs that have succeeded last, of all owners, the oldest first. Those that cannot be read are left out."""
    last = select(jobs).where(jobs.c.state == "succeeded").order_by(jobs.c.finished_at.desc()).limit(limit)
    found: list[Job] = []
    with database.read() as connection:
        for row in connection.execute(last):
            try:
                found.append(job_of(row))
            except Internal:  # another version of this program wrote it
                continue
    return found[::-1]

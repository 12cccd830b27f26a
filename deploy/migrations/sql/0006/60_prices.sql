-- Documents that are put back from the archive name revisions of prices that PostgreSQL may not have any more:
-- they are not given out again.
grant select, update on sequence price_revision_seq to hr_system;

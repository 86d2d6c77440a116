"""Programs that jobs run.  They run in the job's own process and import nothing of pysched but this package."""

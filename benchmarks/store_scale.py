"""Does the store slow down with what it holds?  Claims and finishes in an almost empty table and in a full one.

    python -m benchmarks.store_scale [--rows 1000000] [--pin-s 60] [--batch 200]

The full one has ROWS tasks queued and as many that have ended, and a transaction that stays idle for PIN_S seconds with a
snapshot from before all claims, as a forgotten session or a dump does: until it ends nothing that dies can be removed.
Both take turns of 2,000 tasks, claimed and finished in batches; what counts is the ratio of their medians, in all
turns and in the last five.  Also: how soon a store with 100,000 queued gives its first claim.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import uuid

import psycopg

from benchmarks.durable import raw
from benchmarks.durable.server import running
from pysched import policy
from pysched.model import NodeInfo
from pysched.store.claims import Claims
from pysched.store.store import Store
from pysched.task import Task

TURN = 2_000
_FILL = b"""
    INSERT INTO pysched.tasks (id, name, type, priority, rank, spec, state, submitted_at, finished_at)
    SELECT %(prefix)s || n, %(prefix)s || n, 'system', n %% 3, 0, %(spec)s, %(state)s, now(),
        CASE WHEN %(state)s = 'succeeded' THEN now() END
    FROM generate_series(1, %(rows)s) AS n
"""

"""`scheduler demo`: a mixed workload with known answers, and the report on how it went."""

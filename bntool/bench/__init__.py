"""Paired latency comparison: clock, sampling, statistics, gate."""

"""The work beside the actors: reads, reports, retirement, counters and health."""

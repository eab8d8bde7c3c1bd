"""Real parts for the tests: database servers, a proxy that misbehaves, ways to wait without sleeping."""

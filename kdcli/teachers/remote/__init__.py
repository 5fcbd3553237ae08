"""Teachers behind an API: requests, limits, and the ledger of their answers."""

"""The thread that commits: group commits, deferrals and the ledger."""

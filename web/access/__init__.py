"""Access rules: reading (read, tickets), the pages of other origins (origin) and operators (admin)."""

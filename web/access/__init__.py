"""Who may read which key, and who may operate."""

"""Who may call, what keeps tenants apart, and how much is let in."""

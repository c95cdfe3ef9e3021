"""What training with shared prefixes costs, beside training that repeats them."""

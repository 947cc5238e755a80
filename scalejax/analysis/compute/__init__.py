"""What a budget of compute buys: profiles, frontiers, allocations."""

"""The training of one model, and its lifting over many."""

"""The proof that sizes may share a program."""

"""Figures, tables and sentences from rows and curves.

Nothing is imported here: `scalejax.report.figures` brings matplotlib, and commands that draw nothing need not wait.
"""

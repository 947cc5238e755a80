"""A report as a page: its sections, written as HTML that needs nothing else, or as Markdown beside its pictures."""

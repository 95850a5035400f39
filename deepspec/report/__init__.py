"""Comparisons and reports as pictures and pages: ``plots`` and ``figures`` draw, ``page`` writes it down.

All read the JSON of what was measured, so that what was saved can be shown again.
"""

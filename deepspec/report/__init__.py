"""A comparison as a picture and as a page: ``plots`` draws it, ``page`` writes it down.

Both read what ``Comparison.to_json`` gives, so a saved comparison can be shown again.
"""

"""The built-in strategies, imported as ``deepspec_strategies`` and registered through entry points.

Each folder is one strategy: its composition, the parts that only it brings, and a README.
"""

if __name__ != "deepspec_strategies":
    # Two module objects for one file would make two classes of each part, and isinstance checks would split.
    raise ImportError(
        f"strategies/ was imported as {__name__!r}; import it as 'deepspec_strategies' "
        "(installed by `pip install -e .`)"
    )

"""Every module and package at the top can be the first that is imported: none needs another to have been."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import deepspec_strategies

import deepspec

#: What others wrote is imported once; each module then in a child of that process.
SCRIPT = """
import importlib, json, os, sys
import datasets, matplotlib.figure, pyarrow.parquet, rich.table, torch, transformers, typer
transformers.PreTrainedModel, transformers.AutoModelForCausalLM
failed = []
for name in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{name}: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        failed.append(name)
print(json.dumps(failed))
"""


def test_no_import_depends_on_what_was_imported_before() -> None:
    names = [
        module.name
        for package in (deepspec, deepspec_strategies)
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    ]
    assert "deepspec.generate" in names
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(names)], capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout) == [], ran.stderr[-2000:]

"""``deepspec doctor``: what to paste into a bug report."""

from __future__ import annotations

import typer

from deepspec.cli.console import JsonFlag, print_json, stdout


def doctor(*, json: JsonFlag = False) -> None:
    """Versions, devices, kernel backend, plugins and cache folder; exit code 1 when something is wrong."""
    from deepspec.doctor import diagnose

    found = diagnose()
    if json:
        print_json(found.to_json())
    else:
        lines = [f"python       {found.python} on {found.platform}, {found.cpu_threads} threads"]
        lines += [f"{name:<12} {number or 'not installed'}" for name, number in found.versions.items()]
        for device in found.devices:
            memory = f", {device['memory_gib']} GiB" if "memory_gib" in device else ""
            backend = found.kernel_backend[device["name"]]
            lines.append(
                f"device       {device['name']}: {device['model']}{memory}; verify kernel: {backend}"
            )
        for row in found.plugins:
            registers = ", ".join([*row["strategies"], *row["parts"]]) or "observers"
            lines.append(f"plugin       {row['name']} ({row['distribution']} {row['version']}): {registers}")
        lines.append(f"cache        {found.cache}")
        lines += [f"environment  {name}={value}" for name, value in found.environment.items()]
        lines += [f"problem      {problem}" for problem in found.problems]
        stdout().print("\n".join(lines), markup=False)
    if found.problems:
        raise typer.Exit(1)

"""Who may know whom: methods <- pipelines <- tuning, never back; the loop knows no Ray and no method."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "methods": {"ray", "pipelines", "tuning", "cluster"},
    "pipelines": {"tuning", "cluster"},
    "tuning": {"cluster"},
    "cluster": {"methods", "pipelines", "tuning"},
}


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", [name for name in FORBIDDEN if (ROOT / name).is_dir()])
def test_packages_know_only_what_they_may(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        reached = {name.split(".")[0] for name in imported(path)} & FORBIDDEN[package]
        assert not reached, f"{path.relative_to(ROOT)} imports {', '.join(reached)}"


def test_the_loop_knows_no_ray_and_no_method_by_name() -> None:
    methods = {path.stem for path in (ROOT / "methods").glob("*.py") if "METHOD = " in path.read_text()}
    assert {"sce", "byol"} <= methods
    for name in ("loop.py", "worker.py", "pretrain.py", "feed.py"):
        names = imported(ROOT / "pipelines" / name)
        assert not names & {f"methods.{method}" for method in methods}, name
    assert not any(name.split(".")[0] == "ray" for name in imported(ROOT / "pipelines" / "loop.py"))

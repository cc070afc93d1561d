"""Draw the imports of the code: `python -m docs.architecture` replaces the diagram in docs/architecture.md."""

from pathlib import Path

from tests.test_imports import LAYERS, modules, place

NAMES = ["6: programs", "5: commands", "4: runs", "3: the training", "2: its parts", "1: processes", "0: shared types"]

PAGE = Path(__file__).with_suffix(".md")


def draw() -> str:
    """The text of docs/architecture.md, with the diagram of the code as it is now."""
    columns = {(i, j): sorted(column) for i, layer in enumerate(LAYERS) for j, column in enumerate(layer)}
    edges = set()
    for name, imported in modules().items():
        here = place(name)
        edges |= {(here, there) for there in map(place, imported) if here and there and here != there}
    lines = ["flowchart TD"]
    for i, title in enumerate(NAMES):
        lines.append(f'  subgraph layer{6 - i} ["{title}"]')
        for key, column in columns.items():
            if key[0] == i:
                label = "<br>".join(name.removeprefix("backbones.") for name in column)
                lines.append(f'    n{key[0]}_{key[1]}["{label}"]')
        lines.append("  end")
    # an arrow that others lead along already says nothing new
    direct = {(a, b) for a, b in edges if not any((a, c) in edges and (c, b) in edges for c in columns)}
    lines += [f"  n{a[0]}_{a[1]} --> n{b[0]}_{b[1]}" for a, b in sorted(direct)]
    diagram = "\n".join(lines)
    text = PAGE.read_text().partition("```mermaid")[0]
    return f"{text}```mermaid\n{diagram}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(draw())

"""Write the tables of the page on encoders: ``python docs/encoder_table.py``. A test fails where they are of old."""

from __future__ import annotations

from pathlib import Path

from st_gchb.pp import list_encoders

PLACE = Path(__file__).parent / "user-guide" / "encoders"
ACCESS = {"no": "open", "terms": "login and terms", "by hand": "login, owner answers"}
NORMALIZATIONS = {
    (0.485, 0.456, 0.406): "ImageNet",
    (0.5, 0.5, 0.5): "one half",
    (0.48145466, 0.4578275, 0.40821073): "CLIP",
}
BUILDER = {"timm": "`timm`", "transformers": "`transformers`", "own code": "authors' package"}


def overview() -> str:
    """What each encoder is, and under which terms."""
    rows = [
        [
            f"`{name}`",
            f"[{one.repo_id}](https://huggingface.co/{one.repo_id})",
            f"{one.network}" + (f", {one.millions:,}\N{NO-BREAK SPACE}M" if one.millions else ""),
            one.license,
            ACCESS.get(one.gated, "not known"),
        ]
        for name, one in _rows()
    ]
    return _table(["`encoder=`", "on the hub", "network, parameters", "license", "access"], rows)


def recipe() -> str:
    """How each encoder is used."""
    rows = [
        [
            f"`{name}`",
            f"{one.patch_um:g}",
            f"{one.input_px}",
            f"{one.n_features:,}",
            one.pooling or "not known",
            NORMALIZATIONS.get(tuple(one["mean"]), "own"),
            BUILDER[one.loader],
        ]
        for name, one in _rows()
    ]
    head = ["`encoder=`", "`patch_um=`", "input, px", "features", "pooling", "normalization", "built by"]
    return _table(head, rows)


def notes() -> str:
    """Numbers and remarks that the tables have no room for."""
    lines = [f"- `{name}`: {one.note}." for name, one in _rows() if one.note]
    numbers: dict[str, str] = {}
    for name, one in _rows():
        called = NORMALIZATIONS.get(tuple(one["mean"]), f"own, of `{name}`")
        numbers.setdefault(f"mean {_numbers(one['mean'])}, standard deviation {_numbers(one['std'])}", called)
    lines += [f"- Normalization {called}: {values} (red, green, blue in 0 to 1)." for values, called in numbers.items()]
    return "\n".join(lines) + "\n"


def _rows():
    table = list_encoders()
    return list(table.astype(object).where(table.notna(), None).iterrows())


def _numbers(values) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{value:g}" for value in values)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PLACE.mkdir(exist_ok=True)
    for name, text in (("overview.md", overview()), ("recipe.md", recipe()), ("notes.md", notes())):
        (PLACE / name).write_text(text, encoding="utf-8")

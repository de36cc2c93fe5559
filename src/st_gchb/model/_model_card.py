"""Model card: what a reader of a hub should know of a model, written from the model itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from st_gchb import __version__
from st_gchb._citation import citation
from st_gchb._errors import ModelCardError
from st_gchb._hub import card_text
from st_gchb._options import PCC_THRESHOLD
from st_gchb.model._saving import SavedModel
from st_gchb.pp import FeatureSet, FeatureSpec
from st_gchb.pp.encoders import license_of

_SHOWN_GENES = 10
_SHOWN_SLICES = 20


@dataclass(frozen=True)
class CardFacts:
    """Facts that a model does not know of itself.

    Parameters
    ----------
    license_info
        License of the model, by its identifier on the hub.
    training_data
        Description of the training data.
    training_data_url
        Address of the training data.
    tissues
        Tissues of the training data.
    description
        Text below the heading.
    references
        Text with references.
    """

    license_info: str
    training_data: str
    training_data_url: str | None = None
    tissues: Sequence[str] = ()
    description: str = ""
    references: str = ""

    def check(self) -> None:
        """Validate that license and training data are named.

        Raises
        ------
        ModelCardError
            One is empty.
        """
        if not self.license_info.strip():
            raise ModelCardError(
                "license_info is empty; expected the license under which the model is shared, such as 'cc-by-4.0' or "
                "'apache-2.0' (https://huggingface.co/docs/hub/repositories-licenses lists the identifiers). It may "
                "not be more permissive than that of the training data, which the model contains."
            )
        if not self.training_data.strip():
            raise ModelCardError(
                "training_data is empty: a model whose data are unknown is of no use to others. Pass one or two "
                "sentences: which tissue and donors, which platform, where the data are published, and their license."
            )


def model_card(saved: SavedModel, facts: CardFacts, repo_id: str | None = None) -> str:
    """Write the card of a trained model, as Markdown with metadata in YAML.

    Parameters
    ----------
    saved
        Content of the model.
    facts
        What the model does not know of itself.
    repo_id
        Repository, for the line that loads the model; None for a folder.

    Raises
    ------
    ModelCardError
        License or training data are not named.
    """
    facts.check()
    sections = {
        "Use": _use(saved, repo_id),
        "Training data": _data(saved, facts),
        "Patch features": _features(saved),
        "Genes": _genes(saved),
        "Expected correlation": _correlations(saved),
        "Intended use and limits": _limits(saved),
        "License": _licenses(saved, facts),
        "Provenance": _provenance(saved),
        "References": facts.references.strip(),
        "Citation": f"```bibtex\n{citation()}```",
    }
    head = f"# {repo_id.partition('/')[2] if repo_id else 'st-gchb model'}\n\n{_summary(saved)}"
    if facts.description.strip():
        head += f"\n\n{facts.description.strip()}"
    body = "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items() if text)])
    return card_text(_metadata(saved, facts), f"{body}\n")


def _metadata(saved: SavedModel, facts: CardFacts) -> dict[str, Any]:
    """Metadata for the hub's search, with the tags of scvi-tools' hub where they fit."""
    registry = saved.registry
    tags = ["st-gchb", "spatial-transcriptomics", "histology", "pathology", "biology", "genomics"]
    tags += ["model_cls_name:STGCHB", f"st_gchb_version:{__version__}"]
    tags += [f"scvi_version:{registry.get('scvi_version', 'unknown')}", "modality:rna", "modality:image"]
    tags += [f"tissue:{tissue}" for tissue in facts.tissues]
    return {"license": facts.license_info, "library_name": "st-gchb", "tags": tags}


def _summary(saved: SavedModel) -> str:
    rules, bank = saved.rules, saved.bank
    return (
        f"Predicts the expression of {len(rules.expression.genes):,} genes from H&E images: log1p of counts per "
        f"10,000, spot by spot. Trained on {len(bank):,} spots of {len(set(bank.slices)):,} slices with "
        f"st-gchb {__version__}, preset `{saved.preset}`."
    )


def _use(saved: SavedModel, repo_id: str | None) -> str:
    source = repo_id or "path/to/this/folder"
    rule = saved.rules.features
    gated = [spec.encoder for spec in _encoders(rule) if "terms to be accepted" in license_of(spec.encoder)]
    log_in = (
        f"\n\nThe encoder {', '.join(map(_code, gated))} asks for a login: see the section License." if gated else ""
    )
    return (
        "```python\nimport st_gchb\nfrom st_gchb.model import STGCHB\n\n"
        f'model = STGCHB.from_pretrained("{source}")\n'
        'query = st_gchb.pp.tile_tissue("slide.svs")  # or an AnnData or SpatialData with spots and an image\n'
        "prediction = model.predict(query)\n"
        'prediction.layers["st_gchb"]  # with confidence in prediction.obs["st_gchb_confidence"]\n```\n\n'
        f"The files are safetensors, Parquet and JSON: reading them runs no code.{log_in}"
    )


def _data(saved: SavedModel, facts: CardFacts) -> str:
    origin = saved.bank.origin
    counts = origin.groupby("slice", sort=False, observed=True).size()
    patients = origin.groupby("slice", sort=False, observed=True)["patient"].first() if "patient" in origin else None
    rows = [
        [_code(name), *([] if patients is None else [_code(patients[name])]), f"{n:,}"]
        for name, n in list(counts.items())[:_SHOWN_SLICES]
    ]
    more = f"\n\n{len(counts) - _SHOWN_SLICES:,} more slices are not listed." if len(counts) > _SHOWN_SLICES else ""
    parts = [facts.training_data.strip()]
    if facts.training_data_url:
        parts.append(f"Data: <{facts.training_data_url}>")
    if facts.tissues:
        parts.append(f"Tissues: {', '.join(facts.tissues)}.")
    kind = "log-normalized values" if saved.rules.expression.log_normalized else "raw counts"
    parts.append(f"The expression was given as {kind}.")
    header = ["slice", *([] if patients is None else ["patient"]), "spots"]
    return "\n\n".join([*parts, _table(header, rows) + more])


def _features(saved: SavedModel) -> str:
    rules = saved.rules
    if rules.features is None:
        return (
            f"{rules.n_features:,} features per spot were made outside st-gchb ({_code(rules.features_key)}): a query "
            "has to bring its own, made the same way."
        )
    rows = [
        [
            _code(spec.encoder),
            _size(spec),
            f"{spec.n_features:,}",
            f"{spec.n_views}",
            _weights(spec),
            license_of(spec.encoder),
        ]
        for spec in rules.features.specs
    ]
    table = _table(["encoder", "patch", "features", "views", "weights", "license of the weights"], rows)
    first = rules.features.first
    notes = []
    if first.stain_norm is not None:
        notes.append(f"Stain is normalized by the method {_code(first.stain_norm)} to that of the reference.")
    if first.precision is not None:
        notes.append(f"The encoder computes in {_code(first.precision)}.")
    if any(spec.encoder.startswith("module:") for spec in rules.features.specs):
        notes.append("A module of the authors' made the features, which is not part of the model: ask them for it.")
    if rules.features.in_px:
        notes.append("Patches have a size in pixels: a query has to have the reference's size of a pixel.")
    else:
        notes.append("Patches have a physical size: the size of a query's pixels in µm has to be known.")
    hashes = [f"- {_code(spec.encoder)}: `{spec.weights_sha256}`" for spec in rules.features.encoders]
    return "\n\n".join(
        [table, " ".join(notes), "SHA-256 of the weights, by which a query's encoder is checked:", "\n".join(hashes)]
    )


def _genes(saved: SavedModel) -> str:
    genes = saved.rules.expression.genes
    tables = [name for name in saved.bank.tables if name != "panel"]
    shown = ", ".join(_code(gene) for gene in genes[: 3 * _SHOWN_GENES])
    rest = f" and {len(genes) - 3 * _SHOWN_GENES:,} more" if len(genes) > 3 * _SHOWN_GENES else ""
    also = f"\n\nOther tables of the reference that can be predicted (`layer=`): {', '.join(map(_code, tables))}."
    return f"{len(genes):,}: {shown}{rest}. All are in `model.json`, field `genes`.{also if tables else ''}"


def _correlations(saved: SavedModel) -> str:
    if saved.calibration is None:
        return (
            "Not measured: the model was trained with `calibrate=False`. Its predictions carry no confidence, and "
            "nothing is known of their correlation with measured expression."
        )
    found = pd.Series(saved.calibration.expected_pcc, index=saved.rules.expression.genes)
    known = found.dropna().sort_values(ascending=False, kind="stable")
    if known.empty:
        return "No gene varies enough on the held-out reference slices for a correlation."
    low, middle, high = np.quantile(known, [0.1, 0.5, 0.9])
    lines = (
        f"Pearson correlation of predicted and measured expression over the spots of reference slices that were left "
        f"out in turn: median {middle:.2f}, 10 % of genes below {low:.2f} and 10 % above {high:.2f}; "
        f"{int((known > PCC_THRESHOLD).sum()):,} of {len(found):,} genes above {PCC_THRESHOLD:g}. Slides of other "
        "patients, laboratories and scanners may do worse."
    )
    best = [[_code(gene), f"{value:.2f}"] for gene, value in known.head(_SHOWN_GENES).items()]
    return f"{lines}\n\n{_table(['best genes', 'correlation'], best)}"


def _limits(saved: SavedModel) -> str:
    return (
        "For research on tissue like that of the training data: maps of genes on slides that have H&E alone, choice of "
        "slides and regions to measure, comparison with measured slides. Not a medical device, and not for diagnosis "
        "or treatment.\n\n"
        "- A prediction is an average of what similar tissue of the reference expresses: it is smoother than measured "
        "expression, and what morphology does not show is not in it.\n"
        '- Genes of low expected correlation are predicted all the same: choose by `var["st_gchb_expected_pcc"]`.\n'
        '- Spots unlike the reference are flagged (`obs["st_gchb_outlier"]`): leave them out.\n'
        "- The model contains the measured expression and positions of its reference spots. Who shares it shares these."
    )


def _licenses(saved: SavedModel, facts: CardFacts) -> str:
    named = [(one.encoder, license_of(one.encoder)) for one in _encoders(saved.rules.features)]
    named = [(name, terms) for name, terms in named if name != "texture"]
    own = f"This model: {facts.license_info}."
    others = [f"- encoder {_code(name)}, which is not part of it: {terms}" for name, terms in named]
    return "\n\n".join([own, "\n".join(others)]) if others else own


def _provenance(saved: SavedModel) -> str:
    rows = [
        ["model id", _code(saved.model_id)],
        ["st-gchb", _code(__version__)],
        ["scvi-tools", _code(str(saved.registry.get("scvi_version", "unknown")))],
        ["preset, seed", f"{_code(saved.preset)}, {saved.seed}"],
        ["epochs", f"{max((len(one) for one in saved.history.values()), default=0)}"],
    ]
    return f"{_table(['', ''], rows)}\n\nAll settings, and the SHA-256 of each file, are in `model.json`."


# ---- Markdown ----


def _encoders(features: FeatureSet | None) -> list[FeatureSpec]:
    return [] if features is None else features.encoders


def _size(spec: FeatureSpec) -> str:
    return f"{spec.patch_um:g} µm" if spec.patch_px is None else f"{spec.patch_px:g} px"


def _weights(spec: FeatureSpec) -> str:
    """Name the weights without the folder in which they lay, which is nobody else's."""
    return _code(re.split(r"[/\\]", spec.weights)[-1])


def _code(text: object) -> str:
    """Show a name as it is: no HTML, no Markdown and no column of a table comes of it."""
    line = " ".join(str(text).split()).replace("|", r"\|")
    if not line:
        return "-"
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

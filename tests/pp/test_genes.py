"""Which columns are genes: kinds and genomes by the table's own words, by names where it has none."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from st_gchb._errors import ExpressionError
from st_gchb._genes import GENE, check_genes, feature_kinds, genomes, tell_genes

ANTIBODIES = ["CD3_TotalSeqB", "CD19-TotalSeqC", "ADT_CD4", "HTO-1", "Hashtag1"]
PROBES = ["NegControlProbe_00042", "NegPrb3", "BLANK_0001", "Blank-12", "antisense_TP53", "UnassignedCodeword_0001"]
GENES = ["ACTB", "CD3E", "HLA-A", "MT-CO1", "NEGR1", "ABL1", "ADT1P", "ERCC1", "Hashtag", "FO538757.1", "BLANKA"]


def table(names, **columns) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(names))


def test_names_that_no_gene_has():
    names = [*GENES, *ANTIBODIES, *PROBES, "ERCC-00002", "__no_feature", "N_unmapped"]
    kinds = feature_kinds(table(names))
    assert (kinds[: len(GENES)] == GENE).all()
    assert (kinds[len(GENES) : len(GENES) + 5] == "Antibody Capture").all()
    assert (kinds[len(GENES) + 5 : -3] == "control probe").all()
    assert kinds[-3:].tolist() == ["spike-in", "reads without a gene", "reads without a gene"]


@pytest.mark.parametrize("column", ["feature_types", "feature_type"])
def test_the_table_says_what_its_columns_are(column):
    said = ["Gene Expression", "Antibody Capture", "Negative Control Probe", np.nan, np.nan]
    kinds = feature_kinds(table(["A", "B", "C", "D", "E_TotalSeqB"], **{column: said}))
    assert kinds.tolist() == [GENE, *said[1:3], GENE, "Antibody Capture"]


@pytest.mark.parametrize("said", [["protein_coding", "lncRNA"], [1, 2], [None, None], ["", "x"]])
def test_words_of_other_meaning_decide_nothing(said):
    assert (feature_kinds(table(["A", "B"], feature_types=said)) == GENE).all()


def test_genomes_by_column_and_by_name():
    assert genomes(table(["A", "B"], genome=["GRCh38", np.nan])).tolist() == ["GRCh38", ""]
    assert genomes(table(["hg19_A", "mm10___B", "MM10", 7])).tolist() == ["hg19", "mm10", "", ""]


CASES = {
    "said": ({"feature_types": [GENE] * 8 + ["Antibody Capture"] * 2}, [f"G{i}" for i in range(10)]),
    "said, with gaps": ({"feature_types": [GENE] * 7 + [np.nan] + ["Custom"] * 2}, [f"G{i}" for i in range(10)]),
    "two names": ({}, [*(f"G{i}" for i in range(8)), "CD3_TotalSeqB", "CD4_TotalSeqB"]),
    "many names": ({}, ["G0", *(f"CD{i}_TotalSeqB" for i in range(8)), "NegPrb1"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_line_in_the_message_leaves_the_genes_alone(case):
    columns, names = CASES[case]
    adata = ad.AnnData(np.ones((3, 10), np.float32), var=table(names, **columns))
    with pytest.raises(ExpressionError, match=r"no genes \(.*of all counts") as caught:
        check_genes(adata.var, np.ones(10), "X")
    line = str(caught.value).split("adata = ")[1]
    rest = eval(line, {"adata": adata})
    assert 0 < rest.n_vars < 10
    assert (feature_kinds(rest.var) == GENE).all()
    check_genes(rest.var, np.ones(rest.n_vars), "X")


def test_few_counts_beside_genes_are_told(caplog):
    totals = np.array([1000.0, 1000.0, 3.0])
    check_genes(table(["A", "B", "NegPrb1"]), totals, "X")
    tell_genes(table(["A", "B", "NegPrb1"]), totals, "X")
    assert "1 'control probe'" in caplog.text
    assert "0.1%" in caplog.text


def test_a_table_without_genes_is_refused():
    with pytest.raises(ExpressionError, match="beside 0 genes.*table of gene counts"):
        check_genes(table(["A", "B"], feature_types=["Antibody Capture"] * 2), np.ones(2), "X")


@pytest.mark.parametrize(
    ("names", "columns", "kept"),
    [
        (["A", "B", "S"], {"genome": ["GRCh38", "GRCh38", "wuhCor1"]}, ["A", "B"]),
        (["GRCh38_A", "GRCh38_B", "mm10_C"], {}, ["GRCh38_A", "GRCh38_B"]),
    ],
)
def test_a_second_genome_is_told_with_its_share(names, columns, kept, caplog):
    adata = ad.AnnData(np.ones((2, 3), np.float32), var=table(names, **columns))
    tell_genes(adata.var, np.array([5.0, 4.0, 1.0]), "X")
    assert "2 genomes" in caplog.text
    assert "10.00%" in caplog.text
    line = caplog.text.split("adata = ")[1].splitlines()[0]
    assert eval(line, {"adata": adata}).var_names.tolist() == kept


def test_one_genome_is_no_news(caplog):
    tell_genes(table(["A", "B"], genome=["GRCh38", ""]), np.ones(2), "X")
    assert not caplog.text

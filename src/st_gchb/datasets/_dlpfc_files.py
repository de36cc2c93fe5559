"""Files of the slices of human dorsolateral prefrontal cortex, and where they are published."""

from __future__ import annotations

from st_gchb.datasets._fetch import DataFile

_BUCKET = "https://spatial-dlpfc.s3.us-east-2.amazonaws.com"
_REPOSITORY = "https://raw.githubusercontent.com/LieberInstitute/HumanPilot/master/10X"

PATIENTS = {
    **dict.fromkeys(("151507", "151508", "151509", "151510"), "Br5292"),
    **dict.fromkeys(("151669", "151670", "151671", "151672"), "Br5595"),
    **dict.fromkeys(("151673", "151674", "151675", "151676"), "Br8100"),
}

PAPER_SLICES = ("151669", "151670", "151673", "151674", "151675", "151676")

_LAYERS = "barcode_level_layer_map.tsv"

_SHA256 = {
    "151669_tissue_positions_list.csv": "00147e492d41a3724c413934ef777c94f72f15636933346783fcd3e7903bddb4",
    "151669_scalefactors_json.json": "46422f5b8e256c6f532b9e3bd59671a16536bb6e4640f44fbf69fc654b53c5d3",
    "151670_tissue_positions_list.csv": "cf1cf68a6efe052f10b86b32c0b7f142d6d4bfcfa107aafa92c56234b08ec25a",
    "151670_scalefactors_json.json": "125b25b3df2a99c60bc3364c398f0c7cd9ae47401551f87265ed5e580a3fea2f",
    "151673_tissue_positions_list.csv": "c1ce0eafc855982bb2a9773f147ce6c5aef68dfd06600caa8a7e7a0e6f7cc5e8",
    "151673_scalefactors_json.json": "91c4beb9ca8145855a6a6df0a00eda6541931fc12d82d09cf8f01c9c15179dbc",
    "151674_tissue_positions_list.csv": "bc8738299011382ad81a35d81c5bcb1546b17b5c10a5a6411baf9bc1f58acca7",
    "151674_scalefactors_json.json": "869be1c7c2bc7722b1858e1f41a491305264208d083d641786e6f102fc723bac",
    "151675_tissue_positions_list.csv": "2c857eeddd96898d5d17bd066ee9f55fb8f0c7c7758cb8c26f71dc95d60024ff",
    "151675_scalefactors_json.json": "fce4c55751326c1bf9af0f87591a4bab1383fcab0b10714bf688d2eabf909dc6",
    "151676_tissue_positions_list.csv": "2b655c9ead1fa5686ef9a49ab8452d56cd849dc1d15779b215e4f9726ebe55c0",
    "151676_scalefactors_json.json": "2ee6b05b734c39688792ca2d26b8558b59c116098fc184b579b500d3b8497afd",
}
"""Of what Space Ranger wrote. For counts, images and layers no checksum is published."""


def geometry_files(name: str) -> dict[str, DataFile]:
    """Give positions, scale factors and layers of one slice."""
    return {
        "positions": _file(name, "tissue_positions_list.csv", f"{_REPOSITORY}/{name}/tissue_positions_list.txt"),
        "scalefactors": _file(name, "scalefactors_json.json", f"{_REPOSITORY}/{name}/scalefactors_json.json"),
        # One table for all slices in the repository; a folder may have one per slice instead.
        "layers": DataFile(
            _LAYERS, f"{_REPOSITORY}/{_LAYERS}", None, (f"{name}/layers.tsv", f"{name}_layers.tsv", f"10X/{_LAYERS}")
        ),
    }


def slice_files(name: str, image: str) -> dict[str, DataFile]:
    """Give all files of one slice, with the full-resolution image where ``image`` is ``"full"``."""
    files = geometry_files(name)
    files["counts"] = _file(name, "filtered_feature_bc_matrix.h5", f"{_BUCKET}/h5")
    files["hires"] = _file(name, "tissue_hires_image.png", f"{_BUCKET}/images")
    if image == "full":
        files["full"] = _file(name, "full_image.tif", f"{_BUCKET}/images")
    return files


def _file(name: str, rest: str, url: str) -> DataFile:
    flat = f"{name}_{rest}"
    address = url if url.endswith((".txt", ".json")) else f"{url}/{flat}"
    stem = rest.rsplit(".", 1)[0]
    # In a folder per slice, or as Space Ranger lays its output out.
    places = (f"{name}/{rest}", f"{name}/spatial/{rest}", f"{name}/{flat}", f"h5/{flat}", f"images/{flat}")
    repository = (f"10X/{name}/{stem}.*",)
    return DataFile(flat, address, _SHA256.get(flat), (*places, *repository))

from ._api import embed_slides as embed_slides, predict_slides as predict_slides
from ._tasks import SPACING_UM as SPACING_UM, read_query as read_query

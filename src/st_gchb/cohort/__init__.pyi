from ._api import embed_slides as embed_slides, predict_slides as predict_slides
from ._local import WORKER_IMPORTS as WORKER_IMPORTS, local_workers as local_workers
from ._manifest import Slide as Slide, slides_of as slides_of
from ._receipts import content_of as content_of
from ._tasks import Embed as Embed, read_query as read_query
from ._viewer_files import most_predictable as most_predictable

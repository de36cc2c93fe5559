from ._backbones import backbone_without_weights as backbone_without_weights, torchvision_names as torchvision_names
from ._encoder import Encoder as Encoder, get_encoder as get_encoder
from ._pathology import (
    PATHOLOGY_ENCODERS as PATHOLOGY_ENCODERS,
    PathologyEncoder as PathologyEncoder,
    list_encoders as list_encoders,
)
from ._registry import (
    FACTORIES as FACTORIES,
    is_known as is_known,
    license_of as license_of,
    register_encoder as register_encoder,
)
from ._runner import (
    Batch as Batch,
    EncoderRunner as EncoderRunner,
    EncodingOptions as EncodingOptions,
    RunnerBatch as RunnerBatch,
    choose_device as choose_device,
    halved as halved,
)

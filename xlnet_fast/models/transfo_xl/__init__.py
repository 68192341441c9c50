"""Transformer-XL (Dai et al. 2019), whose checkpoints transformers no longer runs.

    import xlnet_fast.models.transfo_xl  # registers the classes with Hugging Face's Auto classes
    model = AutoModelForCausalLM.from_pretrained(folder)  # one of transfo-xl-wt103's kind

Names, arguments, outputs and weights are those of transformers 4.37, the last in which it ran; the
attention is ours.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from xlnet_fast.models.transfo_xl.configuration import TransfoXLConfig
from xlnet_fast.models.transfo_xl.heads import (
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
)
from xlnet_fast.models.transfo_xl.modeling import TransfoXLModel
from xlnet_fast.models.transfo_xl.outputs import (
    TransfoXLLMHeadModelOutput,
    TransfoXLModelOutput,
    TransfoXLSequenceClassifierOutputWithPast,
)
from xlnet_fast.models.transfo_xl.tokenization import TransfoXLTokenizer

__all__ = [
    "TransfoXLConfig",
    "TransfoXLForSequenceClassification",
    "TransfoXLLMHeadModel",
    "TransfoXLLMHeadModelOutput",
    "TransfoXLModel",
    "TransfoXLModelOutput",
    "TransfoXLSequenceClassifierOutputWithPast",
    "TransfoXLTokenizer",
]

# Versions before 5 still know the names, for classes that do not run, and take them first.
TOKENIZER_MAPPING_NAMES.pop(TransfoXLConfig.model_type, None)
AutoConfig.register(TransfoXLConfig.model_type, TransfoXLConfig, exist_ok=True)
AutoModel.register(TransfoXLConfig, TransfoXLModel, exist_ok=True)
AutoModelForCausalLM.register(TransfoXLConfig, TransfoXLLMHeadModel, exist_ok=True)
AutoModelForSequenceClassification.register(
    TransfoXLConfig, TransfoXLForSequenceClassification, exist_ok=True
)
AutoTokenizer.register(TransfoXLConfig, slow_tokenizer_class=TransfoXLTokenizer, exist_ok=True)

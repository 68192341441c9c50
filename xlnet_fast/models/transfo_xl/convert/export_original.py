"""Make of the original code's ``model.pt`` a file that needs none of its code to be read.

For the machine, the Python and the PyTorch that trained the model, so with nothing but PyTorch, and
with the syntax of its time. Copy it beside the original's ``mem_transformer.py``:

    python export_original.py model.pt export.pt [cache.pt]

``cache.pt`` is the data set's, which has the vocabulary. Reading either file runs the code in it:
do this with your own files alone.
"""

import sys

import torch


def read(path):  # type: ignore[no-untyped-def]
    """An object of any class, on the CPU."""
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except TypeError:  # of a time when there was nothing else
        return torch.load(path, map_location="cpu")


def export(model):  # type: ignore[no-untyped-def]
    """The weights of a ``MemTransformerLM``, and what their shapes do not tell."""
    model = getattr(model, "module", model)  # of DataParallel
    attention = model.layers[0].dec_attn
    args = {
        name: getattr(model, name)
        for name in (
            "attn_type",
            "sample_softmax",
            "mem_len",
            "ext_len",
            "same_length",
            "clamp_len",
        )
    }
    args["pre_lnorm"] = attention.pre_lnorm
    args["dropout"] = model.drop.p
    args["dropatt"] = attention.dropatt.p
    args["div_val"] = model.word_emb.div_val
    args["cutoffs"] = list(model.word_emb.cutoffs[:-1])
    return {"state_dict": model.state_dict(), "args": args}


def main(arguments):  # type: ignore[no-untyped-def]
    """Read one file or two, write one."""
    if len(arguments) not in (2, 3):
        sys.exit("usage: python export_original.py model.pt export.pt [cache.pt]")
    found = export(read(arguments[0]))
    if len(arguments) == 3:
        found["vocab"] = list(read(arguments[2]).vocab.idx2sym)
    torch.save(found, arguments[1])


if __name__ == "__main__":
    main(sys.argv[1:])

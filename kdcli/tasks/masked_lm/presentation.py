"""Presents the results of masked language modelling."""

from __future__ import annotations

from kdcli.tasks.causal_lm.presentation import PERPLEXITY
from kdcli.tasks.presentation import Card, Presentation

PRESENTATION = Presentation(
    metric=PERPLEXITY,
    card=Card(
        tag="fill-mask",
        metrics=("perplexity",),
        model="masked language model",
        use="""from transformers import pipeline
fill = pipeline("fill-mask", model="path/to/this/directory")
print(fill(f"A text with one {fill.tokenizer.mask_token} masked."))""",
        figures="Perplexity\nis exp of minus the mean log-probability of a masked token: 1 would be certainty, lower is better.",
        agreement="Its most likely token is the teacher's at {} of the masked places.",
        limits="It predicts masked tokens; for a task of your own it has to be tuned first.",
        labelled="are text",
    ),
)

"""Every real SDK against every backend, feature by feature, through one gateway; `python -m tests.matrix` writes what
was seen to `gateway/MATRIX.md`.

`asks.py` says what is asked in nobody's words; `openai_sdks.py`, `anthropic_sdks.py`, `google_sdk.py`, `aws_sdk.py` and
`azure_sdk.py` say it in each SDK's own; `features.py` judges the answers; `run.py` runs all cells and renders them.
"""

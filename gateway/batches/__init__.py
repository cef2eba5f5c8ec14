"""Files of requests, run by the gateway itself over any provider, at the price of the variant `batch`.

`lines.py` reads an uploaded file, `store.py` keeps files, batches and lines in SQL, `api.py` is what OpenAI's clients
see of them and `messages.py` what Anthropic's do, `forms.py` words a line's end for either, `runner.py` does the work
in every gateway process."""

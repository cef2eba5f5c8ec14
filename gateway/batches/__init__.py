"""Files of requests, run by the gateway itself over any provider, at the price of the variant `batch`.

`lines.py` reads an uploaded file, `store.py` keeps files, batches and lines in SQL, `api.py` is what clients see of
them, `runner.py` does the work in every gateway process."""

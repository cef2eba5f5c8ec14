"""The switchyard: health, order, retries."""

"""Bodies of requests and answers, for projects that log them: redacted, sealed, for a while, read under audit."""

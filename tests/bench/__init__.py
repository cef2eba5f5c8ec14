"""Commands that measure, each with the machine's own figures; the suite runs none of them."""

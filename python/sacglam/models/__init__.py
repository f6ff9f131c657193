"""Language models as policies: loading, adapters, Q heads, packed scoring."""

"""The JSON-lines protocol: how managers in other languages are checked and replayed."""

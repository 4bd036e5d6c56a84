"""All decisions of the engine, taken in synchronous calls that do no I/O and never wait."""

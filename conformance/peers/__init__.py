"""Managers of other projects behind our interface, for those who have them installed.

An adapter translates words and nothing else: what a peer does, right or wrong, has to be visible
through it. ``docs/peers.md`` says how to install the peers and what was found in them.
"""

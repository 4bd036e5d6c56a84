"""What people and their tools see of a running engine: metrics, spans, timelines, explanations.

Import what you need from the modules: ``prometheus`` and ``spans`` want packages of the extra
``server``, which the engine itself does without.
"""

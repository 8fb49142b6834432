"""Studies of the methods: ablations, and baselines such as random initialisations and copied training objects.

Run ``python -m studies.NAME --help``.
"""

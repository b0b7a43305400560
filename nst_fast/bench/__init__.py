"""``nst-fast bench``: numbers that a sceptic can rerun.

Suites (``suites/``) time routes by one method (``method``), beside the floor of the machine
(``floor``) and the peers of a checkout (``peers``); what they find is one JSON file (``findings``),
and every table, plot and comparison is made from it. docs/benchmarks.md tells the method.
"""

"""Stage two: train probes on stored tokens, keep them with their results, and classify new images with them.

`probe_spec` parses names, `probe` trains groups (`probe_groups`, `training`, `post_hoc`) on `tokens/`, `row_folder` and `results`
keep what comes out, `predict` uses it.
"""

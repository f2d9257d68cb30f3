"""Stage one: run images through a model and write its tokens to stores, in one process or several.

`extract` decides what is missing, `loop` computes it: `decoding`, `transfer` and `forward`, `write_behind`. `parity` and `overflow`
compare the precision with float32 first; `disk_space` refuses what does not fit; `ranks` divides the work.
"""

"""Every picture of a study, a column wide: SVG, PNG, and its numbers as CSV.

gains       draw_gains                                              gain of every probe over the reference, as box plot
sizes       draw_gains_by_size                                      against the size of the model
tables      draw_table                                              the per-data-set table as a picture
heatmaps    draw_attention, draw_similarity, draw_similarity_to_final
levels      draw_levels                                             accuracy level by level
ablations   draw_series (kinds, heads, tokens kept), draw_seeds, draw_train_test
"""

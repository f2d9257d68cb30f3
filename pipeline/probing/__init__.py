"""Stage two: train probes on stored tokens, keep them with their results, and classify new images with them."""

"""Tables and pictures of many runs, from what fairseq and this plugin left in their folders."""

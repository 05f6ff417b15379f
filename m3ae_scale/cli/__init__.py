"""m3ae-scale VERB: the command line."""

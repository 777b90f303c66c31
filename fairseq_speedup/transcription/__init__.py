"""Audio files to texts and subtitles, without a data set: what is above decoding and its task."""

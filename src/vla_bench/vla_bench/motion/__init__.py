"""The motion benchmark: chunk blending, path deviation and time lost, beside plain versions of other methods."""

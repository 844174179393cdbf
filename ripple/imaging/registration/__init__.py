"""Do the bands of a cutout show the same piece of sky, the same way up?"""

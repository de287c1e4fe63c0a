"""Parts that networks share. Frames travel as a batch of pictures, ``(B T) C H W``, so one clip or one image is one code path."""

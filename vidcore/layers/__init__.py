"""Parts that networks share. Frames travel as a batch of pictures, ``(B T) C H W``: a clip and an image are one path."""

"""vidcore: video diffusion, one readable set of choices per published system.

Data flow, which is also the order to read the folders in::

    video/ -> codec/ -> schedule.py -> denoise.py (net from systems/) -> sample/ x guide/ -> codec/ -> video/

Inside the core a clip is a float tensor ``B C T H W`` in ``[-1, 1]``. The core needs torch, einops,
safetensors, av and numpy; it never imports ComfyUI. Importing this package does no work.
"""

__version__ = "0.1.0"
